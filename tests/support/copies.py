"""Our models and diffusers' of the same weights, an input for both, and the law that a swap is the same
in either.
"""

from copy import deepcopy
from dataclasses import asdict, replace

import torch

from support.small_models import relative
from support.strategies import no_first_values, randomize
from textpatch import Plan, Row, Swap, capture, patch
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDXLConfig

# between ours and diffusers, of the largest value
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-6}
IN_SDXL = SDXLConfig(
    in_channels=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_head_dim=(1, 2),
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2),
    cross_attention_dim=6,
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=24 + 5,
)
IN_IF = IFConfig(
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=8,
    cross_attention_dim=32,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    encoder_hid_dim=6,
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    addition_embed_type_num_heads=2,
)
IN_MMDIT = MMDiTConfig(
    in_channels=4,
    out_channels=4,
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=8,
    joint_attention_dim=6,
    pooled_projection_dim=5,
    caption_projection_dim=16,
    pos_embed_max_size=8,
)
IN_SD35 = replace(IN_MMDIT, qk_norm="rms_norm", dual_attention_layers=(0,))
UNETS = {
    SDXL: dict(addition_embed_type="text_time"),
    DeepFloydIF: dict(
        act_fn="gelu",
        addition_embed_type="text",
        cross_attention_norm="group_norm",
        encoder_hid_dim_type="text_proj",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    ),
}
PAIRS = {
    "SDXL": (SDXL, IN_SDXL),
    "IF": (DeepFloydIF, IN_IF),
    "SD3": (MMDiT, IN_MMDIT),
    "SD3.5": (MMDiT, IN_SD35),
}


def call(model, inputs, **others):
    """The model's output as one tensor."""
    with torch.no_grad():
        output = model(**inputs | others)[0]
    return torch.stack(list(output))


@no_first_values()
def pair(diffusers, name: str, seed: int = 0):
    """(our model, diffusers' with its weights), float64.

    Diffusers' RMSNorms are torch's: its own go by float32.
    """
    kind, config = PAIRS[name]
    theirs = "SD3Transformer2DModel" if kind is MMDiT else "UNet2DConditionModel"
    ours = randomize(kind(config).double(), seed).requires_grad_(False)
    theirs = (
        getattr(diffusers, theirs)(**asdict(config), **UNETS.get(kind, {}))
        .double()
        .requires_grad_(False)
    )
    theirs.load_state_dict(ours.state_dict())
    for module in [*theirs.modules()]:
        for path, norm in [*module.named_children()]:
            if type(norm).__name__ == "RMSNorm" and not isinstance(norm, torch.nn.RMSNorm):
                setattr(module, path, torch.nn.RMSNorm(norm.dim, eps=norm.eps, dtype=torch.float64))
                getattr(module, path).weight = norm.weight
    return ours, theirs


def one_input(kind: type, rows: int):
    """The same random input for our model (x, t, text) and, by name, for diffusers' class."""
    x = torch.randn(rows, 3 if kind is DeepFloydIF else 4, 8, 8, dtype=torch.float64)
    t, tokens = torch.tensor(500.0), torch.randn(rows, 4, 6, dtype=torch.float64)
    pooled, micro = (
        torch.randn(rows, 5, dtype=torch.float64),
        torch.randint(0, 64, (rows, 6)).double(),
    )
    foreign_ = dict(encoder_hidden_states=tokens, timestep=t.expand(rows))
    if kind is MMDiT:
        return (x, t, TextCondition(tokens, pooled)), dict(
            hidden_states=x, pooled_projections=pooled, **foreign_
        )
    if kind is SDXL:
        added = dict(text_embeds=pooled, time_ids=micro)
        return (x, t, TextCondition(tokens, pooled, micro)), dict(
            sample=x, added_cond_kwargs=added, **foreign_
        )
    return (x, t, TextCondition(tokens)), dict(sample=x, **foreign_)


def native_slots_are_foreign_hooks(diffusers, name: str, swap: Swap, seed: int) -> None:
    """Law 13: ours(slots of a swap) = capture, then patch on diffusers' class with our weights: 1e-10 in
    float64.
    """
    ours, theirs = pair(diffusers, name, seed)
    torch.manual_seed(seed)
    rows, (args, inputs) = [Row(x, x) for x in "abc"], one_input(type(ours), 3)
    native = ours(*args, slots=Plan([swap]).slots(0, rows, ours.sites, tokens=4))
    with capture(theirs, "all", rows=rows) as cache:
        plain = call(theirs, inputs)
    options = dict(heads=swap.heads, tokens=swap.tokens, part=swap.part)
    chosen = "all" if swap.sites == ("all",) else swap.sites
    with patch(theirs, cache, chosen, rows=[rows[1], None, None], **options):
        patched = call(theirs, inputs)
    assert relative(patched, native) <= 1e-10 and torch.equal(patched[1:], plain[1:])
    assert not torch.equal(patched[0], plain[0])


def full_width(ours, theirs, name: str):
    """A module of our model and diffusers' module of that name, in float64, sharing random weights.

    The models may be on the meta device.
    """
    module = deepcopy(ours.get_submodule(name)).double().to_empty(device="cpu")
    for parameter in module.requires_grad_(False).parameters():
        parameter.normal_(std=parameter[0].numel() ** -0.5)
    other = deepcopy(theirs.get_submodule(name))
    other.load_state_dict(module.state_dict(), assign=True)
    return module, other.requires_grad_(False)
