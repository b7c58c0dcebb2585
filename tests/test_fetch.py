"""The downloader against a real server on loopback that fails in every way a server can."""

import errno
import hashlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from file_server import CONTENT, Server, answer
from requests.auth import HTTPBasicAuth

from bench.errors import UserError
from data import fetch as module
from data.fetch import DownloadOptions, Remote, fetch, locked, partial_folder, redacted

QUICK = DownloadOptions(
    connections=3, tries=3, first_wait_s=0.01, longest_wait_s=2, block_bytes=1000
)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def get(server: Server, raw: Path, options: DownloadOptions = QUICK, **known: Any) -> bytes:
    return fetch(server.remote(**known), raw, partial_folder(raw), options).read_bytes()


def left(raw: Path) -> list[str]:
    """Names in the folder of raw files and in the folder of partial files."""
    folders = [folder for folder in (raw, partial_folder(raw)) if folder.exists()]
    return sorted(path.name for folder in folders for path in folder.iterdir())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_comes_whole_and_once(server: Server, raw: Path, ranges: bool) -> None:
    server.ranges = ranges
    assert get(server, raw, size_bytes=len(CONTENT), sha256=SHA256) == CONTENT
    asked = len(server.asked)
    assert asked == (12 if ranges else 1)  # the probe and eleven blocks
    assert get(server, raw, size_bytes=len(CONTENT), sha256=SHA256) == CONTENT
    assert len(server.asked) == asked
    assert left(raw) == ["a.bin"]


def test_blocks_come_several_at_once(server: Server, raw: Path) -> None:
    together = threading.Barrier(3, timeout=5)

    def wait_for_others(handler: Any) -> bool:
        if handler.headers["Range"] != "bytes=0-0":
            together.wait()
        return False

    server.faults = [wait_for_others] * 4
    assert get(server, raw) == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_cuts_in_the_middle(
    server: Server, raw: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    server.ranges = ranges
    server.faults = [server.cut(700)] * 2
    assert get(server, raw, sha256=SHA256) == CONTENT
    if ranges:  # the rest of a block alone is asked for again
        assert any(int(span[6:].split("-")[0]) % 1000 == 700 for _, span in server.asked)


def test_a_later_start_asks_for_what_is_missing_alone(server: Server, raw: Path) -> None:
    server.always = lambda handler: (
        answer(403)(handler) if handler.headers["Range"].startswith("bytes=5000") else False
    )
    with pytest.raises(UserError, match="refuses access"):
        get(server, raw)
    assert not raw.joinpath("a.bin").exists()
    state = json.loads((partial_folder(raw) / "a.bin.part.json").read_text())
    assert state["done"]
    server.always = None
    server.asked.clear()
    assert get(server, raw, sha256=SHA256) == CONTENT
    spans = [span for _, span in server.asked]
    assert not any(
        f"bytes={1000 * block}-" in span for block in state["done"] for span in spans[1:]
    )
    assert left(raw) == ["a.bin"]


def test_a_killed_process_loses_what_it_was_at_alone(server: Server, raw: Path) -> None:
    hold = threading.Event()

    def wait_at_the_sixth(handler: Any) -> bool:
        if handler.headers["Range"].startswith("bytes=5000"):
            hold.wait(20)
        return False

    server.always = wait_at_the_sixth
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from pathlib import Path; from data.fetch import *\n"
        "one = DownloadOptions(connections=1, block_bytes=1000)\n"
        f"raw = Path({str(raw)!r})\n"
        f"fetch(Remote({server.url!r} + '/a.bin', 'a.bin'), raw, partial_folder(raw), one)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 20
        while len(server.asked) < 7 and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    hold.set()
    assert left(raw) == ["a.bin.part", "a.bin.part.json"]
    server.asked.clear()
    one = DownloadOptions(connections=1, block_bytes=1000)
    assert get(server, raw, one, sha256=SHA256) == CONTENT
    assert [span for _, span in server.asked][:2] == ["bytes=0-0", "bytes=5000-5999"]


@pytest.mark.parametrize("change", ["etag", "length", "no ranges"])
def test_parts_of_another_version_are_not_mixed(server: Server, raw: Path, change: str) -> None:
    server.always = lambda handler: (
        answer(403)(handler) if handler.headers["Range"].startswith("bytes=5000") else False
    )
    with pytest.raises(UserError):
        get(server, raw)
    server.always = None
    server.content = bytes(reversed(CONTENT)) + (b"more" if change == "length" else b"")
    server.etag = '"one"' if change == "length" else '"two"'
    server.ranges = change != "no ranges"
    assert get(server, raw) == server.content


def test_a_file_that_changes_while_it_comes(server: Server, raw: Path) -> None:
    def change(handler: Any) -> bool:
        if handler.headers["Range"].startswith("bytes=5000"):
            server.content, server.etag = bytes(reversed(CONTENT)), '"two"'
            server.always = None
        return False

    server.always = change
    assert get(server, raw) == bytes(reversed(CONTENT))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, raw: Path, status: int) -> None:
    server.faults = [answer(status), answer(status)]
    assert get(server, raw) == CONTENT


def test_retry_after_is_kept_to(server: Server, raw: Path) -> None:
    server.faults = [answer(429, Retry_After="1")]
    begun = time.monotonic()
    assert get(server, raw) == CONTENT
    assert time.monotonic() - begun >= 1
    assert len(server.asked) == 13


WRONG: dict[str, tuple[Callable[[Any], bool], str]] = {
    "403": (answer(403), r"/a.bin refuses access \(HTTP status 403\): check the address"),
    "404": (answer(404), r"does not exist \(HTTP status 404\)"),
    "429": (answer(429), "answers 429, 3 times in a row: .* complete blocks are kept"),
    "429 for long": (answer(429, Retry_After="900"), "answers 429 and asks to wait 900 s"),
    "500": (answer(500), "answers 500, 3 times in a row"),
    "html": (
        answer(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8"),
        "is a web page, not a.bin",
    ),
    "other bytes": (answer(200, b"x" * len(CONTENT)), "has SHA-256 .* where .* is expected"),
    "too short": (answer(200, CONTENT[:99]), f"has 99 bytes where {len(CONTENT)} are expected"),
    "longer than said": (
        answer(200, CONTENT + b"more", Content_Length=str(len(CONTENT) - 5)),
        "bytes where 10240 are expected",
    ),
    "shorter than said": (
        answer(200, CONTENT[:-5], Content_Length=str(len(CONTENT))),
        "breaks off, 3 times in a row",
    ),
    "no length, too short": (
        lambda handler: bool(handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT[:-5])),
        "has 10235 bytes where 10240 are expected: it was deleted",
    ),
    "length of ranges": (
        answer(206, b"x", Content_Range="bytes 0-0/999999999"),
        "has 999999999 bytes where 10240 are expected",
    ),
    "no total": (answer(206, b"x", Content_Range="bytes 0-0/*"), "does not say how long"),
    "no http": (lambda h: bool(h.wfile.write(b"what?\r\n\r\n")), r"cannot be reached \(Conn"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_one_sentence(server: Server, raw: Path, name: str) -> None:
    server.always, message = WRONG[name]
    with pytest.raises(UserError, match=message) as refused:
        get(server, raw, size_bytes=len(CONTENT), sha256=SHA256)
    assert "\n" not in str(refused.value)
    assert "a.bin" not in left(raw)
    server.always = None
    assert get(server, raw, size_bytes=len(CONTENT), sha256=SHA256) == CONTENT
    assert left(raw) == ["a.bin"]


def test_a_web_page_in_disguise(server: Server, raw: Path) -> None:
    page = b" <!DOCTYPE html><html>log in</html>"
    server.always = answer(200, page, Content_Type="application/zip")
    with pytest.raises(UserError, match="is a web page: it was deleted; check the address"):
        get(server, raw)
    assert left(raw) == []


def test_ranges_that_lie_about_the_total(server: Server, raw: Path) -> None:
    def lie(handler: Any) -> bool:
        status, _, headers = server.body(handler)
        if status == 206:
            server.serve(
                handler, Content_Range=headers["Content-Range"].replace("/10240", "/12240")
            )
        return status == 206

    server.always = lie
    with pytest.raises(UserError, match=r"is shorter than the server said|breaks off"):
        get(server, raw)
    assert "a.bin" not in left(raw)


def test_a_server_that_hangs(server: Server, raw: Path) -> None:
    def hang(handler: Any) -> bool:
        time.sleep(1)
        return True

    server.always = hang
    options = DownloadOptions(tries=2, first_wait_s=0.01, timeout_s=0.1)
    with pytest.raises(UserError, match="does not answer, 2 times in a row"):
        get(server, raw, options)


def test_a_server_that_hangs_in_the_middle(server: Server, raw: Path) -> None:
    def hang(handler: Any) -> bool:
        if handler.headers["Range"] == "bytes=0-0":
            return False
        handler.send_response(206)
        handler.send_header("Content-Length", "1000")
        handler.send_header("Content-Range", f"{handler.headers['Range'].replace('=', ' ')}/10240")
        handler.end_headers()
        handler.wfile.flush()
        time.sleep(1)
        return True

    server.always = hang
    options = DownloadOptions(tries=2, first_wait_s=0.01, timeout_s=0.1, block_bytes=1000)
    with pytest.raises(UserError, match="does not answer, 2 times in a row"):
        get(server, raw, options)


def test_a_server_that_cannot_prove_who_it_is(server: Server, raw: Path) -> None:
    url = server.url.replace("http:", "https:")
    with pytest.raises(UserError, match=r"has no valid certificate: check"):
        fetch(Remote(f"{url}/a.bin", "a.bin"), raw, partial_folder(raw), QUICK)


def test_nobody_there(server: Server, raw: Path) -> None:
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(
        UserError, match=r"cannot be reached .* 3 times in a row: check the network"
    ):
        get(server, raw)
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(Remote("nonsense://", "a"), raw, partial_folder(raw), QUICK)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_disk_that_fills(
    server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    server.ranges = ranges
    opened = Path.open

    class Full(io.FileIO):
        def write(self, piece: Any) -> int:
            if self.tell() > 5000 or len(piece) > 5000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(piece)

    def open_full(self: Path, mode: str = "r", *rest: Any) -> Any:
        if self.name == "a.bin.part" and mode in ("wb", "r+b"):
            return Full(str(self), "r+" if mode == "r+b" else "w")
        return opened(self, mode, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_full)
        with pytest.raises(OSError, match="No space left"):
            get(server, raw)
    assert not (raw / "a.bin").exists()
    assert get(server, raw, sha256=SHA256) == CONTENT


def test_a_disk_that_is_too_small_is_seen_before(
    server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"needs 0\.0 GiB more, but .* free some space"):
        get(server, raw)
    assert left(raw) == []


def test_credentials_stay_with_their_server(server: Server, raw: Path, capfd: Any) -> None:
    other = Server()
    try:
        server.always = lambda handler: answer(302, Location=f"{other.url}/a.bin?sign=s3cret")(
            handler
        )
        auth = HTTPBasicAuth("me", "s3cret")
        assert fetch(server.remote(), raw, partial_folder(raw), QUICK, auth).read_bytes() == CONTENT
        assert all(server.authorization)
        assert not any(other.authorization)
        other.always = answer(403)
        (raw / "a.bin").unlink()
        with pytest.raises(UserError) as refused:
            fetch(server.remote(), raw, partial_folder(raw), QUICK, auth)
    finally:
        other.server.shutdown()
        other.server.server_close()
    assert "s3cret" not in str(refused.value) + "".join(capfd.readouterr())
    assert redacted("https://me:s3cret@h.org:8/a?k=s3cret#f") == "https://h.org:8/a"


def test_two_runs_do_not_fight(server: Server, raw: Path) -> None:
    """The second process waits until the first lets go, and is not kept out by a killed one."""
    script = (
        f"import sys, time; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from pathlib import Path; from data.fetch import locked\n"
        f"with locked(Path({str(raw)!r})):\n    print('in', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"in\n"
        got: list[bytes] = []

        def second() -> None:
            with locked(raw):
                got.append(get(server, raw))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        assert not got
        assert not server.asked
        process.kill()
        thread.join(10)
    assert got == [CONTENT]
