"""Closed-form edits are those of UCE, TIME and LocoEdit, and without ridge they inject a text."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from support.adapters import close_run
from support.patched_calls import refused
from support.planting import plant
from support.recorded_runs import RECORDINGS, distance
from support.strategies import fixed_case
from textpatch import Plan, Row, Swap, inject, load, rewrite
from textpatch.changes import original_weight
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.pipeline import Pipeline
from textpatch.sampling import sample_latents
from textpatch.tuning import closed_form, read_vectors, rewriting, token_pairs

FOLDER = Path(__file__).parents[1] / "golden" / "adapters"
SAID = json.loads((FOLDER / "knowledge.json").read_text())
TENSORS = load_file(FOLDER / "knowledge.safetensors")
PLACES = {prompt["prompt"]: prompt for prompt in SAID["prompts"]}
RUNS = "uce", "uce_scaled", "time_1", "time_4", "loco_reg"


class Tokenizer:
    """Recorded token numbers of texts."""

    model_max_length = 77

    def __call__(self, text):
        return SimpleNamespace(input_ids=PLACES[text]["ids"])


class Encoders:
    """Recorded texts, and their token numbers."""

    def __init__(self):
        self.tokenizers = [Tokenizer()]

    def __call__(self, prompts):
        tokens = torch.stack([TENSORS[f"embeds.{PLACES[p]['index']}"] for p in prompts])
        return TextCondition(tokens, torch.zeros(len(prompts), 1))


def recorded_pipeline() -> Pipeline:
    own = RECORDINGS["sdxl"].pipeline(torch.float64)
    return Pipeline(Encoders(), own.denoiser, own.schedule, list, own.defaults, "recorded")


def asked(run: str) -> tuple[list, dict]:
    """Edits of a recorded run, and the arguments of `rewrite` that ask for them."""
    said = SAID[run]
    if run.startswith("time"):
        return list(zip(said["old"], said["new"], strict=True)), {
            "tokens": "aligned",
            "ridge": said["lamb"],
        }
    if run.startswith("loco"):
        edits = [(prompt, said["target"]) for prompt in said["prompts"]]
        return edits, {"tokens": "last", "ridge": said["reg_key"]}
    return list(zip(said["edit"], said["guide"], strict=True)), {
        "tokens": "last",
        "ridge": said["lamb"],
        "preserve": said["preserve"],
        "weight": said["erase_scale"],
        "preserve_weight": said["preserve_scale"],
    }


def require_recorded(run: str) -> None:
    """Law of a recorded edit: the edited matrices are those of the authors' code, of rank n at most."""
    pipeline = recorded_pipeline()
    edits, arguments = asked(run)
    names = [name.removeprefix(f"{run}.") for name in TENSORS if name.startswith(f"{run}.")]
    site = names[0].rpartition(".")[0]
    adapter = rewrite(pipeline, edits, sites=site, **arguments)
    assert {*adapter.changes} == {*names}
    for name in names:
        change = adapter.changes[name]
        weight = original_weight(pipeline.denoiser.get_submodule(name))
        made = weight + change.matrix(torch.float64)
        assert distance(made, TENSORS[f"{run}.{name}"]) <= 1e-10
        assert arguments["tokens"] != "last" or change.rank <= len(edits)


@pytest.mark.parametrize("run", RUNS)
def test_an_edit_is_the_recorded_one(run):
    """Matrices edited by UCE's, TIME's and LocoEdit's own code come out, to 1e-10 in float64."""
    require_recorded(run)


def law_an_evolving_text_is_read_as_captured(_: str) -> None:
    """Rewritten from one step of its own run, a site of MMDiT gives in this step what a swap there gives."""
    case = fixed_case("mmdit")
    old, new = (row.prompt for row in case.rows[:2])
    site = 1
    adapter = rewrite(case.pipeline, [(old, new)], sites=site, ridge=0, seeds=[3], steps=1)
    rows = [Row("reader", old, 3), Row("donor", new, 3)]
    swap = Plan([Swap(site, "reader", "donor")])
    wanted = sample_latents(case.pipeline, rows, swap, steps=1, guidance=1).latents["reader"]
    alone = rows[:1]
    plain = sample_latents(case.pipeline, alone, steps=1, guidance=1).latents["reader"]
    with adapter.applied(case.pipeline):
        made = sample_latents(case.pipeline, alone, steps=1, guidance=1).latents["reader"]
    assert close_run(made, wanted) and not close_run(made, plain)
    assert adapter.made["residual"] < 1e-10


def law_full_rows_without_ridge_inject(architecture: str) -> None:
    """Read token by token as another text, without ridge, sites give what they give with it injected."""
    case = fixed_case(architecture)
    pipeline, model = case.pipeline, case.model
    old, new = (row.prompt for row in case.rows[:2])
    x, t = pipeline.noise([0, 1]), torch.tensor(500.0)
    texts = {prompt: pipeline.encode([prompt] * 2) for prompt in (old, new)}
    adapter = rewrite(pipeline, [(old, new)], sites=[0, 2], ridge=0)
    with torch.no_grad():
        plain = model(x, t, texts[old])
        with inject(model, texts[new], [0, 2]):
            wanted = model(x, t, texts[old])
        with adapter.applied(pipeline):
            made = model(x, t, texts[old])
    assert close_run(made, wanted) and not close_run(made, plain)
    assert adapter.made["residual"] < 1e-10


@pytest.mark.parametrize("architecture", ["sdxl", "if-i"])
def test_full_rows_without_ridge_inject(architecture):
    """Law 20, without biases in SDXL and with them in DeepFloyd IF."""
    law_full_rows_without_ridge_inject(architecture)


FAULTS = {
    "another token wanted": (
        law_full_rows_without_ridge_inject,
        "sdxl",
        token_pairs,
        "paired",
        "(token, token)",
        "(token, 0)",
    ),
    "keys alone": (
        law_full_rows_without_ridge_inject,
        "sdxl",
        rewriting,
        "rewrite",
        "for site in chosen for one in part",
        "for site in chosen for one in 'k'",
    ),
    "bias in the target": (
        law_full_rows_without_ridge_inject,
        "if-i",
        closed_form,
        "solved",
        "asked @ matrix.mT",
        "asked @ matrix.mT + 0.1",
    ),
    "ridge all the same": (
        law_full_rows_without_ridge_inject,
        "sdxl",
        closed_form,
        "_inverse",
        "if not ridge:",
        "if not (ridge := ridge or 0.1):",
    ),
    "weights left out": (
        require_recorded,
        "uce_scaled",
        closed_form,
        "solved",
        "readings.weights.double().sqrt()",
        "(readings.weights.double() ** 0)",
    ),
    "another token of evolving text": (
        law_an_evolving_text_is_read_as_captured,
        "mmdit",
        read_vectors,
        "_by_prompt",
        ".transpose(1, 2)",
        ".transpose(1, 2).flip(0)",
    ),
    "evolving text of another picture": (
        law_an_evolving_text_is_read_as_captured,
        "mmdit",
        read_vectors,
        "of_runs",
        'Row("drawn", prompt, seed)',
        'Row("drawn", prompt, seed + 1)',
    ),
    "token map left out": (
        require_recorded,
        "time_1",
        token_pairs,
        "aligned",
        "pairs.append((token, place))",
        "pairs.append((token, token))",
    ),
    "end token for the last": (
        require_recorded,
        "loco_reg",
        token_pairs,
        "last",
        "len(ids) - 2",
        "len(ids) - 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_law_notices(fault, monkeypatch):
    """A law does not hold with its fault in the library."""
    law, case, *place = FAULTS[fault]
    law(case)
    plant(monkeypatch, *place)
    with pytest.raises(AssertionError):
        law(case)


@pytest.mark.parametrize(
    "runs, says",
    [
        ({"seeds": []}, "seeds are []; give the seeds of one picture or several"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": 3}, "seeds are 3; give a list"),
        ({"seeds": [-1]}, "seed -1 does not fit"),
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
    ],
    ids=str,
)
def test_runs_that_are_none_are_refused(runs, says):
    """Of evolving text, before anything is drawn."""
    with refused(says):
        rewrite(fixed_case("mmdit").pipeline, [("a", "b")], sites=1, **runs)


def test_more_readings_leave_more_to_regress():
    """Of evolving text one step is met exactly, and three steps of two seeds but for a share that is told."""
    case = fixed_case("mmdit")
    edit = [tuple(row.prompt for row in case.rows[:2])]
    one, many = (
        rewrite(case.pipeline, edit, sites=1, ridge=0, seeds=seeds, steps=steps).made
        for seeds, steps in (([0], 1), ([0, 1], 3))
    )
    assert one["residual"] < 1e-10 < 1e-3 < many["residual"] < 1
    assert (many["seeds"], many["steps"]) == ([0, 1], 3)


@pytest.mark.parametrize("run", ["time_1", "time_4"])
def test_tokens_are_aligned_as_recorded(run):
    """TIME's own map of tokens comes out of the token numbers."""
    said = SAID[run]
    for old, new, recorded in zip(said["old"], said["new"], said["token_map"], strict=True):
        pairs = token_pairs.aligned(PLACES[old]["ids"], PLACES[new]["ids"], 77)
        assert pairs == list(enumerate(recorded))


def test_what_is_preserved_stays():
    """The heavier a text is preserved, the less its keys move, while the edited text's go on moving."""
    case = fixed_case("sdxl")
    old, new, kept = (row.prompt for row in case.rows[:3])
    name = f"{case.model.sites[1].name}.to_k"
    tokens = case.pipeline.encode([old, kept]).tokens
    moved = []
    for heavy in (0, 1, 100):
        adapter = rewrite(
            case.pipeline,
            [(old, new)],
            sites=1,
            preserve=[kept],
            ridge=1e-3,
            preserve_weight=heavy,
            part="k",
        )
        assert {*adapter.changes} == {name}
        moved.append((tokens @ adapter.changes[name].matrix(torch.float64).mT).norm(dim=(1, 2)))
    assert moved[0][1] > 2 * moved[1][1] > 20 * moved[2][1]
    assert min(of_old for of_old, _ in moved) > moved[0][0] / 4


def test_more_rows_than_width_are_one_matrix():
    """Of more tokens than the matrix is wide the change has the rank of the width."""
    generator = torch.Generator().manual_seed(0)
    x, y, weight = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (9, 9, 6))
    readings = closed_form.Readings(x, y, torch.ones(9))
    change, residual = closed_form.solved(weight, readings, 0.5)
    textbook = torch.linalg.solve(
        0.5 * torch.eye(4, dtype=torch.float64) + x.mT @ x,
        (0.5 * weight + (y @ weight.mT).mT @ x).mT,
    ).mT
    assert change.rank == 4 and close_run(weight + change.matrix(torch.float64), textbook)
    assert 0 < residual < 1


BAD = {
    "nothing": ([], {}, "give a list of (old, new)"),
    "a text": ("a", {}, "give a list of (old, new)"),
    "three": ([("a", "b", "c")], {}, "two prompts"),
    "no text": ([("a", 1)], {}, "two prompts"),
    "itself": ([("a", "a")], {}, "read as itself"),
    "tokens": ([("a", "b")], {"tokens": "al"}, "closest: all"),
    "ridge": ([("a", "b")], {"ridge": -1}, "ridge is -1"),
    "weight": ([("a", "b")], {"weight": 0}, "weight is 0"),
    "part": ([("a", "b")], {"part": "q"}, "part is 'q'"),
    "preserve": ([("a", "b")], {"preserve": "c"}, "give a list of prompts"),
    "no tokenizers": ([("a", "b")], {"tokens": "last"}, "have no `tokenizers`"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_requests_are_refused(bad):
    """What cannot be edited is one line."""
    edits, arguments, says = BAD[bad]
    with refused(says):
        rewrite(fixed_case("sdxl").pipeline, edits, sites=0, **arguments)


def test_tokens_of_a_t5_behind_two_clips_are_paired_at_their_places():
    """The last letter's token of each encoder is read as that of the other word, CLIP's before T5's."""
    pipeline = load("tiny-mmdit")
    words = (
        'a red sign that says "HOUSE" on a blue wall',
        'a red sign that says "OPEN" on a blue wall',
    )
    total = pipeline.encode([words[0]]).tokens.shape[1]
    pairs = token_pairs.paired("last", pipeline, *words, total)
    clip, _, t5 = (tokenizer(words[0]).input_ids for tokenizer in pipeline.encoders.tokenizers)
    places = [len(clip) - 2, total // 2 + len(t5) - 2]
    assert pairs == [(place, place - 1) for place in places]


def test_models_that_have_no_closed_form_are_refused():
    """Projections that read the picture, runs that would draw nothing, a model under an adapter, and a text
    that is no subsequence."""
    flux = fixed_case("flux").pipeline
    single = next(site for site in flux.denoiser.sites if site.kind == "single")
    with refused("reads text and picture by the same projections"):
        rewrite(flux, [("a", "b")], sites=single.index)
    case = fixed_case("sdxl")
    for runs in ({"seeds": [1]}, {"steps": 2}):
        with refused("alone settles what its sites read, so that nothing is drawn"):
            rewrite(case.pipeline, [("a", "b")], sites=0, **runs)
    adapter = rewrite(case.pipeline, [("a", "b")], sites=0)
    with adapter.merged(case.pipeline), refused("leave the block first"):
        rewrite(case.pipeline, [("a", "b")], sites=0)
    with refused("is not in the new one"):
        rewrite(recorded_pipeline(), [("park", "hello")], sites=0, tokens="aligned")


def test_a_word_is_rewritten_in_a_real_model():
    """On tiny-sdxl the sites that carry words read one sign as another, and others keep their own."""
    pipeline = load("tiny-sdxl")
    old = 'a red sign that says "HOUSE" on a blue wall'
    new = 'a red sign that says "TIGER" on a blue wall'
    adapter = rewrite(pipeline, [(old, new)], sites="all", ridge=1e-6)
    plain, wanted = pipeline.generate([old, new], seeds=0, steps=2, guidance=1)
    with adapter.applied(pipeline):
        (made,) = pipeline.generate(old, seeds=0, steps=2, guidance=1)
    difference = {
        name: mean_difference(made, other) for name, other in (("old", plain), ("new", wanted))
    }
    assert difference["new"] < difference["old"] / 2


def mean_difference(one, other) -> float:
    a, b = (torch.tensor(list(x.convert("L").tobytes())).float() for x in (one, other))
    return float((a - b).abs().mean())
