"""Signs of every sort, and the sign that a prompt describes."""

from hypothesis import strategies as st

from textpatch.weights.signs.drawing import COLOURS, LETTERS, PATTERNS, SHAPES, STYLES, Sign

all_signs = st.builds(
    Sign,
    st.text(LETTERS, min_size=1, max_size=6),
    st.sampled_from([*COLOURS]),
    st.sampled_from(SHAPES),
    st.sampled_from([*COLOURS]),
    st.sampled_from(PATTERNS),
    st.sampled_from([*STYLES]),
)


def parse(prompt: str) -> Sign:
    """Sign of a prompt, by its quoted word and by what its other words can only mean."""
    before, word, after = prompt.split('"')
    (colour, shape), wall = before.split()[1:3], after.split()[-2]
    named = [
        next((w for w in after.split() if w in known), "plain") for known in (PATTERNS, STYLES)
    ]
    return Sign(word, colour, shape, wall, *named)
