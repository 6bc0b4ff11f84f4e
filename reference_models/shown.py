"""What a pipeline says of itself at a prompt."""

from __future__ import annotations

from textwrap import shorten

from PIL import Image

from textpatch.html import figure, fragment, safe
from textpatch.sites import Sites
from textpatch.text import plain

NOTES = 2  # shown
WIDEST = 100  # characters of a note


def lines_of(pipeline) -> list[str]:
    """Name, family, size, sites, run, place and first notes of a pipeline, in eight lines at most."""
    size = sum(parameter.numel() for parameter in pipeline.denoiser.parameters())
    defaults = pipeline.defaults
    place = f"{str(pipeline.dtype).removeprefix('torch.')} on {pipeline.device}"
    sites = repr(Sites(getattr(pipeline.denoiser, "sites", ()))).partition("\n")[0]
    channels = pipeline.latent_channels
    family = getattr(pipeline.denoiser, "family", None)
    of_family = f", of the family {family}" if family else ""
    lines = [
        f"Pipeline {plain(pipeline.name)}{of_family}",
        f"  denoiser {type(pipeline.denoiser).__name__}, {size:,} parameters, {place}",
        f"  {sites}",
        f"  latents {channels} x {defaults.height} x {defaults.width}",
        f"  by default {defaults.steps} steps, guidance {defaults.guidance}",
    ]
    lines += [f"  note: {shorten(plain(note), WIDEST)}" for note in pipeline.notes[:NOTES]]
    if len(pipeline.notes) > NOTES:
        lines.append(f"  and {len(pipeline.notes) - NOTES} more in notes")
    return lines


def html_of(pipeline) -> str:
    """The same lines for a notebook."""
    return fragment(f"<pre>{'<br>'.join(map(safe, lines_of(pipeline)))}</pre>")


class Pictures(list[Image.Image]):
    """A list of pictures, which a notebook shows side by side."""

    def _repr_html_(self) -> str:
        figures = "".join(figure(picture, str(place)) for place, picture in enumerate(self))
        return fragment(f'<div class="gallery">{figures}</div>')
