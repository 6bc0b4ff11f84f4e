"""The audit passes what is right, on every kind of site and in every dtype, and fails each fault."""

import json
import math
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.audits import audited, rich_case
from support.laws import patching, refused
from support.planting import plant
from support.small_models import PROMPTS, save_small
from support.strategies import build_pipeline, cases, fixed_case, make_rows, swaps
from support.unets import TOKENS, unet
from textpatch import attention, cli, load, lockstep, plan
from textpatch.auditing.finished import audit_run
from textpatch.auditing.replay import AuditReport, Check, Definition, audit, replayed, telling_steps
from textpatch.errors import PatchError
from textpatch.guidance import with_guidance
from textpatch.plan import Plan, Swap
from textpatch.recording import recording_sites
from textpatch.reference_models.mmdit import JointAttention
from textpatch.runs.folder import Run
from textpatch.sampling import sample
from textpatch.weights.fingerprint import model_sha256

DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16
FEWER = max(settings().max_examples // 2, 1)  # each is a run and its audit


def require_sound(report: AuditReport, rows: int) -> None:
    """Require that every check passed and that at each site and step every batch row was checked."""
    report.require()
    for place in {(check.site, check.step) for check in report.checks}:
        here = [check for check in report.checks if (check.site, check.step) == place]
        rest, named = (
            {row for c in here if (c.swap is None) == alone for row in c.rows}
            for alone in (True, False)
        )
        assert len(rest) + len(named) == len(rest | named) == rows
        assert all(
            check.magnitude > 0 and (check.effect == 0 or check.swap is not None) for check in here
        )


@settings(max_examples=FEWER)
@given(cases(), st.sampled_from(DTYPES))
def test_what_is_right_passes_on_joint_sites(case, dtype):
    """An MMDiT passes under every plan.

    |A - replay| <= allowed at each swapped site and telling step, and nothing else is checked.
    """
    report = audited(case.pipeline.to(dtype), case.rows, case.plan, case.steps, case.guidance)
    require_sound(report, len(case.branches(case.rows)))
    swapped = {site for swap in case.plan.swaps for site in swap.sites}
    places = {(site, step) for site in swapped for step in telling_steps(case.plan, case.steps)}
    assert {(check.site, check.step) for check in report.checks} == places


@settings(max_examples=FEWER)
@given(st.data(), st.sampled_from(["sdxl", "if", "if-ii"]), st.sampled_from(DTYPES))
def test_what_is_right_passes_on_cross_and_added_sites(data, name, dtype):
    """SDXL, IF and its stage II pass under every plan.

    SDXL and the stage II have text keys alone, and IF has image keys beside them.
    """
    pipeline = unet(name, data.draw(st.integers(0, 99)))
    rows, sites = make_rows((0, 1, 2)), len(pipeline.denoiser.sites)
    any_swap = swaps([row.name for row in rows], sites, 2, 3, TOKENS)
    drawn = Plan(data.draw(st.lists(any_swap, min_size=1, max_size=3)))
    require_sound(audited(pipeline.to(dtype), rows, drawn, 2, 4.5, sites="all", at=range(2)), 6)


# --- faults


FAULTS = {
    "K and V swapped": (
        attention,
        "_attend",
        "gather_text(k_text, slots_k)",
        "gather_text(v_text, slots_k)",
    ),
    "values by the keys' table": (
        attention,
        "_attend",
        "slots_k if slots_v is None else slots_v",
        "slots_k",
    ),
    "scale wrong": (attention, "attention_sdpa", "scale=scale", "scale=0.8 * q.shape[-1] ** -0.5"),
    "no K/V read from others": (attention, "gather_text", "if slots is None:", "if True:"),
    "off-by-one donor": (
        plan,
        "_donor",
        "return place[donor, reader.branch]",
        "return (place[donor, reader.branch] + 1) % len(place)",
    ),
    "donor of the other branch": (
        plan,
        "_donor",
        "return place[donor, reader.branch]",
        'return place[donor, "cond"]',
    ),
    "wrong head": (
        plan,
        "_write",
        "torch.tensor(swap.heads)",
        "(torch.tensor(swap.heads) + 1) % heads",
    ),
    "wrong token": (
        plan,
        "_write",
        "torch.tensor(swap.tokens)",
        "(torch.tensor(swap.tokens) + 1) % tokens",
    ),
    "row dropped": (
        plan,
        "_write",
        "zip(readers, donors, strict=True)",
        "zip(readers[:-1], donors)",
    ),
    "rows nobody named": (
        plan,
        "_write",
        "table[reader, h[:, None], t]",
        "table[:, h[:, None], t]",
    ),
    "late by a step": (Swap, "in_step", "step in indices", "step - 1 in indices"),
    "step of the sampler": (
        lockstep.Loop,
        "_slots",
        "plan.slots(step,",
        "plan.slots(max(step - 1, 0),",
    ),
    "every branch": (Swap, "acts", 'self.branch == "both" or', "True or"),
    "conditional branch alone": (Swap, "acts", 'self.branch == "both" or row.branch', "row.branch"),
    "wrong site": (
        Plan,
        "_tables",
        "tables.setdefault(site,",
        "tables.setdefault(sites[(site.index + 1) % len(sites)],",
    ),
    "first swap wins": (
        Plan,
        "_tables",
        "in enumerate(self.swaps):",
        "in reversed([*enumerate(self.swaps)]):",
    ),
    "part ignored": (Plan, "_tables", "in swap.part:", 'in "kv":'),
    "keys scaled after their norm": (
        JointAttention,
        "forward",
        "self.norm_added_k(",
        "1.5 * self.norm_added_k(",
    ),
}


@cache
def audited_run(dtype: torch.dtype):
    """An audited run, to be made again with a fault.   The engine passes without one."""
    case = replace(rich_case(), pipeline=build_pipeline(qk_norm="rms_norm").to(dtype))
    run = partial(audited, case.pipeline, case.rows, case.plan, case.steps, case.guidance)
    run().require()
    return run


def in_turn():
    """Each fault in both dtypes; by default in one of them, each in its turn."""
    for (number, fault), dtype in product(enumerate(FAULTS), (torch.float32, torch.bfloat16)):
        left_out = (dtype == torch.bfloat16) == (number % 2 == 0)
        marks = [pytest.mark.long] * left_out
        yield pytest.param(fault, dtype, id=f"{fault}-{dtype}", marks=marks)


@pytest.mark.parametrize("fault, dtype", list(in_turn()))
def test_the_audit_fails_every_fault(fault, dtype, monkeypatch):
    """The engine passes, and with the fault it does not.  `require` says where."""
    run = audited_run(dtype)
    plant(monkeypatch, *FAULTS[fault])
    report = run()
    assert report.failed and not math.isnan(report.failed[0].error)
    with pytest.raises(
        PatchError, match=rf"^{len(report.failed)} of {len(report.checks)} checks failed, first"
    ):
        report.require()


def test_what_the_audit_cannot_see_is_an_error(monkeypatch):
    """A module of a site that never ran is named by a PatchError, and nothing else is audited instead."""
    case = replace(fixed_case(), pipeline=build_pipeline(qk_norm="rms_norm"))
    plant(monkeypatch, JointAttention, "forward", "self.norm_added_k(", "(")
    with pytest.raises(PatchError, match=r"3 of \d+ modules never ran .*attn.norm_added_k"):
        audited(case.pipeline, case.rows, case.plan, case.steps, case.guidance)


# --- the replay


def by_hand(q, k, v):
    """softmax(q k^T / sqrt(D)) v as loops over Python's floats, lists (M, D), (N, D), (N, D) -> (M, D)."""
    made = []
    for query in q:
        scores = [
            sum(a * b for a, b in zip(query, key, strict=True)) / len(query) ** 0.5 for key in k
        ]
        weights = [math.exp(score - max(scores)) for score in scores]
        made.append(
            [
                sum(w * value[d] for w, value in zip(weights, v, strict=True)) / sum(weights)
                for d in range(len(query))
            ]
        )
    return made


def kept(case, plan, site, step) -> tuple[Definition, object]:
    """The definition of a run and the record of one of its sites and steps."""
    definition, records = Definition(plan, with_guidance(case.rows), case.model.sites), []
    with recording_sites(case.model, [case.model.sites[site]], [step], records.append):
        sample(case.pipeline, case.rows, plan, steps=case.steps, guidance=4.5)
    return definition, records[0]


def test_the_replay_is_a_loop_by_hand():
    """A loop over floats says the same as the replay.

    At site 1 and step 1 of the fixed plan, head 1 of a and c reads the text of b.
    """
    case = fixed_case()
    definition, record = kept(case, case.plan, site=1, step=1)
    q, image_k, image_v = torch.cat(record.q, 2), record.k[0], record.v[0]
    k, v = definition.read("k", record, record.k), definition.read("v", record, record.v)
    made, _ = replayed(q, k, v)
    # batch: uncond abcd, cond abcd
    reads = {(row, 1): row + 1 if row % 4 == 0 else row - 1 for row in (0, 2, 4, 6)}
    for b in range(8):
        for h in range(2):
            text = reads.get((b, h), b)
            keys = [*image_k[b, h].tolist(), *record.k[1][text, h].tolist()]
            values = [*image_v[b, h].tolist(), *record.v[1][text, h].tolist()]
            exact = torch.tensor(by_hand(q[b, h].tolist(), keys, values), dtype=torch.float64)
            assert (exact - made[b, h]).abs().max() <= 1e-13 * made[b, h].abs().max()


def test_the_record_is_what_the_model_computed():
    """Text keys and values of a record are those that `capture` keeps.

    (B, T, H D) = (B, H, T, D), bit for bit.
    """
    case = fixed_case()
    with patching.capture(case.model, 2, rows=with_guidance(case.rows)) as cache:
        _, record = kept(case, case.plan, site=2, step=1)
    for b, row in enumerate(with_guidance(case.rows)):
        for part, made in (("k", record.k), ("v", record.v)):
            assert torch.equal(
                cache[record.site.name, 1, row.label, part], made[1][b].transpose(0, 1).flatten(1)
            )


@given(st.integers(0, 999))
def test_the_floor_is_what_one_rounding_costs(seed):
    """The floor bounds what one rounding of scores, weights and output costs.

    Each is moved by a share e, up or down at random.  Then |A' - A| <= floor e / u to first order.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        2 * torch.randn(1, 1, n, 4, generator=generator, dtype=torch.float64) for n in (3, 5, 5)
    )
    made, floor = replayed(q, k, v)
    e, u = 1e-6, torch.finfo(torch.float64).eps / 2
    off = [
        1 + e * torch.randn(shape, generator=generator).sign() for shape in ((3, 5), (3, 5), (3, 4))
    ]
    weights = (q[0, 0] @ k[0, 0].T / 2 * off[0]).softmax(-1) * off[1]
    assert ((weights @ v[0, 0] * off[2] - made).abs() <= 1.0001 * floor * e / u).all()


# --- verdicts and refusals

CHECK = Check(
    0,
    3,
    "site",
    2,
    ("a/cond",),
    "float32",
    error=1.0,
    eager=1.0,
    sdpa=1.0,
    magnitude=4.0,
    effect=2.0,
    floor=0.1,
)
VERDICTS = [  # dtype, eager, sdpa, floor, allowed
    ("float32", 1.0, 0.5, 0.1, 1.1),
    ("float32", 0.5, 1.0, 0.1, 1.1),
    ("float64", 1.0, 1.0, 2.0, 2.0),
    ("float32", 0.0, 0.0, 0.1, 0.1),
    ("bfloat16", 1.0, 2.0, 0.1, 1.0),
    ("float16", 3.0, 1.0, 0.1, 1.25),
    ("bfloat16", 0.0, 0.0, 0.1, 0.1),
]


@pytest.mark.parametrize("dtype, eager, sdpa, floor, allowed", VERDICTS)
def test_what_is_allowed(dtype, eager, sdpa, floor, allowed):
    """max(floor, 1.1 max(eager, sdpa)) is allowed, in half precision max(floor, min(eager, 1.25 sdpa)).

    NaN never passes.
    """
    check = replace(
        CHECK, dtype=dtype, eager=eager, sdpa=sdpa, floor=floor, error=allowed * (1 - 1e-9)
    )
    assert check.passed and check.allowed == pytest.approx(allowed, rel=1e-12)
    assert (
        not replace(check, error=allowed * (1 + 1e-9)).passed
        and not replace(check, error=math.nan).passed
    )


def test_a_report_is_readable_and_plain():
    """A report has one line per check under the titles, the verdict last.

    Its JSON holds every figure and the verdict.
    """
    report = AuditReport((CHECK, replace(CHECK, swap=None, error=1.2)))
    titles, good, bad, total = str(report).splitlines()
    assert (
        titles.split()[:3] == ["site", "step", "swap"]
        and good.endswith("passed")
        and bad.endswith("FAILED")
    )
    assert (
        bad.split()[2] == "none"
        and max(map(len, (titles, good, bad))) <= 80
        and total == "1 of 2 checks passed"
        and report.failed == report.checks[1:]
    )
    first, second = json.loads(report.to_json())["checks"]
    assert (
        first.items()
        >= {**asdict(CHECK), "rows": ["a/cond"], "relative": 0.25, "passed": True}.items()
    )
    assert second["allowed"] == pytest.approx(1.1) and not second["passed"]


def test_telling_steps():
    """First, middle and last acting step of each swap, of all swaps together."""
    assert telling_steps(Plan([Swap(0, "a", "b")]), 9) == (0, 4, 8)
    assert telling_steps(
        Plan([Swap(0, "a", "b", steps=(2, 3, 7)), Swap(1, "a", "b", steps=(5,))]), 9
    ) == (2, 3, 5, 7)


def halved(pipeline, rows, plan, *, micro_batch, **options):
    """A sampler that takes half the rows at once, whatever it is told."""
    return sample(pipeline, rows, plan, micro_batch=micro_batch // 2, **options)


def hurried(pipeline, rows, plan, *, steps, **options):
    """A sampler that leaves the last step out."""
    return sample(pipeline, rows, plan, steps=steps - 1, **options)


REFUSED = [
    (dict(plan=Plan()), "no swap"),
    (dict(at=[3]), r"steps \[3\]; this run has steps 0..2"),
    (dict(at=[]), "steps"),
    (dict(sites=[7]), "no site index 7"),
    (dict(sample=halved), "ran on 4 rows at step 0, and 8"),
    (dict(sample=hurried, at=[0, 2]), r"never came to site and step \(0, 2\)"),
]


@pytest.mark.parametrize("wrong, says", REFUSED, ids=[says for _, says in REFUSED])
def test_what_cannot_be_audited_is_refused(wrong, says):
    """PatchError for no swap, no such site or step, and a sampler that does not do as told."""
    case = fixed_case()
    asked = (
        dict(
            plan=Plan([Swap(0, "a", "b", steps=(0,)), Swap(0, "c", "d", steps=(0,))]), sample=sample
        )
        | wrong
    )
    with pytest.raises(PatchError, match=says):
        audit(case.pipeline, case.rows, steps=3, guidance=4.5, **asked)


# --- run folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small model, and run folders of three commands with it."""
    folder = tmp_path_factory.mktemp("runs")
    model = str(save_small(folder / "small"))
    target = PROMPTS[0].replace("HELLO", "WORLD")
    commands = {
        "edit": ["--source", PROMPTS[0], "--target", target, "--sites", "1", "--guidance", "2"],
        "localize": ["--pairs", "1", "--seeds", "3", "--start", "1"],
        "generate": [PROMPTS[0]],
    }
    for command, options in commands.items():
        assert cli.main([command, model, *options, "--out", str(folder / command)]) == 0
    return folder


def loading(folder):
    """load(request) -> (pipeline, fingerprint)."""
    return lambda request: (
        load(folder / request["model"], dtype=getattr(torch, request["dtype"])),
        model_sha256(folder / request["model"]),
    )


@pytest.mark.parametrize(
    "command, sites, steps", [("edit", {1}, {0, 1}), ("localize", {0, 1}, {1})]
)
@pytest.mark.parametrize("together", [1, 4])
def test_a_run_folder_is_audited(command, sites, steps, together, runs, monkeypatch):
    """Every swapped site of the first pair is audited at its telling steps, together or alone."""
    monkeypatch.setattr("textpatch.auditing.finished.TOGETHER", together)
    report = audit_run(runs / command, load=loading(runs))
    report.require()
    assert {check.site for check in report.checks} == sites and {
        check.step for check in report.checks
    } == steps
    assert {check.swap for check in report.checks} == {None, *range(len(sites))}
    acting = [check for check in report.checks if check.swap is not None]
    assert all(
        check.effect > 1e-3 and check.swap == sorted(sites).index(check.site) for check in acting
    )


def test_run_folders_that_cannot_be_audited(runs, tmp_path):
    """PatchError for other weights, a run without a plan, and a plan that is not the run's."""
    with refused("was made with weights"):
        audit_run(runs / "edit", load=lambda request: (None, "0" * 64))
    with refused("a run of generate, which has no plan"):
        audit_run(runs / "generate", load=loading(runs))
    mine = {
        name: 1 for name in ("model", "weights", "dtype", "steps", "guidance", "pairs", "start")
    }
    for number, (request, lacks) in enumerate(
        [
            ("three pairs", "command, model, weights"),
            ({"pairs": [PROMPTS]}, "command, model, weights"),
            ({**mine, "command": "localize"}, "seeds, branch"),
        ]
    ):
        Run.open(tmp_path / f"{number}", {"request": request})
        with pytest.raises(PatchError, match=f"does not say {lacks}.*made in Python, audit it"):
            audit_run(tmp_path / f"{number}", load=loading(runs))
    results = json.loads((runs / "localize/results.json").read_text())
    results["sites"] = results["sites"][:1]
    changed = tmp_path / "changed"
    changed.mkdir()
    for name in ("manifest.json", "records/0.jsonl"):
        (changed / name).parent.mkdir(exist_ok=True)
        (changed / name).write_bytes((runs / "localize" / name).read_bytes())
    (changed / "results.json").write_text(json.dumps(results))
    with refused("made its first record; its request gives"):
        audit_run(changed, load=loading(runs))
