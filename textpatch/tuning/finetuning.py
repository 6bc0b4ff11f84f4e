"""Train an adapter at some sites on pictures with captions (LoRA, arXiv 2106.09685).

    loss = mean || f(x_t, t, text) - target ||^2

The target is the noise of a diffusion, the velocity of a flow.  Of a model that learns its variance, too, the
first channels alone are trained.  The model's own weights stay as they are, and get no gradients.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from textpatch.changes import changes_of
from textpatch.errors import PatchError, closest
from textpatch.finite import is_finite
from textpatch.pipelines import SupportsSampling, require_parts
from textpatch.sites import Selectors
from textpatch.taps import chosen_sites
from textpatch.tuning.low_rank import Adapter
from textpatch.tuning.targets import target_names
from textpatch.tuning.training import OnStep, Training
from textpatch.tuning.training_data import TIMES, Data, examples
from textpatch.tuning.weighting import require_weighting

INITIAL = "uniform", "gaussian"


def finetune(
    pipeline: SupportsSampling,
    data: Data,
    *,
    sites: Selectors,
    targets: str = "text_kv",
    rank: int = 4,
    alpha: float | None = None,
    initial: str = "uniform",
    steps: int,
    rate: float = 1e-3,
    batch: int = 4,
    dropout: float = 0.0,
    times: str = "uniform",
    weighting: str = "none",
    average: float | None = None,
    autocast: bool = False,
    checkpointing: bool = False,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    every: int = 100,
    on_step: OnStep | None = None,
) -> Adapter:
    """Train an adapter of some sites.

    data     (caption, picture), the picture PIL's or latents (C, H, W), of an iterable that ends, or a folder
             or file of them (`data_files`)
    sites    where, as `select_sites` takes them
    targets  which projections: "text_kv", "qkvo", "text_all" or "all" (`targets.target_names`)
    rank     r of every projection.  alpha is the rank when None
    initial  A before the first step: "uniform" in +-1/sqrt(in), as peft's, or "gaussian" with variance 1/r,
             as in the paper.  A rate for the one is none for the other
    steps, rate, batch  of AdamW.  Processes of torchrun share the batch
    dropout  share of captions that are left out, for classifier-free guidance
    times    how times are drawn: "uniform", or "logit_normal" as for SD3
    weighting  weights of the loss by time: "none", "min_snr", "sigma_squared" or "cosmap" (`weighting`)
    average  decay of moving averages of A and of B, of which the adapter is made.  None for no average
    autocast, checkpointing  products in bfloat16, and blocks that run again in the backward pass
    seed     of A, the order of the data, noise and times
    folder   keeps state and adapter every so many steps.  The same call goes on from there, to the same bits
    on_step  on_step(step, loss), under the adapter as it is then

    A first Ctrl-C is heard after the step, whose state is kept.
    Raises PatchError for projections, data and numbers that cannot be, for a folder of another run, and for
    a loss that is not finite.
    """
    drawn = dict(batch=batch, seed=seed, dropout=dropout, times=times)
    factors = dict(rank=rank, alpha=alpha, initial=initial, average=average)
    settings = dict(**factors, rate=rate, weighting=weighting, autocast=autocast, **drawn)
    require_counts(steps=steps, every=every)
    training = prepared(pipeline, data, sites, targets, settings, checkpointing)
    place = None if folder is None else Path(folder)
    training.resumed(place, steps)
    training.run(steps, place, every, on_step)
    return training.adapter()


def prepared(
    pipeline: SupportsSampling,
    data: Data,
    sites: Selectors,
    targets: str,
    settings: Mapping[str, Any],
    checkpointing: bool,
) -> Training:
    """Training of which no step is made yet, and everything is checked.

    settings  the arguments of `finetune` that settle what a step does
    """
    if settings["alpha"] is None:
        settings = {**settings, "alpha": settings["rank"]}
    _require_trainable(pipeline)
    _require_settings(settings)
    require_weighting(pipeline.schedule, settings["weighting"])
    names = target_names(pipeline.denoiser, chosen_sites(pipeline.denoiser, sites), targets)
    own = examples(pipeline, data, settings["batch"])
    whole = {"by": "finetune", "projections": names, **settings}
    return Training(pipeline, own, whole, checkpointing=checkpointing)


def _require_trainable(pipeline: SupportsSampling) -> None:
    """Raise PatchError for a pipeline that cannot be trained, or is under an adapter."""
    require_parts(pipeline, "finetune", SupportsSampling)
    if not hasattr(pipeline.schedule, "noised"):
        raise PatchError(
            f"the schedule of {pipeline.name} has no noised(x, noise, share), so nobody knows what its "
            "denoiser is to predict; load the model with load()"
        )
    if pipeline.dtype == torch.float16:
        raise PatchError(
            "gradients of small losses vanish in float16; load the model in bfloat16 or float32"
        )
    if changes_of(pipeline.denoiser):
        raise PatchError(
            f"{pipeline.name} is under an adapter; leave its block before training one"
        )


def require_counts(**counts: Any) -> None:
    """Raise PatchError for a count that is none, by its name."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise PatchError(f"{name} is {count!r}; give a whole number from 1 on")


def _require_settings(asked: Mapping[str, Any]) -> None:
    """Raise PatchError for a way of drawing, a count or a number that is none."""
    require_counts(rank=asked["rank"], batch=asked["batch"])
    for name, known in (("times", TIMES), ("initial", INITIAL)):
        if asked[name] not in known:
            raise PatchError(f"{name} is {asked[name]!r}{closest(asked[name], known)}")
    for name in ("rate", "alpha"):
        if not is_finite(asked[name]) or asked[name] <= 0:
            raise PatchError(f"{name} is {asked[name]!r}; give a positive number")
    if not _is_share(asked["dropout"]):
        raise PatchError(f"dropout is {asked['dropout']!r}; give a share from 0 to 1")
    if asked["average"] is not None and not _is_share(asked["average"]):
        raise PatchError(f"average is {asked['average']!r}; give a decay from 0 to 1, or None")


def _is_share(number: Any) -> bool:
    return is_finite(number) and 0 <= number <= 1
