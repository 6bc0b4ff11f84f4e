"""What one backward pass says of every site, beside what swapping says:  python benchmarks/attribution.py [MODEL ...]

Attribution patching, local in time: at the source's latents x_t of every step, one call of the denoiser on (source,
target) texts, one backward pass from the distance of the two predictions, and at each site the exact attention output
O' that the swap would give,

    a(site) = - < dL / dO, O' - O >,   L = || prediction(source) - prediction(target) ||^2,   the drop of L it promises

(arXiv 2310.10348, 2403.00745; O' recomputed, so that no softmax is linearised.)  The two predictions differ in text alone.

  share      a(site) over the sum of |a| of all sites, mean over pairs and steps
  first      in how many pairs the site's sum over steps is the largest
  localized  whether the site is among those that swapping found
"""

from __future__ import annotations

import numpy as np
import torch
from measure import Table, arguments, environment, parsed

import textpatch
from textpatch.audit import Record, eager, recording
from textpatch.sites import find_sites
from textpatch.weights import shipped_models
from textpatch.weights.prompts import sign_pairs

COLUMNS = ["model", "scene", "pairs", "steps", "site", "share", "first", "localized"]


def attributions(pipeline, source: str, target: str, *, steps: int, seed: int = 0) -> np.ndarray:
    """a of every step and site of a source's plain run, (steps, sites)."""
    found, times = [], pipeline.schedule.timesteps(steps)
    text, noises = pipeline.encode([source, target]), pipeline.noises([seed])
    x = pipeline.schedule.start(next(noises), steps)
    for step in range(steps):
        inputs = pipeline.schedule.model_input(x, step, steps).expand(2, -1, -1, -1)
        drops, prediction = _drops(pipeline.denoiser, inputs, times[step], text)
        found.append(drops)
        noise = next(noises) if pipeline.schedule.stochastic else None
        x = pipeline.schedule.step(x, prediction[:1].detach(), step, steps, noise)
    return np.array(found)


def _drops(model, x, t, text) -> tuple[list[float], torch.Tensor]:
    """a of every site at one x_t, and the prediction of (source, target)."""
    sites, records, outputs = find_sites(model), [], {}

    def keep(site):
        return lambda module, inputs: outputs.setdefault(site.index, inputs[0])

    hooks = [model.get_submodule(f"{site.name}.to_out.0").register_forward_pre_hook(keep(site)) for site in sites]
    with recording(model, sites, [0], records.append):
        prediction = model(x.detach().clone().requires_grad_(), t, text)  # shipped parameters ask for no gradient
    for hook in hooks:
        hook.remove()
    loss = (prediction[0] - prediction[1].detach()).square().sum()
    gradients = torch.autograd.grad(loss, [outputs[record.site.index] for record in records])
    drops = {r.site.index: -float((g[0] * _change(r)).sum()) for r, g in zip(records, gradients)}
    return [drops[site.index] for site in sites], prediction


def _change(record: Record) -> torch.Tensor:
    """O' - O of the source's row, (M, H D): the target's text keys and values in the place of its own."""
    q, (*image_k, text_k), (*image_v, text_v) = record.q[0][:1], record.k, record.v
    k, v = (torch.cat([*(x[:1] for x in image), x[1:]], dim=2) for image, x in ((image_k, text_k), (image_v, text_v)))
    return (eager(q, k, v) - record.out[0][:1])[0].transpose(0, 1).flatten(1)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="shipped models (all)")
    parser.add_argument("--pairs", type=int, default=12, help="validation pairs (12)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (4)")
    parser.add_argument("--scenes", nargs="+", choices=["same", "other"], default=["same", "other"],
                        help="whether the target differs in its word alone (both)")  # fmt: skip
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(torch.device("cpu")), options.csv, options.append)
    for name in options.models or shipped_models():
        pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        for scene in options.scenes:
            pairs = sign_pairs(options.pairs, same_scene=scene == "same")
            a = np.array([attributions(pipeline, *pair, steps=options.steps) for pair in pairs])  # (pairs, steps, sites)
            shares = (a / np.abs(a).sum(axis=2, keepdims=True)).mean(axis=(0, 1))
            first = np.bincount(a.sum(axis=1).argmax(axis=1), minlength=a.shape[2])
            for site, (share, times) in enumerate(zip(shares, first)):
                table.add(model=name, scene=scene, pairs=len(pairs), steps=options.steps, site=site, share=float(share),
                          first=int(times), localized=site in pipeline.defaults.localized)  # fmt: skip


if __name__ == "__main__":
    main()
