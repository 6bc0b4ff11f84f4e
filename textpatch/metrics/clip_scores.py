"""CLIP-T and CLIP-I, likeness of pictures to prompts and to each other, by a CLIP in a local folder.

torch and transformers are imported when a folder is opened.  Nothing is fetched, and torchvision is not
needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from textpatch.disk import read_json
from textpatch.errors import PatchError, PromptError, WeightsError
from textpatch.metrics.image import Picture, rgb_pixels
from textpatch.pictures import MOST_PIXELS

if TYPE_CHECKING:
    import torch

WEIGHT = 2.5  # of CLIPScore (arXiv 2104.08718), so that .30 of cosine is .75
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 32
LONGEST = 4096  # letters of a prompt, beyond which tokenizers may take minutes
OLD_END = 2  # end token in older configurations, for which transformers pools the highest token
_FILES = (("config.json",), ("model.safetensors",), ("tokenizer.json", "vocab.json"))


class CLIP:
    """A CLIP of transformers' layout, such as a copy of openai/clip-vit-base-patch32, which the paper used.

    folder  with config.json, model.safetensors and the tokenizer's files
    device  where it computes, in float32

    Scores of two CLIPs are not comparable.
    Raises WeightsError for a folder that is none, holds another model, or lacks tensors of it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, device: torch.device | str | int | None = None
    ) -> None:
        self.folder = Path(folder)
        _require_clip(self.folder)
        self.model = _opened(self.folder).to(device).eval()
        self.tokenizer = _tokenizer(self.folder, self.model.config.text_config)
        self.size = self.model.config.vision_config.image_size
        self.window = self.model.config.text_config.max_position_embeddings

    def text_scores(
        self, pictures: Sequence[Picture], prompts: Sequence[str], *, cut: bool = False
    ) -> np.ndarray:
        """CLIP-T of each picture and its prompt, (n,).

            2.5 max(cos(picture, prompt), 0)

        pictures  as `prepared` takes them
        cut       True reads the first tokens of prompts that are longer than the window, as published scores
                  do.  False refuses them

        Raises PatchError for other numbers of pictures and prompts, and as `picture_features` and
        `text_features` do.
        """
        return _weighted(_each(*self._both(pictures, prompts, cut)))

    def text_chance(
        self, pictures: Sequence[Picture], prompts: Sequence[str], *, cut: bool = False
    ) -> float:
        """Chance level of CLIP-T, its mean over all pictures with the prompts of all others."""
        seen, read = self._both(pictures, prompts, cut)
        n = len(seen)
        if n < 2:
            raise PatchError(
                "asked for the chance level of one picture, which has no other's prompt; give two or more"
            )
        table = _weighted(seen @ read.T)
        return float((table.sum() - np.trace(table)) / (n * (n - 1)))

    def image_scores(self, pictures: Sequence[Picture], others: Sequence[Picture]) -> np.ndarray:
        """CLIP-I of two pictures each, (n,), weighted as CLIP-T.

        pictures, others  as `prepared` takes them, any two of different sizes
        Raises PatchError for other numbers of both, and as `picture_features` does.
        """
        _require_as_many(pictures, others, "other pictures")
        return _weighted(_each(self.picture_features(pictures), self.picture_features(others)))

    def picture_features(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Unit vectors of pictures, (n, dimensions) in float64, such as `neighbours_of` compares."""
        import torch

        def features(batch):
            values = torch.from_numpy(np.stack([prepared(one, self.size) for one in batch]))
            return self.model.get_image_features(pixel_values=values.to(self.model.device))

        return _in_batches(features, pictures, "pictures")

    def text_features(self, prompts: Sequence[str], *, cut: bool = False) -> np.ndarray:
        """Unit vectors of prompts, (n, dimensions) in float64.

        cut  as in `text_scores`
        Raises PromptError for a prompt that is longer than the window, and WeightsError for tokens that the
        model does not know.
        """
        if isinstance(prompts, str):
            raise PromptError(f"prompts is the one text {prompts!r}; give a list of prompts")
        if not cut:
            self._require_short(prompts)

        def features(batch):
            read = self.tokenizer(
                [prompt[:LONGEST] for prompt in batch],
                padding=True,
                truncation=True,
                max_length=self.window,
                return_tensors="pt",
            ).to(self.model.device)
            self._require_known(read["input_ids"])
            return self.model.get_text_features(
                input_ids=read["input_ids"], attention_mask=read["attention_mask"]
            )

        return _in_batches(features, prompts, "prompts")

    def _both(self, pictures, prompts, cut: bool) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of as many pictures as prompts."""
        _require_as_many(pictures, prompts, "prompts")
        read = self.text_features(prompts, cut=cut)
        return self.picture_features(pictures), read

    def _require_short(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            long = f"of {len(prompt)} letters"
            if len(prompt) <= LONGEST:
                tokens = len(self.tokenizer(prompt)["input_ids"])
                if tokens <= self.window:
                    continue
                long = f"of {tokens} tokens"
            raise PromptError(
                f"a prompt {long} begins {prompt[:40]!r}, and this CLIP reads {self.window} tokens; shorten "
                "it, or say cut=True and only its beginning is compared"
            )

    def _require_known(self, ids) -> None:
        known = self.model.config.text_config.vocab_size
        if int(ids.max()) >= known:
            raise WeightsError(
                f"the tokenizer of {self.folder} gives token {int(ids.max())} and the model knows {known}; "
                "copy both from one place"
            )


def prepared(picture: Picture, size: int) -> np.ndarray:
    """A picture as a CLIP reads it, float32 (3, size, size).

    Its shorter side becomes `size` (Pillow's bicubic, in 8 bit) and its middle is cut out.  The channels'
    published means are subtracted, and the rest is divided by their published deviations.

    picture  a PIL image, or a uint8 array (H, W, 3)
    Raises PatchError for anything else, and for a strip that would grow beyond MOST_PIXELS.
    """
    image = Image.fromarray(rgb_pixels(picture))
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    if width * height > MOST_PIXELS:
        raise PatchError(
            f"a picture of {image.width} x {image.height} pixels becomes {width} x {height} before its "
            "middle is cut out; cut it yourself"
        )
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    normal = (pixels - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def _require_clip(folder: Path) -> None:
    """Raise WeightsError for what is no folder of a CLIP, before anything is loaded."""
    if not folder.is_dir():
        raise WeightsError(
            f"no folder {folder}; give a local copy of a CLIP, with config.json and model.safetensors"
        )
    for names in _FILES:
        if not any((folder / name).is_file() for name in names):
            raise WeightsError(
                f"{folder} has no {' or '.join(names)}; copy the model's whole folder"
            )
    kind = _entry(folder / "config.json", "model_type", None)
    if kind != "clip":
        raise WeightsError(f"{folder} holds a model of type {kind!r}; give a folder of type 'clip'")
    said = folder / "preprocessor_config.json"
    if said.is_file() and _entry(said, "image_mean", list(MEAN)) != list(MEAN):
        raise WeightsError(
            f"{said} takes another mean out of pictures than {list(MEAN)}, by which they are prepared here; "
            "take a CLIP that was trained on these"
        )


def _entry(path: Path, name: str, default: Any) -> Any:
    """An entry of a JSON file, or the default where it has none."""
    body = read_json(path)
    if not isinstance(body, dict):
        raise WeightsError(f"{path} holds no entries by name; copy the model's whole folder anew")
    return body.get(name, default)


def _opened(folder: Path) -> Any:
    """Model of a folder in float32, all of whose tensors are in its files."""
    from transformers import CLIPModel

    try:
        with _without_bars():
            model, told = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    # whatever the files of a stranger make transformers or safetensors raise
    except Exception as error:
        raise WeightsError(f"cannot read the CLIP in {folder}: {error}") from error
    lacking = sorted({*told["missing_keys"], *map(str, told["mismatched_keys"])})
    if lacking:
        raise WeightsError(
            f"{folder} lacks {len(lacking)} tensors of its model, first {lacking[0]}; they would be random, "
            "so copy the folder anew"
        )
    return model.float()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' progress bars off in a block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer(folder: Path, config: Any) -> Any:
    """Tokenizer of a folder, whose end token is that of the model's configuration."""
    from transformers import CLIPTokenizerFast

    try:
        tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise WeightsError(f"cannot read the tokenizer in {folder}: {error}") from error
    if config.eos_token_id not in (OLD_END, tokenizer.eos_token_id):
        raise WeightsError(
            f"the tokenizer of {folder} ends texts with token {tokenizer.eos_token_id}, and the model waits "
            f"for {config.eos_token_id}; copy both from one place"
        )
    return tokenizer


def _in_batches(features, items: Sequence[Any], what: str) -> np.ndarray:
    """Unit vectors of all items, BATCH at a time.   Raises PatchError for no items."""
    import torch

    if not len(items):
        raise PatchError(f"no {what} were given; give one or more")
    found = []
    with torch.no_grad():
        for start in range(0, len(items), BATCH):
            made = features(items[start : start + BATCH])
            # transformers 5 returns an object, older versions the vectors themselves
            vectors = getattr(made, "pooler_output", made)
            found.append(vectors.double().cpu().numpy())
    vectors = np.concatenate(found)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _require_as_many(pictures: Sequence[Picture], others: Sequence[Picture], what: str) -> None:
    if isinstance(others, str) or len(pictures) != len(others):
        raise PatchError(
            f"{len(pictures)} pictures and {len(others)} {what} were given; give lists with one of each kind"
        )


def _each(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of unit vectors, one by one."""
    return np.einsum("nd,nd->n", first, second)


def _weighted(cosines: np.ndarray) -> np.ndarray:
    return WEIGHT * np.maximum(cosines, 0)
