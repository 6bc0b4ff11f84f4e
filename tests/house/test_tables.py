"""The tables of the pages are those of the CSV files, and no figure is typed into one by hand."""

import csv
import re
import shutil
from collections import Counter

import pytest

from support.documents import PAGES, ROOT, links
from support.scripts import importer, rows_of
from textpatch.metrics.readers.strictness import CALIBRATED

FIGURE = re.compile(r"(?<![\w.])\d*\.\d\d+|\d %")
BY_HAND = "<!-- by hand: "


@pytest.fixture
def tables(monkeypatch):
    """benchmarks/tables.py, imported as a script finds its neighbours."""
    return importer(monkeypatch)("tables")


@pytest.fixture
def copied(tables, monkeypatch, tmp_path):
    """The script, with the results in a folder that a test may change."""
    shutil.copytree(tables.RESULTS, tmp_path / "results")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    return tables


def test_the_pages_are_those_of_the_files(tables):
    """Every table of every page is what its CSV file has; `python benchmarks/tables.py` writes them anew."""
    assert [path.relative_to(ROOT).as_posix() for path in tables.pages()] == list(PAGES)
    for page, text in PAGES.items():
        assert tables.differing(text, page) == [], page
    assert tables.main(["--check"]) == 0


def test_readers_are_told_as_measured(tables):
    """What the library says of its readers, and the sentence on the pages, are the counts of the file."""
    for reader, counted in CALIBRATED.items():
        assert tables.broken_read(reader) == counted
        assert f"by {reader}, which calls {counted.read} of {counted.n}" in tables.over_reading(
            reader
        )


# columns that hold what was read of words
WORDS = {
    *"exact exact_target f1 f1_target f1_harmful harmful read right same_set set_share".split(),
    *"target text word written".split(),
}
OF_NO_READER = {"chance"}  # computed from the words alone
OF_NO_WORDS = {"edits_told", "strangers"}
RATES = {"readers", "signs"}


def require_readers(tables, monkeypatch) -> int:
    """Rows with what was read name their reader, and each table of them tells it with its rate."""
    checked = 0
    read_rows = tables.read_rows
    used: dict[str, list[dict]] = {}
    monkeypatch.setattr(tables, "read_rows", lambda name: used.setdefault(name, read_rows(name)))
    for page, text in PAGES.items():
        for place in tables.PLACE.finditer(text):
            used.clear()
            table = tables.made(place[2], page)
            kinds = [rows for name, rows in used.items() if name not in OF_NO_READER]
            readers = {row["reader"] for rows in kinds if WORDS & rows[0].keys() for row in rows}
            if readers and place[2] not in OF_NO_WORDS:
                told = [name for name in readers if name in table]
                assert told, f"{place[2]} names no reader"
                rated = place[2] in RATES or all(tables.broken_share(one) in table for one in told)
                assert rated, f"{place[2]} says nothing of how far {told} can be trusted"
                checked += 1
    return checked


def test_no_table_is_without_its_reader(tables, monkeypatch):
    """Wherever words were read, the table says by what, and how often that calls a broken word right."""
    assert require_readers(tables, monkeypatch) > 20


def test_a_table_without_its_reader_is_noticed(tables, monkeypatch):
    """Fault: the sentence under a table says nothing of how far its reader can be trusted."""
    monkeypatch.setattr(tables, "told_readers", lambda readers: f"Read by {', '.join(readers)}.\n")
    with pytest.raises(AssertionError, match="can be trusted"):
        require_readers(tables, monkeypatch)


def read_alone(folder) -> set[tuple[str, str]]:
    """Files and models of results with more rows that tesseract has read than rows that two readers have.

    A row whose column `read` is empty is of pictures without words.
    """
    alone = set()
    for path in folder.glob("*.csv"):
        rows = Counter(
            (row.get("model", ""), row.get("reader", ""))
            for row in rows_of(path)
            if row.get("read") != ""
        )
        alone |= {
            (path.stem, model)
            for (model, reader), count in rows.items()
            if reader == "tesseract" and count > rows[model, "agreement"]
        }
    return alone


def test_what_tesseract_read_two_have_read_again(tables):
    """In every file, of every model."""
    assert read_alone(tables.RESULTS) == set()


def test_a_file_that_tesseract_alone_read_is_noticed(copied):
    """Fault: a row by agreement is not there."""
    path = copied.RESULTS / "words-sites.csv"
    lines = path.read_text().splitlines()
    lines.remove(next(line for line in lines if ",agreement," in line))
    path.write_text("\n".join(lines) + "\n")
    assert read_alone(copied.RESULTS) == {("words-sites", "tiny-words")}


def test_every_table_stands_on_a_page(tables):
    """No function makes a table that nobody sees."""
    asked = {
        asked.split()[0] for text in PAGES.values() for _, asked, *_ in tables.PLACE.findall(text)
    }
    assert asked == set(tables.TABLES)


def test_every_result_is_used(tables, monkeypatch):
    """Each file of benchmarks/results is read for a table, or shown or linked on a page."""
    read, read_rows = set(), tables.read_rows
    monkeypatch.setattr(
        tables, "read_rows", lambda name: read.add(f"{name}.csv") or read_rows(name)
    )
    shown = {path.name for page in PAGES for path, _ in links(page)}
    for page, text in PAGES.items():
        tables.filled(text, page)
    there = {path.name for path in tables.RESULTS.iterdir() if path.is_file()}
    assert there - read - shown == set() and len(read) > 20


def typed(text: str, place: re.Pattern) -> list[str]:
    """Lines of tables with decimals or percentages that stand outside the marks, and under no command."""
    lines, known = [], False
    for line in place.sub("", text).splitlines():
        known = line.startswith(BY_HAND) or (known and line.startswith("|"))
        shown = re.sub(r"arXiv \S+|`[^`]*`", "", line)
        if line.startswith("|") and not known and FIGURE.search(shown):
            lines.append(line)
    return lines


def test_no_figure_is_typed_into_a_table(tables):
    """Decimals and percentages in a table come from a file, or the command that printed them stands above."""
    for page, text in PAGES.items():
        assert typed(text, tables.PLACE) == [], page
    assert typed("| a | .979 |\n", tables.PLACE) and typed("| a | 0.61 % |\n", tables.PLACE)
    assert not typed(f"{BY_HAND}a command -->\n| a | .979 |\n", tables.PLACE)
    assert typed(f"{BY_HAND}a command -->\n| a |\n\n| b | .979 |\n", tables.PLACE)


def test_a_changed_digit_on_a_page_is_noticed(tables):
    """Fault: somebody mends a figure where it stands."""
    text = PAGES["README.md"]
    mended = re.sub(r"\| \.\d\d\d, ", "| .321, ", text, count=1)
    assert mended != text
    assert tables.differing(mended) == ["headline"]
    assert tables.filled(mended) == text


def test_a_new_measurement_is_noticed(copied):
    """Fault: results are measured again, and the pages stay as they were."""
    page = "benchmarks/README.md"
    path = copied.RESULTS / "tiny-mmdit-other-scene.csv"
    rows = rows_of(path)
    rows[2]["ssim"] = "0.123"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert copied.differing(PAGES[page], page) == ["each_site"]
    assert "| .123 |" in copied.filled(PAGES[page], page)


def test_the_best_site_is_read_off_the_file(copied):
    """Another site with the highest score is the one that the pages name."""
    rows = copied.read_rows("tiny-mmdit-same-scene")
    assert copied.best_site(rows) == 1
    rows[2]["f1_target"] = "1.0"
    assert copied.best_site(rows) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- table: heading -->\n<!-- end -->\n", "'heading'; there are attention"),
        ("<!-- table: headline -->\n| a |\n", "begins 1 tables and ends 0"),
        ("| a |\n<!-- end -->\n", "begins 0 tables and ends 1"),
    ],
)
def test_a_page_that_asks_wrongly_is_refused(tables, text, told):
    """A name that is not there, a table without an end, an end without a table."""
    with pytest.raises(tables.PageError, match=told):
        tables.filled(text)


def test_check_writes_nothing_and_ends_with_1(copied, monkeypatch, tmp_path, capsys):
    """--check names the page and the table; without it they are written, and the next check is content."""
    page = tmp_path / "README.md"
    page.write_text("<!-- table: overhead -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(copied, "ROOT", tmp_path)
    monkeypatch.setattr(copied, "pages", lambda: [page])
    assert copied.main(["--check"]) == 1 and "old" in page.read_text()
    assert capsys.readouterr().out == "README.md: overhead: differs from its CSV\n"
    assert copied.main([]) == 0 and "nnsight" in page.read_text()
    assert copied.main(["--check"]) == 0
    page.write_text("<!-- table: nothing -->\n<!-- end -->\n")
    assert copied.main(["--check"]) == 2 and "nothing" in capsys.readouterr().err


def test_numbers_as_they_are_written(tables):
    """Shares without their zero, what rounds to one as 1.00, ratios with two digits, nothing as nothing."""
    assert [tables.share(value) for value in ("0.9787", "0.99999", "0.0", "1.0", "")] == [
        ".979",
        "1.00",
        ".000",
        "1.00",
        "",
    ]
    assert (tables.ratio(0.994), tables.ratio(1.1), tables.ratio(10.0)) == (".99", "1.10", "10.00")
    assert tables._sets("3 4; 3 4; 3 4 5") == "3, 4 in 2; 3, 4, 5 in 1"
