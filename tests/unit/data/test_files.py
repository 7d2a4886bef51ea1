"""The image files that rows name: nothing outside the source is read, and nothing blocks."""

import os
import unicodedata
from pathlib import Path

import pytest

from hardcase.data.files import BadPath, LocalFiles, open_source
from hardcase.data.images import MAX_BYTES
from hardcase.data.quarantine import Reason


@pytest.fixture
def source(tmp_path: Path) -> LocalFiles:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return LocalFiles(folder)


def refused(source: LocalFiles, path: str) -> Reason:
    with pytest.raises(BadPath) as caught:
        source.read(path)
    return caught.value.reason


def test_links_that_stay_inside_are_followed(source: LocalFiles) -> None:
    (source.folder / "b.png").symlink_to("deep/a.png")
    (source.folder / "c").symlink_to("deep")
    assert source.read("deep/a.png") == source.read("b.png") == source.read("c/a.png") == b"picture"


def test_a_source_that_is_itself_a_link_is_a_source(source: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source.folder)
    (source.folder / "manifest.jsonl").touch()
    _, files = open_source(str(tmp_path / "link"), tmp_path)
    assert files.read("deep/a.png") == b"picture"


def test_nothing_outside_is_read(source: LocalFiles, tmp_path: Path) -> None:
    (source.folder / "file.png").symlink_to("../secret.png")
    (source.folder / "absolute.png").symlink_to(tmp_path / "secret.png")
    (source.folder / "up").symlink_to("..")
    (source.folder / "again.png").symlink_to("up/secret.png")
    (tmp_path / "source-other").mkdir()
    (tmp_path / "source-other" / "x.png").touch()
    (source.folder / "sibling.png").symlink_to("../source-other/x.png")
    for path in ("file.png", "absolute.png", "up/secret.png", "again.png", "sibling.png"):
        assert refused(source, path) == Reason.OUTSIDE_SOURCE


def test_pipes_and_folders_are_refused_without_blocking(source: LocalFiles) -> None:
    os.mkfifo(source.folder / "pipe.png")
    (source.folder / "dangling.png").symlink_to("nowhere.png")
    (source.folder / "loop.png").symlink_to("loop.png")
    assert refused(source, "pipe.png") == refused(source, "deep") == refused(source, ".") == Reason.NOT_REGULAR
    assert refused(source, "dangling.png") == refused(source, "deep/a.png/b") == Reason.MISSING_FILE
    assert refused(source, "absent.png") == Reason.MISSING_FILE
    assert refused(source, "loop.png") == refused(source, "x" * 300) == Reason.BAD_PATH


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_form_of_unicode_is_found_in_the_message(source: LocalFiles, form: str, other: str) -> None:
    (source.folder / unicodedata.normalize(form, "grün.png")).touch()  # type: ignore[arg-type]
    with pytest.raises(BadPath) as caught:
        source.read(unicodedata.normalize(other, "grün.png"))  # type: ignore[arg-type]
    assert caught.value.reason == Reason.MISSING_FILE
    spelled = {"NFC": r"gr\xfcn.png", "NFD": r"gru\u0308n.png"}
    assert caught.value.detail.startswith(f"{spelled[other]}: the file's name is spelled {spelled[form]} ({form})")


def test_a_file_too_large_is_refused_unread(source: LocalFiles) -> None:
    with (source.folder / "large.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert refused(source, "large.png") == Reason.TOO_MANY_BYTES
