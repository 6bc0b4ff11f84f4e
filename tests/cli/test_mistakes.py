"""Common mistakes at the command line and in Python: one line that says what was asked, what was
found and what to do.

Those that are about a model's sites are in test_cli.py, those of an option beside another in
test_options.py, those of a cache or a hook in test_refusals.py; here is what is typed wrong in a
hurry.
"""

import pytest
import torch

from support.localizing import Parrot
from support.small_models import PROMPTS, save_small, small_denoiser, small_pipeline
from textpatch import (
    HookRegistry,
    Plan,
    Swap,
    capture,
    cli,
    edit,
    find_sites,
    load,
    load_denoiser,
    localize,
    sample,
)
from textpatch.errors import PatchError
from textpatch.guidance import ClassifierFree
from textpatch.metrics import Tesseract
from textpatch.plan import Row
from textpatch.prompts.files import read_pairs
from textpatch.reference_models.pipeline import Defaults
from textpatch.reference_models.schedules import Euler, FlowMatchEuler

SOURCE, TARGET = PROMPTS[0], PROMPTS[0].replace("HELLO", "WORLD")
EDIT = ["edit", "small", "--source", SOURCE, "--target", TARGET]
MAKE = ["generate", "small", SOURCE]
FIND = ["localize", "small", "--steps", "1"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A working folder with a small model, a run of each kind, and files that are something else."""
    here = tmp_path_factory.mktemp("mistakes")
    save_small(here / "small")
    files = {
        "notes.txt": "x",
        "old.ckpt": "PK\x03\x04",
        "pickle.safetensors": "\x7fELF",
        "one.tsv": f"{SOURCE}\t{TARGET}",
        "words.tsv": "HELLO\tWORLD",
        "commas.tsv": f"{SOURCE},{TARGET}",
        "three.tsv": f"{SOURCE}\t{TARGET}\t{TARGET}",
        "curly.tsv": f"{SOURCE}\t{TARGET}".replace(' "', " \u201c").replace('"', "\u201d"),
    }
    for name, text in files.items():
        (here / name).write_text(text)
    (here / "latin.tsv").write_bytes(f"{SOURCE} é\t{TARGET}".encode("latin-1"))
    (here / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert cli.main([*EDIT, "--sites", "0", "--steps", "1", "--out", "edited"]) == 0
        assert cli.main([*FIND, "--pairs", "1", "--out", "found"]) == 0
        assert cli.main([*MAKE, "--steps", "1", "--out", "made"]) == 0
    return here


# arguments, then words of the line: what was asked, what was found, what to do
TYPED = {
    "no steps at all": (
        [*MAKE, "--steps", "-1"],
        "asked for -1 steps",
        "this schedule has",
        "1 to 1000",
    ),
    "more steps than there are": (
        [*MAKE, "--steps", "2000"],
        "asked for 2000 steps",
        "this schedule has",
        "1 to 1000",
    ),
    "a stage II, which writes no words": (
        ["localize", "tiny-if-ii", "--pairs", "1"],
        "tiny-if-ii draws small pictures",
        "in the model that writes",
        "give that one",
    ),
    "a device without memory": (
        [*MAKE, "--device", "meta"],
        "device 'meta'",
        "cannot be used here",
        "no data",
    ),
    "a device that is none": (
        [*MAKE, "--device", "gpu"],
        "device 'gpu'",
        "cannot be used here",
        "Expected one of cpu, cuda",
    ),
    "the folder of the model to write to": (
        [*MAKE, "--out", "small"],
        "small holds",
        "model_index.json",
        "give another --out",
    ),
    "a file to write to": (
        [*MAKE, "--out", "notes.txt"],
        "cannot open notes.txt",
        "File exists",
        "check path",
    ),
    "a name too long": (
        [*MAKE, "--out", "x" * 300],
        "cannot open xxx",
        "File name too long",
        "check path",
    ),
    "a name that ends": ([*MAKE, "--out", "a\0b"], r"cannot open a\x00b", "null", "check path"),
    "another run's folder": (
        [*MAKE, "--out", "edited"],
        "edited holds another run",
        'stored "edit", asked "generate"',
        "give another --out",
    ),
    "a run with other steps": (
        ["localize", "small", "--pairs", "1", "--out", "found", "--steps", "2"],
        "asked 2",
        "stored 1",
        "give another --out",
    ),
    "a model of the hub that is not here": (
        ["generate", "stabilityai/sd-turbo", SOURCE],
        "stabilityai/sd-turbo at main",
        "is not in",
        "hf download stabilityai/sd-turbo",
    ),
    "a path that is none": (
        ["generate", "/models/none", SOURCE],
        "no model '/models/none'",
        "neither",
        "known: planted-",
    ),
    "part of a name": (["sites", "sdxl"], "no model 'sdxl'", "neither", "closest: tiny-sdxl"),
    "a published name where weights are needed": (
        ["generate", "sdxl-base-1.0", SOURCE],
        "no weights of sdxl-base-1.0",
        "configuration alone",
        "give the published files",
    ),
    "an empty folder": (
        ["generate", "empty", SOURCE],
        "model_index.json",
        "in empty",
        "the folder is incomplete or is no model",
    ),
    "a component's folder": (
        ["generate", "small/transformer", SOURCE],
        "small/transformer holds a denoiser alone",
        "model_index.json",
        "load_denoiser reads it",
    ),
    "a component's file": (
        ["generate", "small/transformer/diffusion_pytorch_model.safetensors", SOURCE],
        "holds no whole pipeline, transformer and no tokenizer",
        "load_denoiser reads the denoiser alone",
    ),
    "the folder of an encoder": (
        ["sites", "small/text_encoder"],
        "no denoiser for None",
        "small/text_encoder/config.json",
        "known: SD3",
    ),
    "a text file": (
        ["generate", "notes.txt", SOURCE],
        "notes.txt",
        "is no .safetensors file and no index",
        "give one of these",
    ),
    "a checkpoint of old": (
        ["generate", "old.ckpt", SOURCE],
        "old.ckpt",
        "is a pickle by its name",
        "fetch the safetensors version",
    ),
    "another file by that name": (
        ["generate", "pickle.safetensors", SOURCE],
        "pickle.safetensors",
        "is damaged",
        "fetch it again",
    ),
    "a model to upscale that does not": (
        [*MAKE, "--upscale", "small"],
        "--upscale small",
        "from noise alone",
        "give a stage II",
    ),
    "single quotes": (
        ["generate", "small", SOURCE.replace('"', "'")],
        "does not know \"'HELLO'\"",
        "sign that says 'HELLO' on",
        'write "HELLO"',
    ),
    "quotes of a word processor": (
        ["generate", "small", SOURCE.replace('"', "\u201c")],
        "does not know '\u201cHELLO",
        "sign that says \u201cHELLO\u201c on",
        'write "HELLO"',
    ),
    "capitals everywhere": (
        ["generate", "small", SOURCE.upper()],
        "RED SIGN",
        "is 35 tokens long",
        "at most 22, so that no encoder reads its quoted text; shorten it",
    ),
    "bytes of another encoding": (
        ["generate", "small", "a caf\udce9"],
        r"'a caf\udce9'",
        "half a character",
        "give it as UTF-8",
    ),
    "the sites of another model": (
        [*EDIT, "--sites", "55-57"],
        "no site index 55",
        "among the 2",
        "indices 0..1",
    ),
    "sites backwards": (
        [*EDIT, "--sites", "1-0"],
        "sites '1-0'",
        "count down from 1 to 0",
        "write '0-1'",
    ),
    "a site by a word": (
        [*EDIT, "--sites", "first"],
        "no site 'first'",
        "among the 2",
        "known: transformer_blocks.0.attn",
    ),
    "a group of another model": (
        [*EDIT, "--sites", "group:up"],
        "no site of group 'up'",
        "groups here: transformer",
        "find_sites",
    ),
    "a start behind the end": (
        [*EDIT, "--sites", "0", "--start", "9"],
        "start is 9",
        "of 2 steps",
        "give a start within the run",
    ),
    "sites with commas": (
        [*EDIT, "--sites", "0,1"],
        "no site '0,1'",
        "indices 0..1",
        "one by one, without commas",
    ),
    "no target": (
        ["edit", "small", "--source", SOURCE],
        "edit needs --target PROMPT or --word WORD",
        "or --prompts FILE",
    ),
    "a pair beside a file of pairs": (
        [*EDIT, "--prompts", "curly.tsv"],
        "--source and --prompts name the pairs in two ways",
        "leave one of them out",
    ),
    "a target and a word": (
        [*EDIT, "--word", "TIGER"],
        "--target and --word TIGER both say what is wanted",
        "leave one of them out",
    ),
    "a word beside a file of pairs": (
        ["edit", "small", "--prompts", "pairs.tsv", "--word", "TIGER"],
        "--prompts names a file of pairs, and --word one",
    ),
    "a limit of one pair": (
        [*EDIT, "--limit", "2"],
        "--limit 2 takes the first pairs of --prompts FILE",
        "leave it out",
    ),
    "a limit of typed prompts": (
        [*MAKE, "--limit", "2"],
        "--limit 2 takes the first of a file",
        "leave it out",
    ),
    "prompts typed and in a file": (
        [*MAKE, "--prompts", "words.tsv"],
        "--prompts words.tsv was given, and 'a red sign",
        "leave one of them out",
    ),
    "no prompt": (["generate", "small"], "no prompt was given", "--prompts"),
    "a start of methods that have none": (
        [*EDIT, "--method", "injection", "prompt_swap", "--start", "1"],
        "--start 1 is of the method localized",
        "the methods are injection, prompt_swap",
    ),
    "one edit enlarged among several": (
        [*EDIT, "--method", "localized", "prompt_swap", "--upscale", "tiny-if-ii"],
        "--upscale draws one edit larger",
    ),
    "quotes of a text editor": (
        [*FIND, "--prompts", "curly.tsv"],
        "does not know '\u201cHELLO\u201d'",
        "sign that says \u201cHELLO\u201d on",
        'write "HELLO"',
    ),
    "a word in small letters": (
        [
            *EDIT[:2],
            "--source",
            SOURCE.replace("HELLO", "hello"),
            "--target",
            TARGET,
            "--sites",
            "0",
        ],
        "does not know",
        "'\"hello\"'",
        'write "HELLO"',
    ),
    "no pairs": (
        [*FIND, "--pairs", "0"],
        "asked for 0 pairs",
        "the validation words",
        "make 1 to 48",
    ),
    "words instead of prompts": (
        [*FIND, "--prompts", "words.tsv"],
        "no quoted word",
        "in 'HELLO'",
        'says "WORD"',
    ),
    "commas for tabs": (
        [*FIND, "--prompts", "commas.tsv"],
        "commas.tsv, line 1",
        "found 'a red sign",
        "expected `source<TAB>target`",
    ),
    "three columns": (
        [*FIND, "--prompts", "three.tsv"],
        "three.tsv, line 1",
        "found 'a red sign",
        "expected `source<TAB>target`",
    ),
    "a file in Latin-1": (
        [*FIND, "--prompts", "latin.tsv"],
        "prompts from latin.tsv",
        "can't decode byte 0xe9",
        "expected a text",
    ),
    "a folder that is no copy": (
        [*FIND, "--prompts", "empty"],
        "prompts from empty/",
        "No such file",
        "expected a copy of GlyphControl-release",
    ),
    "a bench without its folder": (
        [*FIND, "--bench", "simple"],
        "--bench simple chooses among",
        "GlyphControl's prompts",
        "give its folder with --prompts",
    ),
    "a screening of one pair": (
        [*FIND, "--mode", "staged", "--pairs", "1"],
        "given to mode 'staged': 1",
        "an interval over pairs",
        "needs two",
    ),
    "all kept": (
        [*FIND, "--mode", "staged", "--keep", "2", "--pairs", "2"],
        "keep is 2",
        "of 2 sites",
        "fewer than there are",
    ),
    "a screening's option without one": (
        [*FIND, "--keep", "1"],
        "keep is 1",
        "an exhaustive search screens nothing",
        "leave them out",
    ),
    "shards from one on": ([*FIND, "--shard", "4/4"], "no shard '4/4'", "such as", "0/4 to 3/4"),
    "a misspelt permission": (
        [*FIND, "--pairs", "1", "--out", "found", "--allow", "wieghts"],
        "'wieghts' may not differ",
        "no such entry",
        "closest: weights",
    ),
    "an audit of no run": (
        ["audit", "empty"],
        "cannot read empty/manifest.json",
        "No such file",
        "check path",
    ),
    "an audit of pictures": (
        ["audit", "made", "--model", "small"],
        "a run of generate",
        "which has no plan",
        "localize and edit have",
    ),
    "an audit with another model": (
        ["audit", "edited", "--model", "tiny-mmdit"],
        "edited was made with weights",
        "those loaded are",
        "load the small of that run",
    ),
}


def test_there_are_enough_mistakes():
    """40 at the command line, 12 more in Python and among its options."""
    assert len(TYPED) >= 40 and len(CALLED) + len(USAGE) >= 12


@pytest.mark.parametrize("name", TYPED)
def test_a_mistake_is_one_line(name, shelf, monkeypatch, capfd):
    """Exit code 2 and one line with the three; nothing on stdout; no file more than before, no
    traceback without --debug.
    """
    arguments, *says = TYPED[name]
    monkeypatch.chdir(shelf)
    before = sorted(shelf.rglob("*"))
    assert cli.main(arguments) == 2
    out, err = capfd.readouterr()
    assert (
        out == ""
        and err.startswith("textpatch: ")
        and err.endswith("\n")
        and err[:-1].isprintable()
    )
    assert [words for words in says if words not in err] == [], err
    assert sorted(shelf.rglob("*")) == before


@pytest.mark.parametrize("name", ["single quotes", "an empty folder", "another run's folder"])
def test_debug_shows_where(name, shelf, monkeypatch, capfd):
    """--debug: the same line, behind the traceback of the error that it is made of."""
    arguments, *says = TYPED[name]
    monkeypatch.chdir(shelf)
    assert cli.main([*arguments, "--debug"]) == 2
    trace, _, line = capfd.readouterr().err.rstrip("\n").rpartition("\n")
    assert trace.startswith("Traceback (most recent call last)") and "Error: " in trace
    assert all(words in line for words in says)


# what argparse refuses: its usage, then a line
USAGE = {
    "an unknown command": (["locate"], "invalid choice: 'locate'", "choose from", "localize"),
    "a file of pairs as their number": (
        ["edit", "small", "--pairs", "curly.tsv"],
        "'curly.tsv' is no number of pairs",
        "named by --prompts",
        "edit: error",
    ),
    "a number in words": ([*MAKE, "--steps", "two"], "--steps", "invalid int value", "'two'"),
    "a dtype by another name": (
        [*MAKE, "--dtype", "fp16"],
        "--dtype",
        "invalid choice: 'fp16'",
        "'float16'",
    ),
    "an option with nothing behind it": (
        [*EDIT, "--sites"],
        "--sites",
        "expected at least one",
        "edit: error",
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_a_mistake_in_the_options_is_a_usage(name, capfd):
    """Exit code 2, the usage of that command, and a last line that names the option, what stood
    there and what may.
    """
    arguments, *says = USAGE[name]
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    out, err = capfd.readouterr()
    assert left.value.code == 2 and out == "" and err.startswith("usage: textpatch")
    assert [words for words in says if words not in err.splitlines()[-1]] == []


class Short(Parrot):
    """Reads one picture of many."""

    def read(self, images, boxes=None):
        return ["x"]


PIPELINE = small_pipeline()
ROWS = [Row("source", SOURCE), Row("target", TARGET)]
CALLED = {
    "a misspelt model": (
        lambda: load("tiny-mmdti"),
        "no model 'tiny-mmdti'",
        "neither",
        "closest: tiny-mmdit",
    ),
    "a dtype by its name": (
        lambda: load("tiny-mmdit", dtype="float16"),
        "dtype is 'float16'",
        "models run in",
        "torch.float16",
    ),
    "a dtype of whole numbers": (
        lambda: load("tiny-mmdit", dtype=torch.int32),
        "dtype is torch.int32",
        "models run in",
        "torch.float16",
    ),
    "a device that is no name": (
        lambda: load("tiny-mmdit", device=3.5),
        "device '3.5'",
        "cannot be used here",
        "float",
    ),
    "a first device that is not there": (
        lambda: load("tiny-mmdit", device=99),
        "device '99'",
        "cannot be used here",
        "",
    ),
    "a device that is none": (
        lambda: load("tiny-mmdit", device="gpu"),
        "device 'gpu'",
        "cannot be used here",
        "Expected one of cpu",
    ),
    "a denoiser of a pipeline": (
        lambda: load_denoiser("nowhere"),
        "no model 'nowhere'",
        "neither",
        "known: ",
    ),
    "seeds for other prompts": (
        lambda: PIPELINE.generate([SOURCE, TARGET], seeds=[0, 1, 2]),
        "2 prompts",
        "3 seeds",
        "give one seed",
    ),
    "a seed that is no whole number": (
        lambda: PIPELINE.generate(SOURCE, seeds=[1.5]),
        "seed 1.5",
        "does not fit",
        "whole number",
    ),
    "no picture at once": (
        lambda: PIPELINE.generate(SOURCE, seeds=0, micro_batch=0),
        "micro_batch is 0",
        "at once",
        "at least one",
    ),
    "no row at once": (
        lambda: sample(PIPELINE, ROWS, micro_batch=0),
        "micro_batch is 0",
        "one row",
        "at least",
    ),
    "the same word twice": (
        lambda: localize(PIPELINE, [(SOURCE, SOURCE.replace("red", "green"))], ocr=Parrot()),
        "both have the word 'HELLO'",
        "give pairs",
        "differ",
    ),
    "one swap for a plan": (
        lambda: Plan(Swap((0,), "a", "b")),
        "a plan is a list of swaps",
        "give",
        "Plan([",
    ),
    "a list for a plan": (
        lambda: sample(PIPELINE, ROWS, [Swap((0,), "a", "b")]),
        "the plan of a run is [Swap",
        "give",
        "Plan([",
    ),
    "several negative prompts": (
        lambda: PIPELINE.generate("a red sign", seeds=0, guidance=3, negative=["a", "b"]),
        "a negative prompt is ['a', 'b']",
        "give a text",
        "None for no prompt",
    ),
    "several negative prompts for rows": (
        lambda: sample(PIPELINE, ROWS, guidance=3, negative=["a", "b"]),
        "a negative prompt is ['a', 'b']",
        "give a text",
        "None for no prompt",
    ),
    "a prompt of two": (
        lambda: PIPELINE.generate([("a", "b")], seeds=0),
        "a prompt is ('a', 'b')",
        "no text",
        "give one",
    ),
    "a prompt without a list": (
        lambda: PIPELINE.encode("AB"),
        "prompts to encode are 'AB'",
        "give",
        "in a list",
    ),
    "no prompts": (lambda: PIPELINE.encode([]), "prompts to encode are []", "give", "in a list"),
    "half a step": (
        lambda: PIPELINE.generate("a red sign", seeds=0, steps=2.5),
        "2.5 steps",
        "give",
        "whole number",
    ),
    "a guidance of nothing": (
        lambda: PIPELINE.generate("a red sign", seeds=0, guidance=ClassifierFree(0)),
        "scale 0 never reads the rows' own prompts",
        "give Unguided()",
    ),
    "a negative prompt at no guidance": (
        lambda: PIPELINE.generate("a red sign", seeds=0, guidance=0, negative="a blue sign"),
        "negative prompt 'a blue sign'",
        "no effect at guidance 0",
        "leave one of them out",
    ),
    "a guidance in words": (
        lambda: PIPELINE.generate("a red sign", seeds=0, guidance="3"),
        "guidance is '3'",
        "give a number",
        "textpatch.guidance",
    ),
    "half a seed": (
        lambda: localize(PIPELINE, [(SOURCE, TARGET)], seeds=[1.5], ocr=Parrot()),
        "seed 1.5",
        "give a whole",
        "of 0 to 2^64 - 1",
    ),
    "a seed in words": (
        lambda: localize(PIPELINE, [(SOURCE, TARGET)], seeds=["a"], ocr=Parrot()),
        "seed 'a'",
        "give a whole",
        "of 0 to 2^64 - 1",
    ),
    "a model's sizes of five": (
        lambda: Defaults(32, 96, 8, 1.0, micro=[1] * 5),
        "micro is [1, 1, 1, 1, 1]",
        "give",
        "six",
    ),
    "no seed": (
        lambda: PIPELINE.generate("a red sign", seeds=None),
        "seeds is None",
        "whole number",
        "a list",
    ),
    "half a picture at once": (
        lambda: PIPELINE.generate("a red sign", seeds=0, micro_batch=1.5),
        "micro_batch is 1.5",
        "make",
        "one",
    ),
    "half a pixel": (lambda: PIPELINE.at(32.5, 96), "32.5x96", "give", "1 or more"),
    "a model's height in words": (
        lambda: Defaults("32", 96, 8, 1.0),
        "height is '32'",
        "give",
        "whole number",
    ),
    "a model's box of three": (
        lambda: Defaults(32, 96, 8, 1.0, (0, 1, 2)),
        "text_box is (0, 1, 2)",
        "give",
        "four",
    ),
    "a schedule of no steps": (
        lambda: Euler(num_train_timesteps="1000"),
        "num_train_timesteps is '1000'",
        "give",
        "100,000",
    ),
    "a shift of nothing": (lambda: FlowMatchEuler(shift=0), "shift is 0", "give", "positive"),
    "a guidance that is no number": (
        lambda: sample(PIPELINE, ROWS, guidance=float("nan")),
        "guidance is nan",
        "give a finite number",
        "textpatch.guidance",
    ),
    "an unconditional row": (
        lambda: sample(PIPELINE, [*ROWS, Row("none", None, branch="uncond")]),
        "row 'none'",
        "is unconditional",
        "guidance adds their twins",
    ),
    "an empty negative prompt that nobody reads": (
        lambda: PIPELINE.generate(SOURCE, seeds=0, guidance=1, negative=""),
        "negative prompt ''",
        "no effect at guidance 1",
        "leave one",
    ),
    "numbers that are none": (
        lambda: PIPELINE.decode(torch.full((1, 3, 4, 4), torch.nan)),
        "48 of 48 numbers",
        "not finite",
        "float32",
    ),
    "a row nobody runs": (
        lambda: sample(PIPELINE, ROWS, Plan([Swap(0, "edited", "target")]), steps=1),
        "no row 'edited'",
        "in this run",
        "known: source, target",
    ),
    "no sites": (
        lambda: edit(PIPELINE, SOURCE, TARGET),
        "no sites are known",
        "to carry the word",
        "run localize first",
    ),
    "a prompt without a word": (
        lambda: localize(PIPELINE, [("a red sign", TARGET)]),
        "no quoted word",
        "'a red sign'",
        "double quotes",
    ),
    "a module that is not there": (
        lambda: HookRegistry(PIPELINE.denoiser, ["transformer_blocks.0.atn"]).observe(print),
        "transformer_blocks.0.atn",
        "no",
        "transformer_blocks.0.attn",
    ),
    "a reader that skips a picture": (
        lambda: localize(PIPELINE, [(SOURCE, TARGET)], ocr=Short()),
        "pictures were given to Short",
        "read ['x']",
        "a reading for each",
    ),
    "a name for a model": (
        lambda: localize("tiny-mmdit", [(SOURCE, TARGET)]),
        "localize was given the name 'tiny-mmdit'",
        "needs a loaded pipeline",
        "load('tiny-mmdit')",
    ),
    "the same of an edit": (
        lambda: edit("tiny-mmdit", SOURCE, TARGET),
        "edit was given the name 'tiny-mmdit'",
        "needs a loaded pipeline",
        "load('tiny-mmdit')",
    ),
    "one pair for a list of them": (
        lambda: localize(PIPELINE, (SOURCE, TARGET)),
        "found 'a red sign",
        "two texts",
        "a list of pairs",
    ),
    "no pairs at all": (
        lambda: localize(PIPELINE, [SOURCE, 5]),
        "found 'a red sign",
        "two texts",
        "a list of pairs",
    ),
    "pairs of numbers": (
        lambda: localize(PIPELINE, [(1, 2)]),
        "found (1, 2)",
        "two texts",
        "a list of pairs",
    ),
    "one seed for several": (
        lambda: localize(PIPELINE, [(SOURCE, TARGET)], seeds=0),
        "seeds is 0",
        "give",
        "[0]",
    ),
    "a path for a run": (
        lambda: localize(PIPELINE, [(SOURCE, TARGET)], run="runs"),
        "the path 'runs'",
        "a textpatch.Run",
        "Run.open('runs'",
    ),
    "half a plan": (
        lambda: Plan.from_json('{"swaps": ['),
        "not a plan",
        "line 1 column",
        "written by Plan.to_json",
    ),
    "sites of what has none": (
        lambda: find_sites(small_denoiser().pos_embed),
        "PatchEmbed",
        "no",
        "SiteSpec",
    ),
    "a reader of nothing": (
        lambda: Tesseract(alphabet=""),
        "alphabet ''",
        "cannot read",
        "give printable characters",
    ),
    "a site too high": (
        lambda: capture(PIPELINE.denoiser, 7, rows=["a"]).__enter__(),
        "no site index 7",
        "among the 2",
        "indices 0..1",
    ),
    "pairs that are gone": (
        lambda: read_pairs("gone.tsv"),
        "prompts from gone.tsv",
        "No such file",
        "expected a text",
    ),
}


@pytest.mark.parametrize("name", CALLED)
def test_a_mistake_in_python_is_a_patch_error(name):
    """One line of the family with the three; nothing was run."""
    call, *says = CALLED[name]
    with pytest.raises(PatchError) as caught:
        call()
    assert (
        "\n" not in str(caught.value)
        and [words for words in says if words not in str(caught.value)] == []
    ), caught.value
