"""One training: the factors, their optimizer, its losses, and its state in a file.

loss = mean over rows of weight x mean (f(x_t, t, text) - target)^2
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from textpatch.changes import LowRank
from textpatch.disk import as_json, placed
from textpatch.errors import PatchError, StoreError
from textpatch.pipelines import SupportsSampling
from textpatch.progress import counted, phase
from textpatch.runs.interrupts import finishing
from textpatch.tuning.low_rank import Adapter, base_sha256
from textpatch.tuning.processes import current_processes
from textpatch.tuning.recomputing import recomputed
from textpatch.tuning.training_data import Batch, Examples, batch_of
from textpatch.tuning.weighting import weights

STATE = "training.safetensors"
CHECKPOINTS = "checkpoints"
BETAS = 0.9, 0.999
DECAY = 1e-2
DRAWN = "batch", "seed", "dropout", "times"  # settings that a batch depends on
MOMENTS = "step", "exp_avg", "exp_avg_sq"  # what AdamW keeps of each factor
OnStep = Callable[[int, float], None]


class Training:
    """Factors in training, their optimizer, and the losses of the steps made.

    settings       what settles the run besides its number of steps
    checkpointing  whether blocks run again in the backward pass
    """

    def __init__(
        self,
        pipeline: SupportsSampling,
        own: Examples,
        settings: dict[str, Any],
        *,
        checkpointing: bool,
    ) -> None:
        self.pipeline = pipeline
        self.own = own
        self.checkpointing = checkpointing
        self.layers = {
            name: pipeline.denoiser.get_submodule(name) for name in settings["projections"]
        }
        self.settings = settings | {"base": base_sha256(self.layers), "data": own.sha256}
        self.processes = current_processes()
        self.rows = self.processes.rows(settings["batch"])
        self.changes = self._first()
        self.average = [factor.detach().clone() for factor in self._factors()]
        self.optimizer = torch.optim.AdamW(
            self._factors(), lr=settings["rate"], betas=BETAS, weight_decay=DECAY
        )
        self.losses: list[float] = []  # one for each step
        # The last loss with its emptied graph.  Without it glibc gives a step's memory back at its end, and a
        # step takes a tenth longer (tiny-sdxl, all sites, batch 16: 33,000 page faults in place of 8,000).
        self._last: Tensor | None = None

    @property
    def step(self) -> int:
        """Number of steps that are made."""
        return len(self.losses)

    def _first(self) -> dict[str, LowRank]:
        """Change with A drawn and B zero, which is the base bit for bit."""
        generator = torch.Generator().manual_seed(self.settings["seed"])
        changes = {}
        for name, layer in self.layers.items():
            down = self._first_down(layer.weight.shape[1], generator)
            down = down.to(layer.weight.device).requires_grad_()
            up = torch.zeros(len(layer.weight), len(down), device=down.device, requires_grad=True)
            changes[name] = LowRank(down, up, self.settings["alpha"])
        return changes

    def _first_down(self, width: int, generator: torch.Generator) -> Tensor:
        """First A (r, in), uniform in +-1/sqrt(in), or normal with variance 1/r."""
        rank = self.settings["rank"]
        if self.settings["initial"] == "gaussian":
            return torch.randn(rank, width, generator=generator) / rank**0.5
        return (2 * torch.rand(rank, width, generator=generator) - 1) / width**0.5

    def _factors(self) -> list[Tensor]:
        return [factor for change in self.changes.values() for factor in (change.down, change.up)]

    def adapter(self) -> Adapter:
        """Adapter of the factors as they are now, or of their averages where these are asked for."""
        factors = [factor.detach() for factor in self._factors()]
        if self.settings["average"] is not None:
            factors = self.average
        parts = iter(factor.clone() for factor in factors)
        changes = {
            name: LowRank(next(parts), next(parts), change.alpha)
            for name, change in self.changes.items()
        }
        return Adapter(changes, self.settings["base"], self.settings | {"steps": self.step})

    def run(self, steps: int, folder: Path | None, every: int, on_step: OnStep | None) -> None:
        """Train up to a number of steps, and keep state and adapter every so many."""
        if self.step == steps:
            return
        live = Adapter(self.changes)
        with phase("finetune", "step"), live.applied(self.pipeline.denoiser):
            for step in counted(range(self.step, steps)):
                with finishing() as asked:
                    self._advance()
                    stop = self.processes.any_of(asked(), self.pipeline.device)
                    if folder is not None and (
                        stop or self.step % every == 0 or self.step == steps
                    ):
                        self.keep(folder)
                if stop:  # another process was interrupted
                    raise KeyboardInterrupt
                if on_step is not None:
                    on_step(step, self.losses[-1])

    def _advance(self) -> None:
        """Make one step."""
        keys = {key: self.settings[key] for key in DRAWN}
        drawn = batch_of(self.own, self.step, rows=self.rows, **keys)
        factors = self._factors()
        with self._computing():
            self._last = loss = self._loss(drawn)
            if not loss.isfinite():
                raise PatchError(
                    f"the loss of step {self.step} is {float(loss.detach())}; give a lower rate, or a wider "
                    "dtype"
                )
            gradients = torch.autograd.grad(loss, factors)
        *averaged, mean = self.processes.averaged([*gradients, loss.detach()])
        for factor, gradient in zip(factors, averaged, strict=True):
            factor.grad = gradient
        nn.utils.clip_grad_norm_(factors, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(mean))
        self._follow(factors)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Gradients on, and blocks that run again where that is asked for."""
        with torch.enable_grad():
            if not self.checkpointing:
                yield
                return
            with recomputed(self.pipeline.denoiser):
                yield

    def _loss(self, drawn: Batch) -> Tensor:
        """Loss of a batch as the settings weigh it and compute it."""
        return batch_loss(
            self.pipeline, drawn, self.settings["weighting"], autocast=self.settings["autocast"]
        )

    def _follow(self, factors: list[Tensor]) -> None:
        """Move the averages towards the factors, faster at first."""
        if self.settings["average"] is None:
            return
        keep = min(self.settings["average"], (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, factor in zip(self.average, factors, strict=True):
                mean.lerp_(factor, 1 - keep)

    def resumed(self, folder: Path | None, steps: int) -> None:
        """Go on from a folder's state if there is one.

        Raises PatchError for a state that is further than `steps`.
        """
        if folder is None:
            return
        path = folder / STATE
        if path.exists():
            self.read(path)
        if self.step > steps:
            raise PatchError(
                f"{path} holds {self.step} steps, and {steps} were asked for; give as many or more, or "
                "another folder"
            )

    def keep(self, folder: Path) -> None:
        """Keep the state and the adapter as it is now, if this is the first process."""
        if self.processes.rank:
            return
        self.write(folder / STATE)
        self.adapter().save(folder / CHECKPOINTS / f"{self.step:06}.safetensors")

    def write(self, path: Path) -> None:
        """Keep factors, averages, optimizer and losses in a file, whole or not at all."""
        tensors = {f"factor.{i}": factor.detach().cpu() for i, factor in enumerate(self._factors())}
        tensors |= {f"average.{i}": average.cpu() for i, average in enumerate(self.average)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}": value.cpu() for name, value in state.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        said = {"settings": as_json(self.settings).decode()}
        with placed(path) as temporary:
            save_file(tensors, temporary, metadata=said)

    def read(self, path: Path) -> None:
        """Go on from a file.   Raises StoreError for one that is damaged, PatchError for another run's."""
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings = json.loads(said["settings"])
            losses = tensors["losses"].tolist()
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"{path} is damaged or not ours ({error}); give another folder"
            ) from error
        _require_same(path, settings, json.loads(as_json(self.settings)))
        names = ("factor", "average", *MOMENTS)
        lacking = {f"{name}.{i}" for name in names for i in range(len(self.average))} - {*tensors}
        if lacking:
            raise StoreError(f"{path} lacks {min(lacking)}; give another folder")
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for i, (factor, average) in enumerate(zip(self._factors(), self.average, strict=True)):
                factor.copy_(tensors[f"factor.{i}"])
                average.copy_(tensors[f"average.{i}"])
                state[i] = {name: tensors[f"{name}.{i}"] for name in MOMENTS}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.losses = losses


def batch_loss(
    pipeline: SupportsSampling, drawn: Batch, weighting: str = "none", *, autocast: bool = False
) -> Tensor:
    """Weighted mean squared error of the prediction, in float32.

    autocast  products of the denoiser in bfloat16
    """
    schedule: Any = pipeline.schedule
    x, t, target = schedule.noised(drawn.latents, drawn.noise, drawn.share)
    with torch.autocast(pipeline.device.type, torch.bfloat16, enabled=autocast):
        output = pipeline.denoiser(x, t, drawn.text)
    error = (output[:, : target.shape[1]].float() - target.float()).square()
    each = error.mean(dim=(1, 2, 3))  # (B,)
    return (weights(schedule, weighting, drawn.share) * each).mean()


def _require_same(path: Path, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise PatchError unless a kept run has the settings that are asked for."""
    for name in {**asked, **kept}:
        if kept.get(name) != asked.get(name):
            raise PatchError(
                f"{path} is of a run with {name} {str(kept.get(name))[:60]}, and "
                f"{str(asked.get(name))[:60]} was asked for; give another folder"
            )
