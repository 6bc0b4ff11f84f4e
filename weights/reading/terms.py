"""Terms on which files are read, what a caller allows and chooses, and the notes of what was done."""

from __future__ import annotations

from dataclasses import dataclass, field

from textpatch.errors import WeightsError


@dataclass(frozen=True)
class Terms:
    """What a caller allows and chooses.

    follow_links  True follows links out of a folder, where they end in a regular file
    variant       variant of the weights, as "fp16" is in `model.fp16.safetensors`; None takes the plain files
    ema           True takes the moving average of the weights that training has left beside them
    mapped        True leaves tensors in their file that are stored in the dtype asked for
    notes         sentences on what was dropped or decided, in the order in which it was
    met           choices that some file has met
    """

    follow_links: bool = False
    variant: str | None = None
    ema: bool = False
    mapped: bool = False
    notes: list[str] = field(default_factory=list)
    met: set[str] = field(default_factory=set)

    def note(self, sentence: str) -> None:
        """Keep a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def require_met(self, where: object) -> None:
        """Raise WeightsError for a choice that no file has met, because it would be without effect."""
        if self.variant is not None and "variant" not in self.met:
            raise WeightsError(
                f"{where} has no file of the variant {self.variant!r}; leave variant out, or give one it has"
            )
        if self.ema and "ema" not in self.met:
            raise WeightsError(
                f"{where} has no moving average of its weights, and ema=True asks for it; leave ema out"
            )
