"""Archives that lie, climb, link, or come cut: one sentence each, and nothing is left."""

import errno
import io
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import py7zr
import pytest

from bench.errors import UserError
from data import unpack as module
from data.unpack import archive_in, unpack

NOISE = os.urandom(5000)
FILES = {"train/a.jpg": NOISE, "train/b.png": b"b" * 70, "empty": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def volumes(path: Path, files: dict[str, bytes], size: int = 2000) -> Path:
    """A 7z archive in several volumes; returns the first."""
    content = make_7z(path, files).read_bytes()
    path.unlink()
    for number in range(-(-len(content) // size)):
        piece = content[number * size : (number + 1) * size]
        path.with_name(f"{path.name}.{number + 1:03}").write_bytes(piece)
    return path.with_name(f"{path.name}.001")


def make_7z(path: Path, files: dict[str, bytes]) -> Path:
    with py7zr.SevenZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(content, name)
    return path


MAKERS = {
    "zip": lambda folder, files: make_zip(folder / "a.zip", files),
    "7z": lambda folder, files: make_7z(folder / "a.7z", files),
    "volumes": lambda folder, files: volumes(folder / "a.7z", files),
}


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    folder = tmp_path / "in"
    folder.mkdir()
    return lambda files: MAKERS[request.param](folder, files)


def test_what_goes_in_comes_out(make: Callable[[dict[str, bytes]], Path], tmp_path: Path) -> None:
    archive = make(FILES)
    assert module.is_archive(archive)
    (archive.parent / "a.7z.002.part").write_bytes(b"a part of a download")
    assert content(unpack(archive, tmp_path / "out")) == FILES
    chosen = unpack(archive, tmp_path / "out", wanted=lambda name: name.endswith(".png"))
    assert content(chosen) == {"train/b.png": b"b" * 70}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def refused(archive: Path, message: str, **more: Any) -> None:
    """Unpacking is refused in one sentence; what was there before stays, and nothing is added."""
    out = archive.parent.parent / "out"
    out.mkdir()
    (out / "before").touch()
    around = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as found:
        unpack(archive, out, **more)
    assert "\n" not in str(found.value)
    assert sorted(out.parent.rglob("*")) == around


def test_an_archive_that_is_cut(make: Callable[[dict[str, bytes]], Path]) -> None:
    archive = make(FILES)
    last = sorted(archive.parent.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-300])
    refused(archive, "is damaged, truncated or not an archive")


def test_bytes_that_are_turned(make: Callable[[dict[str, bytes]], Path]) -> None:
    archive = make(FILES)
    damaged = bytearray(archive.read_bytes())
    for place in range(100, 130):
        damaged[place] ^= 0xFF
    archive.write_bytes(damaged)
    refused(archive, "is damaged, truncated or not an archive")


@pytest.mark.parametrize("name", ["a.zip", "a.7z", "a.7z.001"])
def test_what_is_no_archive(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(b"<html>log in</html>" * 50)
    refused(folder / name, "is damaged, truncated or not an archive")


def test_a_directory_that_begins_before_the_file(tmp_path: Path) -> None:
    """The system refuses to go there (EINVAL)."""
    path = make_zip(tmp_path / "a.zip", FILES)
    packed = bytearray(path.read_bytes())
    end = packed.rindex(b"PK\x05\x06")  # where the directory begins, and how long it is
    at = int.from_bytes(packed[end + 16 : end + 20], "little")
    packed[end + 16 : end + 20] = (at + 3000).to_bytes(4, "little")
    path.write_bytes(packed)
    with pytest.raises(UserError, match="is damaged"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_longer_than_the_system_takes(
    make: Callable[[dict[str, bytes]], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is damaged, truncated or not an archive"):
        unpack(make({"a" * 300: b"x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_volume_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first = volumes(tmp_path / "in/a.7z", FILES)
    first.with_name("a.7z.002").unlink()
    refused(first, r"a\.7z\.002 is missing: download all volumes")


def test_a_last_volume_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first = volumes(tmp_path / "in/a.7z", FILES)
    sorted(first.parent.iterdir())[-1].unlink()
    refused(first, "is damaged, truncated")


CLIMBING = ["../climbed", "/climbed", "a/../../climbed", "C:/climbed", "..\\climbed", "a\nb"]


@pytest.mark.parametrize("name", CLIMBING)
def test_zip_members_that_climb_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    archive = make_zip(tmp_path / "in/a.zip", {"fine": b"x", name: b"y"})
    refused(archive, "outside its folder: do not use it")


@pytest.mark.parametrize("name", ["../up", "/rootabs", "a/../../up"])
def test_7z_members_that_climb_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(py7zr.py7zr, "check_archive_path", lambda _: True)
    archive = make_7z(tmp_path / "in/a.7z", {"fine": b"x", name: b"y"})
    refused(archive, "outside its folder|not an archive")


def test_zip_members_that_are_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    archive = make_zip(tmp_path / "in/a.zip", {})
    info = zipfile.ZipInfo("link")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(info, "/etc/passwd")
    refused(archive, "a member 'link' that is a link")


def test_7z_members_that_are_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    target = tmp_path / "in/target"
    target.write_bytes(b"x")
    (tmp_path / "in/link").symlink_to("target")
    with py7zr.SevenZipFile(tmp_path / "in/a.7z", "w") as archive:
        archive.write(tmp_path / "in/link", "link")
    refused(tmp_path / "in/a.7z", "a member 'link' that is a link")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/B.png", "a/b.png"), "are the same file on some systems"),
        (("é.png", "e\N{COMBINING ACUTE ACCENT}.png"), "are the same file on some systems"),
        (("a", "A/b"), "as a file and as a folder"),
    ],
)
def test_names_that_are_one_on_some_systems(
    make: Callable[[dict[str, bytes]], Path], names: tuple[str, str], message: str
) -> None:
    refused(make(dict.fromkeys(names, NOISE)), message)


def test_a_bomb_that_says_so(make: Callable[[dict[str, bytes]], Path]) -> None:
    archive = make({"a": bytes(3 * 2**20), "b": bytes(2**20)})
    refused(archive, r"holds 0\.0 GiB unpacked, more than", limit_bytes=4 * 2**20 - 1)


def test_a_zip_bomb_that_lies(tmp_path: Path) -> None:
    """4 MiB that are said to be 100 bytes, in the directory and beside the member."""
    (tmp_path / "in").mkdir()
    archive = make_zip(tmp_path / "in/a.zip", {"a": bytes(2**22)})
    lying = bytearray(archive.read_bytes())
    for place in (22, lying.index(b"PK\x01\x02") + 24):
        lying[place : place + 4] = (100).to_bytes(4, "little")
    archive.write_bytes(lying)
    refused(archive, "is damaged, truncated|larger than the archive says", limit_bytes=1000)


def test_a_7z_member_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    archive = make_7z(tmp_path / "in/a.7z", {"a": NOISE})
    size = py7zr.py7zr.ArchiveFile.uncompressed
    with monkeypatch.context() as patched:
        patched.setattr(
            py7zr.py7zr.ArchiveFile, "uncompressed", property(lambda self: size.fget(self) - 1)
        )
        refused(archive, "larger than the archive says|truncated")


def test_too_many_members(
    make: Callable[[dict[str, bytes]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make(FILES)
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    refused(archive, "has 3 members")


def test_a_disk_that_is_too_small(
    make: Callable[[dict[str, bytes]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make(FILES)
    usage = type("Usage", (), {"free": 5})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    refused(archive, "free some space")


def test_a_disk_that_fills(
    make: Callable[[dict[str, bytes]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make(FILES)
    opened = Path.open

    class Full(io.FileIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(self: Path, mode: str = "r", *rest: Any) -> Any:
        return Full(str(self), "w") if "w" in mode else opened(self, mode, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_full)
        with pytest.raises(OSError, match="No space left"):
            unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert content(unpack(archive, tmp_path / "out")) == FILES


def test_what_a_killed_run_left_does_not_matter(
    make: Callable[[dict[str, bytes]], Path], tmp_path: Path
) -> None:
    (tmp_path / ".out.unpacking/train").mkdir(parents=True)
    (tmp_path / ".out.unpacking/train/half.jpg").write_bytes(b"half")
    assert content(unpack(make(FILES), tmp_path / "out")) == FILES


def test_two_archives_leave_a_choice(tmp_path: Path) -> None:
    assert archive_in(tmp_path) is None
    (tmp_path / "a.zip").touch()
    (tmp_path / "notes.txt").touch()
    assert archive_in(tmp_path) == tmp_path / "a.zip"
    (tmp_path / "b.7z").touch()
    with pytest.raises(UserError, match="holds several archives"):
        archive_in(tmp_path)
