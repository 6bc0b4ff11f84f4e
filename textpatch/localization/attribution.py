"""Attribution is how much nearer to the target's a prediction comes if a site reads the target's text.

    a(site) = - < dL / dO, O' - O >,   L = || e(x_t, source) - e(x_t, target) ||^2
    O   the site's attention outputs in the call with the source's text, those of its text queries too
    O'  the same with the target's text keys and values in the place of its own, computed exactly

It takes one backward pass a step and not a single swap.  x_t runs through the source's own generation, and
e is the prediction made there.  To first order in what comes after the site, a is the drop of L that a swap
at this site alone
promises.  "drop" is its sum over steps.  "share" is "drop" over the sum of |drop| of all sites.
(Attribution patching, arXiv 2310.10348.  As O' is exact, no softmax is linearised, arXiv 2403.00745.)

Attribution says what a swap would do to each step.  Only an exact check says what it does to the picture.

H heads, M queries, D head width
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.groups import require_start
from textpatch.guidance import as_guidance, told
from textpatch.hooks import HookRegistry
from textpatch.pipelines import SupportsModelCalls, SupportsSampling, require_parts
from textpatch.plan import Row
from textpatch.ports.shipped import find_sites
from textpatch.prompts.pairs import SOURCE
from textpatch.recording import Record, eager, exit_modules, recording_sites
from textpatch.sampling import sample
from textpatch.sites import Site


def attributions(
    pipeline,
    source: str,
    target: str,
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    start: int = 0,
) -> tuple[dict[int, dict[str, float]], Image.Image]:
    """Attribution of every site along one plain generation of the source, and the generated picture.

    start  the first step that counts
    Returns {site index: {"drop", "share"}} and the picture.  Raises PatchError for a start outside the run,
    for prompts that the encoders read alike, and for sites of a kind whose modules are not known to the
    audit.
    """
    require_parts(pipeline, "attribution", SupportsSampling, SupportsModelCalls)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    require_start(start, steps)
    text = pipeline.encode([source, target])
    if torch.equal(*text.tokens):
        raise PatchError(
            f"{source!r} and {target!r} are read alike, so no swap does anything; give prompts that differ"
        )
    row = Row(SOURCE, source, seed)
    samples = sample(pipeline, [row], steps=steps, guidance=guidance, keep_trajectory=True)
    path = samples.trajectory[SOURCE]
    times = pipeline.schedule.timesteps(steps).to(path[0].device)
    found = []
    for step in range(start, steps):
        x = pipeline.model_input(path[step][None], step, steps)
        found.append(drops(pipeline.denoiser, x, times[step], text, **told(as_guidance(guidance))))
    total = {site.index: sum(drop[site] for drop in found) for site in found[0]}
    whole = sum(map(abs, total.values())) or 1.0
    scores = {index: {"drop": a, "share": a / whole} for index, a in total.items()}
    return scores, samples.images[SOURCE]


def drops(model: nn.Module, x: Tensor, t: Tensor, text, **told: float) -> dict[Site, float]:
    """Drop a of every site at one x_t.

    x     (1, C, H, W)
    text  of source and target, as the model takes it
    told  guidance that a distilled model is told
    """
    sites = find_sites(model)
    names = exit_modules(model, sites)
    # a graph is made whatever the weights ask for, because the input wants a gradient
    both = x.detach().repeat(2, 1, 1, 1).requires_grad_()
    records: list[Record] = []
    outputs: dict[str, Tensor] = {}

    def see(name: str, inputs) -> None:
        outputs[name] = inputs.args[0]

    looking = HookRegistry(model, [name for some in names.values() for name in some])
    with (
        torch.enable_grad(),
        recording_sites(model, sites, [0], records.append),
        looking.observe_inputs(see),
    ):
        own, wanted = model(both, t, text, **told)[:, : x.shape[1]]  # without a learned variance
    loss = (own - wanted.detach()).square().sum()
    slopes = _slopes(loss, outputs)
    found = {}
    for record in records:
        parts = zip(names[record.site], change(record), strict=True)
        found[record.site] = -sum(float((slopes[name] * part).sum()) for name, part in parts)
    return found


def _slopes(loss: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Slope dL / dO at each of some outputs, of the first batch row, the source's."""
    slopes = torch.autograd.grad(loss, list(outputs.values()))
    return {name: slope[0] for name, slope in zip(outputs, slopes, strict=True)}


def change(record: Record) -> list[Tensor]:
    """Change O' - O of the source's attention outputs, (M, H D), of image queries and of text queries.

    record  of one site.  The first batch row is the source's, the second the target's
    """
    k = _with_text_of_second(record.k)
    v = _with_text_of_second(record.v)
    changes = []
    for q, out in zip(record.q, record.out, strict=False):  # the last text queries have no output
        changed = eager(q[:1], k, v) - out[:1]  # (1, H, M, D)
        changes.append(changed[0].transpose(0, 1).flatten(1))
    return changes


def _with_text_of_second(parts: list[Tensor]) -> Tensor:
    """Keys or values of the first row, with the text of the second row in the place of its own."""
    *image, text = parts
    return torch.cat([*(x[:1] for x in image), text[1:]], dim=2)
