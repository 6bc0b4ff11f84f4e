"""HTML that stands alone: escaped text, tables, pictures as data, one stylesheet; nothing runs, nothing is loaded."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from importlib.resources import files

from PIL import Image

from textpatch.text import plain

LARGEST = 320  # px of a side: what a page shows of a picture


def safe(text) -> str:
    """Any text as one line of HTML text, or as the value of a quoted attribute."""
    return html.escape(plain(text))


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(image: Image.Image | str | None, words: str) -> str:
    """A picture as it is, or a JPEG of at most 320 px a side; of a path its name, of None nothing."""
    if not isinstance(image, Image.Image):
        return f"<code>{safe(image)}</code>" if image else ""
    small, data = max(image.size) <= LARGEST, io.BytesIO()
    shown = image.convert("RGB")
    shown.thumbnail((LARGEST, LARGEST))
    shown.save(data, "PNG" if small else "JPEG", quality=90)
    return (
        f'<img alt="{safe(words)}" src="{data_uri(data.getvalue(), "png" if small else "jpeg")}">'
    )


def figure(image: Image.Image | str | None, title: str, caption: str = "") -> str:
    """A picture under its title; the caption is HTML already."""
    head = f'<span class="title">{safe(title)}</span>'
    return f"<figure>{head}{picture(image, title)}<figcaption>{caption}</figcaption></figure>"


def table(head: Sequence[str], rows: Iterable[Sequence], kind: str = "text") -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    body = f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def fragment(body: str) -> str:
    """HTML for a notebook's cell, which brings its stylesheet along."""
    return f'<div class="textpatch inset"><style>{STYLE}</style>{body}</div>'


def page(title: str, body: str) -> str:
    """A whole page; the title is text."""
    return _PAGE.format(title=safe(title), style=STYLE, body=body)


# all rules are nested, so that in a notebook they stay within our own cells
STYLE = (files("textpatch") / "page.css").read_text("utf-8")

# the policy in the head: even if escaping failed, no script could run and nothing could be loaded
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
