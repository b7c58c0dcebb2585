"""Data sets whose split is published as lists of images, apart from an archive of known layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.files import file_sha256
from data.fetch import Patience, Remote, fetch, workshop_of
from data.labels import Entry, Rule, Survey
from data.splits import read_list
from data.unpack import find_folder

FILES = {"train": "train.txt", "val": "crossvali.txt", "test": "test.txt"}
"""Names of the lists, as GLNet's authors called theirs."""


@dataclass(frozen=True)
class Published:
    """The lists of a data set, and where the files are that they name."""

    lists: Mapping[str, str]
    """SHA-256 of the list of each split."""
    suffix: str
    """Of the lines, after an image's id."""
    patterns: tuple[str, ...]
    """Of `find_folder`: what shows the folder of images and labels, wherever it was unpacked."""
    image: str
    """Name of an image in the folder, with `{}` for its id."""
    label: str

    def fetch_lists(self, url: str, raw: Path, patience: Patience) -> None:
        """The lists into `raw`/splits; those that are there and right are left alone."""
        for split, sha256 in self.lists.items():
            hint = f"put the published list at {raw / 'splits' / FILES[split]}"
            address = f"{url.rstrip('/')}/{FILES[split]}"
            remote = Remote(address, FILES[split], None, sha256, hint)
            fetch(remote, raw / "splits", workshop_of(raw), patience)

    def folder(self, raw: Path) -> Path | None:
        """The folder of images and labels, if it is there."""
        return find_folder(raw, *self.patterns)

    def survey(self, raw: Path, rule: Rule, square_px: int) -> Survey:
        """The images of the lists in `raw`/splits, and which of their files are missing.

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
                entries.append(Entry(split, id, image, label, rule))
        missing = [
            f"{path} is missing, which the published lists name."
            for entry in entries
            for path in (entry.image, entry.label)
            if not path.is_file()
        ]
        return Survey(entries, missing, square_px=square_px)
