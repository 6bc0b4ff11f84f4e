"""Pictures somebody else wrote: a right result or one line, and memory for neither bombs nor lies."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from textpatch import metrics
from textpatch.errors import PatchError, StoreError
from textpatch.pictures import MOST_PIXELS, open_picture

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
