"""One forward of each denoiser beside diffusers' own:  python benchmarks/denoisers.py [MODEL ...] [--csv FILE]

Both hold the very same random tensors at the published sizes and use torch's scaled_dot_product_attention.
Their outputs are compared before anything is timed; then they run in turns.  Latents are smaller than the
published ones unless --side says otherwise, for a CPU's sake.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch

from textpatch.reference_models import TextCondition
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.sdxl import SDXL, SDXLConfig

IF_FLAGS = dict(addition_embed_type="text", cross_attention_norm="group_norm", act_fn="gelu",
                mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift")  # fmt: skip
SDXL_FLAGS = dict(addition_embed_type="text_time", use_linear_projection=True)
IF_L = IFConfig(block_out_channels=(320, 640, 960, 1280), cross_attention_dim=1280)
SD35_MEDIUM = MMDiTConfig(pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)))
UNET, TRANSFORMER = diffusers.UNet2DConditionModel, diffusers.SD3Transformer2DModel
# ours, its sizes, theirs, their further flags, latents' side, text tokens
MODELS = {
    "sdxl": (SDXL, SDXLConfig(), UNET, SDXL_FLAGS, 32, 77),
    "if-i-l": (DeepFloydIF, IF_L, UNET, IF_FLAGS, 64, 77),
    "if-i-xl": (DeepFloydIF, IFConfig(), UNET, IF_FLAGS, 64, 77),
    "sd3-medium": (MMDiT, MMDiTConfig(), TRANSFORMER, {}, 64, 154),
    "sd3.5-medium": (MMDiT, SD35_MEDIUM, TRANSFORMER, {}, 64, 154),
}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest output


def twins(name: str, device, dtype):
    """Our model and diffusers', sharing every tensor."""
    ours, config, theirs, flags, *_ = MODELS[name]
    with torch.device("meta"):
        one, other = ours(config), theirs(**asdict(config), **flags)
    one = one.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    for tensor in one.state_dict().values():
        tensor.normal_(0, tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.2)
    other.load_state_dict(one.state_dict(), assign=True)
    return one, other.eval().requires_grad_(False)


def calls(name: str, one, other, rows: int, side: int, device, dtype):
    """The same forward of both, as functions of nothing."""
    config, tokens = MODELS[name][1], MODELS[name][5]
    draw = lambda *shape: torch.randn(shape, device=device, dtype=dtype)  # noqa: E731
    x, t = draw(rows, config.in_channels, side, side), torch.tensor(500.0, device=device)
    if isinstance(one, MMDiT):
        text = TextCondition(draw(rows, tokens, config.joint_attention_dim), draw(rows, config.pooled_projection_dim))
        theirs = lambda: other(x, text.tokens, text.pooled, t.expand(rows), return_dict=False)[0]  # noqa: E731
    elif isinstance(one, SDXL):
        micro = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * rows, device=device)
        pooled = draw(rows, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
        text = TextCondition(draw(rows, tokens, config.cross_attention_dim), pooled, micro)
        added = {"text_embeds": pooled, "time_ids": micro}
        theirs = lambda: other(x, t, text.tokens, added_cond_kwargs=added, return_dict=False)[0]  # noqa: E731
    else:
        text = TextCondition(draw(rows, tokens, config.encoder_hid_dim))
        theirs = lambda: other(x, t, text.tokens, return_dict=False)[0]  # noqa: E731
    return lambda: one(x, t, text), theirs


def in_turns(works, repeats: int, device) -> list[list[float]]:
    """Sorted seconds of each work, run one after the other, `repeats` times over."""
    taken = [[] for _ in works]
    for _ in range(repeats):
        for seconds, work in zip(taken, works):
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return [sorted(seconds) for seconds in taken]


@torch.no_grad()
def measure(name: str, options) -> dict:
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    torch.manual_seed(0)
    one, other = twins(name, device, dtype)
    side = options.side or MODELS[name][4]
    works = calls(name, one, other, options.rows, side, device, dtype)
    made, expected = (work() for work in works)  # also the warm-up
    difference = ((made - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE[dtype]:
        sys.exit(f"{name} differs from diffusers by {difference:.1e} of the largest output; nothing was timed")
    ours, theirs = in_turns(works, options.repeats, device)
    return dict(model=name, rows=options.rows, side=side, dtype=options.dtype, difference=f"{difference:.1e}",
                ours_s=statistics.median(ours), ours_low=ours[0], ours_high=ours[-1],
                diffusers_s=statistics.median(theirs), diffusers_low=theirs[0], diffusers_high=theirs[-1],
                ratio=statistics.median(ours) / statistics.median(theirs))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)} (sdxl if-i-l sd3-medium)")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--side", type=int, help="height and width of the latents (32 or 64, by model)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(MODELS)}")
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    environment = f"{where}, torch {torch.__version__}, diffusers {diffusers.__version__}, python {platform.python_version()}"
    print(environment)
    print("| model | rows | latents | difference | ours, s | diffusers, s | ours / diffusers |\n|---|---|---|---|---|---|---|")
    table = []
    for name in options.models or ["sdxl", "if-i-l", "sd3-medium"]:
        row = measure(name, options)
        table.append(row | {"environment": environment})
        print("| {model} | {rows} | {side}x{side} | {difference} | {ours_s:.2f} ({ours_low:.2f} to {ours_high:.2f}) | "
              "{diffusers_s:.2f} ({diffusers_low:.2f} to {diffusers_high:.2f}) | {ratio:.3f} |".format(**row), flush=True)
        if options.csv:
            write(options.csv, table)


def write(path: Path, table: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
