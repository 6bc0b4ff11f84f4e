"""Denoising of rows of which one is edited from another, with or without a local blend.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textpatch.bank import Texts
from textpatch.editing.carrying import Carrier
from textpatch.editing.local_blend import blended
from textpatch.editing.pair_edit import PairEdit
from textpatch.guidance import Guidance, branch_rows
from textpatch.lockstep import to_device
from textpatch.pipelines import OnStep, SupportsPartialRuns, SupportsSampling, require_parts
from textpatch.plan import Row
from textpatch.ports.shipped import find_sites


@dataclass(frozen=True)
class EditedRun:
    """Rows that are denoised together, of which the target's is edited from the source's.

    rows            conditional rows.  The guidance adds their other branches, which are not edited
    texts           of all these rows
    source, target  names of two of the rows
    """

    pipeline: SupportsSampling
    rows: Sequence[Row]
    texts: Texts
    source: str
    target: str
    steps: int
    guidance: Guidance

    @torch.no_grad()
    def latents(self, edit: PairEdit, on_step: OnStep | None = None) -> dict[str, Tensor]:
        """Final latents (C, H, W) by row name.

        on_step  on_step(step, latents entering it), and once more after the last
        Raises PatchError for sites that cannot be edited, and for an edit that acted nowhere.
        """
        batch = branch_rows(self.rows, self.guidance)
        model = self.pipeline.denoiser
        carrier = Carrier.of(model, edit, self.texts, batch, self.source, self.target)
        with carrier.on(model):
            x = self._denoised(batch, carrier, len(find_sites(model)), on_step)
        carrier.require_edited()
        return {row.name: one for row, one in zip(self.rows, x, strict=True)}

    def _denoised(
        self, batch: Sequence[Row], carrier: Carrier, sites: int, on_step: OnStep | None
    ) -> Tensor:
        """Final latents (B, C, H, W)."""
        tables = self.texts.slots(None, batch, sites)
        if tables is not None:
            tables = [to_device(entry, self.pipeline.device) for entry in tables]

        def slots(step: int) -> object:
            carrier.step = step
            return tables

        draws = self.pipeline.noises([row.seed for row in self.rows])
        noise = next(draws)
        settings = {
            "text": self.texts.of(batch),
            "steps": self.steps,
            "guidance": self.guidance,
            "noises": draws,
            "slots": slots,
            "on_step": on_step,
        }
        if carrier.edit.maps is None:
            return self.pipeline.denoise(noise, **settings)
        return self._blended(noise, carrier.edit, settings)

    def _blended(self, noise: Tensor, edit: PairEdit, settings: dict) -> Tensor:
        """Final latents (B, C, H, W) with the local blend after every step."""
        require_parts(self.pipeline, "a local blend", SupportsPartialRuns)
        names = [row.name for row in self.rows]
        source = names.index(self.source)
        target = names.index(self.target)
        x = self.pipeline.enter(noise, self.steps)
        state = self.guidance.begin(x)
        edit.maps.sums.clear()  # those of another run of the same edit
        for step in range(self.steps):
            only = range(step, step + 1)
            x, state = self.pipeline.advance(x, state=state, only=only, **settings)
            mask = edit.maps.mask(*x.shape[-2:])
            x = x.clone()
            x[target] = blended(x[source], x[target], mask)
        if settings["on_step"]:
            settings["on_step"](self.steps, x)
        return x
