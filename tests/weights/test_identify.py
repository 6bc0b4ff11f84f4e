"""What `identify` says of published files, of files that differ from them, and of files that are no model."""

import pytest

from textpatch.weights.identify import identify_tensors
from textpatch.weights.loading import SHIPPED
from textpatch.weights.manifests import manifest, published
from textpatch.weights.reading.files import open_tensors

UNET = "sdxl-base-1.0.unet.diffusers"


@pytest.mark.parametrize("name", published())
def test_a_published_file_is_itself(name):
    """Whole, and each of its components, by name; no remark but on text encoders that SD3's files leave
    out."""
    finding = identify_tensors(manifest(name).tensors)
    assert name in finding.exact and all(match.exact for match in finding.matches)
    left_out = ("without text_encoder, text_encoder_2, text_encoder_3",)
    assert finding.notes == (left_out if name.startswith("sd3") and name.endswith("file") else ())
    assert finding.n_elements == manifest(name).n_elements
    assert (
        finding.layout == "diffusers layout"
        if name.endswith("diffusers")
        else "single file" in finding.layout
    )


def test_components_of_a_single_file_are_named():
    """SDXL's four, each the published component; its report is a line for each."""
    finding = identify_tensors(manifest("sdxl-base-1.0.single-file").tensors)
    assert {
        m.component: f"sdxl-base-1.0.{m.component}.diffusers" in m.exact for m in finding.matches
    } == {
        "unet": True,
        "vae": True,
        "text_encoder": True,
        "text_encoder_2": True,
    }
    lines = finding.report().splitlines()
    assert lines[:2] == [
        "SDXL single file: tensors 2514 F16, 1 I64; 3,468,837,945 elements",
        "unet: the tensors of sdxl-base-1.0.unet.diffusers, published in F16, F32",
    ]
    assert len(lines) == 5


def test_differences_are_listed():
    """One tensor missing, one extra and one of another shape are named, with both shapes."""
    tensors = dict(manifest(UNET).tensors)
    del tensors["conv_in.bias"]
    tensors |= {"new.weight": ("F16", (3,)), "conv_out.bias": ("F16", (8,))}
    finding = identify_tensors(tensors)
    (match,) = finding.matches
    assert (finding.exact, match.exact, match.closest) == ((), (), UNET)
    assert (match.missing, match.extra) == (("conv_in.bias",), ("new.weight",))
    assert match.reshaped == ("conv_out.bias (8,) for (4,)",)
    assert finding.report().splitlines()[1] == (
        f"closest to {UNET}; missing 1: conv_in.bias; extra 1: new.weight; "
        "of another shape 1: conv_out.bias (8,) for (4,)"
    )


def test_lists_end_after_ten_names():
    """A file without its second half: the count, ten names, and dots."""
    tensors = dict(list(manifest(UNET).tensors.items())[:800])
    (match,) = identify_tensors(tensors).matches
    assert match.closest == UNET and len(match.missing) == 880
    said = identify_tensors(tensors).report().split("missing ")[1]
    assert said.startswith("880: ") and said.endswith(", ...") and said.count(", ") == 10


def test_shapes_tell_what_names_do_not():
    """IF-I's three sizes share all names: the smallest is itself alone, and without a tensor closest to
    itself."""
    tensors = dict(manifest("if-i-m.unet.diffusers").tensors)
    assert (
        identify_tensors(tensors).exact
        == identify_tensors(tensors).matches[0].exact
        == ("if-i-m.unet.diffusers",)
    )
    del tensors["conv_in.bias"]
    assert identify_tensors(tensors).matches[0].closest == "if-i-m.unet.diffusers"


def test_a_pruned_single_file_says_what_is_left_out():
    """Without VAE and encoders the U-Net is still found, and the rest is reported as absent."""
    tensors = {
        k: v
        for k, v in manifest("sdxl-base-1.0.single-file").tensors.items()
        if k.startswith("model.")
    }
    finding = identify_tensors(tensors)
    assert [match.exact for match in finding.matches] == [(UNET,)] and not finding.exact
    assert finding.notes == ("without vae, text_encoder, text_encoder_2",)


def test_other_dtypes_are_counted():
    """A file in 8 bit has the published tensors in a dtype that is not the published one; the report has
    both."""
    report = identify_tensors(
        {name: ("F8_E4M3", shape) for name, shape in manifest(UNET).shapes.items()}
    ).report()
    assert "tensors 1680 F8_E4M3" in report and "published in F16, F32" in report


def test_a_second_copy_and_strangers_are_told_apart_from_the_model():
    """A moving average and tensors of no component are remarks; the components are what they are without
    them."""
    tensors = manifest("sdxl-base-1.0.single-file").tensors | {
        "model_ema.diffusion_modelinput_blocks00bias": ("F32", (320,)),
        "denoiser.sigmas": ("F32", (1000,)),
        "model.diffusion_model.input_blocks.0.1.weight": ("F16", (1,)),
    }
    finding = identify_tensors(tensors)
    assert [bool(match.exact) for match in finding.matches] == [False, True, True, True]
    assert (
        finding.matches[0].extra == ("input_blocks.0.1.weight",) and not finding.matches[0].missing
    )
    assert finding.notes == (
        "in no component of SDXL: 1: denoiser.sigmas",
        "1 tensors of a moving average (model_ema.): a second copy of the weights",
    )


def test_a_shape_that_cannot_be_is_a_remark():
    """A fused projection whose rows are no thirds: its component is not compared, and the reason is given."""
    tensors = manifest("sd3-medium.single-file").tensors | {
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": ("F16", (4, 4))
    }
    finding = identify_tensors(tensors)
    assert [match.component for match in finding.matches] == ["vae"]
    assert finding.notes[-1].startswith(
        "transformer: 'joint_blocks.0.x_block.attn.qkv.weight' of shape (4, 4) cannot"
    )


@pytest.mark.parametrize(
    "down, up",
    [
        ("unet.a.attn2.to_k.lora_A.weight", "unet.a.attn2.to_k.lora_B.weight"),
        ("lora_unet_a_attn2_to_k.lora_down.weight", "lora_unet_a_attn2_to_k.lora_up.weight"),
        (
            "unet.a.attn2.processor.to_k_lora.down.weight",
            "unet.a.attn2.processor.to_k_lora.up.weight",
        ),
        ("unet.a.attn2.to_k.lora.down.weight", "unet.a.attn2.to_k.lora.up.weight"),
    ],
)
def test_a_lora_is_no_model(down, up):
    """In all four spellings: the number of its tensors and its rank, and nothing compared."""
    finding = identify_tensors({down: ("F16", (16, 2048)), up: ("F16", (640, 16))})
    assert (finding.layout, finding.matches) == ("no model", ())
    assert finding.notes == ("2 tensors of a LoRA of rank [16]: it changes a model and is none",)


def test_a_spelling_of_the_diffusers_layout_is_looked_through():
    """CLIP without `text_model.`, as transformers 5 writes it, is the published encoder."""
    name = "sdxl-base-1.0.text_encoder.diffusers"
    tensors = {
        key.removeprefix("text_model."): found for key, found in manifest(name).tensors.items()
    }
    finding = identify_tensors(tensors)
    assert finding.exact == () and [match.exact for match in finding.matches] == [(name,)]


def test_what_is_nothing_is_said_to_be():
    """Names of no published component, and no tensors at all."""
    finding = identify_tensors({"a.weight": ("F32", (2, 3))})
    assert (
        finding.report().splitlines()[1]
        == "shares no name with any published component; 1: a.weight"
    )
    assert identify_tensors({}).report() == "no model: tensors none; 0 elements"


@pytest.mark.parametrize(
    "name, component, family",
    [
        ("tiny-sdxl", "unet", "sdxl-base-1.0"),
        ("tiny-if", "unet", "if-i-"),
        ("tiny-mmdit", "transformer", "sd3.5-medium"),
    ],
)
def test_a_small_model_is_closest_to_its_own_family(name, component, family):
    """Its names decide, though it lacks more of a large model than of one of fewer layers."""
    file = SHIPPED / name / component / "diffusion_pytorch_model.safetensors"
    tensors = {key: (entry.dtype, entry.shape) for key, entry in open_tensors(file).items()}
    (match,) = identify_tensors(tensors).matches
    assert match.closest.startswith(family) and not match.exact
