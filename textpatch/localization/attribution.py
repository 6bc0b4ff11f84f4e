"""What each site would do to a prediction if it read the target's text: one backward pass a step, not a single swap.

    a(site) = - < dL / dO, O' - O >,   L = || e(x_t, source) - e(x_t, target) ||^2
    O   the site's attention outputs in the call with the source's text, those of its text queries too
    O'  the same with the target's text keys and values in the place of its own, computed exactly

x_t runs through the source's own generation, e is what is predicted there.  a is the drop of L that a swap at this
site alone promises, to first order in what comes after the site: "drop" its sum over steps, "share" that over the sum
of |a| of all sites.  (Attribution patching, arXiv 2310.10348; as O' is exact, no softmax is linearised, arXiv 2403.00745.)

It says what a swap would do to each step, not to the picture: only an exact check says that.

H heads, M queries, D head width
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from textpatch.errors import PatchError
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
    """{site index: {"drop", "share"}} along one plain generation of the source, from a step on; and its picture.

    Raises PatchError for a start outside the run, for prompts that the encoders read alike, and for sites of a kind whose
    modules are not known to the audit.
    """
    require_parts(pipeline, "attribution", SupportsSampling, SupportsModelCalls)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    if not 0 <= start < steps:
        raise PatchError(f"start {start} of {steps} steps; needs a start within the run")
    text = pipeline.encode([source, target])
    if torch.equal(*text.tokens):
        raise PatchError(
            f"{source!r} and {target!r} are read alike, so no swap does anything; give prompts that differ"
        )
    row = Row(SOURCE, source, seed)
    samples = sample(pipeline, [row], steps=steps, guidance=guidance, keep_trajectory=True)
    path = samples.trajectory[SOURCE]
    times = pipeline.schedule.timesteps(steps).to(path[0].device)
    found = [
        drops(
            pipeline.denoiser,
            pipeline.model_input(path[step][None], step, steps),
            times[step],
            text,
        )
        for step in range(start, steps)
    ]
    total = {site.index: sum(drop[site] for drop in found) for site in found[0]}
    whole = sum(map(abs, total.values())) or 1.0
    return {index: {"drop": a, "share": a / whole} for index, a in total.items()}, samples.images[
        SOURCE
    ]


def drops(model: nn.Module, x: Tensor, t: Tensor, text) -> dict[Site, float]:
    """a of every site at one x_t.   x (1, C, H, W); text as the model takes it, of source and target"""
    sites, records, outputs = find_sites(model), [], {}
    names = exit_modules(model, sites)
    both = (
        x.detach().repeat(2, 1, 1, 1).requires_grad_()
    )  # so that there is a graph, whatever the weights ask for
    looking = HookRegistry(model, [name for some in names.values() for name in some])
    with torch.enable_grad(), recording_sites(model, sites, [0], records.append):
        with looking.observe_inputs(lambda name, inputs: outputs.update({name: inputs.args[0]})):
            own, wanted = model(both, t, text)[:, : x.shape[1]]  # without a learned variance
    loss = (own - wanted.detach()).square().sum()
    read = {record.site: [outputs[name] for name in names[record.site]] for record in records}
    slopes = iter(torch.autograd.grad(loss, [output for some in read.values() for output in some]))
    return {
        record.site: -sum(float((next(slopes)[0] * part).sum()) for part in change(record))
        for record in records
    }


def change(record: Record) -> list[Tensor]:
    """O' - O of the first row, (M, H D) of image and of text queries: it reads the second row's text K and V."""
    (*image_k, text_k), (*image_v, text_v) = record.k, record.v
    k, v = (
        torch.cat([*(x[:1] for x in image), text[1:]], dim=2)
        for image, text in ((image_k, text_k), (image_v, text_v))
    )
    queries = (q[:1] for q in record.q)
    return [
        (eager(q, k, v) - out[:1])[0].transpose(0, 1).flatten(1)
        for q, out in zip(queries, record.out)
    ]
