"""Format of signs of two lines, of nine places each.

Patterns begin at the same place, so that the prompt fixes them.
"""

from textpatch.weights.signs.drawing import LETTERS, SMALL, SignFormat

TWO_LINES = SignFormat(
    height=40,
    width=80,
    cap=8,
    top=9,
    left=4,
    pitch=8,
    longest=9,
    styles=("plain", "bold"),
    lines=2,
    leading=12,
    margin=5,
    corner=8,
    letters=LETTERS + SMALL,
    shapes=("sign", "badge"),
    phases=1,
)

# Letters and blanks of both lines that tiny-words tells apart.  Its T5 counts 15 tokens back from a token,
# and lumps those before: of texts of 16 it draws few whole, of 15 nearly all.
MOST_IN_ALL = 15
# Of a line.  Beside so many an 11 x 11 window of background is left, which SSIM needs.
MOST_ON_A_LINE = 8
