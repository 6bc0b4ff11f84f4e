"""Prompts of CVTG-2K, several texts in a scene each.

CVTG-2K (TextCrafter, arXiv 2503.23461) publishes a folder with these files.

    CVTG/2.json ... 5.json          prompts with 2 to 5 texts: {"data_list": [entry, ...]}
    CVTG-Style/2.json ... 5.json    the same, with words about size, colour and font
    N_combined.json                 the prompts alone, which are not read here

An entry has "index" and "prompt", and "carrier_list" and "sentence_list" for methods that place the texts.
Texts stand in single straight quotes.  The scorer reads words between every two such signs, an apostrophe
included, in small letters.  It looks for the picture of entry 17 of CVTG/2.json at CVTG/2/17.png.

Seen in the published scorer (unified_metrics_eval.py) and README; the data were not at hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from textpatch.errors import PromptError
from textpatch.prompts.layouts.asked import (
    Asked,
    parsed,
    prompt_of,
    require_apart,
    require_first,
    text_of,
)

SUBSETS = ("CVTG", "CVTG-Style")
COUNTS = (2, 3, 4, 5)
LAYOUT = (
    'a file of CVTG-2K, such as CVTG/2.json: {"data_list": [{"index": 0, "prompt": "..."}, ...]}'
)
# as the scorer finds them
_TEXT = re.compile(r"'([^'\n]*)'")


def cvtg_prompts(path) -> list[Asked]:
    """Read the prompts of CVTG-2K, of a copy of the whole folder or of one of its files.

    The texts of a prompt are those that the scorer takes from it, none for a prompt without single quotes.
    Raises PromptError for files that are not as above, naming file and entry.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = [file for subset in SUBSETS for file in _files(path, subset)]
        if not files:
            raise PromptError(
                f"{path} has neither CVTG/2.json nor another file of CVTG-2K; give a copy of its folder"
            )
    asked = [one for file in files for one in _entries(file)]
    require_apart(asked, str(path))
    return asked


def cvtg_pictures(asked: Sequence[Asked], repeat: int = 0) -> list[str]:
    """Name of each entry's picture, within the folder of results.   Raises PromptError for a second one."""
    require_first(repeat, "CVTG-2K")
    return [f"{one.place}.png" for one in asked]


def _files(folder: Path, subset: str) -> list[Path]:
    """Files of a subset.  The folder is published as CVTG-style, and the scorer asks for CVTG-Style."""
    folders = [one for one in sorted(folder.iterdir()) if one.name.lower() == subset.lower()]
    named = [one / f"{count}.json" for one in folders for count in COUNTS]
    return [file for file in named if file.exists()]


def _entries(file: Path) -> list[Asked]:
    data = parsed(text_of(file, LAYOUT), str(file), LAYOUT)
    entries = data.get("data_list") if isinstance(data, dict) else None
    subsets = [subset for subset in SUBSETS if subset.lower() == file.resolve().parent.name.lower()]
    if not isinstance(entries, list) or not subsets or file.stem not in map(str, COUNTS):
        raise PromptError(f"{file}: expected {LAYOUT}, in a folder {' or '.join(SUBSETS)}")
    asked = []
    for number, entry in enumerate(entries):
        prompt, index = prompt_of(entry, "index", f"{file}, entry {number} of data_list")
        texts = tuple(" ".join(text.split()) for text in _TEXT.findall(prompt))
        asked.append(Asked(prompt, texts, f"{subsets[0]}/{file.stem}/{index}", entry))
    return asked
