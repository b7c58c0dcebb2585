"""Bundles: zip files of files of the project, with an RO-Crate 1.1 description
(https://w3id.org/ro/crate/1.1) that has the size and SHA-256 of each."""

import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.files import file_sha256, write_bytes
from data.unpack import unpack

DESCRIPTION = "ro-crate-metadata.json"
CRATE = "https://w3id.org/ro/crate/1.1"
CONTEXT = [f"{CRATE}/context", {"sha256": "https://schema.org/sha256"}]
LICENCE = Path("LICENSE")
KINDS = {
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".csv": "text/csv",
    ".pt": "application/octet-stream",
}
NAME = r"\w[\w.-]*"
INSTALLED = re.compile(
    rf"suites/{NAME}\.yaml|results/{NAME}/(train|evaluate|measure/{NAME}|steps)/{NAME}\.json"
    rf"|checkpoints/{NAME}\.pt(/-?\d+\.pt)?|data/prepared/{NAME}/dataset\.json"
)
"""What a bundle may put into the project."""
OTHER = re.compile(rf"{LICENCE}|report/{NAME}/tables/{NAME}\.csv")
"""What else it may have."""
LARGEST_BYTES = 32 * 2**30
LARGEST_TEXT_BYTES = 64 * 2**20
"""Of a file that is no checkpoint, and is read whole."""


def pack(target: Path, folder: Path, about: Mapping[str, Any], more: Sequence[Any] = ()) -> None:
    """Write the files of a folder as a bundle, atomically. The same files give the same bytes, with
    the same version of zlib.

    Args:
        about: of the bundle, as properties of an RO-Crate's root: `name`, `description`,
            `datePublished` and others.
        more: further entities of the description.
    """
    paths = {one.relative_to(folder).as_posix(): one for one in folder.rglob("*") if one.is_file()}
    names = sorted(paths)
    files = [
        {
            "@id": name,
            "@type": "File",
            "name": name,
            "contentSize": str(paths[name].stat().st_size),
            "encodingFormat": KINDS.get(paths[name].suffix, "text/plain"),
            "sha256": file_sha256(paths[name]),
        }
        for name in names
    ]
    root = {"license": {"@id": LICENCE.name}, **about, "hasPart": [{"@id": name} for name in names]}
    descriptor = {
        "@id": DESCRIPTION,
        "@type": "CreativeWork",
        "conformsTo": {"@id": CRATE},
        "about": {"@id": "./"},
    }
    graph = [descriptor, {"@id": "./", "@type": "Dataset", **root}, *files, *more]
    described = {"@context": CONTEXT, "@graph": graph}
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    working = target.with_name(f".{target.name}.part")
    with zipfile.ZipFile(working, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (DESCRIPTION, *names):
            info = zipfile.ZipInfo(name)  # of 1980-01-01
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            with (folder / name).open("rb") as file, archive.open(info, "w") as packed:
                shutil.copyfileobj(file, packed)
    working.replace(target)


def open_crate(bundle: Path, folder: Path, limit_bytes: int = LARGEST_BYTES) -> list[str]:
    """Unpack a bundle into a new folder; returns the names of its files.

    Raises:
        UserError: it is damaged or no bundle, as in `unpack`; a file is missing, not described, has
            another SHA-256, or no place in a bundle.
    """
    if not bundle.is_file():
        raise UserError(f"There is no bundle {bundle}.")
    unpack(bundle, folder, limit_bytes=limit_bytes)
    paths = {one.relative_to(folder).as_posix(): one for one in folder.rglob("*") if one.is_file()}
    for name, path in paths.items():
        if path.suffix != ".pt" and path.stat().st_size > LARGEST_TEXT_BYTES:
            raise UserError(f"{bundle}: {name!r:.100} is larger than any record: do not use it.")
    described, found = _described(bundle, folder), paths.keys() - {DESCRIPTION}
    for name in sorted(found | described.keys()):
        fault = ""
        if name not in found:
            fault = "is described, but missing"
        elif not (INSTALLED.fullmatch(name) or OTHER.fullmatch(name)):
            fault = "has no place in a bundle"
        elif described.get(name) != file_sha256(folder / name):
            fault = f"is not the file that {DESCRIPTION} describes (another SHA-256, or none)"
        if fault:
            raise UserError(f"{bundle}: {name!r:.100} {fault}: get the bundle again.")
    return sorted(found)


def _described(bundle: Path, folder: Path) -> dict[str, str]:
    """SHA-256 by file, as the bundle describes them."""
    try:
        graph = json.loads((folder / DESCRIPTION).read_bytes())["@graph"]
        return {str(one["@id"]): str(one["sha256"]) for one in graph if one["@type"] == "File"}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{bundle} has no sound {DESCRIPTION} ({reason}): it is no bundle, or get it again."
        ) from None


def install(folder: Path, names: Sequence[str]) -> list[Path]:
    """Put the files of an unpacked bundle where the pipeline would have; none replaces another.

    Returns:
        those that were not there.

    Raises:
        UserError: a file is there with another content; nothing was written.
    """
    wanted = [Path(name) for name in names if INSTALLED.fullmatch(name)]
    new = [path for path in wanted if not path.exists()]
    for path in wanted:
        if path not in new and file_sha256(path) != file_sha256(folder / path):
            raise UserError(
                f"{path} is there and differs from the bundle's: move it away first, or use another "
                "checkout; nothing was changed."
            )
    for path in new:
        write_bytes(path, (folder / path).read_bytes())
    return new
