"""Names that other programs give to the projections of a model, and to the tensors of an adapter.

Names in the diffusers layout are ours.  The original names of SDXL (sgm) number the blocks of both ways, with
L layers per block on the way down and L + 1 with the resampler; those of SD3 have one matrix for q, k and v:

    down_blocks.i.attentions.j = input_blocks.(1 + i (L + 1) + j).1
    up_blocks.i.attentions.j   = output_blocks.(i (L + 1) + j).1,   mid_block.attentions.0 = middle_block.1
    transformer_blocks.b.attn  = joint_blocks.b.context_block.attn and joint_blocks.b.x_block.attn

In kohya's names underscores stand for the dots.
"""

from __future__ import annotations

import re

from textpatch.errors import PatchError

# ends of a tensor's name, and what the tensor is
ROLES = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
# parts of names that are refused, with the reason
REFUSED = {
    "lora_te": "it changes a text encoder, and adapters here change the denoiser alone",
    "text_encoder": "it changes a text encoder, and adapters here change the denoiser alone",
    "lora_magnitude_vector": "DoRA rescales the rows of the sum, which is no low-rank change",
    "dora_scale": "DoRA rescales the rows of the sum, which is no low-rank change",
    "hada_": "LoHa is a product of two changes entry by entry",
    "lokr_": "LoKr is a Kronecker product",
    "lora_mid": "it changes a convolution, and adapters here change linear layers alone",
    "lora_B.bias": "it changes a bias, and adapters here change matrices alone",
    "lora_up.bias": "it changes a bias, and adapters here change matrices alone",
}
PREFIXES = "base_model.model.", "diffusion_model.", "transformer.", "unet."
KOHYA = "lora_unet_"
WORDS = (
    "down_blocks up_blocks mid_block input_blocks output_blocks middle_block joint_blocks transformer_blocks "
    "attentions context_block x_block attn1 attn2 attn add_q_proj add_k_proj add_v_proj to_add_out to_out "
    "to_q to_k to_v qkv proj_in proj_out proj ff_context ff net"
).split()
WORD = re.compile(f"_({'|'.join(WORDS)}|[0-9]+)(?=_|$)")
STREAMS = {
    "context_block": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "x_block": ("to_q", "to_k", "to_v", "to_out.0"),
}
FUSED = re.compile(r"joint_blocks\.([0-9]+)\.(context_block|x_block)\.(attn2?)\.(qkv|proj)")
ORIGINAL = re.compile(r"(input_blocks|output_blocks)\.([0-9]+)\.1\.(.+)")
UNET = re.compile(r"(down|up)_blocks\.([0-9]+)\.attentions\.([0-9]+)\.(.+)")
JOINT = re.compile(r"transformer_blocks\.([0-9]+)\.(attn2?)\.(.+)")


def role_of(key: str) -> tuple[str, str]:
    """Name of a projection, as a file spells it, and what the tensor `key` is of its change.

    Returns (name, "down" or "up" or "alpha").
    Raises PatchError, with the reason, for a tensor that no low-rank change of a denoiser has.
    """
    for part, reason in REFUSED.items():
        if part in key:
            raise PatchError(f"tensor {key!r} is refused: {reason}")
    for end, role in ROLES.items():
        if key.endswith(end):
            return key.removesuffix(end), role
    raise PatchError(
        f"tensor {key!r} is refused: its name ends in none of {', '.join(ROLES)}, so nobody would read it"
    )


def projections(name: str, layers_per_block: int) -> tuple[str, ...]:
    """Names in the diffusers layout of what a file spells `name`.

    They are one, or the three of a matrix for q, k and v.
    Raises PatchError for a name that is not understood.
    """
    plain = re.sub(r"\.to_out$", ".to_out.0", _plain(name))
    fused = FUSED.fullmatch(plain)
    if fused:
        return _of_stream(*fused.groups())
    return (_from_original(plain, layers_per_block),)


def _plain(name: str) -> str:
    """Name with dots, without what stands for the model or the attention's processor."""
    if name.startswith(KOHYA):
        return _dotted(name)
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace(".processor.", ".")


def _dotted(name: str) -> str:
    """Name with dots where kohya has underscores.  Raises PatchError for a word that is not known."""
    rest = "_" + name.removeprefix(KOHYA)
    words = []
    while rest:
        match = WORD.match(rest)
        if match is None:
            raise PatchError(
                f"{name!r} names no projection that is known, from {rest[1:]!r} on; "
                "adapters here change the attention and feed-forward layers of SDXL, SD3 and DeepFloyd IF"
            )
        words.append(match[1])
        rest = rest[match.end() :]
    return ".".join(words)


def _of_stream(block: str, stream: str, attention: str, part: str) -> tuple[str, ...]:
    """Projections of one stream of an SD3 block, q, k and v or the way out."""
    *qkv, out = STREAMS[stream]
    names = qkv if part == "qkv" else [out]
    return tuple(f"transformer_blocks.{block}.{attention}.{name}" for name in names)


def _from_original(name: str, layers: int) -> str:
    """Name in the diffusers layout of SDXL's original one.  Others stay."""
    if name.startswith("middle_block.1."):
        return name.replace("middle_block.1.", "mid_block.attentions.0.", 1)
    match = ORIGINAL.fullmatch(name)
    if match is None:
        return name
    down = match[1] == "input_blocks"
    number = int(match[2]) - down
    block, layer = divmod(number, layers + 1)
    if number < 0 or (down and layer == layers):
        raise PatchError(
            f"{name!r} is no attention of a U-Net with {layers} layers per block; "
            "give the layers_per_block of the model"
        )
    return f"{'down' if down else 'up'}_blocks.{block}.attentions.{layer}.{match[3]}"


def original(name: str, layers: int) -> str:
    """Original name of a projection of SDXL, by which kohya and ComfyUI know it.

    Raises PatchError for a name that neither has, such as one of DeepFloyd IF.
    """
    match = UNET.fullmatch(name)
    last = name.removeprefix("mid_block.attentions.0.") if match is None else match[4]
    if last.startswith(("to_", "add_")):
        raise PatchError(
            f"{name!r} is DeepFloyd IF's, which neither kohya nor ComfyUI reads; save it as 'diffusers'"
        )
    if name.startswith("mid_block.attentions.0."):
        return name.replace("mid_block.attentions.0.", "middle_block.1.", 1)
    if match is None:
        raise PatchError(
            f"{name!r} has no original name that is known here; save it as 'diffusers'"
        )
    number = int(match[2]) * (layers + 1) + int(match[3])
    if match[1] == "down":
        return f"input_blocks.{number + 1}.1.{match[4]}"
    return f"output_blocks.{number}.1.{match[4]}"


def stream_of(name: str) -> tuple[str, int | None]:
    """Original name of the matrix that a projection of SD3 is a part of, and its place among q, k and v.

    The place is None for the way out, which is a matrix of its own.
    Raises PatchError for a name that is none of an SD3 attention.
    """
    match = JOINT.fullmatch(name)
    for stream, parts in STREAMS.items():
        if match is not None and match[3] in parts:
            place = parts.index(match[3])
            module = f"joint_blocks.{match[1]}.{stream}.{match[2]}"
            if place == 3:
                return f"{module}.proj", None
            return f"{module}.qkv", place
    raise PatchError(f"{name!r} has no original name that is known here; save it as 'diffusers'")


def is_transformer(name: str) -> bool:
    """True for a projection of SD3's transformer, False for one of a U-Net."""
    return name.startswith("transformer_blocks.")
