"""Data sets that are single files of a public repository: fetched at one commit, or found in an
archive or folder that the user has put into data/raw/NAME; each file is checked by its SHA-256."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from bench.files import file_sha256
from data.fetch import Patience, Remote, fetch, workshop_of
from data.unpack import archive_in, unpack

RAW_URL = "https://raw.githubusercontent.com"
LARGEST_BYTES = 2**30


@dataclass(frozen=True)
class Repository:
    """A folder of a repository at one commit."""

    name: str
    """OWNER/NAME."""
    commit: str
    folder: str
    """Of the files, below the repository's root."""
    manifest: Path
    """SHA-256 and path below `folder` of every file, a line each, as `sha256sum` prints them."""

    @cached_property
    def files(self) -> dict[str, str]:
        """Path below `folder` -> SHA-256."""
        lines = self.manifest.read_text().splitlines()
        return {path: sha256 for sha256, path in (line.split("  ", 1) for line in lines)}

    def root(self, raw: Path) -> Path | None:
        """The files' folder wherever it lies below `raw`; None if it is not there."""
        first = next(iter(self.files)).partition("/")[0]
        found = sorted(raw.rglob(first), key=lambda path: (len(path.parts), path))
        return found[0].parent if found else None

    def download(self, url: str, raw: Path, patience: Patience) -> None:
        """All files below `raw`; those that are there and right are kept.

        Args:
            url: of the server, which has the files below `/OWNER/NAME/COMMIT`.

        Raises:
            UserError: an archive in `raw` is damaged, or a file cannot be fetched or is not the one
                expected.
        """
        if self.root(raw) is None and (archive := archive_in(raw)):
            endings = tuple(f"/{path}" for path in self.files)
            wanted = lambda name: f"/{name}".endswith(endings)  # noqa: E731
            unpack(archive, raw / "unpacked", wanted, LARGEST_BYTES)
        root = self.root(raw) or raw / self.folder
        missing = [path for path in self.files if self._wrong(root, path)]
        address = f"{url.rstrip('/')}/{self.name}/{self.commit}/{quote(self.folder)}"
        hint = f"put an archive or a folder of {self.name} at commit {self.commit[:7]} into {raw}"

        def one(path: str) -> None:
            folder, name = Path(path).parent, Path(path).name
            remote = Remote(
                f"{address}/{quote(path)}", name, None, self.files[path], hint, silent=True
            )
            fetch(remote, root / folder, workshop_of(raw) / folder, patience)

        _each(one, missing, patience.connections)

    def problems(self, raw: Path) -> list[str]:
        """A sentence for each file that is missing or differs from the repository's."""
        root = self.root(raw)
        if root is None:
            return [f"{raw} holds no files of {self.name}: run `dvc repro download`."]
        found = ((root / path, self._wrong(root, path)) for path in self.files)
        return [f"{path} {wrong}: run `dvc repro download`." for path, wrong in found if wrong]

    def _wrong(self, root: Path, path: str) -> str:
        if not (root / path).is_file():
            return "is missing"
        right = file_sha256(root / path) == self.files[path]
        return "" if right else f"is not the file of {self.name} at commit {self.commit[:7]}"


def _each(do: Callable[[str], None], items: list[str], at_once: int) -> None:
    """Do all, several at once, with one progress bar; the first error ends what has not begun."""
    with ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(do, item) for item in items]
        try:
            for one in tqdm(running, "files", unit="file", disable=not items):
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
