"""Tesseract reads what is written, in any size and colour, and says what it cannot read."""

import io
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytesseract
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from support.by_default import taking
from textpatch import metrics
from textpatch.errors import OCRError
from textpatch.metrics.readers import ink, known_words, passed, tesseract, tesseract_call

WORDS = "CAT HOUSE KITCHEN BRAVE WATER SIGNAL".split()


@pytest.fixture(scope="module")
def engine():
    return metrics.Tesseract()


@pytest.fixture
def untested(monkeypatch):
    """No reader has passed its self-test yet."""
    monkeypatch.setattr(passed, "RESULTS", {})


def texts(engine, *asked) -> list[str]:
    """Texts that an engine reads, one for each picture."""
    return [reading.text for reading in engine.read(*asked)]


def line(picture, scale=4):
    """The ink of a picture as the program is given it."""
    return ink.line_of_ink(ink.grey_levels(ink.part_of(picture, None, 0)), scale)[0]


def table(*words: str) -> str:
    """What the program prints for pictures with one word each, "" for none."""
    rows = [
        "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"
    ]
    for number, word in enumerate(words, 1):
        rows.append(f"1\t{number}\t0\t0\t0\t0\t0\t0\t9\t9\t-1\t")
        if word:
            rows.append(f"5\t{number}\t1\t1\t1\t1\t0\t0\t9\t9\t95.5\t{word}")
    return "\n".join(rows) + "\n"


def written(word, ink=(0, 0, 0), ground=(255, 255, 255), size=20, picture=(160, 48)):
    image = Image.new("RGB", picture, ground)
    ImageDraw.Draw(image).text((20, 10), word, fill=ink, font=ImageFont.load_default(size))
    return image


def sign(word, ink, plate, wall):
    """A plate from (20, 16) to (180, 64) on a wall with stripes as dark as the ink of other signs."""
    image = Image.new("RGB", (200, 80), wall)
    draw = ImageDraw.Draw(image)
    for x in range(-80, 200, 16):
        draw.line((x, 80, x + 80, 0), fill=tuple(c // 2 for c in wall), width=6)
    draw.rectangle((20, 16, 180, 64), fill=plate)
    draw.text((30, 26), word, fill=ink, font=ImageFont.load_default(24))
    return image


def test_reads_written_words(engine):
    """Dark words on white and white words on black read exactly, in order, one answer for each picture."""
    pictures = [written(w) for w in WORDS] + [written(w, (255,) * 3, (0,) * 3) for w in WORDS]
    assert texts(engine, pictures) == WORDS + WORDS


@pytest.mark.parametrize("size", [12, 60, 300])
def test_reads_any_size(engine, size):
    """Capitals of 8 to 210 px read exactly: enlargement ends where tesseract would get worse."""
    pictures = [written(word, size=size, picture=(7 * size, 2 * size)) for word in WORDS]
    assert texts(engine, pictures) == WORDS


def test_tesseract_sees_small_pictures():
    """However large the letters, at most 151 px of height are read: 4 x 300 points took 0.27 s a word."""
    for size in (12, 60, 300):
        picture = written("CAT", size=size, picture=(7 * size, 2 * size))
        assert line(picture).height <= 151


@pytest.mark.parametrize(
    "ink, plate, wall",
    [
        ((250, 250, 250), (200, 30, 35), (245, 220, 50)),
        ((20, 20, 20), (250, 160, 195), (35, 75, 190)),
        ((250, 250, 250), (30, 140, 60), (250, 160, 195)),
    ],
)
def test_reads_signs_inside_their_box(engine, ink, plate, wall):
    """Given the box of its plate, a word reads exactly, whatever the colours and however striped the wall."""
    pictures = [sign(w, ink, plate, wall) for w in WORDS]
    assert texts(engine, pictures, [(22, 18, 178, 62)] * len(WORDS)) == WORDS


def test_blank_pictures_read_as_nothing(engine):
    """White, black, one colour, one pixel, faint noise: "" at their places, beside a word that is read."""
    faint = Image.fromarray(
        (128 + np.random.default_rng(0).normal(0, 3, (48, 160))).astype(np.uint8)
    )
    flat = [Image.new("RGB", (160, 48), c) for c in ("white", "black", "red")]
    blanks = [*flat, Image.new("L", (1, 1)), faint]
    # none may reach tesseract, which reads stretched noise as words
    assert [line(blank) for blank in blanks] == [None] * 5
    assert texts(engine, [*blanks, written("CAT"), *blanks]) == [""] * 5 + ["CAT"] + [""] * 5
    assert texts(engine, blanks) == [""] * 5 and engine.read([]) == []


def test_transparent_is_white(engine):
    """Black letters on a transparent ground read like black on white."""
    clear = Image.new("RGBA", (160, 48))
    clear.paste((0, 0, 0, 255), mask=Image.eval(written("HOUSE").convert("L"), lambda v: 255 - v))
    assert texts(engine, [clear]) == ["HOUSE"]


def test_reads_faint_words(engine):
    """Letters 50 levels from their ground read like black on white: contrast is stretched."""
    assert texts(engine, [written(w, (150,) * 3, (200,) * 3) for w in WORDS]) == WORDS


def test_blank_keeps_the_gap_between_words(engine):
    """`blank=True` keeps one blank between two words, the default none."""
    picture = written("OPEN SHOP")
    assert texts(metrics.Tesseract(blank=True), [picture]) == ["OPEN SHOP"]
    assert texts(engine, [picture]) == ["OPENSHOP"]


@pytest.mark.parametrize(
    "alphabet", taking(("0123456789", "ACE"), ["abcdefghijklmnopqrstuvwxyz", "0123456789", "ACE"])
)
def test_answers_stay_in_the_alphabet(alphabet):
    """Every alphabet passes its own self-test, and nothing else is ever answered.

    By default small letters are read with capitals, in localization/test_localize.py.
    """
    answers = texts(metrics.Tesseract(alphabet=alphabet), [written(w) for w in WORDS])
    assert set("".join(answers)) <= set(alphabet)


def test_reading_leaves_the_environment_alone(engine, monkeypatch):
    """OMP_THREAD_LIMIT=1 reaches tesseract, which leads a session of its own.

    os.environ is as before, also where threads read at once.
    """
    seen = []
    start = subprocess.Popen
    before = dict(os.environ)

    def spy(command, **options):
        seen.append((options["env"]["OMP_THREAD_LIMIT"], options["start_new_session"]))
        return start(command, **options)

    monkeypatch.setattr(tesseract_call.subprocess, "Popen", spy)
    threads = [threading.Thread(target=engine.read, args=([written("CAT")],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) >= 3  # the first read asks for the version, too
    assert set(seen) == {("1", True)}
    assert dict(os.environ) == before


def test_describe_names_the_engine(engine):
    """A manifest gets engine, version and every setting, as plain JSON values."""
    facts = json.loads(json.dumps(engine.describe()))
    assert facts["engine"] == "tesseract" and facts["version"][0].isdigit()
    assert (facts["psm"], facts["scale"], facts["dictionaries"]) == (7, 4, False)


@pytest.mark.parametrize("answer", ["", table(*[""] * 18), table(*["OPEN"] * 18), table("OPEN")])
@pytest.mark.usefixtures("untested")
def test_an_engine_that_cannot_read_is_an_error(monkeypatch, answer):
    """Nothing, blanks, one word for all, too few pages: OCRError before any score, never zeros."""
    monkeypatch.setattr(tesseract, "tesseract", lambda *a, **k: answer)
    with pytest.raises(OCRError, match="known words|readings"):
        metrics.Tesseract().read([written("CAT")])


def test_the_self_test_is_not_trivial():
    """At least twelve words, all different, in every alphabet, with blanks and without."""
    for alphabet in (tesseract.LETTERS, "abcdefgh", "0123456789", "ABCDEFGHIKLMNOPRSTUVWXYZ"):
        for blank in (False, True):
            assert len(set(known_words.words_of(alphabet, blank))) >= 12


@pytest.mark.usefixtures("untested")
def test_the_self_test_says_what_was_read(monkeypatch):
    """Its error holds the words, the readings and their number."""
    monkeypatch.setattr(tesseract, "tesseract", lambda *a, **k: table(*["OPEN"] * 18))
    with pytest.raises(OCRError, match=r"read 1 of 18 known words.*BREAD as 'OPEN'"):
        metrics.Tesseract().self_test()


@pytest.mark.usefixtures("untested")
def test_the_self_test_runs_once(monkeypatch):
    """A second one of the same settings reads nothing, in another instance too.

    A failed one is not remembered as passed, and other settings are tested anew.
    """
    with monkeypatch.context() as broken, pytest.raises(OCRError):
        broken.setattr(tesseract, "tesseract", lambda *a, **k: table(*[""] * 18))
        metrics.Tesseract().self_test()
    metrics.Tesseract().self_test()
    monkeypatch.setattr(tesseract, "tesseract", None)
    metrics.Tesseract().self_test()
    for other in (metrics.Tesseract(scale=3), metrics.Tesseract(alphabet="ABC")):
        with pytest.raises(TypeError):
            other.self_test()
    monkeypatch.setenv("TESSDATA_PREFIX", "/nowhere")
    with pytest.raises(TypeError):
        metrics.Tesseract().self_test()


def test_a_missing_engine_is_one_line(monkeypatch, tmp_path):
    """Without the program: one line with what was asked, what was found, and what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (metrics.Tesseract().self_test, metrics.Tesseract().describe):
        with pytest.raises(OCRError, match="apt-get install tesseract-ocr.*brew install") as error:
            call()
        assert "\n" not in str(error.value)


def test_a_crash_costs_one_picture(engine, monkeypatch):
    """A picture that tesseract dies on reads as "" and is counted; all the others are read."""

    def dies(arguments, given, ask=tesseract.tesseract, **options):
        if any(
            page.width == page.height
            for page in ImageSequence.Iterator(Image.open(io.BytesIO(given)))
        ):
            raise tesseract_call.Crash("floating point exception")
        return ask(arguments, given, **options)

    monkeypatch.setattr(tesseract, "tesseract", dies)
    square = Image.fromarray(np.pad(np.zeros((9, 9), np.uint8), 9, constant_values=255))
    before = engine.crashed
    assert texts(engine, [*map(written, WORDS), square, written("CAT")]) == [*WORDS, "", "CAT"]
    assert engine.crashed == before + 1


def test_a_failure_is_not_a_crash(monkeypatch):
    """A status of tesseract's own, such as for missing language data, is an OCRError with its words."""
    monkeypatch.setenv("TESSDATA_PREFIX", "/nowhere")
    with pytest.raises(OCRError, match="ended with 1: .*/nowhere"):
        metrics.Tesseract().self_test()


def test_a_missing_language_is_named(monkeypatch):
    """Where tesseract has no English data, the error names the languages it has and what to install."""
    monkeypatch.setenv("TESSDATA_PREFIX", "/nowhere")
    with pytest.raises(
        OCRError, match=r"has the languages \[\] and needs 'eng'; .*tesseract-ocr-eng"
    ):
        metrics.Tesseract().self_test()
    monkeypatch.undo()
    with pytest.raises(OCRError) as error:  # a failure that has nothing to do with languages
        tesseract_call.tesseract(["/nowhere.tiff", "stdout"], timeout=20, asked="reading nothing")
    assert (
        "languages" not in str(error.value)
        and tesseract_call.LANGUAGE in tesseract_call.languages()
    )


def stand_in(monkeypatch, folder, script):
    """Make a shell script the program that pytesseract, and so the reader, starts."""
    path = folder / "stand-in"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", str(path))


@pytest.mark.parametrize("named", ["5.3.0", "5.3.0-46-g1569", "v5.4.0.20240606", "main"])
def test_a_version_is_told_as_the_program_tells_it(named, monkeypatch, tmp_path):
    """No part of a version is lost: two builds of one release are two engines in a manifest."""
    stand_in(monkeypatch, tmp_path, f"echo tesseract {named}")
    assert metrics.Tesseract().describe()["version"] == named


def test_languages_of_a_program_that_tells_none(monkeypatch, tmp_path):
    """A program that fails, names nothing, answers in no UTF-8, or is not there has no languages."""
    for script in ("exit 3", "exit 0", "printf '\\377\\n'", "kill -SEGV $$"):
        stand_in(monkeypatch, tmp_path, script)
        assert tesseract_call.languages() == []
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", "/nowhere/tesseract")
    assert tesseract_call.languages() == []


def test_pytesseracts_program_is_the_one_that_reads(monkeypatch):
    """Whoever points pytesseract at a program has pointed the reader at it; the error names that program."""
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", "/nowhere/tesseract")
    with pytest.raises(OCRError, match="found no program '/nowhere/tesseract'"):
        metrics.Tesseract().self_test()


def test_pytesseract_reads_the_same(engine):
    """The batch of one own call gives what pytesseract gives picture by picture with the same settings."""
    words = WORDS[:3]  # a process each
    prepared = [line(written(word)) for word in words]
    asked = " ".join(engine._settings()[2:]).replace("-c tessedit_create_tsv=1", "")
    read = [
        pytesseract.image_to_string(picture.copy(), lang="eng", config=asked)
        for picture in prepared
    ]
    assert ["".join(text.split()) for text in read] == texts(
        engine, [written(word) for word in words]
    )


def test_a_slow_engine_is_an_error():
    """A call that outlasts its timeout is an OCRError naming it."""
    with pytest.raises(OCRError, match="timeout=0.001 s"):
        metrics.Tesseract(timeout=0.001).self_test()


@pytest.mark.parametrize("box", [(0, 0, 161, 48), (-1, 0, 10, 10), (10, 0, 10, 10)])
def test_a_box_outside_the_picture_is_an_error(engine, box):
    """Cropping never invents pixels nor leaves none; both sizes are named."""
    with pytest.raises(OCRError, match=r"box .* is not inside picture \d of size \(160, 48\)"):
        engine.read([written("CAT"), written("CAT")], [box, box])


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8), np.uint8), Image.new("F", (8, 8)), Image.new("I;16", (8, 8)), "a"]
)
def test_pictures_of_other_kinds_are_errors(engine, picture):
    """Arrays, paths, float and 16-bit pictures are refused: they would be read as blank."""
    with pytest.raises(OCRError, match="picture 0 cannot be read"):
        engine.read([picture])


@pytest.mark.parametrize(
    "options",
    [{"mode": "word"}, {"alphabet": ""}, {"alphabet": "A B"}, {"scale": 0}, {"timeout": 0}],
)
def test_senseless_engines_are_errors(options):
    """Options no reading can be made with are refused when given."""
    with pytest.raises(OCRError, match="cannot read (with|in mode)"):
        metrics.Tesseract(**options)


@pytest.mark.parametrize(
    "size", [(6_000, 1), pytest.param((60_000, 1), marks=pytest.mark.long), (3, 4000)]
)
def test_narrow_pictures_take_little(engine, size):
    """The program is given no more of a strip than of a photograph, and reads in it what it may."""
    stripes = np.arange(max(size)) * 9 // max(size) % 2 * 255
    picture = Image.fromarray(stripes[np.newaxis].astype(np.uint8))
    if size[0] < size[1]:
        picture = picture.rotate(90, expand=True)
    picture = picture.resize(size)
    made = line(picture)
    assert made.height <= 151 and made.width * made.height <= 4 * ink.MOST
    assert len(engine.read([picture])) == 1


@pytest.mark.parametrize(
    "script, says",
    [
        ("yes", "printed more than 16,777,216 bytes"),
        ("yes >&2", "printed more than 16,777,216 bytes"),
        ("cat >/dev/null; printf '\\377\\376'", "printed no UTF-8"),
        ("exec >&- 2>&-; sleep 60", "took longer than timeout=1"),
    ],
)
def test_hostile_programs_are_errors(script, says, monkeypatch, tmp_path):
    """Output without end, or in no UTF-8, and a program that goes on when its outputs are closed."""
    stand_in(monkeypatch, tmp_path, script)
    with pytest.raises(OCRError, match=says):
        tesseract_call.tesseract([], b"x" * 2**20, timeout=1, asked="reading")


def test_what_a_program_leaves_behind_ends_with_it(monkeypatch, tmp_path):
    """A child that keeps the pipe after its parent has ended is killed when the time is over."""
    stand_in(monkeypatch, tmp_path, f"(sleep 600; true {tmp_path}) & echo $! > {tmp_path}/child")
    with pytest.raises(OCRError, match="took longer"):
        tesseract_call.tesseract([], timeout=1, asked="reading")
    child = int((tmp_path / "child").read_text())
    for _ in range(200):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {child} runs on")


def test_pictures_that_are_not_whole_are_errors(engine):
    """A truncated file and a picture without pixels are refused by their number."""
    data = io.BytesIO()
    written("CAT").save(data, "PNG")
    truncated = Image.open(io.BytesIO(data.getvalue()[:-300]))
    for picture in (truncated, Image.new("L", (0, 8))):
        with pytest.raises(OCRError, match="picture 1 cannot be read"):
            engine.read([written("CAT"), picture])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_of_8_bits_is_read(engine, mode):
    """Grey, coloured, transparent, palette, print and bilevel pictures read alike."""
    assert texts(engine, [written("HOUSE", size=28).convert(mode)]) == ["HOUSE"]


def whole(image, area, index):
    """Fault: a box is not cut out."""
    return image


def backwards(printed, count, pages=tesseract.pages):
    return pages(printed, count)[::-1]


def red_sign(engine):
    test_reads_signs_inside_their_box(engine, (250, 250, 250), (200, 30, 35), (245, 220, 50))


@pytest.mark.parametrize(
    "place, name, wrong, law",
    [
        (ink, "_cut", whole, red_sign),
        (ink, "LEAST_SPAN", 1, test_blank_pictures_read_as_nothing),
        (tesseract, "pages", backwards, test_reads_written_words),
        (
            known_words,
            "words_of",
            lambda alphabet, blank: ["I"],
            lambda engine: test_the_self_test_is_not_trivial(),
        ),
        (ink, "TALLEST", 10**6, lambda engine: test_tesseract_sees_small_pictures()),
    ],
)
def test_planted_faults_of_reading_are_noticed(monkeypatch, place, name, wrong, law):
    """A reader with one wrong step breaks the law that the step is for."""
    monkeypatch.setattr(place, name, wrong)
    faulty = metrics.Tesseract()
    faulty._tested = True
    with pytest.raises(AssertionError):
        law(faulty)
