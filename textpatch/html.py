"""HTML that stands alone, in which nothing runs and nothing is loaded.

Text is escaped, pictures are data inside the page, and there is one stylesheet.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from textpatch.text import plain

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 320  # px of the longer side of a picture on a page


def safe(text: object) -> str:
    """Any text as one line of HTML text, or as the value of a quoted attribute."""
    return html.escape(plain(text))


def data_uri(data: bytes, kind: str = "png") -> str:
    """A picture's file as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(image: Image.Image | str | None, words: str) -> str:
    """The element that shows a picture.

    A picture of at most 320 px a side is shown as it is, a larger one as a JPEG of that size.
    It is seen as `pictures.as_rgb` has it, and refused as there.
    A path is shown by its name, and None by nothing.
    """
    if image is None or isinstance(image, str):
        return f"<code>{safe(image)}</code>" if image else ""
    shown = _as_readers_see(image, words).copy()
    kind = "png" if max(shown.size) <= LARGEST else "jpeg"
    shown.thumbnail((LARGEST, LARGEST))
    data = io.BytesIO()
    shown.save(data, kind, quality=90)
    uri = data_uri(data.getvalue(), kind)
    return f'<img alt="{safe(words)}" src="{uri}">'


def _as_readers_see(image: Image.Image, words: str) -> Image.Image:
    """A picture as RGB, turned as its EXIF says and on white paper."""
    from textpatch.pictures import as_rgb

    return as_rgb(image, f"the picture {plain(words)!r}")


def figure(
    image: Image.Image | str | None, title: str, caption: str = "", seen: Iterable[dict] = ()
) -> str:
    """A picture under its title and over its caption, which is HTML already.

    seen  what a reader saw, each a text and its box, which is outlined and says the text when pointed at
    """
    head = f'<span class="title">{safe(title)}</span>'
    if image is not None and not isinstance(image, str):
        image = _as_readers_see(image, title)
    shown = picture(image, title)
    if image is not None and not isinstance(image, str):
        outlines = "".join(_outline(one, image.size) for one in seen)
        shown = f'<div class="seen">{shown}{outlines}</div>' if outlines else shown
    return f"<figure>{head}{shown}<figcaption>{caption}</figcaption></figure>"


def _outline(one: dict, size: tuple[int, int]) -> str:
    """The outline of a box, in shares of the picture's size."""
    left, top, right, bottom = one["box"]
    width, height = size
    style = (
        f"left: {left / width:.2%}; top: {top / height:.2%}; "
        f"width: {(right - left) / width:.2%}; height: {(bottom - top) / height:.2%}"
    )
    return f'<i title="{safe(one["text"])}" style="{style}"></i>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "text") -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join(map(_line, rows))
    body = f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def _line(row: Sequence[object]) -> str:
    cells = "".join(f"<td>{cell}</td>" for cell in row)
    return f"<tr>{cells}</tr>\n"


def contents(titles: Iterable[str]) -> str:
    """Links to the sections of a page, whose ids are part-1, part-2 and so on."""
    links = "".join(
        f'<li><a href="#part-{number}">{title}</a></li>' for number, title in enumerate(titles, 1)
    )
    return f'<nav class="contents"><ol>{links}</ol></nav>\n'


def fragment(body: str) -> str:
    """HTML for a notebook's cell, which brings its stylesheet along."""
    return f'<div class="textpatch inset"><style>{STYLE}</style>{body}</div>'


def page(title: str, body: str) -> str:
    """A whole page of a body that is HTML already.  The title is text."""
    return _PAGE.format(title=safe(title), style=STYLE, body=body)


# All rules are nested, so that in a notebook they stay within our own cells.
STYLE = (files("textpatch") / "page.css").read_text("utf-8")

# By the policy in the head no script could run and nothing could be loaded even if escaping failed.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta HTTP-EQUIV="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="textpatch page">
{body}</body>
</html>
"""
