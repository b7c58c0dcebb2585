"""The only reader of prepared data, and the format it reads.

data/prepared/NAME/dataset.json      what `Dataset` holds, and the SHA-256 of every file
data/prepared/NAME/images/ID.npy     (3, H, W) uint8 RGB, as the networks take it
data/prepared/NAME/labels/ID.npy     (H, W) uint8: 0..K-1 a class, 255 unlabelled

Plain arrays, because a patch of one is read without the rest: docs/data.md has what was measured.
They take 4 bytes a pixel.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from bench.errors import UserError
from bench.files import file_sha256

if TYPE_CHECKING:  # torch takes seconds to import, and readers of plain arrays do not need it
    from torch import Tensor

PREPARED = Path("data/prepared")
UNLABELLED = 255


@dataclass(frozen=True)
class Pair:
    """One image and its label, as a source gives them."""

    split: str
    id: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    label: NDArray[np.uint8]
    """(H, W): 0..K-1 a class, 255 unlabelled."""


@dataclass(frozen=True)
class About:
    """The description of a data set."""

    classes: tuple[str, ...]
    """Names by label index."""
    palette: tuple[tuple[int, int, int], ...]
    """RGB by label index, for display."""
    ignored: tuple[str, ...] = ()
    """Classes that exist as labels but that no mean counts (DeepGlobe's `unknown`)."""
    rare: tuple[str, ...] = ()
    """Classes that a second mean leaves out, while their pixels still count against others: too
    rare to learn, or the background of two classes."""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Image ids by split; empty for a source whose images carry their split."""
    credit: str = ""
    """Sources and limits, shown beside every result."""
    ceilings: Mapping[str, float] = field(default_factory=dict)
    """Upper bounds of mIoU on test, 0..1, by what limits it; only for synthetic data, where they can
    be computed."""
    leaks_refused: bool = False
    """Whether one image in two splits is an error; in published splits it is a warning."""

    @classmethod
    def of(
        cls, classes: Sequence[tuple[str, tuple[int, int, int]]], credit: str, **more: Any
    ) -> "About":
        """From (name, colour) of each class; `more`: other fields that are not empty."""
        names, colours = zip(*classes, strict=True)
        return cls(names, colours, credit=credit, **more)


@dataclass(frozen=True, kw_only=True)
class Dataset(About):
    """Images and labels of one prepared data set, by split."""

    name: str
    root: Path
    settings: Mapping[str, Any]
    """Of its source, that it was prepared with."""
    files: Mapping[str, str]
    """SHA-256 by path below `root`."""

    def ids(self, split: str) -> list[str]:
        """The image ids of a split, in a fixed order."""
        if split not in self.splits:
            raise UserError(
                f"Data set {self.name} has no split {split!r}; it has {', '.join(self.splits)}."
            )
        return list(self.splits[split])

    def arrays(self, id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """One image and its label, in memory.

        Returns:
            image (3, H, W) uint8 RGB and label (H, W) uint8, 255 = unlabelled.

        Raises:
            UserError: a file is missing or damaged, has changed since it was prepared, or the label
                does not fit the image or the classes.
        """
        image, label = map(np.array, self._arrays(id))
        check_values(label, len(self.classes), self._file("labels", id))
        self._check_bytes(id)
        return image, label

    def read(self, id: str) -> "tuple[Tensor, Tensor]":
        """As `arrays`, as tensors."""
        return _tensors(*self.arrays(id))

    def mapped(self, id: str) -> "tuple[Tensor, Tensor]":
        """As `read`, but memory-mapped: after the first time, which checks all bytes, only pixels that
        are used are read from the disk, for training on patches.

        Values are not checked (`prepare` has done that). Writing to the tensors does not change the
        file. The mapping ends with the last tensor that uses it."""
        arrays = self._arrays(id)
        self._check_bytes(id)
        return _tensors(*arrays)

    def _file(self, folder: str, id: str) -> Path:
        return self.root / folder / f"{id}.npy"

    def _arrays(self, id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """(3, H, W) and (H, W), on the disk."""
        image, label = self._array("images", id), self._array("labels", id)
        if image.ndim != 3 or image.shape[0] != 3:
            raise UserError(
                f"{self._file('images', id)} is no RGB image (its shape is {image.shape}): "
                "run `dvc repro prepare`."
            )
        check_sizes(image.shape[1:], label.shape, self._file("labels", id))
        return image, label

    def _check_bytes(self, id: str) -> None:
        """Compare both files with dataset.json; once per process while they stay as they are, for it
        takes a second per GB."""
        for path in (self._file("images", id), self._file("labels", id)):
            found = path.stat()
            known = self.files.get(path.relative_to(self.root).as_posix())
            if _sha256(path.absolute(), found.st_size, found.st_ctime_ns) != known:
                raise UserError(
                    f"{path} is not as it was prepared (dataset.json has another SHA-256): delete "
                    f"it and run `dvc repro prepare@{self.name}`."
                )

    def _array(self, folder: str, id: str) -> NDArray[np.uint8]:
        path = self._file(folder, id)
        try:
            # Copy on write: torch requires a writable array.
            array: NDArray[np.uint8] = np.load(path, mmap_mode="c")
        except FileNotFoundError:
            raise UserError(f"{path} is missing: run `dvc repro prepare`.") from None
        except (ValueError, EOFError, OSError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it and run `dvc repro prepare`."
            ) from None
        if array.dtype != np.uint8:
            raise UserError(f"{path} holds {array.dtype}, not uint8: run `dvc repro prepare`.")
        return array


@cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


def _tensors(image: NDArray[np.uint8], label: NDArray[np.uint8]) -> "tuple[Tensor, Tensor]":
    import torch

    return torch.from_numpy(image), torch.from_numpy(label)


def check_sizes(image: tuple[int, ...], label: tuple[int, ...], path: Path) -> None:
    """Refuse a label of another (H, W) than its image; `path` is the label's."""
    if image != label:
        raise UserError(
            f"{path} is {' x '.join(map(str, label))} px, its image {' x '.join(map(str, image))}."
        )


def check_values(label: NDArray[np.uint8], classes: int, path: Path) -> None:
    """Refuse a label with a value that is neither a class nor 255."""
    wrong = label[(label >= classes) & (label != UNLABELLED)]
    if wrong.size:
        raise UserError(
            f"{path} has label {int(wrong.min())} in {wrong.size} px, only 0 to {classes - 1} and "
            "255 are allowed."
        )


def open_dataset(name: str) -> Dataset:
    """The prepared data set `name`."""
    return open_folder(PREPARED / name)


def open_folder(folder: Path) -> Dataset:
    """The prepared data set in a folder."""
    path = folder / "dataset.json"
    try:
        values = {**json.loads(path.read_text()), "root": folder}
        return TypeAdapter(Dataset).validate_python(values)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro prepare@{folder.name}`.") from None
    except (ValueError, TypeError, RecursionError) as error:  # of JSON, UTF-8 and pydantic
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is damaged ({reason}): run `dvc repro prepare@{folder.name}`."
        ) from None
