"""Laws of the drawing of scores: it is a picture, marks what is credited, and leaves matplotlib as it was."""

import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from support.by_default import taking
from support.reports import a_set, of_sets, set_of
from support.results import a_result
from textpatch.errors import PatchError
from textpatch.report.heatmap import heatmap_png

HOSTILE = '</td></style><script>alert("x")</script>\x1b[31m\u202e\ud800 $\\frac{'
ORANGE = b"\xd5\x5e\x00"


def drawn(result) -> Image.Image:
    return Image.open(io.BytesIO(heatmap_png(result)))


@pytest.mark.parametrize(
    "exact, text", [((0.2, 0.9), "tiny"), ((0.5,) * 70, "SDXL"), ((1.0,), HOSTILE)]
)
def test_the_heat_map_is_a_picture(exact, text):
    """One site or seventy, hostile names or missing scores give a PNG of sensible size."""
    result = a_result(exact, text=text)
    result["sites"][0]["ssim"] = {"value": None, "low": None, "high": None}
    picture = drawn(result)
    assert picture.format == "PNG"
    assert 1000 <= picture.width <= 3500
    assert 1000 <= picture.height <= 1500


def orange_middles(result) -> list[float]:
    """Mean x of pure orange as a share of the width, among the bars and among the labels under them."""
    picture = drawn(result).convert("RGB")
    labels = picture.height - 100
    return [orange_middle(picture, 200, labels), orange_middle(picture, labels, picture.height)]


def orange_middle(picture: Image.Image, top: int, bottom: int) -> float:
    """Mean x of pure orange between two heights, as a share of the width."""
    pixels = picture.crop((0, top, picture.width, bottom)).tobytes()
    found = [
        n // 3 % picture.width for n in range(0, len(pixels), 3) if pixels[n : n + 3] == ORANGE
    ]
    return sum(found) / len(found) / picture.width


def share_of_width(site: float) -> float:
    """Where a site of four lies, from the inches of the margin, the axes from -0.6 to 3.6, and the page."""
    return (1.5 + (site + 0.6) / 4.2 * 6.2) / 8


@pytest.mark.parametrize("best", taking((2,), range(4)))
def test_the_heat_map_marks_the_best_site(best):
    """Bars and site label are orange where the best site is, and nowhere else.

    By default the third of four.
    """
    exact = [0.1] * 4
    exact[best] = 0.9
    assert orange_middles(a_result(exact)) == pytest.approx([share_of_width(best)] * 2, abs=0.01)


def test_the_heat_map_marks_a_set_that_is_credited():
    """Where the headline names two sites, both are orange, and the mean of orange lies between them."""
    result = a_result((0.1, 0.1, 0.1, 0.1)) | {"set": a_set()}
    assert orange_middles(result) == pytest.approx([share_of_width(1.5)] * 2, abs=0.01)


@pytest.mark.parametrize(
    "result, says",
    [
        (
            a_result(),
            [
                "which site carries",
                "one site at a time",
                "best site (2)",
                "site, in execution order",
            ],
        ),
        (a_result() | {"set": set_of([1])}, ["responsible set"]),
        (
            of_sets(0.1, 0.9),
            ["which set of sites carries", "one set of sites at", "best set of sites (2+3)"],
        ),
    ],
)
def test_the_heat_map_says_what_was_tried(result, says, monkeypatch):
    """Title, legend and axis are about single sites or about sets, and "best" is the first of the ranking."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    drawn = []
    save = Figure.savefig

    def saved(figure, *args, **options):
        save(figure, *args, **options)
        drawn.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", saved)
    heatmap_png(result)
    assert all(words in " ".join(drawn) for words in says)
    assert ("best" in " ".join(drawn)) == ("best" in " ".join(says))


def test_the_heat_map_leaves_pyplot_alone():
    """No pyplot is imported and no setting is changed, so that the caller's own figures are safe."""
    # with a backend chosen, since reading an unchosen one makes matplotlib import pyplot by itself
    code = (
        "import sys, json, matplotlib; matplotlib.use('pdf'); before = dict(matplotlib.rcParams);"
        "from textpatch.report import heatmap as figures; figures.heatmap_png(json.load(sys.stdin));"
        "sys.exit('matplotlib.pyplot' in sys.modules or dict(matplotlib.rcParams) != before)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(a_result()), text=True)
    assert done.returncode == 0


class Broken:
    """An import system in which importing matplotlib raises an error."""

    def __init__(self, error: type[Exception]):
        self.error = error

    def find_spec(self, name, *_):
        if name.startswith("matplotlib"):
            raise self.error("operator does not exist")


@pytest.mark.parametrize("error", [None, ModuleNotFoundError, RuntimeError])
def test_without_matplotlib_the_way_out_is_named(monkeypatch, error):
    """A missing or broken matplotlib is a PatchError with the command that helps."""
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    if error is None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    else:
        monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    with pytest.raises(PatchError, match=r"pip install matplotlib"):
        heatmap_png(a_result())
