"""Downloads files: resumes, retries, and checks size and SHA-256; only complete files appear.

If the server supports range requests, a file is fetched in blocks, several in parallel. A JSON file
beside the partial file lists the complete blocks, so that an interrupted download resumes. Otherwise
the file is fetched as one stream, which an interruption restarts."""

import contextlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar
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

T = TypeVar("T")
CHUNK_BYTES = 2**16
"""An interruption loses at most so much of a block."""
Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]
"""Adds credentials to a request."""
HTML = (b"<!doctype html", b"<html")
CLIENT_ERRORS = {
    401: "requires a login",
    403: "refuses access",
    404: "does not exist",
    416: "is shorter than the server said",
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
    """Show no progress bar."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DownloadOptions:
    """Connections, retries and timeouts; the defaults suit public servers."""

    connections: Annotated[int, Field(ge=1)] = 4
    """Blocks fetched in parallel, if the server supports range requests."""
    tries: Annotated[int, Field(ge=1)] = 6
    """Attempts in a row without progress after which the download fails."""
    first_wait_s: float = 1.0
    """Wait before the first retry; it doubles with each further one. A Retry-After header of the
    server takes precedence."""
    longest_wait_s: float = 120.0
    """Longest wait; the download fails if the server asks for more."""
    timeout_s: float = 60.0
    """Seconds without data after which a connection counts as broken."""
    block_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20


DEFAULTS = DownloadOptions()


def partial_folder(raw: Path) -> Path:
    """The folder of partial files and downloaded archives. It lies beside the folder of a data set's
    raw files, so that DVC does not take its files for outputs."""
    return raw.parent / f".{raw.name}.partial"


@contextlib.contextmanager
def locked(raw: Path) -> Iterator[None]:
    """Lock a data set's raw files. A second process waits until the first has ended; a killed process
    holds no lock."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(raw.parent / f".{raw.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"another process is downloading {raw.name}; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch(
    remote: Remote,
    folder: Path,
    partial: Path,
    options: DownloadOptions = DEFAULTS,
    auth: Auth | None = None,
) -> Path:
    """Download a file into `folder`, unless it is there with the expected size and SHA-256.

    Args:
        partial: folder of the partial file, on the same disk.
        auth: sent to the server of `remote.url` only, not after a redirect.

    Raises:
        UserError: the server refuses, cannot be reached, keeps failing, or sends an unexpected file.
            Complete blocks are kept, unless they belong to another version of the file.
        OSError: the disk is full; complete blocks are kept.
    """
    target = folder / remote.name
    if target.exists() and not _mismatch(target, remote):
        print(f"{target} is up to date", flush=True)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial.mkdir(parents=True, exist_ok=True)
    part = partial / f"{remote.name}.part"
    with requests.Session() as session:
        session.auth = auth
        _Download(remote, part, options, session).run()
    problem = _mismatch(part, remote)
    with part.open("rb") as file:
        if file.read(64).lstrip().lower().startswith(HTML):
            problem = "is a web page"
    if problem:
        part.unlink()
        raise UserError(
            f"{remote.name} from {redacted(remote.url)} {problem}: it was deleted; {remote.hint}."
        )
    part.replace(target)
    return target


def redacted(url: str) -> str:
    """A URL for messages: without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _mismatch(path: Path, remote: Remote) -> str:
    """How a file differs from the expected one; empty if it does not."""
    size = path.stat().st_size
    if remote.size_bytes is not None and size != remote.size_bytes:
        return f"has {size} bytes where {remote.size_bytes} are expected"
    if remote.sha256 is not None and (found := file_sha256(path)) != remote.sha256:
        return f"has SHA-256 {found} where {remote.sha256} is expected"
    return ""


class _Retryable(Exception):
    """A failure that another attempt may not have."""

    def __init__(self, reason: str, wait_s: float | None = None, progressed: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.progressed = wait_s, progressed


class _FileChanged(Exception):
    """The file on the server is no longer the one whose blocks were fetched."""


@dataclass
class _Download:
    """The download of one file into `part`."""

    remote: Remote
    part: Path
    options: DownloadOptions
    session: requests.Session
    total: int = 0
    """Bytes of the file, as the server says."""
    validator: str | None = None
    """ETag or date of the version whose blocks are fetched."""
    done: set[int] = field(default_factory=set)
    """Numbers of the complete blocks."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Tells the other threads that one has failed."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    bar: Any = None

    @property
    def state(self) -> Path:
        """The file that lists the complete blocks."""
        return self.part.with_name(f"{self.part.name}.json")

    def run(self) -> None:
        """Download until `part` has the length that the server states."""
        for _ in range(self.options.tries):
            try:
                return self._run_once()
            except _FileChanged:
                self._discard()
        raise UserError(
            f"{redacted(self.remote.url)} changes during the download: it was deleted; try later."
        )

    def _run_once(self) -> None:
        self.validator, self.stop = None, threading.Event()
        # A request of one byte shows the length, the version, and whether ranges are supported.
        with self._with_retries(lambda: self._request(0, 0)) as first:
            if first.status_code == 200:
                self._discard()
                responses = [first]
                self._with_retries(
                    lambda: self._stream(responses.pop() if responses else self._request())
                )
                return
            _, self.total = _content_range(first)
            if self.total < 1:
                raise self._error("does not say how long the file is")
            self.validator = _validator(first)
        self._load_state()
        self._check_length(self.total - self._done_bytes())
        if not self.part.exists():
            with self.part.open("wb") as file:
                file.truncate(self.total)
        blocks = range(-(-self.total // self.options.block_bytes))
        missing = [block for block in blocks if block not in self.done]
        pool = ThreadPoolExecutor(self.options.connections)
        with self._progress(self._done_bytes()) as self.bar, pool:
            try:
                for _ in pool.map(self._fetch_block, missing):
                    pass
            finally:
                self.stop.set()
        self.state.unlink(missing_ok=True)

    def _fetch_block(self, block: int) -> None:
        begin = block * self.options.block_bytes
        end = min(begin + self.options.block_bytes, self.total)
        with self.part.open("r+b") as file:

            def attempt() -> None:
                position = file.tell()
                with self._request(position, end - 1) as response:
                    partial = response.status_code == 206
                    if not partial or _content_range(response) != (position, self.total):
                        raise _FileChanged
                    self._write_body(response, file, end)

            file.seek(begin)
            self._with_retries(attempt)
        with self.lock:
            self.done.add(block)
            write_text(self.state, json.dumps({**self._version(), "done": sorted(self.done)}))

    def _stream(self, response: requests.Response) -> None:
        """Fetch the whole file from one response."""
        with response:
            length = response.headers.get("Content-Length", "")
            self.total = int(length) if length.isdigit() else 0
            self._check_length(self.total)
            with self._progress() as self.bar, self.part.open("wb") as file:
                self._write_body(response, file)

    def _write_body(
        self, response: requests.Response, file: BinaryIO, end: int | None = None
    ) -> None:
        """Write a response's body at the file's position, up to the byte `end`; without `end` it
        cannot be resumed."""
        begin = file.tell()
        reason = "breaks off"
        try:
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk if end is None else chunk[: end - file.tell()])
                with self.lock:
                    self.bar.update(len(chunk))
                if self.stop.is_set():
                    break
        except requests.RequestException as error:
            reason = _reason(error)
        else:
            if end in (None, file.tell()):
                return
        raise _Retryable(reason, progressed=end is not None and file.tell() > begin)

    def _request(self, *range: int) -> requests.Response:
        """A response with status 200 or 206, whose body is not yet read.

        Args:
            range: first and last byte; nothing for the whole file.
        """
        headers = {"Accept-Encoding": "identity"}
        if range:
            headers["Range"] = "bytes={}-{}".format(*range)
            if self.validator:
                headers["If-Range"] = self.validator
        url, timeout_s = self.remote.url, self.options.timeout_s
        try:
            response = self.session.get(url, headers=headers, stream=True, timeout=timeout_s)
        except requests.exceptions.SSLError:
            raise self._error("has no valid certificate") from None
        except (requests.Timeout, requests.ConnectionError) as error:
            raise _Retryable(_reason(error)) from None
        except requests.RequestException as error:
            raise self._error(f"cannot be downloaded ({type(error).__name__})") from None
        status = response.status_code
        kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if status in (200, 206) and kind != "text/html":
            return response
        response.close()
        if status in (200, 206):
            raise self._error(f"is a web page, not {self.remote.name}")
        if status in (408, 429) or status >= 500:
            raise _Retryable(f"answers {status}", _retry_after(response))
        raise self._error(f"{CLIENT_ERRORS.get(status, 'refuses')} (HTTP status {status})")

    def _with_retries(self, attempt: Callable[[], T]) -> T:
        """The result of `attempt`, which is repeated after failures, with exponential backoff."""
        failures = 0
        longest_s = self.options.longest_wait_s
        while True:
            try:
                return attempt()
            except _Retryable as failure:
                failures = 1 if failure.progressed else failures + 1
                wait_s = failure.wait_s
                if wait_s is None:
                    wait_s = min(self.options.first_wait_s * 2 ** (failures - 1), longest_s)
                if wait_s > longest_s:
                    reason = f"{failure} and asks to wait {wait_s:.0f} s"
                    raise self._error(reason, "run it again then") from None
                if failures >= self.options.tries:
                    raise self._error(
                        f"{failure}, {failures} times in a row",
                        "check the network and run it again; complete blocks are kept",
                    ) from None
                if self.stop.wait(wait_s):
                    raise

    def _error(self, problem: str, hint: str | None = None) -> UserError:
        return UserError(f"{redacted(self.remote.url)} {problem}: {hint or self.remote.hint}.")

    def _check_length(self, missing_bytes: int) -> None:
        """Refuse a file of another size than expected, or one for which the disk is too small."""
        expected = self.remote.size_bytes
        if expected is not None and self.total and self.total != expected:
            raise self._error(f"has {self.total} bytes where {expected} are expected")
        free = shutil.disk_usage(self.part.parent).free
        if missing_bytes > free:
            raise UserError(
                f"{self.remote.name} needs {missing_bytes / 2**30:.1f} GiB more, but "
                f"{self.part.parent} has {free / 2**30:.1f} GiB free: free some space."
            )

    def _version(self) -> dict[str, Any]:
        """What identifies the file and the blocks that it is divided into."""
        block_bytes = self.options.block_bytes
        return {"total": self.total, "validator": self.validator, "block_bytes": block_bytes}

    def _load_state(self) -> None:
        """Find the complete blocks of an earlier download, if they are of the same version."""
        self.done = set()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(self.state.read_text())
            done = set(state.pop("done"))
            if state == self._version() and self.part.stat().st_size == self.total:
                self.done = done
        if not self.done:
            self._discard()

    def _discard(self) -> None:
        self.done = set()
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def _done_bytes(self) -> int:
        size = self.options.block_bytes
        return sum(min(size, self.total - block * size) for block in self.done)

    def _progress(self, done: int = 0) -> "tqdm[Any]":
        """A progress bar; in a log, where it cannot be redrawn, a line every 15 s."""
        options: Any = {"unit": "B", "unit_scale": True, "disable": self.remote.silent}
        if not sys.stderr.isatty():
            options |= {"mininterval": 15, "maxinterval": 15}
        return tqdm(total=self.total or None, initial=done, desc=self.remote.name, **options)


def _content_range(response: requests.Response) -> tuple[int, int]:
    """First byte and total of a partial response; -1 if the header is not valid."""
    header = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", header)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def _validator(response: requests.Response) -> str | None:
    """The validator for If-Range: a strong ETag, else the date (RFC 9110)."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait, given as a number or as a date."""
    try:
        return Retry().get_retry_after(response.raw)
    except InvalidHeader:
        return None


def _reason(error: requests.RequestException) -> str:
    # The error's text may hold the URL with its query, so that only its kind is reported.
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return "does not answer"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "breaks off"
    return f"cannot be reached ({type(error).__name__})"
