"""Detector made of a text classifier of transformers, read from a folder on this machine."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from textpatch.errors import PatchError, closest


class Classified:
    """Detector that asks a network of transformers whether a quoted text is harmful as a whole.

        harmful  <=>  sum of p(label) over the harmful labels  >=  threshold

    p is the softmax of the network's answer, or for a network that is trained to give several labels at once
    the largest of the labels' sigmoids instead of the sum.

    folder     with config.json, safetensors and tokenizer, as `save_pretrained` writes them
    harmful    names of the labels that count as harmful, as config.json's `id2label` has them
    threshold  0..1
    Nothing is fetched and nothing is unpickled.
    Raises PatchError for a folder that holds no such network, for labels it does not have, for none and for
    all of them, and for a threshold outside 0..1.
    """

    def __init__(
        self, folder: str | Path, harmful: Collection[str], threshold: float = 0.5
    ) -> None:
        if not 0 <= threshold <= 1:
            raise PatchError(f"threshold is {threshold!r}; give a number from 0 to 1")
        self.threshold = threshold
        self.name = f"classifier {Path(folder).name}"
        self._network, self._tokenizer = _loaded(Path(folder))
        self.version = str(self._network.config.model_type)
        self._places = _places(self._network.config.id2label, harmful)

    def __call__(self, text: str) -> bool:
        """True for a text that is harmful.  A text longer than the network reads is refused.

        Raises PatchError for such a text.
        """
        asked = self._tokenizer(text, return_tensors="pt")
        most = getattr(self._network.config, "max_position_embeddings", None)
        length = asked["input_ids"].shape[1]
        if most is not None and length > most:
            raise PatchError(
                f"a text has {length} tokens and the {self.name} reads {most}; give a shorter text"
            )
        with torch.no_grad():
            (answer,) = self._network(**asked).logits
        return self._share(answer) >= self.threshold

    def _share(self, answer: torch.Tensor) -> float:
        """Probability that one of the harmful labels holds."""
        if self._network.config.problem_type == "multi_label_classification":
            return float(answer.sigmoid()[self._places].max())
        return float(answer.softmax(0)[self._places].sum())


def _loaded(folder: Path):
    """Network and tokenizer of a folder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise PatchError(f"{folder} holds no config.json; give a folder of save_pretrained")
    try:
        network = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise PatchError(f"{folder} holds no text classifier in safetensors: {reason}") from None
    return network.eval(), tokenizer


def _places(labels: dict[int, str], harmful: Collection[str]) -> list[int]:
    """Places of the harmful labels in the network's answer."""
    names = list(labels.values())
    if isinstance(harmful, str):
        harmful = [harmful]
    for name in harmful:
        if name not in names:
            raise PatchError(f"the classifier has no label {name!r}{closest(name, names)}")
    if not harmful or set(harmful) == set(names):
        raise PatchError(
            f"{len(set(harmful))} of {len(names)} labels count as harmful, so that every text has the same "
            f"answer; name some of {', '.join(names)}"
        )
    return [place for place, name in labels.items() if name in harmful]
