"""Pictures somebody else wrote: a right result or one line, and memory for neither bombs nor lies."""

import base64
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from support.planting import plant
from textpatch import html, metrics, pictures
from textpatch.errors import OCRError, PatchError, StoreError
from textpatch.metrics.image import rgb_pixels
from textpatch.metrics.readers import ink
from textpatch.pictures import MOST_PIXELS, open_picture
from textpatch.reference_models.upscaling import small_tensor
from textpatch.report.contact_sheet import draw_gallery_sheet

RIGHT = Image.frombytes("RGB", (4, 2), bytes(range(24)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def claimed(
    width: int, height: int, depth: int = 8, colours: int = 2, data: bytes = b"\0" * 1000
) -> bytes:
    """A PNG whose header says so, with a few compressed zeros behind it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    ihdr, idat = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + ihdr + idat + chunk(b"IEND", b"")


def saved(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    picture.save(data, format, **options)
    return data.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF data of a picture that was taken with the camera turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def noted(size: int) -> bytes:
    """A PNG with a compressed note of that many bytes."""
    note = PngImagePlugin.PngInfo()
    note.add_text("a", "x" * size, zip=True)
    return saved(RIGHT, pnginfo=note)


GOOD = {
    "RGB": saved(RIGHT),
    "grey": saved(RIGHT.convert("L")),
    "with alpha": saved(RIGHT.convert("RGBA")),
    "animated": saved(RIGHT, save_all=True, append_images=[Image.new("RGB", (4, 2))]),
    "one pixel": saved(Image.new("RGB", (1, 1))),
    "a column": saved(Image.new("RGB", (1, 65535))),
    "a row": saved(Image.new("L", (65535, 1))),
    "more behind the end": saved(RIGHT) + b"PK\x03\x04" * 99,
}
BAD = {
    "13,000 a side": claimed(13_000, 13_000),
    "14,000 a side": claimed(14_000, 14_000),
    "60,000 a side": claimed(60_000, 60_000),
    "2^31 a side": claimed(2**31 - 1, 2**31 - 1),
    "a bomb of 89 million": claimed(9400, 9400),
    "just too large": claimed(2**13, 2**12 + 1),
    "no width": claimed(0, 2),
    "no height": claimed(2, 0),
    "0 x 0": claimed(0, 0),
    "lacks rows": claimed(4000, 4000),
    "truncated": saved(Image.effect_noise((64, 64), 50))[:-200],
    "a header alone": saved(RIGHT)[:33],
    "half a header": saved(RIGHT)[:20],
    "a flipped bit": saved(RIGHT).replace(b"IDATx", b"IDATy"),
    "empty": b"",
    "a text": b"list.txt",
    "16 bits": saved(Image.new("I;16", (4, 2), 40_000)),
    "palette": saved(RIGHT.convert("P")),
    "palette with alpha": saved(RIGHT.convert("P"), transparency=0),
    "one bit": saved(RIGHT.convert("1")),
    "grey with alpha": saved(RIGHT.convert("LA")),
    "a note of 100 MB": noted(10**8),
    "CMYK": saved(RIGHT.convert("CMYK"), "TIFF"),
    "JPEG": saved(RIGHT, "JPEG"),
    "GIF": saved(RIGHT.convert("P"), "GIF"),
    "unknown depth": claimed(4, 2, depth=3),
    "unknown colours": claimed(4, 2, colours=9),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
}
WORD = Image.new("RGB", (12, 8), "white")
WORD.paste("black", (2, 2, 9, 3))
# the same picture as somebody might give it
GIVEN = {
    **{mode: WORD.convert(mode) for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK")},
    "black on nothing": Image.composite(
        Image.new("RGBA", WORD.size, "black"),
        Image.new("RGBA", WORD.size, (0, 0, 0, 0)),
        WORD.convert("L").point([255] + [0] * 255),
    ),
    "a palette with a hole": Image.open(
        io.BytesIO(saved(WORD.quantize(2), transparency=WORD.quantize(2).getpixel((0, 0))))
    ),
    "upside down by EXIF": Image.open(io.BytesIO(saved(WORD.rotate(180), exif=turned(3)))),
    "on its side by EXIF": Image.open(
        io.BytesIO(saved(WORD.transpose(Image.Transpose.ROTATE_90), exif=turned(6)))
    ),
}
# files that people have, with the picture to be seen in each
FILES = {
    "JPEG": (saved(WORD, "JPEG", quality=100, subsampling=0), WORD),
    "a JPEG turned by EXIF": (saved(WORD.rotate(180), "JPEG", quality=100, exif=turned(3)), WORD),
    "WebP": (saved(WORD, "WEBP", lossless=True), WORD),
    "a WebP on nothing": (saved(GIVEN["black on nothing"], "WEBP", lossless=True), WORD),
    "palette": (saved(WORD.quantize(2)), WORD),
    "grey with alpha": (saved(WORD.convert("LA")), WORD),
}
NO_FILES = {
    **{name: BAD[name] for name in ("16 bits", "GIF", "CMYK", "a text", "empty", "just too large")},
    "half a JPEG": saved(Image.effect_noise((64, 64), 50), "JPEG")[:-200],
    "half a WebP": saved(Image.effect_noise((64, 64), 50), "WEBP")[:-200],
    "no picture": None,
}
REFUSED = {
    "16 bits": (Image.new("I;16", (12, 8), 40_000), "mode I;16; give a PIL image with 8 bits"),
    "32 bits": (Image.new("I", (12, 8)), "mode I;"),
    "floats": (Image.new("F", (12, 8)), "mode F;"),
    "empty": (Image.new("RGB", (0, 8)), "no pixels, 0 x 8"),
    "an array": (np.zeros((8, 12, 3), np.uint8), "ndarray;"),
    "a path": ("a.png", "str;"),
    "truncated": (Image.open(io.BytesIO(BAD["truncated"])), "give a whole one"),
    "too large": (Image.open(io.BytesIO(BAD["just too large"])), "shrink it"),
}
# the most memory this Python ever held, before and after, in kB
GREEDY = """
import resource, sys
from textpatch.errors import PatchError
from textpatch.pictures import open_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        open_picture(path)
    except PatchError:
        continue
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def require_seen(folder):
    """A file of any format is read as it would be shown on white paper."""
    for name, (data, seen) in FILES.items():
        (folder / "x").write_bytes(data)
        found = pictures.open_given(folder / "x")
        apart = np.asarray(found, int) - np.asarray(seen, int)
        assert found.mode == "RGB" and abs(apart).max() <= 3, name


def test_files_of_other_formats_are_opened(tmp_path):
    """JPEG and WebP, turned, transparent and with a palette."""
    require_seen(tmp_path)


def test_a_file_taken_as_it_is_stored_is_noticed(tmp_path, monkeypatch):
    """Fault: neither EXIF nor transparency counts."""
    plant(monkeypatch, pictures, "open_given", "as_rgb(file, str(path))", 'file.convert("RGB")')
    with pytest.raises(AssertionError):
        require_seen(tmp_path)


@pytest.mark.parametrize("name", NO_FILES)
def test_files_that_are_no_picture(tmp_path, name):
    """One line with the file's name, and no more memory than a picture may take."""
    if NO_FILES[name] is not None:
        (tmp_path / "x").write_bytes(NO_FILES[name])
    with pytest.raises(
        PatchError, match="x (cannot be read: .*; give|has .* shrink)|picture .*x: "
    ) as error:
        pictures.open_given(tmp_path / "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", GOOD)
def test_good_pictures_are_opened(tmp_path, name):
    """Each is the picture that was written, in RGB; of an animation the first frame."""
    (tmp_path / "x.png").write_bytes(GOOD[name])
    found, wanted = (
        open_picture(tmp_path / "x.png"),
        Image.open(io.BytesIO(GOOD[name])).convert("RGB"),
    )
    assert found.mode == "RGB" and found.tobytes() == wanted.tobytes()
    assert name != "RGB" or found.tobytes() == RIGHT.tobytes()


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_one_line(tmp_path, name):
    """Bombs, lies, damage, other formats and colours: an error that names the file and what was expected."""
    (tmp_path / "x.png").write_bytes(BAD[name])
    with pytest.raises(PatchError) as caught:
        open_picture(tmp_path / "x.png")
    told = str(caught.value)
    assert (
        str(tmp_path / "x.png") in told
        and "\n" not in told
        and ("expected" in told or "at most" in told)
    )


@pytest.mark.parametrize("place", ["gone.png", ".", "a\0b"])
def test_what_is_no_file_is_one_line(tmp_path, place):
    """A file that is gone, a folder, a name no file can have."""
    with pytest.raises(StoreError, match="expected a whole PNG file"):
        open_picture(tmp_path / place)


def test_no_bomb_takes_memory(tmp_path):
    """All of them one after the other in one process: never 300 MB more than before."""
    paths = [tmp_path / f"{i}.png" for i in range(len(BAD))]
    for path, data in zip(paths, BAD.values(), strict=True):
        path.write_bytes(data)
    largest = tmp_path / "largest.png"
    largest.write_bytes(saved(Image.new("RGBA", (2**13, MOST_PIXELS >> 13)), compress_level=1))
    told = subprocess.run(
        [sys.executable, "-c", GREEDY, *paths, largest], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) < 300


def test_scores_decode_no_bomb(tmp_path):
    """A picture that is only opened, not decoded, is refused by its header, by every score and by the
    reader.
    """
    (tmp_path / "x.png").write_bytes(claimed(9000, 9000))
    for work in (
        lambda x: metrics.mse(x, x),
        lambda x: metrics.ssim(x, x),
        lambda x: metrics.Tesseract().read([x]),
    ):
        with (
            Image.open(Path(tmp_path, "x.png")) as bomb,
            pytest.raises(PatchError, match="9000 x 9000 pixels; at most"),
        ):
            work(bomb)


def test_planted_a_reader_without_a_limit_is_noticed(tmp_path, monkeypatch):
    """Fault: no limit of pixels. The bombs that say what they are must then not be refused as such."""
    monkeypatch.setattr("textpatch.pictures.MOST_PIXELS", 2**40)
    with pytest.raises(AssertionError):
        (tmp_path / "x.png").write_bytes(BAD["just too large"])
        with pytest.raises(PatchError) as caught:
            open_picture(tmp_path / "x.png")
        assert "at most" in str(caught.value)


def seen(picture) -> list:
    """A picture as a reader, a stage II, the scores and a page see it, in grey levels 0..255."""
    tensor = (small_tensor([picture])[0].permute(1, 2, 0).numpy() + 1) * 127.5
    shown = base64.b64decode(html.picture(picture, "x").rpartition("base64,")[2].rstrip('">'))
    page = np.asarray(Image.open(io.BytesIO(shown)))
    return [np.asarray(ink.part_of(picture, None, 0)), tensor, rgb_pixels(picture), page]


@pytest.mark.parametrize("given", GIVEN)
def test_a_picture_is_seen_alike_however_it_is_given(given):
    """By all who look at it: transparent parts are white, and a turned camera is turned back."""
    for pixels in seen(GIVEN[given]):
        assert pixels.shape == (8, 12, 3)
        assert np.abs(pixels - np.asarray(WORD, np.float64)).max() < 1e-3
    sheets = [draw_gallery_sheet([picture], ["x"]) for picture in (GIVEN[given], WORD)]
    assert sheets[0].tobytes() == sheets[1].tobytes()


@pytest.mark.parametrize("given", REFUSED)
def test_a_picture_that_cannot_be_seen_is_refused(given):
    """By all, in one sentence that says what was found.  16 bits would be white, and floats black."""
    picture, says = REFUSED[given]
    with pytest.raises(OCRError, match=says):
        ink.part_of(picture, None, 0)
    looks = [small_tensor, lambda pictures: draw_gallery_sheet(pictures, ["x"])]
    if given != "a path":  # which a page shows by its name
        looks.append(lambda pictures: html.picture(*pictures, "x"))
    for look in looks:
        with pytest.raises(PatchError, match=says):
            look([picture])


@pytest.mark.parametrize(
    "old, new",
    [
        ("if image.has_transparency_data:", "if False:"),
        ("if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:", "if False:"),
        ('"white"', '"black"'),
    ],
)
def test_a_picture_seen_otherwise_is_noticed(old, new, monkeypatch):
    """Planted faults: transparency is dropped or black, a turned camera is not turned back."""
    plant(monkeypatch, pictures, "as_rgb", old, new)
    with pytest.raises(AssertionError):
        for given in GIVEN:
            test_a_picture_is_seen_alike_however_it_is_given(given)
