"""Parts of a page about a localisation, and responsible sets made up for one."""

from support.pages import Node, Page
from support.results import a_result, html_of


def words_of(result: dict, manifest: dict | None = None) -> list[str]:
    """Texts of a page, element by element."""
    nodes = Page(html_of(result, manifest)).root.all()
    return [child for node in nodes for child in node.children if isinstance(child, str)]


def section(result: dict, title: str, **shown) -> Node:
    """Section of a page under that title."""
    sections = Page(html_of(result, **shown)).root.of("section")
    (found,) = [part for part in sections if part.of("h2")[0].text == title]
    return found


def of_sets(*exact: float, **options) -> dict:
    """A result of sets of two sites each, 0+1 and so on, with these exact matches."""
    result = a_result(exact, **options)
    names = {site["site"]: f"{2 * site['site']}+{2 * site['site'] + 1}" for site in result["sites"]}
    for site in result["sites"]:
        number = site["site"]
        site |= {"site": names[number], "group": [2 * number, 2 * number + 1]}
    return result | {"ranked": [names[site] for site in result["ranked"]]}


def set_of(sites, score: float = 0.9, kept: bool = True) -> dict:
    """A responsible set of these sites, and the refusal of what was tried then.

    kept  False for an empty set, of which these sites were refused
    """
    f1 = {"value": score, "low": score, "high": score}
    step = {
        "added": list(sites),
        "group": list(sites),
        "pairs": 8,
        "looked": 8,
        "score": f1,
        "gain": f1,
        "kept": True,
    }
    refused = {**step, "kept": False, "gain": {"value": 0.1, "low": -0.2, "high": 0.4}}
    if not kept:
        return {"sites": [], "score": f1, "steps": [refused]}
    return {"sites": list(sites), "score": f1, "steps": [step, refused]}


def a_set() -> dict:
    """The set of sites 1 and 2.  Site 0 was refused after a look at 3 of 8 pairs."""
    steps = [
        growth_step(2, [2], looked=8, value=0.5, kept=True),
        growth_step(1, [1, 2], looked=8, value=1.0, kept=True),
        growth_step(0, [0, 1, 2], looked=3, value=0.25, kept=False),
    ]
    return {"sites": [1, 2], "score": {"value": 1.0, "low": 0.9, "high": 1.0}, "steps": steps}


def growth_step(added: int, group: list[int], *, looked: int, value: float, kept: bool) -> dict:
    """A step of growing a set, with a gain of 0.2."""
    return {
        "added": [added],
        "group": group,
        "pairs": 8,
        "looked": looked,
        "score": {"value": value, "low": value - 0.1, "high": value},
        "gain": {"value": 0.2, "low": 0.1, "high": 0.3},
        "kept": kept,
    }
