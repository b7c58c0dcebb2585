"""Splits of images: from published lists, from user-provided lists, or drawn by a seed."""

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
"""YAML reads 119 as a number."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Splits:
    """Three shares of the images, or three lists: names in params.yaml, or text files with one
    name a line that lie beside the images."""

    train: Share | str | tuple[Name, ...]
    val: Share | str | tuple[Name, ...]
    test: Share | str | tuple[Name, ...]
    seed: int = 0
    """Of shares: another seed, another draw."""


def drawn(ids: Collection[str], shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Divide ids by shares that add up to 1; what rounding leaves goes to `train`.

    The order is that of SHA-256 of seed and id, so that it is the same on every machine and with
    every version, and one image more moves only those at the borders.

    Raises:
        UserError: the shares do not add up to 1, or leave a split that has one without an image.
    """
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise UserError(f"The shares of the splits add up to {sum(shares.values()):g}, not to 1.")
    order = sorted(ids, key=lambda id: hashlib.sha256(f"{seed} {id}".encode()).digest())
    counts = {name: round(shares[name] * len(order)) for name in NAMES}
    counts["train"] = len(order) - counts["val"] - counts["test"]
    for name in NAMES:
        if shares[name] > 0 and counts[name] < 1:
            raise UserError(
                f"{len(order)} images leave none for the split {name} at a share of "
                f"{shares[name]:g}: give lists instead, or more images."
            )
    rest = iter(order)
    return {name: sorted(itertools.islice(rest, counts[name])) for name in NAMES}


def own(
    splits: Splits, ids: Set[str], raw: Path, suffixes: Collection[str] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """The splits that a user's settings ask for.

    Args:
        suffixes: of files, without the extension, that a list may give beyond an id.

    Returns:
        ids by split, and sentences on what is wrong with the lists (names without an image, or in
        two splits).
    """
    given = {name: getattr(splits, name) for name in NAMES}
    shares = {name: value for name, value in given.items() if isinstance(value, float)}
    if len(shares) == len(NAMES):
        return drawn(ids, shares, splits.seed), []
    if shares:
        raise UserError("The splits mix shares and lists: give three of one kind.")
    lists: dict[str, list[str]] = {name: [] for name in NAMES}
    problems = []
    seen: dict[str, str] = {}
    for name, value in given.items():
        of = f"{raw / value}" if isinstance(value, str) else f"splits.{name}"
        beside = raw in (raw / str(value)).parents and ".." not in Path(str(value)).parts
        if isinstance(value, str) and not beside:  # which the pipeline would not watch
            raise UserError(f"splits.{name} is {value!r}: put the list into {raw}, and name it.")
        lines = read_list(raw / value) if isinstance(value, str) else value
        for id in dict.fromkeys(_named(line, ids, suffixes) for line in lines):
            if id not in ids:
                problems.append(f"{of} lists {id}, but there is no such image.")
            elif seen.setdefault(id, name) != name:
                problems.append(f"{of} lists {id}, which is in the split {seen[id]} too.")
            else:
                lists[name].append(id)
    return lists, problems


def _named(line: str, ids: Set[str], suffixes: Collection[str]) -> str:
    """The id that a line of a list means: itself, or the file called so."""
    line = unicodedata.normalize("NFC", line)
    stem = Path(line).stem
    shorter = (name.removesuffix(suffix) for suffix in suffixes for name in (line, stem))
    return next((name for name in (line, stem, *shorter) if name in ids), stem)


def read_list(path: Path) -> list[str]:
    """The lines of a text file, without empty ones.

    Raises:
        UserError: it is missing, no text, or has none.
    """
    try:
        content = path.read_bytes()
        windows = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = content.decode("utf-16" if windows else "utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: it is to list images, one a line.") from None
    except (OSError, ValueError):  # a folder; not UTF-8; a name that no file can have
        raise UserError(f"{path} is no text file: it is to list images, one a line.") from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise UserError(f"{path} lists no image: name them, one a line.")
    return found
