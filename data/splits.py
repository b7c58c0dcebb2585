"""Splits of images: read from lists, or drawn at random by a seed."""

import codecs
import hashlib
import itertools
import unicodedata
from collections.abc import Collection, Mapping, Set
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from bench.errors import UserError

NAMES = ("train", "val", "test")
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
"""A name; YAML reads 119 as a number."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Splits:
    """Three shares of the images, or three lists: names in params.yaml, or text files beside the
    images with one name a line."""

    train: Share | str | tuple[Name, ...]
    val: Share | str | tuple[Name, ...]
    test: Share | str | tuple[Name, ...]
    seed: int = 0
    """Seed of the random split by shares."""


def draw_splits(
    ids: Collection[str], shares: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """Split ids at random by shares that add up to 1; `train` gets what rounding leaves.

    Ids are ordered by the SHA-256 of seed and id. The split is therefore the same on every machine
    and with every version, and a further image moves few others.

    Raises:
        UserError: the shares do not add up to 1, or a split with a share gets no image.
    """
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise UserError(f"The shares of the splits add up to {sum(shares.values()):g}, not to 1.")
    order = sorted(ids, key=lambda id: hashlib.sha256(f"{seed} {id}".encode()).digest())
    counts = {name: round(shares[name] * len(order)) for name in NAMES}
    counts["train"] = len(order) - counts["val"] - counts["test"]
    for name in NAMES:
        if shares[name] > 0 and counts[name] < 1:
            raise UserError(
                f"{len(order)} images leave none for the split {name} with a share of "
                f"{shares[name]:g}: use lists instead, or more images."
            )
    rest = iter(order)
    return {name: sorted(itertools.islice(rest, counts[name])) for name in NAMES}


def resolve_splits(
    splits: Splits, ids: Set[str], raw: Path, suffixes: Collection[str] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """The splits that settings define.

    Args:
        suffixes: what a list may have after an id, besides the extension.

    Returns:
        ids by split, and problems of the lists, a sentence each: names without an image or in two
        splits.
    """
    given = {name: getattr(splits, name) for name in NAMES}
    shares = {name: value for name, value in given.items() if isinstance(value, float)}
    if len(shares) == len(NAMES):
        return draw_splits(ids, shares, splits.seed), []
    if shares:
        raise UserError("The splits mix shares and lists: use three of one kind.")
    lists: dict[str, list[str]] = {name: [] for name in NAMES}
    problems = []
    seen: dict[str, str] = {}
    for name, value in given.items():
        source = f"{raw / value}" if isinstance(value, str) else f"splits.{name}"
        inside = raw in (raw / str(value)).parents and ".." not in Path(str(value)).parts
        if isinstance(value, str) and not inside:  # DVC would not track it
            raise UserError(
                f"splits.{name} is {value!r}: put the list into {raw} and give its name."
            )
        lines = read_list(raw / value) if isinstance(value, str) else value
        for id in dict.fromkeys(_id_of(line, ids, suffixes) for line in lines):
            if id not in ids:
                problems.append(f"{source} lists {id}, but there is no such image.")
            elif seen.setdefault(id, name) != name:
                problems.append(f"{source} lists {id}, which is in the split {seen[id]} too.")
            else:
                lists[name].append(id)
    return lists, problems


def _id_of(line: str, ids: Set[str], suffixes: Collection[str]) -> str:
    """The id that a line of a list refers to: the line itself, or a file name without its suffixes."""
    line = unicodedata.normalize("NFC", line)
    stem = Path(line).stem
    shorter = (name.removesuffix(suffix) for suffix in suffixes for name in (line, stem))
    return next((name for name in (line, stem, *shorter) if name in ids), stem)


def read_list(path: Path) -> list[str]:
    """The lines of a text file, without empty ones.

    Raises:
        UserError: the file is missing, empty, or not text.
    """
    try:
        content = path.read_bytes()
        is_utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: write a text file with one image name a line."
        ) from None
    except (OSError, ValueError):  # a folder, not UTF-8, or an invalid file name
        raise UserError(f"{path} is not a text file: write one image name a line.") from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise UserError(f"{path} is empty: write one image name a line.")
    return found
