"""Selectors for other trainers take the projections that were asked for and no others, or are refused."""

import ast
import json
import re
import shlex
from functools import cache

import pytest
from torch import nn

from support.patched_calls import refused
from support.planting import plant
from textpatch.ports.shipped import find_sites
from textpatch.tuning import selectors
from textpatch.tuning.selectors import TOOLS, selection
from textpatch.tuning.targets import target_names
from textpatch.weights.loading import outline

SITES = {
    "sdxl-base-1.0": (55, 56, 57),
    "if-i-m": (17,),
    "sd3-medium": (10,),
    "sd3.5-medium": (1, 2),
}
TARGETS = "text_kv", "qkvo", "text_all", "all"


@cache
def model(name: str) -> tuple[nn.Module, list[str]]:
    """Outline and linear layers of a published model, of which no weights are read."""
    whole = outline(name)
    linear = [name for name, part in whole.named_modules() if isinstance(part, nn.Linear)]
    return whole, linear


def projections(name: str, targets: str) -> list[str]:
    whole, _ = model(name)
    sites = find_sites(whole)
    return target_names(whole, [sites[index] for index in SITES[name]], targets)


# What each trainer takes, read once more from its options, by other means than the library's.


def by_peft(text: str, names: list[str]) -> set[str]:
    wanted = json.loads(text)["target_modules"]
    return {name for name in names if any(f".{name}".endswith(f".{one}") for one in wanted)}


def by_diffusers(text: str, names: list[str]) -> set[str]:
    words = shlex.split(text)
    given = dict(zip(words[::2], words[1::2], strict=True))
    blocks = "|".join(given["--lora_blocks"].split(","))
    layers = "|".join(map(re.escape, given["--lora_layers"].split(",")))
    return {
        name for name in names if re.fullmatch(rf"transformer_blocks\.({blocks})\.({layers})", name)
    }


def by_musubi(text: str, names: list[str]) -> set[str]:
    given = dict(word.split("=", 1) for word in shlex.split(text)[1:])
    assert ast.literal_eval(given["exclude_patterns"]) == [".*"]  # which leaves out everything
    include = "|".join(ast.literal_eval(given["include_patterns"]))
    return {name for name in names if re.fullmatch(include, name)}


def by_lycoris(text: str, names: list[str]) -> set[str]:
    preset = json.loads(text)
    assert preset["target_module"] == []
    return {name for name in names if re.search(f"^({'|'.join(preset['target_name'])})", name)}


READERS = {"peft": by_peft, "diffusers": by_diffusers, "musubi": by_musubi, "lycoris": by_lycoris}
TAKEN = [
    (tool, name, targets)
    for tool in READERS
    for name in SITES
    for targets in TARGETS
    if name.startswith("sd3") or tool in ("peft", "lycoris")
]


@pytest.mark.parametrize("tool, name, targets", TAKEN)
def test_a_selector_takes_what_was_asked_for(tool, name, targets):
    """Read by other means, the text takes the projections and nothing else, and the count is theirs."""
    wanted = projections(name, targets)
    made = selection(tool, wanted, model(name)[1])
    assert READERS[tool](made.text, model(name)[1]) == {*wanted} and made.count == len(wanted)


@pytest.mark.parametrize("name", SITES)
def test_peft_itself_takes_what_was_asked_for(name):
    """peft, given the text as its configuration, puts its layers in the place of the projections."""
    peft = pytest.importorskip("peft")
    wanted = projections(name, "text_kv")
    whole, linear = outline(name), model(name)[1]
    made = selection("peft", wanted, linear)
    peft.inject_adapter_in_model(peft.LoraConfig(**json.loads(made.text)), whole)
    taken = {name for name, part in whole.named_modules() if hasattr(part, "lora_A")}
    assert taken == {*wanted} and made.count == len(taken)


KOHYA = {
    "text_all": "context_attn_dim=4 context_mlp_dim=0 context_mod_dim=0 x_attn_dim=0 x_mlp_dim=0 x_mod_dim=0",
    "qkvo": "context_attn_dim=0 context_mlp_dim=0 context_mod_dim=0 x_attn_dim=4 x_mlp_dim=0 x_mod_dim=0",
    "all": "context_attn_dim=4 context_mlp_dim=0 context_mod_dim=0 x_attn_dim=4 x_mlp_dim=0 x_mod_dim=0",
}


@pytest.mark.parametrize("targets", KOHYA)
def test_kohya_trains_streams(targets):
    """Whole streams of a block are selected, as matrices of q, k and v and ways out."""
    made = selection("kohya", projections("sd3-medium", targets), model("sd3-medium")[1])
    wanted = f"--network_train_unet_only --network_args train_block_indices=10 {KOHYA[targets]}"
    assert made.text == wanted and made.count == {"text_all": 2, "qkvo": 2, "all": 4}[targets]


REFUSED = {
    "keys and values alone": ("kohya", "sd3-medium", "text_kv", "2 of these were asked for"),
    "two attentions in a block": (
        "kohya",
        "sd3.5-medium",
        "all",
        "joint_blocks.1.x_block.attn2.qkv",
    ),
    "a U-Net for kohya": ("kohya", "sdxl-base-1.0", "qkvo", "a whole block of a U-Net"),
    "a U-Net for diffusers": ("diffusers", "if-i-m", "text_kv", "export for peft"),
    "a U-Net for musubi": ("musubi", "sdxl-base-1.0", "qkvo", "it trains transformers alone"),
    "unknown": ("kohia", "sdxl-base-1.0", "qkvo", "closest: kohya"),
}


def law_refusals(case: str) -> None:
    """What a trainer cannot select exactly is refused, and the message says what to do."""
    tool, name, targets, says = REFUSED[case]
    with refused(says):
        selection(tool, projections(name, targets), model(name)[1])


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    """One line, with the reason."""
    law_refusals(case)


def test_different_layers_of_two_blocks_are_refused():
    """diffusers takes all pairs of blocks and layers, and so more than these two."""
    wanted = ["transformer_blocks.1.attn.to_k", "transformer_blocks.2.attn.to_v"]
    with refused("2 of 2 modules and 2 others"):
        selection("diffusers", wanted, model("sd3-medium")[1])
    with refused("a selector of none"):
        selection("peft", [], model("sd3-medium")[1])
    with refused("0 of 1 modules"):
        selection("peft", ["transformer_blocks.99.attn.to_k"], model("sd3-medium")[1])


def test_planted_others_taken_are_noticed(monkeypatch):
    """Fault: modules beside those that were asked for do not count."""
    plant(monkeypatch, selectors, "selection", "if lacking or more:", "if lacking:")
    with pytest.raises(AssertionError):
        law_refusals("two attentions in a block")


def test_all_trainers_have_a_rule():
    """Each trainer is read here a second time, kohya by what is written."""
    assert {*TOOLS} == {*READERS, "kohya"}
