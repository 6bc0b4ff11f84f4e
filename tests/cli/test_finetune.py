"""`textpatch finetune` and `rewrite` keep an adapter for `generate --lora`, and show what it does."""

import io
import json
import os
import shutil
import signal
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from support.small_models import PROMPTS, save_small
from textpatch import cli, load_adapter
from textpatch.reference_models.pipeline import Pipeline
from textpatch.runs.folder import Run
from textpatch.tuning.data_files import write_folder

TRAIN = "--sites 0 --steps 2 --batch 2 --every 1 --out run".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_small(tmp_path_factory.mktemp("finetune") / "small"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> Path:
    """A folder with pictures, what a command over them left in run, and what it printed in told."""
    folder = tmp_path_factory.mktemp("finished")
    pictures = [Image.new("RGB", (96, 32), colour) for colour in ("red", "green")]
    write_folder(folder / "pictures", list(zip(PROMPTS, pictures, strict=True)))
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as told:
        patched.chdir(folder)
        assert trained(model) == 0
    (folder / "told").write_text(told.getvalue())
    return folder


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """A working folder with pictures to learn from, and a finished run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def trained(model: str) -> int:
    return cli.main(["finetune", model, "--data", "pictures", *TRAIN])


def test_an_adapter_is_trained_shown_and_drawn_with(model, here, capfd):
    """The projections are told first, the sheet has all states, and `generate --lora` takes the adapter."""
    first, *names, adapter, sheet = Path("told").read_text().splitlines()
    assert first.startswith("text_kv of sites 0: 2 modules, 1,024 parameters, 0.34% of")
    assert names == [f"  transformer_blocks.0.attn.add_{part}_proj" for part in "kv"]
    assert [adapter, sheet] == ["run/adapter.safetensors", "run/sheet.png"]
    told = json.loads(Path("run/results.json").read_text())
    assert list(told["pictures"]) == ["before", "step 1", "after"] and len(told["losses"]) == 2
    assert load_adapter(adapter).sha256 == told["adapter_sha256"]
    assert load_adapter("run/checkpoints/000002.safetensors").sha256 == told["adapter_sha256"]
    assert cli.main(["generate", model, PROMPTS[0], "--steps", "1", "--lora", adapter]) == 0
    records = Run.load("run").records()
    assert trained(model) == 0 and Run.load("run").records() == records


def test_ctrl_c_keeps_the_step_and_the_same_command_goes_on(model, here, monkeypatch, capfd):
    """The line says how many steps there are, and what comes of it is what an unbroken run makes."""
    whole = json.loads(Path("run/results.json").read_text())
    draws = Pipeline.generate
    calls = []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:  # the sample after the first step
            os.kill(os.getpid(), signal.SIGINT)
        return draws(*arguments, **options)

    monkeypatch.setattr(Pipeline, "generate", interrupted)
    again = ["finetune", model, "--data", "pictures", *TRAIN[:-1], "other"]
    capfd.readouterr()
    assert cli.main(again) == 130
    assert "1 of 2 steps are made and in other; the same command goes on" in capfd.readouterr().err
    assert cli.main(again) == 0
    assert json.loads(Path("other/results.json").read_text()) == whole


BAD = {
    "unknown site": (["--sites", "9"], "no site"),
    "no picture": (["--data", "nowhere"], "no data at nowhere"),
    "style": (["--data", "signs:blue"], "not drawn 'blue'; known: plain, faded"),
    "weighting": (["--weighting", "min_snr"], "this schedule is a flow's"),
    "batch": (["--batch", "3"], "the data are 2 of (caption, picture), and a batch takes 3"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_requests_leave_no_folder(model, here, capfd, bad):
    """One line, exit code 2, and nothing on the disk."""
    more, says = BAD[bad]
    options = ["--data", "pictures", "--sites", "0", "--steps", "2", "--batch", "2", "--out", "bad"]
    for option, value in zip(more[::2], more[1::2], strict=True):
        if option in options:
            options[options.index(option) + 1] = value
        else:
            options += [option, value]
    assert cli.main(["finetune", model, *options]) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1 and not Path("bad").exists()


def test_an_evolving_text_is_captured_in_the_pictures_asked_for(model, here):
    """The adapter names the seeds, and those of another request make another one."""
    made = []
    for seeds in (["1-2"], ["3"]):
        command = ["rewrite", model, "--sites", "0", "--old", PROMPTS[0], "--new", PROMPTS[1]]
        assert cli.main([*command, "--capture-seeds", *seeds, "--out", seeds[0]]) == 0
        made.append(load_adapter(f"{seeds[0]}/adapter.safetensors"))
    assert [adapter.made["seeds"] for adapter in made] == [[1, 2], [3]]
    assert made[0].sha256 != made[1].sha256


def test_no_localised_site_and_half_a_pair_are_said(model, here, capfd):
    """A model of which no site is known wants --sites, and a rewriting both prompts."""
    command = ["finetune", model, "--data", "pictures", "--steps", "1", "--batch", "2"]
    assert cli.main(command) == 2
    assert "no sites are known to carry the word" in capfd.readouterr().err
    assert cli.main(["rewrite", model, "--sites", "0", "--old", PROMPTS[0]]) == 2
    assert "needs --old PROMPT and --new PROMPT" in capfd.readouterr().err
    assert not Path("runs").exists()


def test_projections_are_exported_for_other_trainers(model, here, capfd):
    """The selector is printed and kept with its count, and what a trainer cannot select is refused."""
    export = ["export", "run", "--model", model, "--for"]
    assert cli.main([*export, "diffusers"]) == 0
    text, count, path = capfd.readouterr().out.splitlines()
    assert text == "--lora_blocks 0 --lora_layers attn.add_k_proj,attn.add_v_proj"
    assert count == "2 of 2 modules, as diffusers reads it"
    assert Path(path).read_text() == f"{text}\n"
    localized = Run.open("found", {"request": {"command": "localize", "model": "small"}})
    localized.write_json("results.json", {"pairs": 99, "ranked": [0], "set": {"sites": [0, 1]}})
    found = ["export", "found", "--model", model, "--targets", "text_all", "--for", "kohya"]
    assert cli.main(found) == 0
    assert "train_block_indices=0,1 context_attn_dim=4" in capfd.readouterr().out
    generated = Run.open("made", {"request": {"command": "generate", "model": "small"}})
    generated.write_json("results.json", {})
    for command, says in [
        ([*export, "kohya"], "2 of these were asked for"),
        ([*export, "peft", "--targets", "all"], "names its own; leave it out"),
        (["export", "run", "--for", "peft"], "small"),
        (["export", "made", "--model", model, "--for", "peft"], "is a run of generate"),
        (["export", "nowhere", "--for", "peft"], "nowhere"),
    ]:
        assert cli.main(command) == 2
        err = capfd.readouterr().err
        assert says in err and err.count("\n") == 1
