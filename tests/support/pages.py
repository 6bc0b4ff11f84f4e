"""Facts about a page, as a parser reads it and as a browser does, held to the run that the page is about.

Facts are a dict with these entries.

    title    of the page
    images   widths of all pictures, 0 for one that did not load
    outside  addresses that were asked for
    runs     what could run a script
    cells    for every link of the heat map the "heading" and the "figures" that it opens, each figure as
             [data URI, what was read]
"""

import base64
import html
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

HOSTILE = [
    "<script>document.title='pwned'</script>",
    "</style><script>document.title='pwned'</script>",
    "<img src=http://evil.invalid/x.png onerror=\"document.title='pwned'\">",
    "\"'><svg onload=document.title='pwned'>",
    "&lt;script&gt;\x1b[31m\u202e\ud800\u2028",
]
POLICY = """<meta HTTP-EQUIV="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">"""
VOID = ("meta", "img", "br")
RUNNING = ("script", "iframe", "object", "embed", "link", "base", "form")
FETCHING = ("src", "href", "srcset", "data", "action", "poster", "background", "style")
# attributes that load nothing begin so, any other loads something if it holds one of these
HARMLESS = ("data:image/", "#")
ADDRESS = ("//", "url(", "@import", "javascript:")


# --- by a parser


class Node:
    """One element with its tag, attributes, and children, which are elements and texts."""

    def __init__(self, tag: str, attributes: dict, parent: "Node | None" = None):
        self.tag = tag
        self.attributes = attributes
        self.parent = parent
        self.children: list[Node | str] = []

    def all(self) -> Iterator["Node"]:
        """This element and all below it, in the order of the page."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.all()

    def of(self, kind: str) -> list["Node"]:
        """Elements below that have this tag or class."""
        return [node for node in self.all() if kind in (node.tag, *node.classes())]

    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    @property
    def text(self) -> str:
        """All texts below, joined."""
        found = ""
        for child in self.children:
            if isinstance(child, Node):
                found += child.text
            else:
                found += child
        return found


class Page(HTMLParser):
    """Tree of a page, in which all tags must be closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.root = Node("", {})
        self.at = self.root
        self.feed(text)
        self.close()
        assert self.at is self.root, f"{self.at.tag} is left open"

    def handle_starttag(self, tag, attributes):
        # the first of two attributes with one name counts
        node = Node(tag, dict(reversed(attributes)), self.at)
        self.at.children.append(node)
        if tag not in VOID:
            self.at = node

    def handle_endtag(self, tag):
        assert self.at.tag == tag
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


def parsed(text: str, folder: Path) -> dict:
    """Facts by html.parser, which takes a link to open what the stylesheet says."""
    root = Page(text).root
    nodes = list(root.all())
    by_id = {node.attributes["id"]: node for node in nodes if "id" in node.attributes}
    links = [link for map_ in root.of("map") for link in map_.of("a")]
    return {
        "title": root.of("title")[0].text,
        "images": [_width(node.attributes.get("src", "")) for node in root.of("img")],
        "outside": [value for node in nodes for value in _asked(node)],
        "runs": [node.tag for node in nodes if _runs(node)],
        "cells": [_opened(by_id[link.attributes["href"][1:]]) for link in links],
    }


def _runs(node: Node) -> bool:
    """True for an element that could run something."""
    return node.tag in RUNNING or any(name.startswith("on") for name in node.attributes)


def _asked(node: Node) -> list[str]:
    """Values of an element that ask for something outside the page."""
    values = [node.attributes.get(name) or "" for name in FETCHING]
    if node.tag == "style":
        values.append(node.text)
    return [
        value
        for value in values
        if not value.startswith(HARMLESS) and any(sign in value for sign in ADDRESS)
    ]


def _opened(column: Node) -> dict:
    """Heading and figures that a link to a column opens."""
    block = column.parent.parent
    figures = []
    for part in [*block.of("end"), column]:
        for figure in part.of("figure"):
            source = figure.of("img")[0].attributes["src"]
            figures.append([source, figure.of("read")[0].text])
    return {"heading": block.of("h3")[0].text, "figures": figures}


def _width(source: str) -> int:
    """Width of the picture of a data URI, 0 where there is none."""
    try:
        return picture(source).width
    except (ValueError, OSError):
        return 0


def picture(source: str) -> Image.Image:
    """Picture of a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))).convert("RGB")


# --- by a browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# This clicks where a reader would, cell by cell, and goes back.  What is covered or hidden is neither clicked
# nor seen.
_PROBE = """<script>addEventListener("load", async () => {
  const moved = () => new Promise(done => setTimeout(done, 50))
  const seen = e => e.getClientRects().length > 0
  const hit = e => {
    e.scrollIntoView({block: "center", inline: "center"})
    const {x, y, width, height} = e.getBoundingClientRect()
    document.elementFromPoint(x + width / 2, y + height / 2)?.click()
  }
  const shown = f => [f.querySelector("img")?.src, f.querySelector(".read")?.textContent]
  const title = document.title
  const images = [...document.images].map(image => image.naturalWidth)
  const cells = []
  for (const cell of document.querySelectorAll(".map a")) {
    hit(cell)
    await moved()
    const block = document.querySelector(".pair:has(:target)")
    const over = block && getComputedStyle(block).position == "fixed"
    cells.push({heading: over ? block.querySelector("h3").textContent : null,
                figures: over ? [...block.querySelectorAll("figure")].filter(seen).map(shown) : []})
    if (over) hit(block.querySelector(".close"))
    await moved()
  }
  const asked = performance.getEntriesByType("resource").map(entry => entry.name)
  const outside = asked.filter(name => !name.startsWith("data:"))
  const scripts = [...document.querySelectorAll("script")].slice(0, -1)
  const runs = scripts.map(script => script.textContent)
  if (document.title != title) runs.push(document.title)
  document.body.innerHTML = "<pre></pre>"
  const facts = JSON.stringify({title, images, outside, runs, cells})
  document.querySelector("pre").textContent = "FACTS" + facts + "FACTS"
})</script>"""


def browse(folder: Path, page: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Open a page with a profile of its own, where no name leads anywhere."""
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
    ]
    return subprocess.run(
        [BROWSER, *flags, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120
    )


def browsed(text: str, folder: Path) -> dict:
    """Facts by a browser, on a copy with a probe and without the policy, which would hide requests."""
    end = "</body>\n</html>"
    assert text.count(POLICY) == 1
    assert text.rstrip().endswith(end)
    copy = folder / "probed.html"
    copy.write_text(text.replace(POLICY, "").replace(end, _PROBE + end), "utf-8")
    done = browse(
        folder, copy, "--window-size=1200,900", "--virtual-time-budget=60000", "--dump-dom"
    )
    _, facts, _ = html.unescape(done.stdout).split("FACTS")
    return json.loads(facts)


# --- what must be so


def hold(facts: dict, result: dict, records: list[dict]) -> None:
    """All pictures are there, nothing is asked for or run, and every cell opens what it summarises.

    records  of a run, with PIL pictures
    """
    assert facts["images"]
    assert min(facts["images"]) > 0
    assert facts["outside"] == []
    assert facts["runs"] == []
    assert facts["title"].startswith("textpatch: ")
    wanted = list(_wanted(result, records))
    assert [cell["heading"] for cell in facts["cells"]] == [heading for heading, _ in wanted]
    for cell, (_, pictures) in zip(facts["cells"], wanted, strict=True):
        assert [read for _, read in cell["figures"]] == [read for _, read in pictures]
        for (source, _), (image, _) in zip(cell["figures"], pictures, strict=True):
            assert picture(source).tobytes() == image.convert("RGB").tobytes()


def _wanted(result: dict, records: list[dict]) -> Iterator[tuple]:
    """Yield heading and [(picture, read)] of every cell.

    The heading has the pair's words.  The pictures are source, target and swapped, of every seed.
    """
    steps = (result["set"] or {"steps": []})["steps"]
    names = [site["site"] for site in result["sites"]]
    names += ["+".join(map(str, step["group"])) for step in steps if len(step["group"]) > 1]
    for pair, said in enumerate(result["pairs_list"]):
        found = [record["pictures"] for record in records if record["pair"] == pair]
        heading = plainly(f"{said['word']} \u2192 {said['target_word']}")
        for name in names:
            rows = ("source", "target", f"site-{name}")
            shown = [pictures[row] for row in rows for pictures in found if row in pictures]
            if any(rows[2] in pictures for pictures in found):
                yield heading, [(p["image"], plainly(p["read"]) or "(nothing)") for p in shown]


def plainly(text: str) -> str:
    """One line of what can be printed, as the page promises, written here once more."""
    line = " ".join(text.split())
    for letter in set(line):
        if not letter.isprintable():
            line = line.replace(letter, "\ufffd")
    return line
