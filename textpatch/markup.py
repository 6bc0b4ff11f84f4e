"""HTML that stands alone: escaped text, tables, pictures as data, one stylesheet; nothing runs, nothing is loaded."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

from textpatch.result import plain

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
    return f'<img alt="{safe(words)}" src="{data_uri(data.getvalue(), "png" if small else "jpeg")}">'


def figure(image: Image.Image | str | None, title: str, caption: str = "") -> str:
    """A picture under its title; the caption is HTML already."""
    head = f'<span class="title">{safe(title)}</span>'
    return f'<figure>{head}{picture(image, title)}<figcaption>{caption}</figcaption></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence], kind: str = "text") -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    body = f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def fragment(body: str) -> str:
    """HTML for a notebook's cell, which brings its stylesheet along."""
    return f'<div class="textpatch inset"><style>{STYLE}</style>{body}</div>'


def page(title: str, body: str) -> str:
    """A whole page; the title is text."""
    return _PAGE.format(title=safe(title), style=STYLE, body=body)


# all rules are nested, so that in a notebook they stay within our own cells
STYLE = """
.textpatch { color-scheme: light dark; --ink: #1c2430; --soft: #5b6673; --line: #dfe4ea; --page: #fff;
  --lift: #f4f7f9; --mark: #0072B2; --best: #D55E00; --cold: #eef2f5; --hot: #0072B2;
  background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
@media (prefers-color-scheme: dark) { & { --ink: #e6eaef; --soft: #9aa6b3; --line: #313a45; --page: #14181d;
  --lift: #1d232a; --mark: #56B4E9; --best: #F0894A; --cold: #222a33; --hot: #3aa0dd } }
&.page { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 5rem }
&.inset { padding: .5rem; font-size: 14px }
& header { border-bottom: 1px solid var(--line); padding-bottom: 1.2rem }
& h1 { font-size: 1.9rem; line-height: 1.2; margin: .2rem 0 .6rem; overflow-wrap: anywhere }
& h2 { font-size: 1.25rem; margin: 3rem 0 .5rem }
& h3 { font-size: .95rem; margin: 1.6rem 0 .3rem; overflow-wrap: anywhere }
& p, & li, & dd { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere }
& .over { color: var(--mark); font-weight: 600; margin: 0 }
& .lead { font-size: 1.1rem } & .note, & .prompts { color: var(--soft); font-size: .9rem }
& dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.4rem; margin: 1rem 0 }
& dt { color: var(--soft) } & dd { margin: 0 }
& .equation { background: var(--lift); border-radius: 10px; padding: 1rem 1.4rem; width: fit-content; max-width: 100%;
  box-sizing: border-box; overflow-x: auto; font: 1.15rem/2 Cambria, "STIX Two Text", "DejaVu Serif", serif }
& .equation b, & b.swap { color: var(--best) }
& .wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; margin: .9rem 0;
  width: fit-content; max-width: 100% }
& img { display: block; background: #fff }
& table { border-collapse: collapse; margin: 0; font-size: .86rem; font-variant-numeric: tabular-nums }
& :is(th, td) { text-align: left; padding: .35rem .8rem; border-top: 1px solid var(--line); vertical-align: top;
  unicode-bidi: isolate }
& th { color: var(--soft); font-weight: 600; border: 0; background: var(--lift) }
& .scores { font-size: .82rem } & .scores :is(th, td) { white-space: nowrap; padding: .35rem .55rem }
& .scores td:last-child { white-space: normal; min-width: 8rem } & .scores tbody tr:nth-child(-n+2) { color: var(--soft) }
& .scores tbody tr:nth-child(3) { font-weight: 600; background: var(--lift) }
& .text td { overflow-wrap: anywhere; min-width: 4rem }
& code, & pre { font: .84rem/1.5 ui-monospace, monospace }
& pre { background: var(--lift); border-radius: 8px; padding: .7rem 1rem; margin: 0; white-space: pre-wrap;
  overflow-wrap: anywhere }
& summary { cursor: pointer; color: var(--soft); margin: .6rem 0 }
& svg { display: block; max-width: 100%; height: auto; color: var(--soft); font: 12px system-ui, sans-serif }
& svg .one { color: var(--mark) } & svg .two { color: var(--best) }
& .key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin: 0 .35em 0 1em }
& .key.one { background: var(--mark) } & .key.two { background: var(--best) }

& .map { scroll-margin-top: 1rem; padding: .2rem .6rem .6rem 0 }
& .map :is(th, td) { border: 0; padding: 1px; text-align: center; vertical-align: middle; background: none;
  white-space: nowrap }
& .map tr > :first-child { position: sticky; left: 0; background: var(--page); padding: 0 .9rem; text-align: left;
  max-width: 14rem; overflow: hidden; text-overflow: ellipsis }
& .map thead th { padding: .5rem .2rem .3rem; font-weight: 400 } & .map th.best { color: var(--best); font-weight: 700 }
& .map td > * { display: block; min-width: 3.1rem; line-height: 2.1rem; border-radius: 4px; text-decoration: none;
  color: var(--ink); background: color-mix(in oklab, var(--hot) calc(100% * var(--f)), var(--cold)) }
& .map .high { color: #fff } & .map .none { color: var(--soft); background: none }
& .map td.ends > * { opacity: .8; border-radius: 14px } & .map td.ends.last { padding-right: 1.1rem }
& .map a:is(:hover, :focus-visible) { outline: 2px solid var(--best); outline-offset: 1px }
& .ramp { display: inline-block; width: 9rem; height: .8rem; border-radius: 4px; margin: 0 .6rem; vertical-align: -.05rem;
  background: linear-gradient(to right in oklab, var(--cold), var(--hot)) }

& .pair { border-top: 1px solid var(--line); margin: 1.6rem 0; padding-top: .2rem }
& .columns { display: flex; flex-wrap: wrap; gap: .9rem .75rem; align-items: flex-start }
& .columns { max-width: 62rem } & .column { width: 8.6rem }
& .column:is(.end, .best) { width: calc((100% - 1.5rem) / 3) }
& figure { margin: 0 0 .5rem } & figure .title { display: block; font-size: .82rem; color: var(--soft) }
& figure img { width: 100%; border-radius: 5px } & figure code { overflow-wrap: anywhere }
& .best img { outline: 3px solid var(--best); outline-offset: 2px } & .best .title { color: var(--best); font-weight: 600 }
& .best .title { margin-bottom: .3rem } & .columns:has(.best) .end .title { margin-bottom: .3rem }
& figcaption { font-size: .85rem; margin-top: .25rem } & figcaption .what { color: var(--soft) }
& .read { font-weight: 600 } & .read.target { color: var(--mark) } & .read.other { color: var(--soft) }
& :is(.more, .close) { display: none }
& .gallery { display: flex; flex-wrap: wrap; gap: 1rem } & .gallery figure { width: 14rem }

& .pair:has(.column:target) { position: fixed; inset: 0; z-index: 99; margin: 0; padding: 5vh 6vw; overflow: auto; border: 0;
  background: var(--page); & h3 { font-size: 1.5rem; margin: .4rem 0 } & .prompts { font-size: 1rem; margin-bottom: 2rem }
  & .column:not(.end, :target) { display: none } & .column { width: min(26rem, 30%) } & .columns { gap: 1.6rem 2.5%; max-width: none }
  & figure .title { font-size: 1rem; margin-bottom: .4rem } & figcaption { font-size: 1rem } & .more { display: block }
  & .close { display: block; width: fit-content; border: 1px solid var(--line); border-radius: 99px; color: var(--ink);
    padding: .3rem 1.1rem; text-decoration: none; background: var(--lift) } } }
"""

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
