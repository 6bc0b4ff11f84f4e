"""Pictures of another size than a model's own, asked for in pixels."""

from __future__ import annotations

from textpatch.errors import PatchError


def picture_size(pipeline) -> tuple[int, int]:
    """Height and width of the pictures it makes, in pixels."""
    side = _pixels_per_latent(pipeline)
    return side * pipeline.defaults.height, side * pipeline.defaults.width


def sized(pipeline, height: int | None, width: int | None):
    """The pipeline for pictures of that height and width in pixels, weights shared; where None, its own.

    Raises PatchError for pixels that are no whole number of latents, and for a size that the denoiser cannot take:
    it is run for one step.
    """
    own, side = picture_size(pipeline), _pixels_per_latent(pipeline)
    asked = own[0] if height is None else height, own[1] if width is None else width
    if asked == own:
        return pipeline  # which knows where its letters stand
    if any(pixels % side for pixels in asked):
        raise PatchError(f"pictures of {asked[0]}x{asked[1]} pixels (height x width) asked for, and those of "
                         f"{pipeline.name} are decoded {side}x{side} at a time; give multiples of {side}")  # fmt: skip
    other = pipeline.at(*(pixels // side for pixels in asked))
    other.denoise(other.noise([0]), other.encode([None]), steps=1, guidance=1)
    return other


def _pixels_per_latent(pipeline) -> int:
    """Along each side; pictures that are denoised themselves, without a VAE, are their own latents."""
    vae = getattr(pipeline.decoder, "vae", None)
    return 1 if vae is None else vae.config.downsampling
