"""Data sets stored as single files in a public repository: downloaded at one commit, or read from an
archive or folder in data/raw/NAME. Every file is checked by its SHA-256."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from tqdm.contrib.concurrent import thread_map

from bench.files import file_sha256
from data.fetch import DownloadOptions, Remote, fetch, partial_folder
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
    """Folder of the files, below the repository's root."""
    manifest: Path
    """SHA-256 and path below `folder` of every file, as `sha256sum` prints them."""

    @cached_property
    def files(self) -> dict[str, str]:
        """Path below `folder` -> SHA-256."""
        lines = self.manifest.read_text().splitlines()
        return {path: sha256 for sha256, path in (line.split("  ", 1) for line in lines)}

    def root(self, raw: Path) -> Path | None:
        """The folder below `raw` that holds the files, at any depth; None if there is none."""
        first = next(iter(self.files)).partition("/")[0]
        found = sorted(raw.rglob(first), key=lambda path: (len(path.parts), path))
        return found[0].parent if found else None

    def download(self, url: str, raw: Path, options: DownloadOptions) -> None:
        """Download all files to `raw`, except those that are there and correct.

        Args:
            url: the server's URL, below which the files are at `/OWNER/NAME/COMMIT`.

        Raises:
            UserError: an archive in `raw` is damaged, or a file cannot be fetched or is not the one
                expected.
        """
        if self.root(raw) is None and (archive := archive_in(raw)):
            endings = tuple(f"/{path}" for path in self.files)
            wanted = lambda name: f"/{name}".endswith(endings)  # noqa: E731
            unpack(archive, raw / "unpacked", wanted, LARGEST_BYTES)
        root = self.root(raw) or raw / self.folder
        missing = [path for path in self.files if self._problem(root, path)]
        address = f"{url.rstrip('/')}/{self.name}/{self.commit}/{quote(self.folder)}"
        hint = f"put an archive or a folder of {self.name} at commit {self.commit[:7]} into {raw}"

        def download(path: str) -> None:
            folder, name = Path(path).parent, Path(path).name
            remote = Remote(
                f"{address}/{quote(path)}", name, None, self.files[path], hint, silent=True
            )
            fetch(remote, root / folder, partial_folder(raw) / folder, options)

        thread_map(
            download, missing, max_workers=options.connections, desc="files", disable=not missing
        )

    def problems(self, raw: Path) -> list[str]:
        """A sentence for each file that is missing or differs from the repository's."""
        root = self.root(raw)
        if root is None:
            return [f"{raw} holds no files of {self.name}: run `dvc repro download`."]
        found = ((root / path, self._problem(root, path)) for path in self.files)
        return [
            f"{path} {problem}: run `dvc repro download`." for path, problem in found if problem
        ]

    def _problem(self, root: Path, path: str) -> str:
        """How a file differs from the repository's; empty if it does not."""
        if not (root / path).is_file():
            return "is missing"
        right = file_sha256(root / path) == self.files[path]
        return "" if right else f"is not the file of {self.name} at commit {self.commit[:7]}"
