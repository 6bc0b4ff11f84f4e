"""Tensors beside the weights of a file, used, dropped by name, or refused.

Programs wrap names, keep moving averages and tables beside the weights, and scale weights of 8 bits.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from textpatch.errors import WeightsError
from textpatch.weights.layouts import listed
from textpatch.weights.reading.tensors import Tensors
from textpatch.weights.reading.terms import Terms

# put before or into names by torch.compile, DataParallel and FSDP
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|^module\.")
TABLES = (
    r"(log_)?(betas|alphas|sigmas|logvar|lvlb_weights)|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev|_next)?"
    r"|sqrt_recip(m1)?_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])"
    r"|ddim_(sigmas|alphas|alphas_prev|sqrt_one_minus_alphas)"
)
# names of tensors that change nothing, and what they are
DROPPED = {
    rf"(.*\.)?({TABLES})": "tables of the noise schedule, which are computed here",
    r"(first_stage_model\.)?loss\..*": "losses of the autoencoder's training",
    r"(.*\.)?(num_batches_tracked|num_updates|decay)|global_step|epoch": "bookkeeping of training",
    r"(.*\.)?logit_scale": "temperature of the contrastive training, which no text is encoded with",
    r"v_pred|ztsnr": "marks of what the model predicts, which its schedule has",
    r"(.*\.)?scaled_fp8": "marks of weights in 8 bits",
    r"(.*\.)?(scale_input|input_scale)": "scales of 8-bit activations, which are not rounded here",
    r"(.*\.)?spiece_model": "a tokenizer's file, of which the folder of the tokenizer has its own",
}
QUANTISED = re.compile(r".*\.(absmax|quant_map|nested_absmax|quant_state\..*|qweight|qzeros|SCB)")
MOVING_AVERAGE = "model_ema."
SCALES = ".scale_weight", ".weight_scale"
FORMAT = ".comfy_quant"
PLAIN_FP8 = {"float8_e4m3fn", "float8_e5m2"}


@dataclass(frozen=True)
class Named:
    """Tensors of a file by their names without wrappers and strays.

    keys    {name: key in the file}
    scales  {key of a weight in 8 bits: key of the number that it is multiplied by}
    """

    tensors: Tensors
    keys: dict[str, str]
    scales: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def dropping(self, patterns: dict[str, str], where: str, terms: Terms) -> Named:
        """The same without names that match a pattern in full, each group noted with its reason."""
        gone = dropped(self.keys, patterns, where, terms)
        kept = {name: key for name, key in self.keys.items() if name not in gone}
        return Named(self.tensors, kept, self.scales)


def dropped(names: Iterable[str], patterns: dict[str, str], where: str, terms: Terms) -> set[str]:
    """Names that match a pattern in full, each group noted with the reason of its pattern."""
    groups = defaultdict(list)
    compiled = [(re.compile(pattern), reason) for pattern, reason in patterns.items()]
    for name in names:
        for pattern, reason in compiled:
            if pattern.fullmatch(name):
                groups[reason].append(name)
                break
    for reason, gone in groups.items():
        terms.note(f"{where}: dropped {listed(gone)}, {reason}")
    return {name for gone in groups.values() for name in gone}


def named(tensors: Tensors, where: str, terms: Terms) -> Named:
    """Tensors of a file under their own names, with whatever changes nothing dropped by name.

    where  component or file, for the notes
    Raises WeightsError for weights that another program has quantised, and for two tensors of one name.
    """
    keys = _unwrapped(tensors, where, terms)
    quantised = [name for name in keys if QUANTISED.fullmatch(name)]
    if quantised:
        raise WeightsError(
            f"{tensors.files[0]} is quantised by another program ({listed(quantised)}), and its numbers "
            "would change here; fetch the weights in 8 bits or more",
            "quantised",
        )
    keys = _averaged(keys, where, terms)
    scales, keys = _scaled(tensors, keys, where, terms)
    return Named(tensors, keys, scales).dropping(DROPPED, where, terms)


def _unwrapped(tensors: Tensors, where: str, terms: Terms) -> dict[str, str]:
    """Keys of the file by name.   Raises WeightsError for two of one name."""
    keys: dict[str, str] = {}
    wrapped = []
    for key in tensors:
        name = WRAPPERS.sub("", key)
        if name in keys:
            raise WeightsError(
                f"{tensors.files[0]} holds {key!r} and {keys[name]!r}, which are both {name!r}; "
                "remove one of them",
                "twice",
            )
        keys[name] = key
        if name != key:
            wrapped.append(key)
    if wrapped:
        terms.note(
            f"{where}: names without what a compiler or wrapper put there, {listed(wrapped)}"
        )
    return keys


def _averaged(keys: dict[str, str], where: str, terms: Terms) -> dict[str, str]:
    """Keys by name without the moving average of an original file, or with it in the weights' place.

    The average of `model.a.b` is named `model_ema.ab` there.
    """
    copies = {name: key for name, key in keys.items() if name.startswith(MOVING_AVERAGE)}
    if not copies:
        return keys
    kept = {name: key for name, key in keys.items() if name not in copies}
    averages = {}
    for name in kept:
        top, _, rest = name.partition(".")
        average = copies.get(MOVING_AVERAGE + rest.replace(".", ""))
        if top == "model" and average:
            averages[name] = average
    if not terms.ema:
        terms.note(
            f"{where}: a moving average beside the weights, {len(averages)} tensors; "
            "ema=True takes it instead"
        )
        return kept
    terms.met.add("ema")
    terms.note(f"{where}: the moving average instead of the weights, {len(averages)} tensors")
    return {**kept, **averages}


def _scaled(
    tensors: Tensors, keys: dict[str, str], where: str, terms: Terms
) -> tuple[dict[str, str], dict[str, str]]:
    """Scales of weights in 8 bits by the weights' keys, and the keys by name without them."""
    scales = {}
    kept = dict(keys)
    for name, key in keys.items():
        if name.endswith(FORMAT):
            _require_plain(tensors, key)
            del kept[name]
        base = next((name.removesuffix(end) for end in SCALES if name.endswith(end)), None)
        weight = keys.get(f"{base}.weight")
        if base is not None and weight and tensors[weight].dtype.startswith("F8"):
            scales[weight] = key
            del kept[name]
    if scales:
        terms.note(f"{where}: {len(scales)} weights in 8 bits, multiplied by their scales")
    return scales, kept


def _require_plain(tensors: Tensors, key: str) -> None:
    """Raise WeightsError unless a mark of quantisation says 8-bit floats with one scale."""
    text = bytes(tensors.read(key).flatten()[:1024].tolist())
    try:
        kind = json.loads(text).get("format")
    except (ValueError, AttributeError, RecursionError):
        kind = text[:40].decode("utf-8", "replace")
    if kind not in PLAIN_FP8:
        raise WeightsError(
            f"{tensors.files[0]}: {key!r} says the format {kind!r}; 8-bit floats alone are read here, "
            f"{', '.join(sorted(PLAIN_FP8))}",
            "quantised",
        )
