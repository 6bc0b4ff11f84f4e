"""Projections named as other trainers select them, and those selections read back as each trainer reads them.

    peft       {"target_modules": [...]}.  A module is taken whose name is one of these, or ends in . and one
               (peft, src/peft/tuners/tuners_utils.py, check_target_module_exists)
    diffusers  --lora_blocks 10 --lora_layers attn.add_k_proj,...  All transformer_blocks.BLOCK.LAYER, as peft
               takes them (diffusers, examples/dreambooth/train_dreambooth_lora_sd3.py)
    kohya      train_block_indices, and a rank for each part of a block, 0 to leave it out.  q, k and v are
               one matrix (sd-scripts, networks/lora_sd3.py)
    musubi     exclude_patterns, include_patterns.  A module is left out if an exclude matches its whole name
               and no include does (musubi-tuner, src/musubi_tuner/networks/lora.py)
    lycoris    {"target_module": [], "target_name": [...]}.  A module is taken if a pattern matches the
               beginning of its name (LyCORIS, lycoris/wrapper.py, LycorisNetwork.match_fn)

Whatever a trainer cannot select exactly is refused.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textpatch.errors import PatchError, closest
from textpatch.tuning.fused import PARTS
from textpatch.tuning.spellings import STREAMS, is_transformer, stream_of

PROJECTIONS = {part for parts in STREAMS.values() for part in parts}
BLOCK = re.compile(r"transformer_blocks\.([0-9]+)\.(.+)")
ALL = ".*"
# parts of an SD3 block as sd-scripts names their ranks, and what their modules' names hold
KOHYA_PARTS = {
    "context_attn_dim": ("context_block", "attn"),
    "context_mlp_dim": ("context_block", "mlp"),
    "context_mod_dim": ("context_block", "adaLN_modulation"),
    "x_attn_dim": ("x_block", "attn"),
    "x_mlp_dim": ("x_block", "mlp"),
    "x_mod_dim": ("x_block", "adaLN_modulation"),
}
# other linear layers of an SD3 block, by their names in the diffusers layout
KOHYA_REST = {
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}


@dataclass(frozen=True)
class Selection:
    """What to give a trainer, and how many modules it takes.

    text   the options or the JSON object
    count  modules that it selects, by the trainer's own names
    """

    text: str
    count: int


def selection(
    tool: str, wanted: Sequence[str], linear: Sequence[str], *, rank: int = 4
) -> Selection:
    """Selection of some projections of a model for a trainer.

    tool    one of TOOLS
    wanted  names of the projections
    linear  names of all linear layers of the model
    rank    of the change, which sd-scripts wants to be told for each part of a block
    Raises PatchError for an unknown trainer, for one that trains no such model, and where it would take other
    modules than those.
    """
    if tool not in TOOLS:
        raise PatchError(f"nothing is exported for {tool!r}{closest(tool, TOOLS)}")
    if not wanted:
        raise PatchError("no projection was named, and a selector of none would have no effect")
    write, read, spelled = TOOLS[tool]
    own = list(dict.fromkeys(spelled(wanted)))
    text = write(wanted, rank)
    taken = read(text, list(dict.fromkeys(spelled(linear))))
    lacking = [name for name in own if name not in taken]
    more = [name for name in taken if name not in own]
    if lacking or more:
        shown = ", ".join((lacking + more)[:3])
        raise PatchError(
            f"{tool} would take {len(own) - len(lacking)} of {len(own)} modules and {len(more)} others "
            f"({shown}): {CURES.get(tool, 'name other projections')}"
        )
    return Selection(text, len(own))


# --- peft


def _peft(wanted: Sequence[str], rank: int) -> str:
    return json.dumps({"target_modules": list(wanted)})


def _read_peft(text: str, names: Sequence[str]) -> list[str]:
    return _with_ends(json.loads(text)["target_modules"], names)


def _with_ends(targets: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names that are one of the targets, or end in a dot and one of them."""
    ends = tuple(f".{target}" for target in targets)
    return [name for name in names if name in targets or name.endswith(ends)]


# --- diffusers


def _diffusers(wanted: Sequence[str], rank: int) -> str:
    parts = [_in_block("diffusers", name) for name in wanted]
    blocks = ",".join(dict.fromkeys(block for block, _ in parts))
    layers = ",".join(dict.fromkeys(layer for _, layer in parts))
    return shlex.join(["--lora_blocks", blocks, "--lora_layers", layers])


def _read_diffusers(text: str, names: Sequence[str]) -> list[str]:
    _, blocks, _, layers = shlex.split(text)
    targets = [
        f"transformer_blocks.{int(block)}.{layer.strip()}"
        for block in blocks.split(",")
        for layer in layers.split(",")
    ]
    return _with_ends(targets, names)


def _in_block(tool: str, name: str) -> tuple[str, str]:
    """Number of a transformer's block, and name of a layer in it.   Raises PatchError for a U-Net's layer."""
    match = BLOCK.fullmatch(name)
    if match is None or not is_transformer(name):
        raise PatchError(
            f"{tool} selects no single layer of a U-Net such as {name!r}: {CURES[tool]}"
        )
    return match[1], match[2]


# --- kohya


def _kohya(wanted: Sequence[str], rank: int) -> str:
    modules = _of_kohya(wanted)
    for name in wanted:
        _in_block("kohya", name)
        module, place = _kohya_module(name)
        fused = [part for part in wanted if _kohya_module(part)[0] == module]
        if place is not None and len(fused) < PARTS:
            raise PatchError(
                f"kohya trains q, k and v as {module}, and {len(fused)} of these were asked for: "
                f"{CURES['kohya']}"
            )
    blocks = ",".join(dict.fromkeys(module.split(".")[1] for module in modules))
    options = [f"train_block_indices={blocks}"]
    for option, parts in KOHYA_PARTS.items():
        trained = any(all(part in module for part in parts) for module in modules)
        options.append(f"{option}={rank * trained}")
    return shlex.join(["--network_train_unet_only", "--network_args", *options])


def _read_kohya(text: str, names: Sequence[str]) -> list[str]:
    given = dict(option.split("=") for option in shlex.split(text)[2:])
    blocks = {int(block) for block in given.pop("train_block_indices").split(",")}
    return [
        name
        for name in names
        if int(name.split(".")[1]) in blocks and _kohya_rank(name, given) != 0
    ]


def _kohya_rank(name: str, ranks: dict[str, str]) -> int | None:
    """Rank of the first part that a module belongs to.  None is the rank of all others."""
    for option, parts in KOHYA_PARTS.items():
        if all(part in name for part in parts):
            return int(ranks[option])
    return None


def _of_kohya(names: Sequence[str]) -> list[str]:
    """Names of those linear layers that are in SD3's blocks, in sd-scripts."""
    modules = [_kohya_module(name)[0] for name in names]
    return [module for module in modules if module]


def _kohya_module(name: str) -> tuple[str, int | None]:
    """Name of a linear layer of SD3's blocks in sd-scripts, and its place in a matrix of q, k and v.

    The name of any other layer is "".
    """
    match = BLOCK.fullmatch(name)
    if match is None:
        return "", None
    block, layer = match.groups()
    if layer in KOHYA_REST:
        return f"joint_blocks.{block}.{KOHYA_REST[layer]}", None
    if layer.partition(".")[2] in PROJECTIONS:
        return stream_of(name)
    return "", None


# --- musubi


def _musubi(wanted: Sequence[str], rank: int) -> str:
    for name in wanted:
        _in_block("musubi", name)
    patterns = json.dumps([re.escape(name) for name in wanted])
    exclude = f"exclude_patterns={json.dumps([ALL])}"
    return shlex.join(["--network_args", exclude, f"include_patterns={patterns}"])


def _read_musubi(text: str, names: Sequence[str]) -> list[str]:
    _, *options = shlex.split(text)
    given = dict(option.split("=", 1) for option in options)
    exclude, include = (
        [re.compile(pattern) for pattern in ast.literal_eval(given[f"{what}_patterns"])]
        for what in ("exclude", "include")
    )
    return [name for name in names if not _matched(exclude, name) or _matched(include, name)]


def _matched(patterns: Sequence[re.Pattern[str]], name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)


# --- lycoris


def _lycoris(wanted: Sequence[str], rank: int) -> str:
    patterns = [f"{re.escape(name)}$" for name in wanted]
    return json.dumps({"enable_conv": False, "target_module": [], "target_name": patterns})


def _read_lycoris(text: str, names: Sequence[str]) -> list[str]:
    preset = json.loads(text)
    return [
        name
        for name in names
        if name in preset["target_name"]
        or any(re.match(pattern, name) for pattern in preset["target_name"])
    ]


def _as_they_are(names: Sequence[str]) -> list[str]:
    return list(names)


Write = Callable[[Sequence[str], int], str]
Read = Callable[[str, Sequence[str]], list[str]]
# how a selection is written and read, and what the trainer calls a layer
TOOLS: dict[str, tuple[Write, Read, Callable[[Sequence[str]], list[str]]]] = {
    "peft": (_peft, _read_peft, _as_they_are),
    "kohya": (_kohya, _read_kohya, _of_kohya),
    "musubi": (_musubi, _read_musubi, _as_they_are),
    "lycoris": (_lycoris, _read_lycoris, _as_they_are),
    "diffusers": (_diffusers, _read_diffusers, _as_they_are),
}
CURES = {
    "diffusers": "its scripts for U-Nets train all attention, and for SD3 the same layers of each block; "
    "export for peft, whose target_modules add_adapter takes",
    "musubi": "it trains transformers alone; export for lycoris",
    "kohya": "networks.lora_sd3 trains q, k, v and the way out of a stream together (--targets text_all or "
    "all), and networks.lora a whole block of a U-Net; export for lycoris",
}
