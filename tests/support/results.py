"""A localisation's result as numbers made up, its records, its page, and what a page asks for."""

import io

from PIL import Image

from support.pages import Page, parsed
from textpatch.report import page
from textpatch.report import result as result_

METRICS = (
    "f1_target",
    "f1_source",
    "exact_target",
    "exact_source",
    "edit_target",
    "ssim",
    "mse",
    "psnr",
    "mse_uint8_wrapped",
    "psnr_uint8_wrapped",
)


def scores(exact: float) -> dict:
    score = {"value": exact, "low": max(0, exact - 0.05), "high": min(1, exact + 0.05)}
    lost = {"psnr": {"value": None, "low": None, "high": None}}
    return {**{name: dict(score) for name in METRICS}, **lost, "n": 32}


def a_result(exact=(0.0, 0.1, 0.8, 0.0), target=0.9, text="tiny") -> dict:
    sites = [
        {"site": n, "name": f"blocks.{n}.attn {text}", "kind": text, **scores(x)}
        for n, x in enumerate(exact)
    ]
    return {
        "schema_version": result_.SCHEMA_VERSION,
        "model": text,
        "pairs": 8,
        "seeds": [0, 1],
        "steps": 20,
        "guidance": 4.5,
        "start": 0,
        "branch": "both",
        "baselines": {"source": scores(0.0), "target": scores(target)},
        "sites": sites,
        "ranked": sorted(range(len(exact)), key=lambda n: -exact[n]),
        "pairs_list": [{"source": text, "target": text, "word": text, "target_word": text}],
    }


def records_of(result, read="TEA") -> list[dict]:
    """A record for each pair, with a picture of source, target and every site and what was read in it."""
    names = ["source", "target", *(f"site-{site['site']}" for site in result["sites"])]
    scored = {
        "precision_target": 0.5,
        "recall_target": 0.5,
        "exact_target": 0.0,
        "exact_source": 1.0,
        "ssim": 0.5,
    }
    picture = {"image": Image.new("RGB", (6, 4), "navy"), "read": read, **scored}
    return [
        {"pair": n, "seed": 0, "pictures": dict.fromkeys(names, picture)}
        for n in range(len(result["pairs_list"]))
    ]


def png(picture) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


PIXEL = png(Image.new("RGB", (300, 200)))


def html_of(result, manifest=None, **shown) -> str:
    manifest = manifest or {"command": "textpatch localize", "ocr": {"engine": "tesseract 5.3.0"}}
    return page.report_html(result, heatmap=PIXEL, manifest=manifest, **shown)


def tags_of(text: str) -> list[str]:
    return [node.tag for node in Page(text).root.all()]


def quiet(text: str) -> bool:
    """Whether a page asks for nothing and runs nothing, and has its pictures."""
    facts = parsed(text, None)
    return (
        not facts["outside"]
        and not facts["runs"]
        and bool(facts["images"])
        and min(facts["images"]) > 0
    )
