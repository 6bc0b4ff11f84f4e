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
