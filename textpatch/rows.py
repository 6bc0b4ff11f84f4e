"""Rows of a batch, each with its prompt, its start and its guidance branch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from torch import Tensor

from textpatch.seeds import whole_seed

UNCONDITIONAL = "uncond"
CONDITIONAL = "cond"
# records of version 0.1 hash the other fields, so that these are written only where they are given
WRITTEN_WHERE_GIVEN = ("joins", "latents", "copies", "path")


@dataclass(frozen=True)
class Row:
    """One labelled batch row.

    name     unique among the conditional rows of a run
    prompt   text that the row reads.  None is no prompt at all
    seed     seed of the starting noise, and of the noise that a stochastic schedule adds: a whole
             number, or a tensor of one
    branch   guidance branch, "cond" for the row's own prompt
    pooled   prompt whose pooled vector modulates this row.  The row's own prompt when None
    sampled  False for a row that is only read, a donor of which no picture is made.  Its prompt
             alone must settle its keys and values
    joins    step at which the row joins the run.  A later one than 0 needs `latents` or `copies`
    latents  (C, H, W) entering that step, in place of the seed's noise
    copies   name of another row, whose latents entering that step are taken
    path     (N + 1, C, H, W) latents that hold the row, those entering each of the N steps and the
             final ones.  What the row's own prediction would do to them is not read
    """

    name: str
    prompt: str | None
    seed: int = 0
    branch: str = CONDITIONAL
    pooled: str | None = None
    sampled: bool = True
    joins: int = 0
    # left out of comparisons, because two tensors are equal element by element
    latents: Tensor | None = field(default=None, compare=False, repr=False)
    copies: str | None = None
    path: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.seed, Tensor):
            object.__setattr__(self, "seed", whole_seed(self.seed))

    @property
    def label(self) -> tuple[str, str]:
        """Name and branch, which tell the rows of a batch apart."""
        return self.name, self.branch

    @property
    def pooled_prompt(self) -> str | None:
        """Prompt whose pooled vector modulates this row."""
        if self.pooled is None:
            return self.prompt
        return self.pooled

    @property
    def data(self) -> dict[str, object]:
        """Row as plain data, with the hashes of latents and path in their places.

        joins, latents, copies and path are left out where they have their defaults.
        """
        fields = {k: value for k, value in vars(self).items() if k not in WRITTEN_WHERE_GIVEN}
        if self.joins:
            fields["joins"] = self.joins
        if self.copies is not None:
            fields["copies"] = self.copies
        if self.latents is not None:
            fields["latents_sha256"] = _sha256(self.latents)
        if self.path is not None:
            fields["path_sha256"] = _sha256(self.path)
        return fields


def _sha256(x: Tensor) -> str:
    """Hash of a tensor's values in float64."""
    values = x.detach().double().cpu().contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()
