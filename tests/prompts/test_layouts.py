"""Prompts of the field's benchmarks are read as published, and pictures get their scorers' names."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.glyph_folders import write as write_glyphcontrol
from support.planting import plant
from support.small_models import PROMPTS, save_small
from textpatch import cli
from textpatch.cli.parser import command_parser
from textpatch.cli.prompt_pairs import asked_pairs
from textpatch.errors import PromptError
from textpatch.pictures import open_picture
from textpatch.prompts.glyphcontrol import glyphcontrol_pairs, glyphcontrol_pictures
from textpatch.prompts.layouts import cvtg, longtext, toxicbench
from textpatch.prompts.layouts.cvtg import cvtg_pictures, cvtg_prompts
from textpatch.prompts.layouts.longtext import (
    longtext_pictures,
    longtext_prompts,
    longtext_results,
)
from textpatch.prompts.layouts.named import LAYOUTS, layout_named, write_picture
from textpatch.prompts.layouts.toxicbench import toxicbench_pairs, toxicbench_pictures
from textpatch.prompts.pairs import bare, quoted

# --- made-up files in the published layouts, of harmless words

CVTG = {
    "CVTG/2.json": [
        (
            0,
            "A bakery with 'Fresh Bread' above its door and 'Open 9-17'.",
            ("Fresh Bread", "Open 9-17"),
        ),
        (7, "A bus to 'Harbour' beside a stop called 'Quay'.", ("Harbour", "Quay")),
    ],
    "CVTG/5.json": [(0, "No texts at all.", ())],
    # the scorer takes an apostrophe for a quote
    "CVTG-style/3.json": [(0, "A red 'Bee's'", ("Bee",))],
}
LONGTEXT = [
    {"prompt_id": 0, "prompt": PROMPTS[0], "text": ["HELLO"], "category": "sign"},
    {"prompt_id": 12, "prompt": "a menu\u2028of soups", "text": "leek, pea and barley"},
]
UNLIKED = ["grumble", "bother it", "o'clock"]
LIKED = ["pumpkin", "butter up", "o'leary"]
SENTENCES = ['A lamp that says ""', 'The word "" in chalk']


def write_cvtg(folder: Path) -> Path:
    for name, entries in CVTG.items():
        data = [
            {"index": index, "prompt": prompt, "carrier_list": [], "sentence_list": []}
            for index, prompt, _ in entries
        ]
        put(folder / name, json.dumps({"data_list": data}))
    return folder


def write_longtext(folder: Path) -> Path:
    lines = [json.dumps(entry, ensure_ascii=False) for entry in LONGTEXT]
    return put(folder / "text_prompts.jsonl", "\n".join(lines) + "\n\n")


def write_toxicbench(folder: Path) -> Path:
    put(folder / "data/test/toxic_words.txt", "\n".join(UNLIKED))
    put(folder / "data/test/test_non_tox.txt", "\n".join(LIKED))
    put(folder / "data/CreativeBench.txt", "\n".join(SENTENCES))
    return folder


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


WRITERS = {
    "cvtg-2k": write_cvtg,
    "longtext-bench": write_longtext,
    "toxicbench": write_toxicbench,
    "simplebench": write_glyphcontrol,
    "creativebench": write_glyphcontrol,
}


# --- readers


def require_cvtg(folder: Path) -> None:
    """Prompts and texts are those of the files, and the pictures' names those of the scorer."""
    asked = cvtg_prompts(write_cvtg(folder))
    expected = [entry for entries in CVTG.values() for entry in entries]
    assert [(one.prompt, one.texts) for one in asked] == [entry[1:] for entry in expected]
    names = ["CVTG/2/0.png", "CVTG/2/7.png", "CVTG/5/0.png", "CVTG-Style/3/0.png"]
    assert cvtg_pictures(asked) == names
    assert cvtg_prompts(folder / "CVTG/2.json") == asked[:2]


def test_cvtg_2k_is_read_as_its_scorer_reads_it(tmp_path):
    """A folder or one file; texts between single quotes, apostrophes included."""
    require_cvtg(tmp_path)


def require_longtext(folder: Path) -> None:
    """Lines are read whole, a text is one text or several, and four pictures of a prompt have names."""
    asked = longtext_prompts(write_longtext(folder))
    assert [one.prompt for one in asked] == [entry["prompt"] for entry in LONGTEXT]
    assert [one.texts for one in asked] == [("HELLO",), ("leek, pea and barley",)]
    assert longtext_pictures(asked, 0) == ["0000_1.png", "0012_1.png"]
    assert longtext_pictures(asked, 3) == ["0000_4.png", "0012_4.png"]


def test_longtext_bench_is_read_line_by_line(tmp_path):
    """A line separator within a prompt ends no line."""
    require_longtext(tmp_path)


def test_readings_are_written_as_the_scorer_writes_its_own(tmp_path):
    """A line a picture, with the text as the prompt file has it."""
    asked = longtext_prompts(write_longtext(tmp_path))
    names = longtext_pictures(asked)
    written = longtext_results(asked, names, ["HELO", "leek"])
    found = [json.loads(line) for line in written.split("\n")[:-1]]
    for line, entry, name in zip(found, LONGTEXT, names, strict=True):
        assert line["ocr_gt"] == entry["text"] and line["prompt"] == entry["prompt"]
        assert line["image"] == name
    assert [line["ocr_results"] for line in found] == ["HELO", "leek"]
    with pytest.raises(PromptError, match="2 entries, 2 names and 1 readings"):
        longtext_results(asked, names, ["HELO"])


def require_toxicbench(folder: Path) -> None:
    """Words of one line are a pair, in one sentence, and no word is lost."""
    pairs = toxicbench_pairs(write_toxicbench(folder), seed=3)
    assert [quoted(pair.source) for pair in pairs] == UNLIKED
    assert [quoted(pair.target) for pair in pairs] == LIKED
    for pair in pairs:
        assert bare(pair.source) == bare(pair.target)
        assert bare(pair.source) in SENTENCES


def test_toxicbench_pairs_words_line_by_line(tmp_path):
    """Several words a line and apostrophes are kept; the folder `data` is found from without and within."""
    require_toxicbench(tmp_path)
    assert toxicbench_pairs(tmp_path / "data", seed=3) == toxicbench_pairs(tmp_path, seed=3)
    assert toxicbench_pairs(tmp_path, seed=3, limit=2) == toxicbench_pairs(tmp_path, seed=3)[:2]
    drawn = {tuple(toxicbench_pairs(tmp_path, seed=seed)) for seed in range(20)}
    assert len(drawn) > 1
    pair = toxicbench_pairs(tmp_path, template='a sign "" here', limit=1)[0]
    assert pair.target == 'a sign "pumpkin" here'


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_prompts_with_texts(name, tmp_path):
    """By name, single prompts; the source's of pairs.  Pictures have different names within the folder."""
    layout = layout_named(name)
    asked = layout.asked(WRITERS[name](tmp_path))
    assert asked and all(one.prompt for one in asked)
    if layout.pictures is not None:
        names = layout.pictures(asked, 0)
        assert len(set(names)) == len(asked)
        assert not [one for one in names if one.startswith("/") or ".." in one]


def test_no_layout_of_another_name():
    """The nearest names are told."""
    with pytest.raises(PromptError, match="no layout 'cvtg'; closest: cvtg-2k"):
        layout_named("cvtg")


# --- what is refused: the file, its text, and what the error says

BROKEN = {
    "no JSON": (cvtg_prompts, "CVTG/2.json", "[", "no JSON, .*; expected a file of CVTG-2K"),
    "nested beyond reason": (cvtg_prompts, "CVTG/2.json", "[" * 10**5, "no JSON, "),
    "another shape": (cvtg_prompts, "CVTG/2.json", "[1]", "2.json: expected a file of CVTG-2K"),
    "a combined file": (
        cvtg_prompts,
        "CVTG/2_combined.json",
        '{"data_list": []}',
        "in a folder CVTG or",
    ),
    "a file elsewhere": (cvtg_prompts, "other/2.json", '{"data_list": []}', "in a folder CVTG or"),
    "no entries": (cvtg_prompts, "CVTG/2.json", '{"data_list": []}', "holds no prompt"),
    "no prompt": (
        cvtg_prompts,
        "CVTG/2.json",
        '{"data_list": [{"index": 0}]}',
        'entry 0 of data_list: "prompt" is None',
    ),
    "no index": (
        cvtg_prompts,
        "CVTG/2.json",
        '{"data_list": [{"index": "x", "prompt": "a"}]}',
        "\"index\" is 'x'; expected a whole number from 0",
    ),
    "an index twice": (
        cvtg_prompts,
        "CVTG/2.json",
        '{"data_list": [{"index": 1, "prompt": "a"}, {"index": "1", "prompt": "b"}]}',
        "has two entries for CVTG/2/1, whose pictures would have one name",
    ),
    "a line of no JSON": (longtext_prompts, "p.jsonl", "{}x", "p.jsonl, line 1: no JSON"),
    "a line of a list": (longtext_prompts, "p.jsonl", "\n[]", 'p.jsonl, line 2: "prompt" is None'),
    "no text": (
        longtext_prompts,
        "p.jsonl",
        '{"prompt_id": 0, "prompt": "a", "text": [1]}',
        r'line 1: "text" is \[1\]; expected a text or a list of texts',
    ),
    "a number below 0": (
        longtext_prompts,
        "p.jsonl",
        '{"prompt_id": -1, "prompt": "a"}',
        '"prompt_id" is -1',
    ),
    "nothing": (longtext_prompts, "p.jsonl", "\n", "holds no prompt"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_of_another_layout_are_refused(name, tmp_path):
    """File, place, what was found and what was expected."""
    reader, file, text, says = BROKEN[name]
    path = put(tmp_path / file, text)
    with pytest.raises(PromptError, match=says):
        reader(path)


@pytest.mark.parametrize("reader", [cvtg_prompts, longtext_prompts, toxicbench_pairs])
def test_missing_files_are_refused(reader, tmp_path):
    """The path is named, and what should be there."""
    with pytest.raises(PromptError, match="cannot read prompts from .*nowhere.*; expected"):
        reader(tmp_path / "nowhere")
    with pytest.raises(PromptError, match="neither CVTG/2.json nor another file"):
        cvtg_prompts(tmp_path)


@pytest.mark.parametrize(
    "file, text, says",
    [
        (
            "toxic_words.txt",
            'one\ngrum"ble\nthree',
            "line 2: expected words without quotes, found a quote",
        ),
        ("toxic_words.txt", "grumble", "1 words in toxic_words.txt and 3 in test_non_tox.txt"),
        (
            "test_non_tox.txt",
            "\n",
            "expected a list of ToxicBench, one word or more a line, found none",
        ),
        ("../CreativeBench.txt", 'a ""\n“”', 'line 2: expected a sentence with "" once'),
        ("../CreativeBench.txt", "\n", 'expected sentences with "", found none'),
    ],
)
def test_lists_that_make_no_pairs_are_refused(file, text, says, tmp_path):
    """The error names file and line, and quotes no word of a list."""
    folder = write_toxicbench(tmp_path)
    put(folder / "data/test" / file, text)
    with pytest.raises(PromptError, match=says) as caught:
        toxicbench_pairs(folder)
    assert "grum" not in str(caught.value)


def test_requests_that_toxicbench_cannot_meet(tmp_path):
    """More pairs than words, and a template without a place."""
    folder = write_toxicbench(tmp_path)
    with pytest.raises(PromptError, match="asked for 4 pairs; the test words make 1 to 3"):
        toxicbench_pairs(folder, limit=4)
    with pytest.raises(PromptError, match="template: expected a sentence with"):
        toxicbench_pairs(folder, template="a sign")


# --- pictures


def test_pictures_are_written_under_their_names(tmp_path):
    """As PNG, in folders that are made; a name that leads elsewhere is refused before anything is written."""
    picture = Image.new("RGB", (3, 2), "red")
    write_picture(tmp_path / "out", "CVTG/2/0.png", picture)
    assert open_picture(tmp_path / "out/CVTG/2/0.png").tobytes() == picture.tobytes()
    for name in ("../x.png", "/x.png", "a/../../x.png", "", "x.jpg"):
        with pytest.raises(PromptError, match="cannot name a picture in"):
            write_picture(tmp_path / "out", name, picture)
    assert len([*tmp_path.rglob("*.png")]) == 1


def test_more_pictures_than_a_scorer_takes_are_refused(tmp_path):
    """One of each prompt, of LongText-Bench four."""
    asked = longtext_prompts(write_longtext(tmp_path))
    with pytest.raises(PromptError, match="picture 5 of a prompt .* takes 4, so give at most 4"):
        longtext_pictures(asked, 4)
    for pictures in (cvtg_pictures, toxicbench_pictures):
        with pytest.raises(PromptError, match="picture 2 of a prompt .* one a prompt, so give one"):
            pictures(asked, 1)


def test_toxicbench_keeps_both_models_apart(tmp_path):
    """Four folders, by what was asked for and by whether something was done about it."""
    asked = layout_named("toxicbench").asked(write_toxicbench(tmp_path))
    assert toxicbench_pictures(asked)[2] == "reference_model/toxic/2.png"
    kinds = {"toxic": False, "intervened": True}
    assert toxicbench_pictures(asked, **kinds)[0] == "intervened_model/non-toxic/0.png"


def test_glyphcontrols_scorer_takes_folders_for_texts(tmp_path):
    """A folder a text, which must be able to name one."""
    pairs = glyphcontrol_pairs(write_glyphcontrol(tmp_path), limit=2)
    names = glyphcontrol_pictures([pair.source for pair in pairs], 1)
    assert names == [f"{quoted(pair.source)}/{quoted(pair.source)}_1.png" for pair in pairs]
    for text in ("../x", "a/b", ".", "a\0b", "C:x"):
        with pytest.raises(PromptError, match="cannot name a folder"):
            glyphcontrol_pictures([f'a "{text}"'])
    with pytest.raises(PromptError, match="'A' is asked for twice"):
        glyphcontrol_pictures(['a "A"', 'b "A"'])


# --- the command line


def test_a_benchmarks_pictures_are_where_its_scorer_looks(tmp_path, monkeypatch, capsys):
    """`generate --prompts-from` draws every prompt with every seed, a picture of its own each."""
    monkeypatch.chdir(tmp_path)
    save_small(tmp_path / "small")
    lines = [
        {"prompt_id": i, "prompt": prompt, "text": "A"} for i, prompt in enumerate(PROMPTS[:2])
    ]
    put(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines)))
    asked = ["generate", "small", "p.jsonl", "--prompts-from", "longtext-bench", "--steps", "1"]
    assert cli.main([*asked, "--seed", "5", "6", "--out", "run"]) == 0
    kept = json.loads((tmp_path / "run/results.json").read_text())["pictures"]
    names = [f"000{prompt}_{repeat}.png" for prompt in (0, 1) for repeat in (1, 2)]
    found = sorted(path.name for path in (tmp_path / "run/longtext-bench").iterdir())
    assert found == names
    for name, entry in zip(names, kept, strict=True):
        drawn = open_picture(tmp_path / "run" / entry["image"])
        assert open_picture(tmp_path / "run/longtext-bench" / name).tobytes() == drawn.tobytes()
    assert len({entry["image"] for entry in kept}) == 4
    capsys.readouterr()
    mistakes = {
        "picture 5 of a prompt": [*asked, "--seed", "0", "1", "2", "3", "4"],
        "reads one file or folder, and 2 were given": [*asked[:3], *asked[2:]],
        "no layout 'longtext'; closest: longtext-bench": [*asked[:4], "longtext"],
    }
    for says, words in mistakes.items():
        assert cli.main(words) == 2
        assert says in capsys.readouterr().err


def test_localize_takes_toxicbench(tmp_path):
    """--prompts FOLDER --bench toxic, its split and how many."""
    folder = str(write_toxicbench(tmp_path))
    words = ["localize", "MODEL", "--prompts", folder, "--bench", "toxic", "--limit", "2"]
    options = command_parser().parse_args(words)
    assert asked_pairs(options) == toxicbench_pairs(folder, limit=2)
    options = command_parser().parse_args([*words, "--split", "train"])
    with pytest.raises(PromptError, match=r"train.toxic_words\.txt"):
        asked_pairs(options)


# --- laws over random files, and faults


@given(st.integers(0, 99), st.lists(st.text('ab 9,É"“', min_size=1, max_size=8), max_size=4))
def test_texts_of_cvtg_come_out_as_they_were_put_in(tmp_path_factory, index, texts):
    """Whatever stands between single quotes, other quotes included."""
    prompt = "a " + " and ".join(f"'{text}'" for text in texts)
    path = tmp_path_factory.mktemp("cvtg") / "CVTG/4.json"
    put(path, json.dumps({"data_list": [{"index": index, "prompt": prompt}]}))
    (asked,) = cvtg_prompts(path)
    assert asked.texts == tuple(" ".join(text.split()) for text in texts)
    assert cvtg_pictures([asked]) == [f"CVTG/4/{index}.png"]


@given(st.permutations(range(3)), st.integers(0, 99))
def test_a_list_in_another_order_makes_the_same_word_pairs(tmp_path_factory, order, seed):
    """Lines moved in both lists alike move the pairs, and part no words."""
    folder = write_toxicbench(tmp_path_factory.mktemp("toxic"))
    before = toxicbench_pairs(folder, seed=seed)
    for name, words in (("toxic_words.txt", UNLIKED), ("test_non_tox.txt", LIKED)):
        put(folder / "data/test" / name, "\n".join(words[place] for place in order))
    after = toxicbench_pairs(folder, seed=seed)
    assert sorted(pair.words for pair in after) == sorted(pair.words for pair in before)


FAULTS = {
    "a subset under its published name": (
        cvtg,
        "_entries",
        "{subsets[0]}/",
        "{file.resolve().parent.name}/",
        require_cvtg,
    ),
    "double quotes": (
        cvtg,
        "_entries",
        "_TEXT.findall(prompt)",
        "prompt.split('\"')[1::2]",
        require_cvtg,
    ),
    "repeats from 0": (
        longtext,
        "longtext_pictures",
        "{repeat + 1}.png",
        "{repeat}.png",
        require_longtext,
    ),
    "numbers without zeros": (
        longtext,
        "longtext_prompts",
        "{place:04d}",
        "{place}",
        require_longtext,
    ),
    "every separator ends a line": (
        longtext,
        "longtext_prompts",
        '.split("\\n")',
        ".splitlines()",
        require_longtext,
    ),
    "benign words in any order": (
        toxicbench,
        "toxicbench_pairs",
        "zip(sources, targets, strict=True)",
        "zip(sources, sorted(targets, reverse=True), strict=True)",
        require_toxicbench,
    ),
    "a sentence of its own for the target": (
        toxicbench,
        "toxicbench_pairs",
        "with_words(sentence, target)",
        "with_words('a \"\"', target)",
        require_toxicbench,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(monkeypatch, tmp_path, name):
    """Each fault breaks the reader's law, which holds without it."""
    owner, function, old, new, law = FAULTS[name]
    law(tmp_path / "whole")
    plant(monkeypatch, owner, function, old, new)
    with pytest.raises((AssertionError, PromptError)):
        law(tmp_path / "faulty")
