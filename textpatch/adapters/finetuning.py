"""Train an adapter at some sites on pictures with captions (LoRA, arXiv 2106.09685).

    loss = mean || f(x_t, t, text) - target ||^2

The target is the noise of a diffusion, the velocity of a flow.  Of a model that learns its variance, too, the
first channels alone are trained.  The model's own weights stay as they are, and get no gradients.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from textpatch.adapters.low_rank import Adapter, base_sha256
from textpatch.adapters.targets import target_names
from textpatch.adapters.training_data import TIMES, Batch, Examples, batch_of, examples
from textpatch.changes import LowRank, changes_of
from textpatch.disk import as_json, placed
from textpatch.errors import PatchError, StoreError, closest
from textpatch.pipelines import SupportsSampling, require_parts
from textpatch.progress import counted, phase
from textpatch.runs.interrupts import finishing
from textpatch.taps import chosen_sites

STATE = "training.safetensors"
BETAS = 0.9, 0.999
DECAY = 1e-2


def finetune(
    pipeline: SupportsSampling,
    data: Sequence[tuple[str, Any]],
    *,
    sites: Any,
    targets: str = "text_kv",
    rank: int = 4,
    alpha: float | None = None,
    steps: int,
    rate: float = 1e-3,
    batch: int = 4,
    dropout: float = 0.0,
    times: str = "uniform",
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    every: int = 100,
    on_step: Callable[[int, float], None] | None = None,
) -> Adapter:
    """Train an adapter of some sites.

    data     (caption, picture), of a model of pixels PIL's, else latents (C, H, W)
    sites    where, as `select_sites` takes them
    targets  which projections: "text_kv", "qkvo", "text_all" or "all" (`targets.target_names`)
    rank     r of every projection.  alpha is the rank when None
    steps, rate, batch  of AdamW
    dropout  share of captions that are left out, for classifier-free guidance
    times    how times are drawn: "uniform", or "logit_normal" as for SD3
    seed     of A, the order of the data, noise and times
    folder   keeps the state every so many steps.  The same call goes on from there, to the same bits
    on_step  on_step(step, loss)

    A first Ctrl-C is heard after the step, whose state is kept.
    Raises PatchError

    - for projections, data and numbers that cannot be
    - for a folder of another run
    - for a loss that is not finite
    """
    _require_trainable(pipeline)
    asked = {
        "rank": rank,
        "alpha": rank if alpha is None else alpha,
        "rate": rate,
        "batch": batch,
        "dropout": dropout,
        "times": times,
        "seed": seed,
    }
    _require_settings(asked, steps, every)
    names = target_names(pipeline.denoiser, chosen_sites(pipeline.denoiser, sites), targets)
    own = examples(pipeline, data, batch)
    training = _Training(pipeline, own, {"by": "finetune", "projections": names, **asked})
    path = training.resumed(folder, steps)
    training.run(steps, path, every, on_step)
    return training.adapter()


class _Training:
    """Factors in training, their optimizer, and how far it is.

    settings  what settles the run besides its number of steps
    """

    def __init__(self, pipeline: SupportsSampling, own: Examples, settings: dict[str, Any]) -> None:
        self.pipeline = pipeline
        self.own = own
        self.layers = {
            name: pipeline.denoiser.get_submodule(name) for name in settings["projections"]
        }
        self.settings = settings | {"base": base_sha256(self.layers), "data": own.sha256}
        self.changes = self._first()
        self.optimizer = torch.optim.AdamW(
            self._factors(), lr=settings["rate"], betas=BETAS, weight_decay=DECAY
        )
        self.step = 0

    def _first(self) -> dict[str, LowRank]:
        """Change with A uniform in +-1/sqrt(in) and B zero, which is the base bit for bit."""
        generator = torch.Generator().manual_seed(self.settings["seed"])
        changes = {}
        for name, layer in self.layers.items():
            out, width = layer.weight.shape
            down = 2 * torch.rand(self.settings["rank"], width, generator=generator) - 1
            down = (down / width**0.5).to(layer.weight.device).requires_grad_()
            up = torch.zeros(out, len(down), device=down.device, requires_grad=True)
            changes[name] = LowRank(down, up, self.settings["alpha"])
        return changes

    def _factors(self) -> list[Tensor]:
        return [factor for change in self.changes.values() for factor in (change.down, change.up)]

    def adapter(self) -> Adapter:
        """Adapter of the factors as they are now."""
        changes = {
            name: LowRank(change.down.detach().clone(), change.up.detach().clone(), change.alpha)
            for name, change in self.changes.items()
        }
        return Adapter(changes, self.settings["base"], self.settings | {"steps": self.step})

    def run(
        self,
        steps: int,
        path: Path | None,
        every: int,
        on_step: Callable[[int, float], None] | None,
    ) -> None:
        """Train up to a number of steps, and keep the state every so many."""
        if self.step == steps:
            return
        live = Adapter(self.changes)
        with phase("finetune", "step"), live.applied(self.pipeline.denoiser):
            for step in counted(range(self.step, steps)):
                with finishing() as asked:
                    loss = self._advance()
                    due = self.step % every == 0 or self.step == steps or asked()
                    if path is not None and due:
                        self.write(path)
                if on_step is not None:
                    on_step(step, loss)

    def _advance(self) -> float:
        """Make one step, and return its loss."""
        keys = "batch", "seed", "dropout", "times"
        drawn = batch_of(self.own, self.step, **{key: self.settings[key] for key in keys})
        factors = self._factors()
        loss = self._loss(drawn)
        if not loss.isfinite():
            raise PatchError(
                f"the loss of step {self.step} is {float(loss.detach())}; give a lower rate, or a wider dtype"
            )
        for factor, gradient in zip(factors, torch.autograd.grad(loss, factors), strict=True):
            factor.grad = gradient
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def _loss(self, drawn: Batch) -> Tensor:
        """Mean squared error of the prediction, in float32."""
        schedule: Any = self.pipeline.schedule
        x, t, target = schedule.noised(drawn.latents, drawn.noise, drawn.share)
        with torch.enable_grad():
            output = self.pipeline.denoiser(x, t, drawn.text)
            return F.mse_loss(output[:, : target.shape[1]].float(), target.float())

    def resumed(self, folder: str | os.PathLike | None, steps: int) -> Path | None:
        """Go on from a folder's state if there is one.

        Returns the state's place.  Raises PatchError for a state that is further than `steps`.
        """
        if folder is None:
            return None
        path = Path(folder) / STATE
        if path.exists():
            self.read(path)
        if self.step > steps:
            raise PatchError(
                f"{path} holds {self.step} steps, and {steps} were asked for; give as many or more, or "
                "another folder"
            )
        return path

    def write(self, path: Path) -> None:
        """Keep factors, optimizer and step in a file, whole or not at all."""
        tensors = {f"factor.{i}": factor.detach().cpu() for i, factor in enumerate(self._factors())}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}": value.cpu() for name, value in state.items()}
        said = {"settings": as_json(self.settings).decode(), "step": str(self.step)}
        with placed(path) as temporary:
            save_file(tensors, temporary, metadata=said)

    def read(self, path: Path) -> None:
        """Go on from a file.   Raises StoreError for one that is damaged, PatchError for another run's."""
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings = json.loads(said["settings"])
            step = int(said["step"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"{path} is damaged or not ours ({error}); give another folder"
            ) from error
        _require_same(path, settings, json.loads(as_json(self.settings)))
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for i, factor in enumerate(self._factors()):
                factor.copy_(tensors[f"factor.{i}"])
                state[i] = {
                    name: tensors[f"{name}.{i}"] for name in ("step", "exp_avg", "exp_avg_sq")
                }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step = step


def _require_same(path: Path, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise PatchError unless a kept run has the settings that are asked for."""
    for name in {**asked, **kept}:
        if kept.get(name) != asked.get(name):
            raise PatchError(
                f"{path} is of a run with {name} {str(kept.get(name))[:60]}, and "
                f"{str(asked.get(name))[:60]} was asked for; give another folder"
            )


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


def _require_settings(asked: Mapping[str, Any], steps: Any, every: Any) -> None:
    """Raise PatchError for a way of drawing times, a count or a number that is none."""
    counts = {"rank": asked["rank"], "steps": steps, "batch": asked["batch"], "every": every}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise PatchError(f"{name} is {count!r}; give a whole number from 1 on")
    if asked["times"] not in TIMES:
        raise PatchError(f"times is {asked['times']!r}{closest(asked['times'], TIMES)}")
    for name in ("rate", "alpha"):
        if not _is_finite(asked[name]) or asked[name] <= 0:
            raise PatchError(f"{name} is {asked[name]!r}; give a positive number")
    if not _is_finite(asked["dropout"]) or not 0 <= asked["dropout"] <= 1:
        raise PatchError(f"dropout is {asked['dropout']!r}; give a share from 0 to 1")


def _is_finite(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)
