"""Swap the text keys and values of one site inside a sampling loop of your own.

`capture` and `patch` know nothing of the loop below.  They count the calls of the model, and one
call is one step.

    python -m textpatch.examples.embed

prints

    captured 6 sites x 8 steps x 2 rows, 2112 KiB
    source  reads HOUSE
    target  reads TIGER
    edited  reads TIGER
"""

import torch
from torch import Tensor, nn

from textpatch import capture, load, patch
from textpatch.metrics import Tesseract

SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a red sign that says "TIGER" on a blue wall'
STEPS = 8


def integrate(model: nn.Module, x: Tensor, text, timesteps: Tensor, sigmas: Tensor) -> Tensor:
    """Follow the predicted velocity from noise x (B, C, H, W) to a picture, by Euler's method."""
    for step in range(len(timesteps)):
        velocity = model(x, timesteps[step], text)  # (B, C, H, W)
        x = x + (sigmas[step + 1] - sigmas[step]) * velocity
    return x


@torch.inference_mode()
def main() -> None:
    pipeline = load("tiny-mmdit")
    model = pipeline.denoiser
    text = pipeline.encode([SOURCE, TARGET])  # two rows of text tokens
    noise = pipeline.noise([0, 0])  # two rows from one seed
    times = pipeline.schedule.timesteps(STEPS)
    sigmas = pipeline.schedule.sigmas(STEPS)

    with capture(model, "all", rows=["source", "target"]) as cache:
        plain = integrate(model, noise, text, times, sigmas)
    sites = {site for site, *_ in cache}
    size = cache.bytes // 1024
    print(f"captured {len(sites)} sites x {STEPS} steps x 2 rows, {size} KiB")

    # row 0 reads the text of "target" at site 1, row 1 reads its own
    with patch(model, cache, sites=1, rows=["target", None]):
        patched = integrate(model, noise, text, times, sigmas)

    pictures = pipeline.decode(torch.cat([plain, patched[:1]]))
    readings = Tesseract().read(pictures, [pipeline.defaults.text_box] * len(pictures))
    for name, reading in zip(["source", "target", "edited"], readings, strict=True):
        print(f"{name}  reads {reading.text}")


if __name__ == "__main__":
    main()
