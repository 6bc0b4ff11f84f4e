"""Prompts of LongText-Bench, with texts of many words.

LongText-Bench (X-Omni, arXiv 2507.22058) publishes two files of JSON lines, text_prompts.jsonl in English and
text_prompts_zh.jsonl in Chinese.  A line has "prompt_id", "prompt" and "text", the text or the list of texts
that the picture must show, beside "category", "length" and "text_length".
The scorer looks for four pictures of every prompt, 0017_1.png to 0017_4.png for prompt_id 17, in a folder of
one language.  It reads them with Qwen2.5-VL and writes lines of {"image", "prompt", "ocr_gt", "ocr_results"},
from which a second script makes the figures.

Seen in the published README and scorer (evaluate_text_reward.py); the data and the second script
(summary_scores.py) were not at hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from textpatch.errors import PromptError
from textpatch.prompts.layouts.asked import Asked, parsed, prompt_of, require_apart, text_of

REPEATS = 4
LAYOUT = 'a file of LongText-Bench: a line {"prompt_id": 0, "prompt": "...", "text": ["...", ...]} a prompt'


def longtext_prompts(path) -> list[Asked]:
    """Read the prompts of LongText-Bench from the file of one language.

    Raises PromptError for a file that is not as above, naming file and line.
    """
    path = Path(path)
    asked = []
    for number, line in enumerate(text_of(path, LAYOUT).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            entry = parsed(line, where, LAYOUT)
            prompt, place = prompt_of(entry, "prompt_id", where)
            asked.append(Asked(prompt, _texts(entry.get("text"), where), f"{place:04d}", entry))
    require_apart(asked, str(path))
    return asked


def longtext_pictures(asked: Sequence[Asked], repeat: int = 0) -> list[str]:
    """Name of each entry's picture, within the folder of samples.

    repeat  which picture of its prompt, from 0
    Raises PromptError for a fifth one.
    """
    if not 0 <= repeat < REPEATS:
        raise PromptError(
            f"picture {repeat + 1} of a prompt asked for; the scorer of LongText-Bench takes {REPEATS}, "
            f"so give at most {REPEATS} seeds"
        )
    return [f"{one.place}_{repeat + 1}.png" for one in asked]


def longtext_results(asked: Sequence[Asked], names: Sequence[str], read: Sequence[str]) -> str:
    """Lines of results, as the scorer writes them, of what a reader read in pictures.

    asked  the entry of each picture
    names  the name of each picture
    read   the text read in each
    Raises PromptError for more or fewer names or readings than entries.
    """
    if not len(asked) == len(names) == len(read):
        raise PromptError(
            f"{len(asked)} entries, {len(names)} names and {len(read)} readings; give one of each a picture"
        )
    lines = []
    for one, name, text in zip(asked, names, read, strict=True):
        line = {
            "image": name,
            "prompt": one.prompt,
            "ocr_gt": one.entry["text"],
            "ocr_results": text,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _texts(text, where: str) -> tuple[str, ...]:
    texts = text
    if isinstance(text, str):
        texts = [text]
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts) or not texts:
        raise PromptError(f'{where}: "text" is {text!r}; expected a text or a list of texts')
    return tuple(texts)
