"""A run's pictures are held to their names, and a record without them is not finished."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from support.planting import plant
from textpatch.errors import StoreError
from textpatch.runs import kept_pictures
from textpatch.runs.folder import Run


def new_run(folder: Path) -> tuple[Run, str]:
    """A run folder with one record of one red picture, and the picture's name."""
    run = Run.open(folder, {"request": {}})
    name = run.image(Image.new("RGB", (5, 4), "red"))
    run.append({"id": "a", "pictures": {"source": {"image": name, "read": "images/x"}}})
    return run, name


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def another(path: Path) -> None:
    Image.new("RGB", (5, 4), "blue").save(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_picture_is_held_to_its_name(tmp_path):
    """It is read as it was stored; a name of another form is refused, wherever it leads."""
    run, name = new_run(tmp_path / "run")
    assert run.picture(name).tobytes() == Image.new("RGB", (5, 4), "red").tobytes()
    Image.new("RGB", (5, 4), "red").save(tmp_path / "outside.png")
    for wrong in ("../outside.png", "images/../../outside.png", "/outside.png", None, 3):
        with pytest.raises(StoreError, match="names the picture"):
            run.picture(wrong)


@pytest.mark.parametrize("damage", [gone, cut, another])
def test_a_record_without_its_picture_is_not_finished(damage, tmp_path):
    """The record is there and not finished; the picture stored again makes it whole."""
    run, name = new_run(tmp_path / "run")
    assert [record["id"] for record in run.finished()] == ["a"]
    damage(tmp_path / "run" / name)
    assert run.finished() == [] and len(run.records()) == 1
    with pytest.raises(StoreError):
        run.picture(name)
    assert run.image(Image.new("RGB", (5, 4), "red")) == name
    assert len(run.finished()) == 1


def test_the_first_whole_record_counts(tmp_path):
    """Of two records of one id, the first of which has lost its picture, the second is the finished one."""
    run, name = new_run(tmp_path / "run")
    other = run.image(Image.new("RGB", (5, 4), "green"))
    run.append({"id": "a", "pictures": [{"image": other}]})
    gone(tmp_path / "run" / name)
    assert run.finished() == [{"id": "a", "pictures": [{"image": other}]}]


def test_a_second_name_is_the_same_picture(tmp_path):
    """A name for people has the picture's bytes, also where another file had that name."""
    run, name = new_run(tmp_path / "run")
    (tmp_path / "run/pictures").mkdir()
    (tmp_path / "run/pictures/seed-0001.png").write_bytes(b"old")
    for _ in range(2):
        run.also_named(name, "pictures/seed-0001.png")
        kept = (tmp_path / "run/pictures/seed-0001.png").read_bytes()
        assert kept == (tmp_path / "run" / name).read_bytes()


def test_a_folder_that_is_deleted_is_not_begun_anew(tmp_path):
    """Nothing is written into a run folder that somebody deleted; the message says so."""
    run, _ = new_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    for write in (
        lambda: run.append({"id": "b"}),
        lambda: run.image(Image.new("RGB", (2, 2))),
        lambda: run.write_text("results.json", "{}"),
    ):
        with pytest.raises(StoreError, match="was deleted while the run went on"):
            write()
    assert not (tmp_path / "run").exists()


def test_planted_pictures_unheld_are_noticed(tmp_path, monkeypatch):
    """Fault: any whole picture passes for the one that its name says."""
    plant(monkeypatch, kept_pictures, "kept_picture", "name_of(picture) != name", "False")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_a_record_without_its_picture_is_not_finished(another, tmp_path)
