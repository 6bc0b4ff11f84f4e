"""Hold every shipped table of sites to diffusers' own class, at small size with random weights.

    python benchmarks/ports.py --csv benchmarks/results/ports.csv

A row for each build of tests/support/foreign.py.  Needs diffusers.

class, models, encoder  of diffusers, and what is drawn with it
kinds, place  of the sites, and of the text among the keys
means         what a row reads under a swap
checks, of    how many checks of check_port hold, and how many there are
unlike        what the checks say that do not
apart         max |patched - exchanged| over one site and all, where K and V are exchanged at the attention
              call itself by other code.  0 is the same bits
asks          sites at which the text asks as well, so that a map tells what it gives
reason        why no table says the class, where none does
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from measure import Table, arguments, environment, parsed
from support.at_attention import exchanged
from support.copies import call
from support.foreign import OPTIONS, TEXT_KEYS, foreign
from textpatch import capture, find_sites, hearing_words, patch
from textpatch.errors import PatchError
from textpatch.sites import Site
from textpatch.testing import CHECKS, check_port

# build -> models that are of its class, and the encoder of the text that its sites read
MODELS = {
    "stable_diffusion": ("Stable Diffusion 1.x", "CLIP"),
    "stable_diffusion2": ("Stable Diffusion 2.x", "OpenCLIP"),
    "sdxl": ("Stable Diffusion XL", "CLIP, OpenCLIP"),
    "kolors": ("Kolors", "ChatGLM"),
    "deepfloyd_if": ("DeepFloyd IF", "T5"),
    "sd3": ("Stable Diffusion 3", "two CLIPs, T5"),
    "sd35": ("Stable Diffusion 3.5", "two CLIPs, T5"),
    "flux": ("FLUX.1", "T5"),
    "fused_flux": ("FLUX.1, projections fused", "T5"),
    "flux2": ("FLUX.2", "Mistral 3"),
    "flux2_narrow": ("FLUX.2 with another `mlp_ratio`", "Mistral 3"),
    "flux3": ("FLUX.3", "Qwen3-VL"),
    "chroma": ("Chroma", "T5"),
    "longcat_image": ("LongCat-Image", "Qwen2.5-VL"),
    "ovis_image": ("Ovis-Image", "Qwen3"),
    "bria": ("Bria 3", "T5"),
    "qwen_image": ("Qwen-Image", "Qwen2.5-VL"),
    "qwen_image21": ("Qwen-Image 2.1", "Qwen3-VL"),
    "hunyuan_image": ("HunyuanImage 2.1 without glyphs", "Qwen2.5-VL"),
    "hunyuan_glyphs": ("HunyuanImage 2.1", "Qwen2.5-VL, ByT5"),
    "hunyuan_video": ("HunyuanVideo", "Llama"),
    "auraflow": ("AuraFlow", "UMT5"),
    "hidream": ("HiDream", "T5, layers of Llama"),
    "cogview4": ("CogView4", "GLM"),
    "glm_image": ("GLM-Image", "ByT5"),
    "cogvideox": ("CogVideoX", "T5"),
    "ernie_image": ("ERNIE-Image", "Mistral 3"),
    "ideogram4": ("Ideogram 4", "a language model"),
    "z_image": ("Z-Image", "Qwen3"),
    "krea2": ("Krea 2", "Qwen3-VL"),
    "lumina2": ("Lumina 2", "Gemma 2"),
    "prx": ("PRX", "T5Gemma"),
    "pixart": ("PixArt-alpha, PixArt-sigma", "T5"),
    "sana": ("Sana", "Gemma 2"),
    "sana_sprint": ("Sana-Sprint", "Gemma 2"),
    "stable_audio": ("Stable Audio Open", "T5"),
    "ace_step": ("ACE-Step 1.5", "Qwen3"),
    "audioldm2": ("AudioLDM2", "GPT-2 after CLAP and T5, T5"),
    "wan": ("Wan", "UMT5"),
    "ltx_video": ("LTX-Video", "T5"),
}
# class -> models, encoder, and why no table says it
UNSAID = {
    "MochiTransformer3DModel": (
        "Mochi",
        "T5",
        "it attends row by row, with the padding taken out, so that no attention holds two rows",
    ),
    "UNet3DConditionModel": (
        "ModelScope, ZeroScope",
        "OpenCLIP",
        "it repeats the text for every frame, so that a row of the batch is many rows at a site",
    ),
}
COLUMNS = "build class models encoder kinds place means checks of unlike apart asks reason".split()


def main(argv: list[str] | None = None) -> None:
    options = parsed(arguments(__doc__, rounds=1), argv)
    import diffusers

    versions = environment(options.device, "diffusers")
    table = Table(COLUMNS, versions, options.csv, options.append)
    for build, (models, encoder) in MODELS.items():
        model, inputs = foreign(diffusers, build)
        sites = find_sites(model)
        held, unlike = checked(model, inputs, OPTIONS.get(build, {}))
        table.add(
            build=build,
            **{"class": type(model).__name__},
            models=models,
            encoder=encoder,
            kinds=", ".join(dict.fromkeys(site.kind for site in sites)),
            place=", ".join(dict.fromkeys(site.keys.place for site in sites)),
            means="; ".join(dict.fromkeys(map(meaning, sites))),
            checks=held,
            of=len(CHECKS),
            unlike=unlike,
            apart=apart(model, inputs, build),
            asks=asks(model, inputs),
        )
    for name, (models, encoder, reason) in UNSAID.items():
        table.add(**{"class": name}, models=models, encoder=encoder, reason=reason)


def checked(model: torch.nn.Module, inputs: dict, options: dict) -> tuple[int, str]:
    """How many checks of check_port hold, and what the others say."""
    try:
        return len(check_port(model, None, inputs, **options).checks), ""
    except PatchError as error:
        _, *failed = str(error).splitlines()
        said = [line.partition("  Found: ")[0] for line in failed]
        return len(CHECKS) - len(failed), " ".join(said)


def meaning(site: Site) -> str:
    """What a row reads at a site under a swap."""
    texts = len(site.span.texts)
    said = "the text" if texts == 1 else "both texts of the sequence"
    if site.text_input != "text":
        said = f"the {site.text_input} text"
    if any("[" in name for name in site.span.texts):
        said = "the text of its block, and those that all blocks read"
    if site.span.extra:
        said += f", with {site.span.extra} tokens of the model's own"
    if site.text_is_static:
        return said
    return f"{said}, as the donor's run has changed it"


def apart(model: torch.nn.Module, inputs: dict, build: str) -> float:
    """Largest difference of a swap from an exchange at the attention call, at the last site and at all."""
    sites = find_sites(model)
    rows = list(range(len(call(model, inputs))))
    with capture(model, "all", rows=rows) as cache:
        call(model, inputs)
    found = []
    for chosen in (sites[-1:], sites):
        with patch(model, cache, chosen, rows=[1, *[None] * (len(rows) - 1)]):
            patched = call(model, inputs)
        names = [site.name for site in chosen]
        other = exchanged(model, inputs, names, [1, *rows[1:]], TEXT_KEYS[build])
        found.append(float((patched - other).abs().max()))
    return max(found)


def asks(model: torch.nn.Module, inputs: dict) -> int:
    """Number of sites at which the text asks as well."""
    with torch.no_grad(), hearing_words(model, [1]) as heard:
        model(**inputs)
    return len(heard.given)


if __name__ == "__main__":
    main()
