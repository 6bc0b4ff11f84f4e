"""What a report shows, as a parser reads it and as a browser does: the same facts, held to the run they are about.

Facts are {"title", "images", "outside", "runs", "cells"}: the widths of all pictures (0: none came), addresses asked
for, what could run a script, and for every link of the heat map the heading and the figures it opens, each
[data URI, what was read].
"""

import base64
import html
import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

HOSTILE = ["<script>document.title='pwned'</script>", "</style><script>document.title='pwned'</script>",
           "<img src=http://evil.invalid/x.png onerror=\"document.title='pwned'\">", "\"'><svg onload=document.title='pwned'>",
           "&lt;script&gt;\x1b[31m\u202e\ud800\u2028"]  # fmt: skip
POLICY = """<meta HTTP-EQUIV="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">"""
VOID = "meta", "img", "br"
RUNNING = "script", "iframe", "object", "embed", "link", "base", "form"
FETCHING = "src", "href", "srcset", "data", "action", "poster", "background", "style"


# --- by a parser


class Node:
    """One element: its tag, attributes, and children, which are elements and texts."""

    def __init__(self, tag: str, attributes: dict, parent=None):
        self.tag, self.attributes, self.parent, self.children = tag, attributes, parent, []

    def all(self):
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.all()

    def of(self, kind: str) -> list["Node"]:
        """The elements below of a tag or a class."""
        return [
            n
            for n in self.all()
            if kind == n.tag or kind in (n.attributes.get("class") or "").split()
        ]

    @property
    def text(self) -> str:
        return "".join(child.text if isinstance(child, Node) else child for child in self.children)


class Page(HTMLParser):
    """The tree of a page; all tags must be closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.root = self.at = Node("", {})
        self.feed(text)
        self.close()
        assert self.at is self.root, f"{self.at.tag} is left open"

    def handle_starttag(self, tag, attributes):
        node = Node(tag, dict(reversed(attributes)), self.at)  # of two alike the first counts
        self.at.children.append(node)
        self.at = self.at if tag in VOID else node

    def handle_endtag(self, tag):
        assert self.at.tag == tag
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


def parsed(text: str, folder: Path) -> dict:
    """The facts by html.parser; a link is taken to open what the stylesheet says it does."""
    root = Page(text).root
    nodes, by_id = (
        list(root.all()),
        {node.attributes["id"]: node for node in root.all() if "id" in node.attributes},
    )
    images = [_width(node.attributes.get("src", "")) for node in root.of("img")]
    cells = [
        _opened(by_id[link.attributes["href"][1:]])
        for map_ in root.of("map")
        for link in map_.of("a")
    ]
    return {
        "title": root.of("title")[0].text,
        "images": images,
        "outside": [value for node in nodes for value in _asked(node)],
        "runs": [
            node.tag
            for node in nodes
            if node.tag in RUNNING or any(name[:2] == "on" for name in node.attributes)
        ],
        "cells": cells,
    }


def _asked(node: Node) -> list[str]:
    values = [node.attributes.get(name) or "" for name in FETCHING] + [
        node.text if node.tag == "style" else ""
    ]
    harmless = "data:image/", "#"
    signs = "//", "url(", "@import", "javascript:"
    return [
        value
        for value in values
        if not value.startswith(harmless) and any(sign in value for sign in signs)
    ]


def _opened(column: Node) -> dict:
    block = column.parent.parent
    shown = [figure for part in [*block.of("end"), column] for figure in part.of("figure")]
    figures = [
        [figure.of("img")[0].attributes["src"], figure.of("read")[0].text] for figure in shown
    ]
    return {"heading": block.of("h3")[0].text, "figures": figures}


def _width(source: str) -> int:
    try:
        return picture(source).width
    except (ValueError, OSError):
        return 0


def picture(source: str) -> Image.Image:
    """The picture of a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))).convert("RGB")


# --- by a browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# clicks where a reader would, cell by cell, and goes back; what is covered or hidden is not clicked, and not seen
_PROBE = """<script>addEventListener("load", async () => {
  const moved = () => new Promise(done => setTimeout(done, 50)), seen = e => e.getClientRects().length > 0
  const hit = e => {
    e.scrollIntoView({block: "center", inline: "center"})
    const {x, y, width, height} = e.getBoundingClientRect()
    document.elementFromPoint(x + width / 2, y + height / 2)?.click()
  }
  const shown = f => [f.querySelector("img")?.src, f.querySelector(".read")?.textContent], cells = []
  const title = document.title, images = [...document.images].map(image => image.naturalWidth)
  for (const cell of document.querySelectorAll(".map a")) {
    hit(cell)
    await moved()
    const block = document.querySelector(".pair:has(:target)"), over = block && getComputedStyle(block).position == "fixed"
    cells.push({heading: over ? block.querySelector("h3").textContent : null,
                figures: over ? [...block.querySelectorAll("figure")].filter(seen).map(shown) : []})
    if (over) hit(block.querySelector(".close"))
    await moved()
  }
  const outside = performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"))
  const runs = [...document.querySelectorAll("script")].slice(0, -1).map(script => script.textContent)
  if (document.title != title) runs.push(document.title)
  document.body.innerHTML = "<pre></pre>"
  document.querySelector("pre").textContent = "FACTS" + JSON.stringify({title, images, outside, runs, cells}) + "FACTS"
})</script>"""


def browse(folder: Path, page: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Open a page with a profile of its own, where no name leads anywhere."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
             "--disable-background-networking", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND",
             f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    return subprocess.run(
        [BROWSER, *flags, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120
    )


def browsed(text: str, folder: Path) -> dict:
    """The facts by a browser, on a copy without the policy, which would hide what is asked for, and with a probe."""
    copy = folder / "probed.html"
    assert text.count(POLICY) == 1 and text.rstrip().endswith("</body>\n</html>")
    copy.write_text(
        text.replace(POLICY, "").replace("</body>\n</html>", _PROBE + "</body>\n</html>"), "utf-8"
    )
    done = browse(
        folder, copy, "--window-size=1200,900", "--virtual-time-budget=60000", "--dump-dom"
    )
    _, facts, _ = html.unescape(done.stdout).split("FACTS")
    return json.loads(facts)


# --- what must be so


def hold(facts: dict, result: dict, records: list[dict]) -> None:
    """All pictures are there, nothing is asked for or run, and every cell opens what it summarises.

    records: a run's, with PIL pictures.
    """
    assert facts["images"] and min(facts["images"]) > 0
    assert (
        facts["outside"] == [] and facts["runs"] == [] and facts["title"].startswith("textpatch: ")
    )
    wanted = list(_wanted(result, records))
    assert [cell["heading"] for cell in facts["cells"]] == [heading for heading, _ in wanted]
    for cell, (_, pictures) in zip(facts["cells"], wanted):
        assert [read for _, read in cell["figures"]] == [read for _, read in pictures]
        for (source, _), (image, _) in zip(cell["figures"], pictures):
            assert picture(source).tobytes() == image.convert("RGB").tobytes()


def _wanted(result: dict, records: list[dict]):
    """Cell by cell, (heading, [(picture, read)]): the pair's words; source, target and swapped, every seed."""
    steps = (result["set"] or {"steps": []})["steps"]
    names = [site["site"] for site in result["sites"]]
    names += ["+".join(map(str, step["group"])) for step in steps if len(step["group"]) > 1]
    for pair, said in enumerate(result["pairs_list"]):
        found = [record["pictures"] for record in records if record["pair"] == pair]
        for name in names:
            rows = "source", "target", f"site-{name}"
            shown = [pictures[row] for row in rows for pictures in found if row in pictures]
            if any(rows[2] in pictures for pictures in found):
                heading = plainly(f"{said['word']} \u2192 {said['target_word']}")
                yield heading, [(p["image"], plainly(p["read"]) or "(nothing)") for p in shown]


def plainly(text: str) -> str:
    """One line of what can be printed, as the page promises: written here once more."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
