"""Data sets in an archive of known layout, with splits published as lists of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.files import file_sha256
from data.fetch import DownloadOptions, Remote, fetch, partial_folder
from data.labels import Decoder, Entry, Survey
from data.splits import read_list
from data.unpack import find_folder

FILES = {"train": "train.txt", "val": "crossvali.txt", "test": "test.txt"}
"""File names of the lists, as GLNet's authors named theirs."""


@dataclass(frozen=True)
class Published:
    """The lists of a data set, and where to find the listed files."""

    lists: Mapping[str, str]
    """SHA-256 of the list of each split."""
    suffix: str
    """What follows an image's id in a line of a list."""
    patterns: tuple[str, ...]
    """Patterns of `find_folder` that find the folder of images and labels."""
    image: str
    """Name of an image in the folder, with `{}` for its id."""
    label: str

    def fetch_lists(self, url: str, raw: Path, options: DownloadOptions) -> None:
        """Download the lists to `raw`/splits, except those that are there and correct."""
        for split, sha256 in self.lists.items():
            hint = f"put the published list at {raw / 'splits' / FILES[split]}"
            address = f"{url.rstrip('/')}/{FILES[split]}"
            remote = Remote(address, FILES[split], None, sha256, hint)
            fetch(remote, raw / "splits", partial_folder(raw), options)

    def folder(self, raw: Path) -> Path | None:
        """The folder of images and labels, if it is there."""
        return find_folder(raw, *self.patterns)

    def survey(self, raw: Path, decode: Decoder, square_px: int) -> Survey:
        """The images of the lists in `raw`/splits; missing files are problems.

        Raises:
            UserError: a list is missing or not the published one, or there is no folder of images.
        """
        folder = self.folder(raw)
        if folder is None:
            wanted = " or ".join(self.patterns)
            raise UserError(f"{raw} holds no {wanted}: run `dvc repro download`.")
        entries = []
        for split, sha256 in self.lists.items():
            path = raw / "splits" / FILES[split]
            lines = read_list(path)
            if file_sha256(path) != sha256:
                raise UserError(
                    f"{path} is not the list expected (SHA-256): run `dvc repro download`."
                )
            for id in (line.removesuffix(self.suffix) for line in lines):
                image, label = (folder / name.format(id) for name in (self.image, self.label))
                entries.append(Entry(split, id, image, label, decode))
        missing = [
            f"{path} is missing, which the published lists name."
            for entry in entries
            for path in (entry.image, entry.label)
            if not path.is_file()
        ]
        return Survey(entries, missing, square_px=square_px)
