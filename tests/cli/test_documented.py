"""Every command that a page or --help shows is carried out, but for its places and its size as it stands."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from support.documents import starting
from support.glyph_folders import GLYPH, write
from support.localizing import by_pixels
from support.small_denoisers import small as denoiser
from support.small_models import PROMPTS, save_small, write_flux_config
from textpatch import cli
from textpatch.cli.parser import VERBS
from textpatch.metrics import calibration
from textpatch.runs.folder import Run
from textpatch.weights.loading import find
from textpatch.weights.signs.drawing import Sign, SignFormat
from textpatch.weights.signs.evaluation import clean_pictures

FROM_HELP = [shlex.split(line) for line in cli.EXAMPLES.splitlines()[1:]]
EXAMPLES = {" ".join(words): words[1:] for words in [*starting("textpatch"), *FROM_HELP]}
PAIR = [PROMPTS[0], PROMPTS[0].replace("HELLO", "WORLD")]


def uses_of(words: list[str]) -> set[tuple[str, str]]:
    """The verb with each of its options, and alone."""
    return {(words[0], word) for word in words if word.startswith("--")} | {(words[0], "")}


def fewest() -> set[str]:
    """Examples that use every option which any of them uses: the longest, and each with one more."""
    used: set[tuple[str, str]] = set()
    chosen = set()
    for example in sorted(EXAMPLES, key=lambda one: -len(uses_of(EXAMPLES[one]))):
        uses = uses_of(EXAMPLES[example])
        if uses - used:
            chosen.add(example)
        used |= uses
    return chosen


# by default an example is left out where others use its options
CHOSEN = fewest()
CARRIED_OUT = [
    pytest.param(example, marks=[pytest.mark.long] * (example not in CHOSEN))
    for example in EXAMPLES
]
# functions that the pages name, of small random models
MY_MODELS = """
from support.foreign_pipelines import flux
"""
MY_SOUNDS = """
from support.foreign_sounds import audioldm2 as pipe, similarities
from textpatch import wrap
from textpatch.metrics import Nearest


def audioldm2():
    return wrap(pipe(), audio_length_in_s=0.01)


def clap():
    return Nearest(similarities)
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Working folder, and what is there in the place of each model and folder that the examples only name."""
    here = tmp_path_factory.mktemp("documented")
    small = str(save_small(here / "small"))
    file = here / "original.safetensors"
    save_file(denoiser("SDXL").state_dict(), file)
    larger = shutil.copytree(find("tiny-if-ii"), here / "larger")
    told = json.loads((larger / "textpatch.json").read_text())
    told["steps"] = 2  # of fifty
    (larger / "textpatch.json").write_text(json.dumps(told))
    pairs = here / "two.tsv"
    pairs.write_text("\t".join(PAIR) + "\n")
    for path in write(here / "glyph", sentences=GLYPH).glob("text_prompts/raw/SimpleBench/*.txt"):
        path.write_text(path.read_text().upper())  # the small model's alphabet
    (sign,) = clean_pictures([Sign("HELLO")], SignFormat())
    sign.save(here / "sign.png")
    (here / "runs").mkdir()
    (here / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    (here / "my_models.py").write_text(MY_MODELS, "utf-8")
    (here / "my_sounds.py").write_text(MY_SOUNDS, "utf-8")
    instruments = here / "two_instruments.tsv"
    instruments.write_text("\t".join([*PROMPTS[:2], "violin", "piano"]) + "\n", "utf-8")
    (here / "words.txt").write_text("zen\n", "utf-8")
    return here, {
        "/models/stable-diffusion-xl-base-1.0": small,
        "MODEL": small,
        "GlyphControl-release": str(here / "glyph"),
        "/models/sd_xl_base_1.0.safetensors": str(file),
        "/models/FLUX.1-dev": str(write_flux_config(here / "flux")),
        "pairs.tsv": str(pairs),
        "instruments.tsv": str(instruments),
        "tiny-if-ii": str(larger),
    }


def smaller(words: list[str]) -> list[str]:
    """The same request for a pair, or the two a search needs, at two sites, of one seed, with steps up to the
    first patched one.
    """
    if words[0] == "finetune":  # whose steps are those of the training
        fewer = ["--steps", "1", "--batch", "2", "--examples", "2", "--sample", PROMPTS[0]]
        return [*words[: words.index("--steps")], *fewer]
    screened = {"--mode", "--what"} & set(words)
    fewer, made = {"--pairs": "2" if screened else "1", "--seeds": "1", "--seed": "1"}, list(words)
    if words[0] == "edit":  # whose pairs are those of a file
        del fewer["--pairs"]
    for option in fewer.keys() & set(words):
        start = end = made.index(option) + 1
        while end < len(made) and not made[end].startswith("-"):
            end += 1
        made[start:end] = [fewer[option]]
    if words[0] == "localize" and not {"--sites", "--set", "--what", "--keep"} & set(words):
        made += ["--sites", "0", "1"]
    steps = "2" if "--start" in words else "1"
    if "--picture" in words:  # which does not come back of fewer
        steps = "4"
    return made + ["--steps", steps] * (words[0] in ("generate", "localize", "edit", "sanitize"))


def placed(words: list[str], stand_ins: dict) -> list[str]:
    """What is named and not there replaced by what is: models, folders, prompts, and runs, which are made."""
    prompts = iter(PAIR)
    made = [next(prompts) if word == "..." else stand_ins.get(word, word) for word in words]
    return [finished(word) for word in made]


def finished(word: str) -> str:
    """A run folder in the place of one that an example names, another word as it is."""
    verb, _, rest = word.removeprefix("runs/").partition("-")
    if word.startswith("runs/") and verb == "edit":
        return edited(rest.rpartition("-")[0])
    if word.startswith("runs/") and verb == "localize":
        command = ["localize", "planted-mmdit", "--pairs", "1", "--steps", "1", "--sites", "0", "1"]
        assert cli.main([*command, "--out", "localized"]) == 0
        return "localized"
    if word.startswith("runs/"):
        return run_of(verb, rest.rpartition("-")[0])
    return word


def run_of(verb: str, model: str) -> str:
    """The folder of a run of which an example needs the words alone."""
    run = Run.open(f"{verb}-{model}", {"request": {"command": verb, "model": model}})
    run.write_json("results.json", {"pairs": 1, "ranked": [1], "set": None})
    return str(run.folder)


def edited(model: str) -> str:
    """The folder of a run of `edit` with that model."""
    source, target = PAIR
    command = [
        "edit",
        model,
        "--source",
        source,
        "--target",
        target,
        "--sites",
        "1",
        "--steps",
        "1",
    ]
    assert cli.main([*command, "--out", f"edit-{model}"]) == 0
    return f"edit-{model}"


def test_the_examples_are_all_commands():
    """All verbs, and each of the forms a reader meets: there is something to carry out."""
    commands = {words[0] for words in EXAMPLES.values()}
    assert commands == {*VERBS} and len(EXAMPLES) >= 12


@pytest.mark.parametrize("example", CARRIED_OUT)
def test_an_example_is_carried_out(example, places, monkeypatch, capfd):
    """Exit code 0, something said on stdout, nothing on stderr; what it says it wrote is there."""
    here, stand_ins = places
    if "--diffusers" in example:
        pytest.importorskip("diffusers")
    monkeypatch.chdir(here)
    monkeypatch.setattr("textpatch.metrics.calibration.EACH", 1)
    monkeypatch.setattr("textpatch.metrics.calibration.KINDS", calibration.KINDS[:1])
    if EXAMPLES[example][0] != "doctor":  # which tests the readers
        by_pixels(monkeypatch)
    assert cli.main(placed(smaller(EXAMPLES[example]), stand_ins)) == 0
    out, err = capfd.readouterr()
    last = out.splitlines()[-1]
    assert err == "" and (not last.startswith("runs/") or Path(last).is_file())
