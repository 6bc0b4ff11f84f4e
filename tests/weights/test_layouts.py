"""Original files become the diffusers layout: every key once, with the values diffusers' own converters
give."""

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from support.small_models import relative
from support.strategies import randomize
from textpatch.errors import WeightsError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.weights.layouts import (
    CLIP,
    SINGLE_FILES,
    T5,
    VAE_DIFFUSERS,
    convert,
    origins,
    recognise,
    split,
)
from textpatch.weights.layouts.deepfloyd_if import IF_I, IF_II
from textpatch.weights.layouts.flux import FLUX
from textpatch.weights.layouts.sd3 import sd3_layout
from textpatch.weights.layouts.table import make_layout
from textpatch.weights.layouts.tensors import HeadRows, Rows, linear, swapped, transposed
from textpatch.weights.manifests import manifest

# single file -> {component: (tensors in the file, published component in diffusers layout)}
PUBLISHED = {
    "sdxl-base-1.0.single-file": {
        "unet": (1680, "sdxl-base-1.0.unet"),
        "vae": (248, "sdxl-base-1.0.vae"),
        "text_encoder": (197, "sdxl-base-1.0.text_encoder"),
        "text_encoder_2": (390, "sdxl-base-1.0.text_encoder_2"),
    },
    "sd3-medium.single-file": {
        "transformer": (491, "sd3-medium.transformer"),
        "vae": (244, "sd3-medium.vae"),
    },
    "sd3.5-medium.single-file": {
        "transformer": (665, "sd3.5-medium.transformer"),
        "vae": (244, "sd3-medium.vae"),
    },
    "sd3.5-large.single-file": {
        "transformer": (923, "sd3.5-large.transformer"),
        "vae": (244, "sd3-medium.vae"),
    },
    "flux.1-dev.single-file": {"transformer": (780, "flux.1-dev.transformer")},
    "flux.1-dev.ae.single-file": {"vae": (244, "flux.1-dev.vae")},
    "if-i-xl.original": {"unet": (643, "if-i-xl.unet")},
}
VAE_BLOCKS = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@pytest.fixture(scope="module")
def converters():
    """diffusers' conversion functions; it comes with the extra `reference`, which `make test` installs."""
    pytest.importorskip("diffusers")
    from diffusers.loaders import single_file_utils

    return single_file_utils


def stripped(keys: dict, tensors: dict) -> dict:
    return {name: tensors[key] for key, name in keys.items()}


def converted(tensors: dict, layout) -> dict:
    return {
        target: function(tensors[key])
        for target, (key, function) in origins(tensors, layout).items()
    }


def narrow(shape: tuple) -> tuple:
    """The same shape at a 64th of the width; what is no multiple of 64 counts something else."""
    return tuple(n // 64 if n % 64 == 0 else n for n in shape)


def random_tensors(shapes: dict) -> dict:
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def random_file(name: str, component: str) -> tuple[str, dict]:
    """A narrow random file of one component as published: its prefix, and the tensors by their full keys."""
    keys = split(manifest(name).shapes)[component]
    key, bare = next(iter(keys.items()))
    return key.removesuffix(bare), random_tensors(
        {key: narrow(manifest(name).shapes[key]) for key in keys}
    )


def assert_same(ours: dict, theirs: dict):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_converted_whole(name):
    """Every tensor of a component is used, and names and shapes are the published diffusers layout's
    exactly."""
    shapes = manifest(name).shapes
    components = split(shapes)
    assert {component: len(keys) for component, keys in components.items()} == {
        component: count for component, (count, _) in PUBLISHED[name].items()
    }
    for component, keys in components.items():
        layout = recognise(shapes).layout(component)
        expected = manifest(f"{PUBLISHED[name][component][1]}.diffusers").shapes
        assert convert(stripped(keys, shapes), layout) == expected


def test_only_what_no_model_reads_is_dropped():
    """Of all published files two tensors go nowhere: CLIP's position numbers and OpenCLIP's temperature."""
    dropped = [
        key
        for name in PUBLISHED
        for component, keys in split(manifest(name).shapes).items()
        for key, bare in keys.items()
        if not recognise(manifest(name).shapes).layout(component).targets(bare)
    ]
    assert [key.split(".")[-1] for key in dropped] == ["position_ids", "logit_scale"]


def test_sdxl_unet_is_diffusers(converters):
    """SDXL's U-Net, narrow and of full depth: names and values of convert_ldm_unet_checkpoint."""
    prefix, file = random_file("sdxl-base-1.0.single-file", "unet")
    config = dict(
        class_embed_type=None,
        addition_embed_type="text_time",
        layers_per_block=2,
        projection_class_embeddings_input_dim=44,
    )
    ours = converted(
        {key.removeprefix(prefix): x for key, x in file.items()}, SINGLE_FILES[0].layout("unet")
    )
    assert_same(ours, converters.convert_ldm_unet_checkpoint(file, config))


@pytest.mark.parametrize("version", ["sd-1.5", "sd-2.1"])
def test_stable_diffusion_unet_is_diffusers(converters, version):
    """Both versions, narrow and of full depth: the inverse of the table, through diffusers' converter and
    through ours, gives back the published names."""
    shapes = manifest(f"{version}.unet.diffusers").shapes
    layout = next(kind for kind in SINGLE_FILES if kind.name == "SD1").layout("unet")
    keys = {target: key for key, ((target, _),) in layout.table.items()}
    file = random_tensors({keys[name]: narrow(shape) for name, shape in shapes.items()})
    ours = converted(file, layout)
    assert ours.keys() == shapes.keys()
    full = {f"model.diffusion_model.{key}": tensor for key, tensor in file.items()}
    config = dict(class_embed_type=None, addition_embed_type=None, layers_per_block=2)
    assert_same(ours, converters.convert_ldm_unet_checkpoint(full, config))


def test_the_text_encoder_of_sd2_is_diffusers(converters):
    """OpenCLIP's ViT-H without its last layer and its projection: convert_open_clip_checkpoint."""
    layout = next(kind for kind in SINGLE_FILES if kind.name == "SD2").layout("text_encoder")
    prefix = "cond_stage_model.model."
    file = {prefix + key: torch.randn(24 if "in_proj" in key else 8, 8) for key in layout.table}
    file |= {prefix + key: torch.randn(8, 8) for key in layout.dropped}
    ours = converted({key.removeprefix(prefix): x for key, x in file.items()}, layout)
    assert_same(ours, converters.convert_open_clip_checkpoint(None, file, prefix))


@pytest.mark.parametrize("name", ["sdxl-base-1.0", "sd3-medium", "flux.1-dev.ae"])
def test_vae_is_diffusers(converters, name):
    """The VAE with and without prefix and quant convolutions: names and values of
    convert_ldm_vae_checkpoint."""
    prefix, file = random_file(f"{name}.single-file", "vae")
    ours = converted(
        {key.removeprefix(prefix): x for key, x in file.items()}, SINGLE_FILES[0].layout("vae")
    )
    assert_same(ours, converters.convert_ldm_vae_checkpoint(file, VAE_BLOCKS))


def test_clips_are_diffusers(converters):
    """CLIP-L and OpenCLIP bigG of SDXL's file: convert_ldm_clip_checkpoint and
    convert_open_clip_checkpoint."""
    prefix, file = random_file("sdxl-base-1.0.single-file", "text_encoder")
    theirs = converters.convert_ldm_clip_checkpoint(file, prefix)
    theirs = {name: x for name, x in theirs.items() if not name.endswith("position_ids")}
    assert_same(converted({key.removeprefix(prefix): x for key, x in file.items()}, CLIP), theirs)
    prefix, file = random_file("sdxl-base-1.0.single-file", "text_encoder_2")
    layout = SINGLE_FILES[0].layout("text_encoder_2")
    ours = converted({key.removeprefix(prefix): x for key, x in file.items()}, layout)
    assert_same(ours, converters.convert_open_clip_checkpoint(None, file, prefix))


@pytest.mark.parametrize(
    "name, depth", [("sd3-medium", 24), ("sd3.5-medium", 24), ("sd3.5-large", 38)]
)
def test_sd3_is_diffusers(converters, name, depth):
    """Both depths, with and without norms and dual attention:
    convert_sd3_transformer_checkpoint_to_diffusers."""
    prefix, file = random_file(f"{name}.single-file", "transformer")
    ours = converted({key.removeprefix(prefix): x for key, x in file.items()}, sd3_layout(depth))
    assert_same(ours, converters.convert_sd3_transformer_checkpoint_to_diffusers(file))


def test_flux_is_diffusers(converters):
    """FLUX.1 at its full count of rows, which diffusers' converter has built in, and few columns."""
    shapes = manifest("flux.1-dev.single-file").shapes
    file = random_tensors(
        {key: (shape[0], *map(min, shape[1:], [4])) for key, shape in shapes.items()}
    )
    ours = converted(file, FLUX)
    assert_same(ours, converters.convert_flux_transformer_checkpoint_to_diffusers(dict(file)))


# DeepFloyd IF: diffusers installs no converter; the original's own construction and attention are the
# reference.


def if_blocks(layers: tuple, with_attention: tuple) -> dict:
    """Walk the levels as the original builds them, down, middle, up: {diffusers layout's name:
    original's}."""
    blocks, n, last = {}, 1, len(layers) - 1
    for level, count in enumerate(layers):
        for j in range(count):
            blocks[f"down_blocks.{level}.resnets.{j}"] = f"input_blocks.{n}.0"
            blocks[f"down_blocks.{level}.attentions.{j}"] = f"input_blocks.{n}.1"
            n += 1
        if level < last:
            blocks[f"down_blocks.{level}.downsamplers.0"] = f"input_blocks.{n}.0"
            n += 1
    for i, name in enumerate(["resnets.0", "attentions.0", "resnets.1"]):
        blocks[f"mid_block.{name}"] = f"middle_block.{i}"
    n = 0
    for up, level in enumerate(reversed(range(len(layers)))):
        for j in range(layers[level] + 1):
            blocks[f"up_blocks.{up}.resnets.{j}"] = f"output_blocks.{n}.0"
            blocks[f"up_blocks.{up}.attentions.{j}"] = f"output_blocks.{n}.1"
            n += 1
        if level:
            blocks[f"up_blocks.{up}.upsamplers.0"] = (
                f"output_blocks.{n - 1}.{2 if with_attention[level] else 1}"
            )
    return blocks


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "aug_proj.0",
    "class_embedding.linear_2": "aug_proj.2",
    "encoder_hid_proj": "encoder_proj",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.norm1": "encoder_pooling.0",
    "add_embedding.pool": "encoder_pooling.1",
    "add_embedding.proj": "encoder_pooling.2",
    "add_embedding.norm2": "encoder_pooling.3",
}


def fused(parts: list) -> torch.Tensor:
    """[q64 k64 v64] head by head, as a 1x1 convolution; a bias stays a vector."""
    x = torch.stack(
        [rearrange(part, "(h d) ... -> h d ...", d=64) for part in parts], dim=1
    ).flatten(0, 2)
    return x if x.dim() == 1 else x[..., None]


def original_if(state: dict, layers: tuple, with_attention: tuple) -> dict:
    """A U-Net's tensors in the file the original would have written."""
    names = OUTER | {
        f"{new}.{a}": f"{old}.{b}"
        for new, old in if_blocks(layers, with_attention).items()
        for a, b in RESNET.items()
    }
    file = {}
    for new, old in if_blocks(layers, with_attention).items():
        for kind in ("weight", "bias"):
            part = lambda name: state.get(f"{new}.{name}.{kind}")  # noqa: B023, E731
            if ".attentions." not in new or part("to_q") is None:
                continue
            queries = [x for x in map(part, ["to_q", "to_k", "to_v"]) if x is not None]
            file[f"{old}.qkv.{kind}"] = fused(queries)
            file[f"{old}.encoder_kv.{kind}"] = fused([part("add_k_proj"), part("add_v_proj")])
            file[f"{old}.proj_out.{kind}"] = fused([part("to_out.0")])
            file[f"{old}.norm.{kind}"], file[f"{old}.norm_encoder.{kind}"] = (
                part("group_norm"),
                part("norm_cross"),
            )
    for name, tensor in state.items():
        new = max((new for new in names if name.startswith(f"{new}.")), key=len, default=None)
        if new:
            file[names[new] + name.removeprefix(new)] = tensor
    return file


SMALL = dict(cross_attention_dim=64, encoder_hid_dim=64, addition_embed_type_num_heads=4)
STAGES = {
    "IF-I": (
        IF_I,
        IFConfig(block_out_channels=(64, 128, 64, 128), **SMALL),
        (3, 3, 3, 3),
        (0, 1, 1, 1),
    ),
    "IF-II": (
        IF_II,
        IFConfig(
            in_channels=6,
            block_out_channels=(32, 32, 64, 64, 128),
            layers_per_block=(2, 2, 3, 5, 5),
            down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("SimpleCrossAttnDownBlock2D",) * 2,
            up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",) * 3,
            class_embed_type="timestep",
            only_cross_attention=True,
            **SMALL,
        ),
        (2, 2, 3, 5, 5),
        (0, 0, 0, 1, 1),
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_if_is_the_original_undone(stage):
    """Names and values: a U-Net's tensors written as the original's file come back, every one."""
    layout, config, layers, with_attention = STAGES[stage]
    state = randomize(DeepFloydIF(config), 0).state_dict()
    file = original_if(state, layers, with_attention)
    assert sum(x.numel() for x in file.values()) == sum(x.numel() for x in state.values())
    assert recognise(file).name == stage
    assert_same(converted(file, layout), state)


def attend(q, k, v):
    """softmax(q^T k / sqrt(D)) of heads with channels before positions, as the original has them."""
    weights = torch.einsum("bct,bcs->bts", q, k).div(q.shape[1] ** 0.5).softmax(dim=-1)
    return torch.einsum("bts,bcs->bct", weights, v)


@given(heads=st.integers(1, 3), pixels=st.integers(1, 5), tokens=st.integers(1, 4))
def test_if_attention_means_the_same(heads, pixels, tokens):
    """The original's attention, heads split as its reshape splits them, equals that of the converted
    matrices."""
    width, text_width = 64 * heads, 6

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64)

    file = {
        "qkv.weight": draw(3 * width, width, 1) / 8,
        "qkv.bias": draw(3 * width),
        "encoder_kv.weight": draw(2 * width, text_width, 1),
        "encoder_kv.bias": draw(2 * width),
    }
    x, text = draw(1, width, pixels), draw(1, text_width, tokens)

    qkv, kv = (
        torch.nn.functional.conv1d(inputs, file[f"{name}.weight"], file[f"{name}.bias"])
        for inputs, name in ((x, "qkv"), (text, "encoder_kv"))
    )
    q, k, v = qkv.reshape(heads, 3 * 64, pixels).split(64, dim=1)
    text_k, text_v = kv.reshape(heads, 2 * 64, tokens).split(64, dim=1)
    expected = attend(q, torch.cat([text_k, k], -1), torch.cat([text_v, v], -1)).reshape(
        1, width, pixels
    )

    block = "input_blocks.5.1"
    made = converted({f"{block}.{key}": tensor for key, tensor in file.items()}, IF_I)

    def projected(name, y):
        place = f"down_blocks.1.attentions.0.{name}"
        y = made[f"{place}.weight"] @ y + made[f"{place}.bias"][:, None]
        return rearrange(y, "b (h d) n -> (b h) d n", h=heads)

    k, v = (
        torch.cat([projected(f"add_{n}_proj", text), projected(f"to_{n}", x)], -1) for n in "kv"
    )
    assert relative(attend(projected("to_q", x), k, v).reshape(1, width, pixels), expected) <= 1e-10


# The functions.


@given(
    of=st.integers(1, 7), width=st.integers(1, 5), columns=st.lists(st.integers(1, 3), max_size=2)
)
def test_rows_are_a_partition(of, width, columns):
    """The parts of a fused tensor, side by side, are the tensor; any span of parts is a span of rows."""
    x = torch.randn(of * width, *columns)
    assert torch.equal(torch.cat([Rows(i, i + 1, of)(x) for i in range(of)]), x)
    assert torch.equal(Rows(of - 1, of, of)(x), x[-width:]) and torch.equal(Rows(0, of, of)(x), x)


@given(half=st.integers(1, 4), columns=st.lists(st.integers(1, 3), max_size=1))
def test_swapping_halves_twice_is_nothing(half, columns):
    """swapped puts row i at i + n/2 modulo n, and is its own inverse."""
    x = torch.randn(2 * half, *columns)
    assert torch.equal(swapped(x), x.roll(half, dims=0)) and torch.equal(swapped(swapped(x)), x)


@pytest.mark.parametrize(
    "function, shape",
    [
        (Rows(1, 3, of=3), (6, 5)),
        (HeadRows(1, of=2), (256, 5, 1)),
        (HeadRows(0, of=3), (192,)),
        (linear, (4, 5, 1, 1)),
        (linear, (4,)),
        (swapped, (4, 5)),
        (transposed, (4, 5)),
    ],
)
def test_functions_need_no_data(function, shape):
    """On the meta device each function has the shape it has on data."""
    assert function(torch.empty(shape, device="meta")).shape == function(torch.randn(shape)).shape


# Other spellings, and files that are none.


def test_a_vae_of_old_attention_names_is_the_published_one():
    """`query, key, value, proj_attn` and today's names are one VAE; both at once are refused."""
    expected = manifest("sdxl-base-1.0.vae.diffusers").shapes
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    attention = "encoder.mid_block.attentions.0."
    kinds = (".weight", ".bias")
    old = {attention + new + kind: attention + names[new] + kind for new in names for kind in kinds}
    shapes = {old.get(name, name): shape for name, shape in expected.items()}
    assert shapes.keys() != expected.keys() and convert(shapes, VAE_DIFFUSERS) == expected
    assert convert(expected, VAE_DIFFUSERS) == expected
    found = {name: key for name, (key, _) in origins(shapes, VAE_DIFFUSERS).items() if name != key}
    assert found == old
    with pytest.raises(
        WeightsError, match="proj_attn.weight' and .*to_out.0.weight' are both .*; remove one"
    ):
        convert(expected | shapes, VAE_DIFFUSERS)


def test_text_encoders_are_read_in_any_spelling():
    """CLIP with and without `text_model.`, T5 with its embedding named twice: one set of names each."""
    clip = manifest("sdxl-base-1.0.text_encoder.diffusers").shapes
    assert convert(clip, CLIP) == clip
    assert (
        convert({name.removeprefix("text_model."): shape for name, shape in clip.items()}, CLIP)
        == clip
    )
    t5 = manifest("sd3-medium.text_encoder_3.diffusers").shapes
    assert convert(t5 | {"encoder.embed_tokens.weight": t5["shared.weight"]}, T5) == t5


def test_sd3_files_may_hold_their_text_encoders():
    """The three encoders are found under their prefixes, and their temperatures are dropped by name."""
    encoders = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    shapes = manifest("sd3-medium.single-file").shapes
    for component, name in encoders.items():
        parts = manifest(f"sd3-medium.{component}.diffusers").shapes
        shapes |= {f"text_encoders.{name}.transformer.{key}": shape for key, shape in parts.items()}
        shapes |= {f"text_encoders.{name}.logit_scale": ()}
    found = split(shapes)
    assert list(found) == ["transformer", "vae", *encoders]
    for component in encoders:
        layout = recognise(shapes).layout(component)
        expected = manifest(f"sd3-medium.{component}.diffusers").shapes
        assert convert(stripped(found[component], shapes), layout) == expected


def test_each_kind_of_file_is_told_from_the_others():
    """The signature of a kind is in its files and in no published file of another kind."""
    kinds = {name: recognise(manifest(name).shapes).name for name in PUBLISHED}
    assert list(kinds.values()) == ["SDXL", "SD3", "SD3", "SD3.5-large", "FLUX.1", "VAE", "IF-I"]
    for name in PUBLISHED:
        layout = f"{next(iter(PUBLISHED[name].values()))[1]}.diffusers"
        assert recognise(manifest(layout).shapes) is None


def test_a_shorter_transformer_is_not_taken_for_the_published_one():
    """Without its last blocks an SD3 file is unknown: which block's halves are swapped depends on the
    depth."""
    shapes = {
        k: s
        for k, s in manifest("sd3-medium.single-file").shapes.items()
        if "joint_blocks.23." not in k
    }
    assert recognise(shapes) is None
    says = r"none of the single files known \(SDXL, .*\) has these 721: (\S+, ){10}\.\.\.$"
    with pytest.raises(WeightsError, match=says):
        split(shapes)


def test_what_does_not_belong_is_named():
    """Unknown keys, keys of no component and shapes that cannot be: one line, at most ten names and the
    count."""
    shapes = manifest("sdxl-base-1.0.single-file").shapes
    with pytest.raises(
        WeightsError, match="1: denoiser.sigmas of 2516 tensors belong to no component of SDXL"
    ):
        split(shapes | {"denoiser.sigmas": (1000,)})
    unet = SINGLE_FILES[0].layout("unet")
    many = {f"input_blocks.0.{i}.weight": (1,) for i in range(1, 13)}
    says = r"^12: (input_blocks\S+, ){10}\.\.\. of 12 tensors unknown to the SDXL U-Net"
    with pytest.raises(WeightsError, match=says):
        convert(many, unet)
    with pytest.raises(WeightsError, match="SDXL U-Net has no tensor 'nothing.weight'"):
        unet.targets("nothing.weight")
    key = "joint_blocks.0.x_block.attn.qkv.weight"
    with pytest.raises(
        WeightsError, match=rf"'{key}' of shape \(8, 4\) cannot be what the SD3 transformer"
    ):
        convert({key: (8, 4)}, sd3_layout(24))


def test_a_row_whose_sides_differ_in_number_is_no_table():
    """Patterns that stand for different numbers of names cannot be paired."""
    with pytest.raises(ValueError):
        make_layout("a mistake", {"a.{0..2}": "b.{0,1}"})
