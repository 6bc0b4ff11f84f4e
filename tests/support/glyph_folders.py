"""Folders of prompts in GlyphControl's published layout."""

from pathlib import Path

from textpatch.prompts.glyphcontrol import RAW, SPLITS, TEMPLATES

BUCKETS = [name for names in SPLITS.values() for name in names]
WORDS = {
    name: [first + vowel + "lo" for vowel in "aeiouyz"]
    for first, name in zip("bdfg", BUCKETS, strict=True)
}
SENTENCES = [
    'A lamp that says ""',
    'The word "" in chalk',
    '"" on a ship',
    'a map titled "", folded',
]
GLYPH = [
    'a red sign that says "" on a blue wall',
    'a green arrow with text "" in mono on a dotted pink wall',
]


def write(folder: Path, words=WORDS, sentences=SENTENCES) -> Path:
    """A folder of the published layout."""
    for name in words:
        path = folder / RAW / "SimpleBench" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("\n".join(words[name]).encode())
    (folder / TEMPLATES).parent.mkdir(parents=True, exist_ok=True)
    (folder / TEMPLATES).write_bytes("\n".join(sentences).encode())
    return folder
