"""The command line as people meet it: quick help, one line for a bad request, runs that survive Ctrl-C."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

import textpatch
from support.localizing import by_pixels
from support.small_models import PROMPTS, save_small, write_flux_config
from textpatch import attention, cli
from textpatch.report.heatmap import heatmap_png
from textpatch.weights.loading import find

COMMAND = [sys.executable, "-m", "textpatch.cli"]
SOURCE, TARGET = PROMPTS[0], 'a green badge that says "WORLD" on a white wall'
WANTED = [
    "results.json",
    "results.csv",
    "heatmap.png",
    "contact_sheet.png",
    "report.html",
    "manifest.json",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random model; it writes no words, and the command line must not mind."""
    return str(save_small(tmp_path_factory.mktemp("cli") / "small"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def unread(monkeypatch):
    """Pictures of random models are read by their pixels."""
    by_pixels(monkeypatch)


HEAVY_AFTER_HELP = """
import sys
from textpatch.cli import main
try:
    main(["--help"])
finally:
    sys.stderr.write(" ".join({*sys.modules} & {"torch", "transformers", "numpy"}))
"""


def run(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )


def refused(capfd, arguments, *says: str) -> None:
    """In this process: exit code 2, nothing on stdout, one line on stderr that says all of `says`."""
    capfd.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert (
        out == "" and err.startswith("textpatch: ") and err.count("\n") == 1 and err.endswith("\n")
    )
    assert [word for word in says if word not in err] == [], err


def test_help_imports_nothing_heavy():
    """--help answers without torch, transformers or numpy: that is what makes it quick."""
    assert (
        subprocess.run([sys.executable, "-c", HEAVY_AFTER_HELP], capture_output=True).stderr == b""
    )
    told = run("--help")
    assert told.returncode == 0 and "textpatch localize planted-mmdit" in told.stdout


@pytest.mark.parametrize(
    "command",
    [
        "sites",
        "generate",
        "localize",
        "edit",
        "sanitize",
        "finetune",
        "rewrite",
        "export",
        "audit",
        "doctor",
    ],
)
def test_every_command_has_help(command, capsys):
    """Each command explains itself: how it is called, what it does, what it costs, and an example."""
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    told = capsys.readouterr().out
    assert left.value.code == 0 and told.startswith(f"usage: textpatch {command}")
    assert "\nCost: " in told
    _, examples = told.split("\nexamples:\n")
    assert f"\n  textpatch {command}" in examples


def test_the_version_is_told(capsys):
    """--version is that of the package, and nothing else is said."""
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert (
        left.value.code == 0 and capsys.readouterr().out == f"textpatch {textpatch.__version__}\n"
    )


def listed(capsys, *arguments: str) -> tuple[str, list[list[str]], list[str]]:
    """What `sites` prints: its first line, the table's cells, and what stands under it."""
    assert cli.main(["sites", *arguments]) == 0
    first, heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == "site kind heads width text K/V share paper name".split()
    rows = [line.split() for line in lines if "%" in line.split()[-2]]
    return first, rows, lines[len(rows) :]


def test_sites_are_listed(model, capsys):
    """One line per site, in execution order; PATH may be spelled --model PATH."""
    assert listed(capsys, model) == (found := listed(capsys, "--model", model))
    first, rows, _ = found
    assert first.startswith("300,976 parameters, 2 sites")
    assert [(*row[:2], row[-1]) for row in rows] == [
        (str(i), "joint", f"transformer_blocks.{i}.attn") for i in range(2)
    ]


@pytest.mark.parametrize(
    "name, count, marked, shares",
    [
        (
            "sdxl-base-1.0",
            70,
            {"*55", "*56", "*57"},
            "together 0.61% of the parameters, 0.61% in its",
        ),
        ("if-i-xl", 22, {"*17"}, "together 0.28% of the parameters, 0.21% in its"),
        ("sd3-medium", 24, {"*10"}, "together 0.23% of the parameters, 0.23% in its"),
    ],
)
def test_the_papers_sites_are_marked(name, count, marked, shares, capsys):
    """Of the published sizes: the paper's sites and shares, in its convention beside the true one."""
    _, rows, below = listed(capsys, name)
    assert len(rows) == count and {row[0] for row in rows if row[0].startswith("*")} == marked
    assert any(shares in line for line in below)
    assert any("to_k and to_v are the image's" in line for line in below) == (name == "if-i-xl")


def test_sites_of_diffusers_folder(diffusers, tmp_path, capsys):
    """A pipeline's folder and its denoiser's own give one table, from the configuration alone."""
    tables = []
    pipeline = write_flux_config(tmp_path / "flux")
    for folder in (pipeline, pipeline / "transformer"):
        assert cli.main(["sites", "--diffusers", str(folder)]) == 0
        tables.append(capsys.readouterr().out)
    first, _, *rows, _ = tables[0].splitlines()
    assert tables[0] == tables[1] and first.endswith("2 sites in execution order")
    assert [(*row.split()[:2], row.split()[-1]) for row in rows] == [
        ("0", "joint", "transformer_blocks.0.attn"),
        ("1", "single", "single_transformer_blocks.0.attn"),
    ]


@pytest.mark.parametrize(
    "written, says",
    [
        (None, "no configuration of a denoiser: looked for"),
        ("{}", "names no `_class_name`; give a folder of diffusers"),
        ("[1", "is not JSON"),
        (
            '{"_class_name": "UNet2DModel"}',
            "for which no table is shipped; closest: UNet2DCondition",
        ),
        ('{"_class_name": "FluxTransformer2DModel", "num_layers": "two"}', "builds no FluxTransf"),
    ],
)
def test_a_folder_without_sites_is_refused(diffusers, written, says, tmp_path, capsys):
    """A folder of no model, of one without a table, and of sizes that build nothing, in one line each."""
    if written is not None:
        (tmp_path / "config.json").write_text(written)
    assert cli.main(["sites", "--diffusers", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_diffusers_is_asked_for_where_it_is_missing(tmp_path, monkeypatch, capsys):
    """Without diffusers the command says what to install."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert cli.main(["sites", "--diffusers", str(write_flux_config(tmp_path / "flux"))]) == 2
    assert "install it: pip install 'textpatch[reference]'" in capsys.readouterr().err


def test_sites_wants_one_model(model, capsys):
    """Neither none nor two."""
    for arguments in ([], [model, "--model", model]):
        assert cli.main(["sites", *arguments]) == 2
        assert "name one model" in capsys.readouterr().err


BAD = {
    "unknown model": (["sites", "tiny-mmdti"], "no model 'tiny-mmdti'", "closest: tiny-mmdit"),
    "unknown site": (
        ["localize", "MODEL", "--sites", "99"],
        "no site index 99 among the 2",
        "indices 0..1",
    ),
    "unknown site name": (
        ["edit", "MODEL", "--sites", "transformer_blocks.0.atn"],
        "no site",
        "closest: transformer_blocks.0.attn",
    ),
    "unknown kind": (
        ["edit", "MODEL", "--sites", "kind:cross"],
        "no site of kind 'cross'",
        "kinds here: joint",
    ),
    "unknown site in a set": (
        ["localize", "MODEL", "--set", "0", "7"],
        "no site index 7 among the 2",
    ),
    "a set twice": (
        ["localize", "MODEL", "--set", "0", "1", "--set", "1", "0"],
        "asked for twice",
        "name it once",
    ),
    "start outside": (
        ["localize", "MODEL", "--start", "2"],
        "start is 2 of 2 steps",
        "start within the run",
    ),
    "start outside, edit": (
        ["edit", "MODEL", "--sites", "0", "--start", "-1"],
        "start is -1 of 2 steps",
    ),
    "no steps": (["generate", "MODEL", SOURCE, "--steps", "0"], "asked for 0 steps"),
    "too large a seed": (
        ["generate", "MODEL", SOURCE, "--seed", str(2**64)],
        "seed 18446744073709551616 does not",
    ),
    "two seeds of one noise": (
        ["generate", "MODEL", SOURCE, "--seed", "0", str(2**32)],
        "seeds 0 and 4294967296 are the same noise",
    ),
    "no sites known": (
        ["edit", "MODEL"],
        "no sites are known to carry the word",
        "run localize first",
    ),
    "unknown split": (
        ["localize", "MODEL", "--split", "trial"],
        "no split 'trial'",
        "validation, test",
    ),
    "too many pairs": (["localize", "MODEL", "--pairs", "999"], "asked for 999 pairs", "make 1 to"),
    "no quoted word": (
        ["edit", "MODEL", "--sites", "0", "--target", "a red sign on a blue wall"],
        "no quoted word",
        "in double quotes",
    ),
    "unknown word": (
        ["generate", "MODEL", 'a mauve sign that says "A" on a blue wall'],
        "does not know 'mauve'",
    ),
    "no prompts file": (
        ["localize", "MODEL", "--prompts", "nowhere.tsv"],
        "cannot read prompts from nowhere.tsv",
        "No such file",
    ),
    "bad prompts file": (
        ["localize", "MODEL", "--prompts", "bad.tsv"],
        "bad.tsv",
        "line 2",
        "`source<TAB>target`",
    ),
    "empty prompts file": (
        ["localize", "MODEL", "--prompts", "empty.tsv"],
        "empty.tsv",
        "`source<TAB>target`",
    ),
    "prompts without words": (
        ["localize", "MODEL", "--prompts", "wordless.tsv"],
        "no quoted word in 'a red sign'",
    ),
    "folder below a file": (
        ["generate", "MODEL", SOURCE, "--out", "bad.tsv/run"],
        "cannot open bad.tsv/run",
        "Not a directory",
    ),
    "folder of another kind": (
        ["generate", "MODEL", SOURCE, "--out", "."],
        "but no manifest.json",
        "give another --out",
    ),
    "truncated weights": (
        ["localize", "TRUNCATED"],
        "is damaged or no safetensors file",
        "fetch it again",
    ),
}


def files_below(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("arguments, says", [(bad[0], bad[1:]) for bad in BAD.values()], ids=BAD)
def test_a_bad_request_is_one_line_and_leaves_nothing(
    arguments, says, model, here, tmp_path, capfd
):
    """What was asked, what was found, what to do, in one line; exit code 2; not one file more than before."""
    (here / "bad.tsv").write_text(f"{SOURCE}\t{TARGET}\n{SOURCE} and {TARGET}\n")
    (here / "empty.tsv").write_text("\n\n")
    (here / "wordless.tsv").write_text(f"a red sign\t{TARGET}\n")
    if "TRUNCATED" in arguments:
        cut = (
            Path(shutil.copytree(find("tiny-mmdit"), tmp_path / "cut"))
            / "text_encoder_3/model.safetensors"
        )
        cut.write_bytes(cut.read_bytes()[:-1000])
    names = {"MODEL": model, "TRUNCATED": tmp_path / "cut"}
    if arguments[0] == "edit":
        target = [] if "--target" in arguments else ["--target", TARGET]
        arguments = [*arguments[:2], "--source", SOURCE, *target, *arguments[2:]]
    before = files_below(here)
    refused(capfd, [names.get(argument, argument) for argument in arguments], *says)
    assert files_below(here) == before


@pytest.mark.parametrize("arguments", [["localize", "MODEL"], ["doctor", "MODEL"]])
def test_without_tesseract_nothing_is_scored(arguments, model, here, monkeypatch, capfd):
    """No tesseract in PATH: one line saying how to install it, before anything is generated or written."""
    monkeypatch.setenv("PATH", "")
    capfd.readouterr()
    assert cli.main([model if argument == "MODEL" else argument for argument in arguments]) == 2
    err = capfd.readouterr().err
    assert err.startswith("textpatch: ") and err.count("\n") == 1
    assert "tesseract" in err and "apt-get install tesseract-ocr" in err
    assert not list(here.iterdir())


def test_the_real_process_says_the_same(here):
    """The same in a process of its own: exit code 2, empty stdout, exactly one line on stderr."""
    told = run("runs", cwd=here)  # which needs no torch, and so no seconds to begin
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("textpatch: no folder runs") and told.stderr.count("\n") == 1


@pytest.mark.usefixtures("unread")
def test_localize_leaves_a_whole_run_folder(model, here, monkeypatch, capfd):
    """Table and path on stdout, nothing on a stderr that is no terminal, every file in the folder."""
    monkeypatch.setattr("textpatch.report.page.heatmap_png", heatmap_png)
    assert cli.main(["localize", model, "--pairs", "2", "--out", "run", "--maps"]) == 0
    out, err = capfd.readouterr()
    assert (
        err == ""
        and out.splitlines()[-1] == "run/report.html"
        and out.split()[:2] == ["rank", "site"]
    )
    assert [name for name in WANTED if not (here / "run" / name).is_file()] == []
    result = json.loads((here / "run/results.json").read_text())
    assert sorted(result["ranked"]) == [0, 1] and result["pairs"] == 2
    assert len((here / "run/results.csv").read_text().splitlines()) >= 3
    assert all(
        Image.open(here / "run" / name).size[0] > 100
        for name in ("heatmap.png", "contact_sheet.png")
    )
    page = (here / "run/report.html").read_text()
    assert "<h2>Where the word is read</h2>" in page and page.count("received at site") == 2 * 2
    assert 'src="data:image/png;base64,' in page and "http://" not in page.replace(
        "http://www.w3.org", ""
    )
    assert not [
        path
        for path in (here / "run").rglob("*")
        if "HELLO" in path.name or path.name.startswith(".tmp")
    ]


@pytest.mark.usefixtures("unread")
def test_the_same_command_again_runs_nothing_again(model, here, monkeypatch, capfd):
    """A finished run is reported from its records; another request for the same folder is refused."""
    arguments = ["localize", model, "--pairs", "1", "--out", "run"]
    assert cli.main(arguments) == 0
    before = (here / "run/results.json").read_bytes()
    monkeypatch.setattr("textpatch.reference_models.pipeline.Pipeline.denoise", None)
    assert cli.main(arguments) == 0
    assert (here / "run/results.json").read_bytes() == before
    refused(
        capfd,
        [*arguments, "--start", "1"],
        "run holds another run",
        "start: stored 0, asked 1",
        "another --out",
    )


def wait_for(path: Path, process: subprocess.Popen, lines: int) -> None:
    """Until the record file has that many lines."""
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < lines):
        time.sleep(0.02)


@pytest.mark.long
def test_an_interrupted_run_goes_on_where_it_stopped(model, here):
    """SIGINT midway: code 130, one line, records kept; the same command again ends on the same results.

    By default tests/runs kills and interrupts runs, by the same code.
    """
    arguments = ["localize", model, "--pairs", "3", "--seeds", "0", "1"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--out", "a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(here / "a/records/0.jsonl", process, 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert (
        err
        == "textpatch: interrupted; what is finished is in a; the same command goes on where it stopped\n"
    )
    kept = (here / "a/records/0.jsonl").read_bytes()
    assert 2 <= kept.count(b"\n") < 6 and not (here / "a/results.json").exists()
    assert cli.main([*arguments, "--out", "a"]) == 0 and cli.main([*arguments, "--out", "b"]) == 0
    assert (here / "a/records/0.jsonl").read_bytes().startswith(kept)
    for name in ("results.json", "results.csv", "heatmap.png", "contact_sheet.png"):
        assert (here / "a" / name).read_bytes() == (here / "b" / name).read_bytes(), name


def test_generate_and_edit_leave_pictures(model, here, capfd):
    """generate makes every prompt with every seed; edit makes three pictures; both make a sheet."""
    assert cli.main(["generate", model, *PROMPTS, "--seed", "0", "1", "2"]) == 0
    assert (
        cli.main(
            ["edit", model, "--source", SOURCE, "--target", TARGET, "--sites", "0", "*.1.attn"]
        )
        == 0
    )
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith("6 pictures are in ") and said[2].startswith(
        "The edited picture reads"
    )
    generated, edited = Path(said[1]), Path(said[3])
    names = {path.name for path in (generated.parent / "pictures").iterdir()}
    assert names == {f"prompt-000{p}-seed-000{s}.png" for p in (1, 2) for s in range(3)}
    assert len(json.loads((generated.parent / "results.json").read_text())["pictures"]) == 6
    body = json.loads((edited.parent / "results.json").read_text())
    assert (
        list(body["pictures"]) == ["source", "edited", "target"] and len(body["plan_sha256"]) == 64
    )
    sizes = {Image.open(edited.parent / path).size for path in body["pictures"].values()}
    assert sizes == {(96, 32)} and Image.open(generated).size[0] > 288
    assert generated.parent.parent == edited.parent.parent == Path("runs")


@pytest.mark.usefixtures("unread")
def test_sites_by_every_form(model, here, capfd):
    """--sites 0-1 = kind:joint = group:transformer = 0 1: one plan."""
    hashes = set()
    for selectors in (["0-1"], ["kind:joint"], ["group:transformer"], ["1", "0"]):
        prompts = ["--source", SOURCE, "--target", TARGET]
        assert cli.main(["edit", model, *prompts, "--steps", "1", "-q", "--sites", *selectors]) == 0
        made = Path(capfd.readouterr().out.strip()).parent
        hashes.add(json.loads((made / "results.json").read_text())["plan_sha256"])
    assert len(hashes) == 1


def test_doctor_checks_every_part(model, capfd):
    """Versions, the OCR engine's self-test, and one picture by each model asked for."""
    assert cli.main(["doctor", model]) == 0
    out = capfd.readouterr().out
    assert "torch" in out and "reads its self-test" in out and "loads and runs" in out
    assert "attention     sdpa, through slots sdpa; triton kernels: " in out


def test_options_that_would_be_ignored_are_refused(model, here, capfd):
    """--sites beside --set, and our word lists beside --prompts: errors, nothing written."""
    (here / "pairs.tsv").write_text(f"{SOURCE}\t{TARGET}\n")
    refused(capfd, ["localize", model, "--sites", "0", "--set", "0", "1"], "both given", "give one")
    refused(
        capfd,
        ["localize", model, "--prompts", "pairs.tsv", "--pairs", "2"],
        "--prompts",
        "leave them out",
    )
    refused(
        capfd,
        ["localize", model, "--prompts", "pairs.tsv", "--same-scene"],
        "--prompts",
        "leave them out",
    )
    refused(
        capfd,
        ["generate", model, SOURCE, "--negative", TARGET, "--guidance", "1"],
        "no effect",
        "leave one",
    )
    assert [path.name for path in here.iterdir() if path.name != "pairs.tsv"] == []


def test_doctor_says_what_files_are(tmp_path, capsys):
    """A file, a component's folder and a pipeline's: what each is, how it differs, and which
    numbers are none.
    """
    from support.small_denoisers import small

    state = small("SDXL").state_dict()
    state["conv_in.bias"][3] = float("nan")
    folder = tmp_path / "unet"
    folder.mkdir()
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04pickled")
    assert cli.main(["doctor", str(folder), str(tmp_path / "broken.safetensors"), "--scan"]) == 2
    told, said = capsys.readouterr()
    assert "2 of the parts above cannot be used" in said
    assert "closest to sdxl-base-1.0.unet.diffusers; missing" in told and "of another shape" in told
    assert (
        "'conv_in.bias': 1 of 64 values are not finite" in told
        and "1 with numbers that are none" in told
    )
    assert "unusable: " in told and "pickle" in told


def run_of(command: str, model: str, folder: Path) -> str:
    asked = {
        "generate": ["generate", model, SOURCE],
        "edit": [
            "edit",
            model,
            "--source",
            SOURCE,
            "--target",
            TARGET,
            "--sites",
            "0",
            "1",
            "--start",
            "1",
        ],
        "localize": ["localize", model, "--pairs", "1", "--sites", "1"],
    }
    assert cli.main([*asked[command], "--out", str(folder)]) == 0
    return str(folder)


@pytest.mark.parametrize("command", ["edit", "localize"])
def test_a_finished_run_is_audited(command, model, tmp_path, capsys, monkeypatch):
    """Every check of a run passes; with K and V of another row in the attention, exit code 2 and
    which check.
    """
    folder = run_of(command, model, tmp_path / "run")
    assert cli.main(["audit", folder, "--model", model]) == 0
    assert "checks passed" in capsys.readouterr().out
    right = attention.gather_text
    monkeypatch.setattr(attention, "gather_text", lambda bank, slots: right(bank.roll(1, 0), slots))
    assert cli.main(["audit", folder, "--model", model]) == 2
    assert "checks failed, first swap 0 at site" in capsys.readouterr().err


def test_an_audit_wants_the_runs_own_model(model, tmp_path, capsys):
    """Other weights, a run without swaps and a folder that is no run are refused."""
    for folder, says in [
        (run_of("edit", model, tmp_path / "edit"), "was made with weights"),
        (run_of("generate", model, tmp_path / "generate"), "which has no plan"),
        (str(tmp_path), "manifest.json"),
    ]:
        chosen = "tiny-mmdit" if "weights" in says else model
        assert cli.main(["audit", folder, "--model", chosen]) == 2
        assert says in capsys.readouterr().err
