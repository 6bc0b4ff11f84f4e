"""Files of prompts and pairs in every form say the same, and what is wrong in them is named by its line."""

import json

import pytest

from support.planting import plant
from textpatch.errors import PromptError
from textpatch.prompts import tables
from textpatch.prompts.files import read_pairs, read_prompts
from textpatch.quotes import quotations

PAIRS = [
    ('a red sign that says "ONE" on a wall', 'a red sign that says "TWO" on a wall'),
    ('a sign, with "A" and "B"', 'a sign, with "C" and "D"'),
]


def doubled(text: str) -> str:
    """A text as a field of CSV."""
    return '"' + text.replace('"', '""') + '"'


FORMS = {
    "a.tsv": "\n".join("\t".join(pair) for pair in PAIRS),
    "header.tsv": "# mine\nTarget\tnote\tSource\n"
    + "\n".join(f"{target}\tx\t{source}" for source, target in PAIRS),
    "windows.tsv": "\ufeff" + "\r\n".join("\t".join(pair) for pair in PAIRS) + "\r\n\r\n",
    "a.csv": "\n".join(",".join(map(doubled, pair)) for pair in PAIRS),
    "header.csv": "source, target\n\n"
    + "\n".join(f"{doubled(source)}, {doubled(target)}" for source, target in PAIRS),
    "objects.jsonl": "\n".join(
        json.dumps({"target": target, "n": 1, "source": source}) for source, target in PAIRS
    ),
    "lists.ndjson": "# mine\n" + "\n".join(json.dumps(pair) for pair in PAIRS),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(name, tmp_path):
    """Tabs, commas and JSON lines, with a header, a comment, a byte order mark, ends of lines of Windows."""
    (tmp_path / name).write_text(FORMS[name], "utf-8", newline="")
    assert read_pairs(tmp_path / name) == PAIRS


@pytest.mark.parametrize("name", FORMS)
def test_emoji_and_words_from_right_to_left_are_kept(name, tmp_path):
    """In every form the same words in Hebrew, in Arabic and of joined emoji."""
    text = FORMS[name].replace("ONE", "שלום").replace("TWO", "مرحبا 🏳️\u200d🌈")
    (tmp_path / name).write_text(text, "utf-8", newline="")
    (source, target), _ = read_pairs(tmp_path / name)
    assert quotations(source)[0].text == "שלום" and quotations(target)[0].text == "مرحبا 🏳️\u200d🌈"


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "# mine\none\n\ntwo, three\n"),
        ("a.csv", 'prompt,n\none,1\n"two, three",2\n'),
        ("a.jsonl", '{"prompt": "one"}\n"two, three"\n'),
    ],
)
def test_prompts_are_read_alike(name, text, tmp_path):
    """One a line, in a column "prompt", or as JSON."""
    (tmp_path / name).write_text(text, "utf-8")
    assert read_prompts(tmp_path / name) == ["one", "two, three"]


WRONG = {
    "a.csv": ("a,b\na,b,c\n", "a.csv, line 2: expected `source,target`, found 'a,b,c'"),
    "open.csv": ('a,"b\n', "line 1: 'a,\"b' is no line of CSV"),
    "header.csv": ("source,target,x\na,b\n", "line 2: the header names 3 fields"),
    "a.jsonl": ('{"source": "a"}\n', 'line 1: expected {"source": "...", "target": "..."}'),
    "b.jsonl": ('# c\n["a", "b"]\n{\n', "b.jsonl, line 3: '{' is no JSON"),
    "empty.csv": ("source,target\n", "found none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_its_line(name, tmp_path):
    """File and line, what was expected and what was found."""
    text, says = WRONG[name]
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(PromptError) as caught:
        read_pairs(tmp_path / name)
    assert says in str(caught.value)


def test_planted_headers_unread_are_noticed(tmp_path, monkeypatch):
    """Fault: a header decides no order."""
    plant(monkeypatch, tables, "rows_of", "names.index(name)", "columns.index(name)")
    with pytest.raises(AssertionError):
        test_every_form_says_the_same("header.tsv", tmp_path)
