"""The downloader of data sets: it resumes, retries and checks, and complete files alone appear.

If the server supports ranges, a file is fetched in blocks, several in parallel; a file beside the
partial one lists the complete blocks, so that an interrupted download fetches only the others. Else
the file is fetched as one stream, and an interruption starts it again."""

import contextlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import urlsplit

import pydantic
import requests
from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from bench.errors import UserError
from bench.files import file_sha256, write_text

PIECE_BYTES = 2**16
"""What an interruption can lose of a block."""
Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]
"""Adds credentials to a request."""
HTML = (b"<!doctype html", b"<html")
REFUSALS = {
    401: "wants to know who asks",
    403: "refuses access",
    404: "is not there",
    416: "is shorter than it says",
}


@dataclass(frozen=True)
class Remote:
    """A file on a server, and what is known about it in advance."""

    url: str
    name: str
    """Local file name."""
    size_bytes: int | None = None
    sha256: str | None = None
    hint: str = "check the address"
    """Advice for the user if the server refuses."""
    silent: bool = False
    """Without a progress bar of its own."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Patience:
    """Request settings; the defaults suit public servers."""

    connections: Annotated[int, Field(ge=1)] = 4
    """Blocks in parallel, if the server supports ranges."""
    tries: Annotated[int, Field(ge=1)] = 6
    """Consecutive failures without any progress before giving up."""
    first_wait_s: float = 1.0
    """Before the second try; doubles with each further one. A wait that the server asks for takes
    precedence."""
    longest_wait_s: float = 120.0
    """Gives up if the server asks for more."""
    timeout_s: float = 60.0
    """Time without data after which a connection counts as broken."""
    block_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20


USUAL = Patience()


def workshop_of(raw: Path) -> Path:
    """The folder of partial files and downloaded archives: beside the folder of a data set's raw
    files, so that the pipeline does not see them as outputs."""
    return raw.parent / f".{raw.name}.partial"


@contextlib.contextmanager
def alone(raw: Path) -> Iterator[None]:
    """Lock a data set's raw files: a second process waits until the first has ended. A killed process
    holds no lock."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(raw.parent / f".{raw.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"another run is fetching {raw.name}; waiting for it", flush=True)
        held = lock.acquire()
    with held:
        yield


def fetch(
    remote: Remote,
    folder: Path,
    workshop: Path,
    patience: Patience = USUAL,
    auth: Auth | None = None,
) -> Path:
    """Fetch a file into `folder`; one of the known size and SHA-256 is kept.

    Args:
        workshop: folder of the partial file, on the same disk.
        auth: sent to the server of `remote.url` only, not after a redirect.

    Raises:
        UserError: the server refuses, cannot be reached, keeps failing, or sends an unexpected file.
            Complete blocks are kept, unless they belong to another version.
        OSError: the disk is full; complete blocks are kept.
    """
    target = folder / remote.name
    if target.exists() and not _differs(target, remote):
        print(f"{target} is there and right", flush=True)
        return target
    for needed in (folder, workshop):
        needed.mkdir(parents=True, exist_ok=True)
    part = workshop / f"{remote.name}.part"
    _Download(remote, part, patience, auth).run()
    differing = _differs(part, remote)
    with part.open("rb") as file:
        if file.read(64).lstrip().lower().startswith(HTML):
            differing = "is a web page"
    if differing:
        part.unlink()
        raise UserError(
            f"{remote.name} from {shown(remote.url)} {differing}: nothing was kept; {remote.hint}."
        )
    part.replace(target)
    return target


def shown(url: str) -> str:
    """An address for messages: without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _differs(path: Path, remote: Remote) -> str:
    """How a file differs from the expected one; empty if it does not."""
    size = path.stat().st_size
    if remote.size_bytes is not None and size != remote.size_bytes:
        return f"has {size} bytes where {remote.size_bytes} are expected"
    if remote.sha256 is not None and (found := file_sha256(path)) != remote.sha256:
        return f"has SHA-256 {found} where {remote.sha256} is expected"
    return ""


class _Again(Exception):
    """A failure that is worth another try."""

    def __init__(self, what: str, wait_s: float | None = None, moved: bool = False) -> None:
        super().__init__(what)
        self.wait_s, self.moved = wait_s, moved


class _Changed(Exception):
    """The server's file is no longer the one whose blocks were fetched."""


@dataclass
class _Download:
    """The download of one file into `part`."""

    remote: Remote
    part: Path
    patience: Patience
    auth: Auth | None
    total: int = 0
    validator: str | None = None
    done: set[int] = field(default_factory=set)
    """Numbers of the complete blocks."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Tells the other workers that one has failed."""
    guard: threading.Lock = field(default_factory=threading.Lock)
    bar: Any = None

    @property
    def state(self) -> Path:
        return self.part.with_name(f"{self.part.name}.json")

    def run(self) -> None:
        """Download until the part has the length that the server states."""
        for _ in range(self.patience.tries):
            try:
                return self._once()
            except _Changed:
                self._forget()
        raise UserError(
            f"{shown(self.remote.url)} changes while it is fetched: nothing was kept; try it later."
        )

    def _once(self) -> None:
        self.validator, self.stop = None, threading.Event()
        # A request of one byte shows the length, the version, and whether ranges are supported.
        with self._session() as session, self._patiently(lambda: self._ask(session, 0, 0)) as one:
            if one.status_code == 200:
                self._forget()
                given = [one]
                self._patiently(lambda: self._stream(given.pop() if given else self._ask(session)))
                return
            _, self.total = _content_range(one)
            if self.total < 1:
                raise self._refused("does not say how long the file is")
            self.validator = _validator(one)
        self._recall()
        self._check_length(self.total - self._done_bytes())
        if not self.part.exists():
            with self.part.open("wb") as file:
                file.truncate(self.total)
        blocks = -(-self.total // self.patience.block_bytes)
        missing = iter(sorted(set(range(blocks)) - self.done))
        workers = min(self.patience.connections, blocks)
        with self._bar(self._done_bytes()) as self.bar, ThreadPoolExecutor(workers) as pool:
            try:
                running = [pool.submit(self._work, missing) for _ in range(workers)]
                for ended in as_completed(running):
                    ended.result()
            finally:
                self.stop.set()
        self.state.unlink(missing_ok=True)

    def _work(self, missing: Iterator[int]) -> None:
        """Fetch one missing block after another, in parallel with other workers."""
        with self._session() as session, self.part.open("r+b") as file:
            while not self.stop.is_set():
                with self.guard:
                    block = next(missing, None)
                if block is None:
                    return
                self._block(session, file, block)

    def _block(self, session: requests.Session, file: BinaryIO, block: int) -> None:
        begin = block * self.patience.block_bytes
        end = min(begin + self.patience.block_bytes, self.total)

        def attempt() -> None:
            at = file.tell()
            with self._ask(session, at, end - 1) as response:
                if response.status_code != 206 or _content_range(response) != (at, self.total):
                    raise _Changed
                self._save(response, file, end)

        file.seek(begin)
        self._patiently(attempt)
        file.flush()
        if file.tell() == end:  # not stopped
            with self.guard:
                self.done.add(block)
                write_text(self.state, json.dumps({**self._version(), "done": sorted(self.done)}))

    def _stream(self, response: requests.Response) -> None:
        """The whole file in one response."""
        with response:
            length = response.headers.get("Content-Length", "")
            self.total = int(length) if length.isdigit() else 0
            self._check_length(self.total)
            with self._bar() as self.bar, self.part.open("wb") as file:
                self._save(response, file)

    def _save(self, response: requests.Response, file: BinaryIO, end: int | None = None) -> None:
        """Write a response's body at the file's position; without `end` it cannot be resumed."""
        begun = file.tell()
        failure = "breaks off"
        try:
            for piece in response.iter_content(PIECE_BYTES):
                file.write(piece if end is None else piece[: end - file.tell()])
                with self.guard:
                    self.bar.update(len(piece))
                if self.stop.is_set():
                    break
        except requests.RequestException as error:
            failure = _broken(error)
        else:
            if end in (None, file.tell()):
                return
        raise _Again(failure, moved=end is not None and file.tell() > begun)

    def _ask(self, session: requests.Session, *range: int) -> requests.Response:
        """A response with status 200 or 206, whose body is not yet read.

        Args:
            range: first and last byte; nothing for the whole file.
        """
        headers = {"Accept-Encoding": "identity"}
        if range:
            headers["Range"] = "bytes={}-{}".format(*range)
            if self.validator:
                headers["If-Range"] = self.validator
        wait = self.patience.timeout_s
        try:
            response = session.get(self.remote.url, headers=headers, stream=True, timeout=wait)
        except requests.exceptions.SSLError:
            raise self._refused("cannot prove who it is (its certificate)") from None
        except (requests.Timeout, requests.ConnectionError) as error:
            raise _Again(_broken(error)) from None
        except requests.RequestException as error:
            raise self._refused(f"cannot be fetched from ({type(error).__name__})") from None
        status = response.status_code
        kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if status in (200, 206) and kind != "text/html":
            return response
        response.close()
        if status in (200, 206):
            raise self._refused(f"sends a web page where {self.remote.name} is due")
        if status in (408, 429) or status >= 500:
            raise _Again(f"answers {status}", _retry_after(response))
        raise self._refused(f"{REFUSALS.get(status, 'refuses')} (HTTP status {status})")

    def _patiently(self, attempt: Callable[[], Any]) -> Any:
        failures = 0
        while True:
            try:
                return attempt()
            except _Again as again:
                failures = 1 if again.moved else failures + 1
                longest_s, wait_s = self.patience.longest_wait_s, again.wait_s
                if wait_s is None:
                    wait_s = min(self.patience.first_wait_s * 2 ** (failures - 1), longest_s)
                if wait_s > longest_s:
                    what = f"{again} and asks to wait {wait_s:.0f} s"
                    raise self._refused(what, "run it again then") from None
                if failures >= self.patience.tries:
                    raise self._refused(
                        f"{again}, {failures} times in a row",
                        "check the network and run it again; it goes on with what has come",
                    ) from None
                if self.stop.wait(wait_s):
                    return None

    def _refused(self, what: str, hint: str | None = None) -> UserError:
        return UserError(f"{shown(self.remote.url)} {what}: {hint or self.remote.hint}.")

    def _check_length(self, missing_bytes: int) -> None:
        expected = self.remote.size_bytes
        if expected is not None and self.total and self.total != expected:
            raise self._refused(f"offers {self.total} bytes where {expected} are expected")
        free = shutil.disk_usage(self.part.parent).free
        if missing_bytes > free:
            raise UserError(
                f"{self.remote.name} needs {missing_bytes / 2**30:.1f} GiB more, but "
                f"{self.part.parent} has {free / 2**30:.1f} GiB free: free some space."
            )

    def _version(self) -> dict[str, Any]:
        """What complete blocks belong to."""
        block_bytes = self.patience.block_bytes
        return {"total": self.total, "validator": self.validator, "block_bytes": block_bytes}

    def _recall(self) -> None:
        """Resume with the blocks of an earlier start, if they are of the same file."""
        self.done = set()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(self.state.read_text())
            done = set(known.pop("done"))
            if known == self._version() and self.part.stat().st_size == self.total:
                self.done = done
        if not self.done:
            self._forget()

    def _forget(self) -> None:
        self.done = set()
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def _done_bytes(self) -> int:
        size = self.patience.block_bytes
        return sum(min(size, self.total - block * size) for block in self.done)

    def _session(self) -> requests.Session:
        session = requests.Session()
        session.auth = self.auth
        return session

    def _bar(self, done: int = 0) -> "tqdm[Any]":
        """A progress bar; in a log, where it cannot be redrawn, a line every 15 s."""
        rate: Any = {"unit": "B", "unit_scale": True, "disable": self.remote.silent}
        if not sys.stderr.isatty():
            rate |= {"mininterval": 15, "maxinterval": 15}
        return tqdm(total=self.total or None, initial=done, desc=self.remote.name, **rate)


def _content_range(response: requests.Response) -> tuple[int, int]:
    """First byte and total of a partial answer."""
    header = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", header)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def _validator(response: requests.Response) -> str | None:
    """The validator of this version for later requests (RFC 9110: strong ones only)."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait, given as a number or as a date."""
    try:
        return Retry().get_retry_after(response.raw)
    except InvalidHeader:
        return None


def _broken(error: requests.RequestException) -> str:
    # The error's text may hold the address with its query, so that only its kind is reported.
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return "does not answer"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "breaks off"
    return f"cannot be reached ({type(error).__name__})"
