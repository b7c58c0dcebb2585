"""Safe unpacking of archives: name, type and size of every member are checked before anything is
written, and the sizes again afterwards. The libraries write no more of a member than its size, and
verify CRCs."""

import bisect
import contextlib
import errno
import io
import itertools
import lzma
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import py7zr
import py7zr.exceptions

from bench.errors import UserError

LARGEST_BYTES = 200 * 2**30
"""Largest archive, unpacked."""
MAX_MEMBERS = 200_000
# RuntimeError: encrypted, or an unknown compression method. ArithmeticError, ValueError, LookupError
# and TypeError: damaged headers.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    ValueError,
    LookupError,
    TypeError,
    MemoryError,
    py7zr.exceptions.ArchiveError,
    py7zr.exceptions.PasswordRequired,
)
NAME_ERRORS = {
    getattr(errno, name)
    for name in ("EINVAL", "EOVERFLOW", "EISDIR", "ENOTDIR", "EEXIST", "ENAMETOOLONG", "EILSEQ")
}
"""Errors of the operating system that are caused by names or offsets in an archive. Others, such as a
full disk, have other causes."""
Wanted = Callable[[str], object]


class Member(NamedTuple):
    """A file in an archive, according to the archive's directory."""

    name: str
    size_bytes: int
    regular: bool
    """Whether it is a regular file: neither a link nor a device."""


def is_archive(path: Path) -> bool:
    """Whether a file name is that of an archive, or of the first volume of one."""
    name = path.name.lower()
    return name.endswith((".zip", ".7z", ".7z.001", ".7z.0001"))


def archive_in(folder: Path) -> Path | None:
    """The archive in a folder, or its first volume; None if there is none.

    Raises:
        UserError: there is more than one.
    """
    found = [path for path in folder.iterdir() if path.is_file() and is_archive(path)]
    if len(found) > 1:
        raise UserError(f"{folder} holds several archives: leave only the one with the images.")
    return found[0] if found else None


def find_folder(root: Path, *patterns: str) -> Path | None:
    """The folder of the first path that matches a pattern, at most two levels below `root`."""
    for above in ("", "*/", "*/*/"):
        for pattern in patterns:
            for path in sorted(root.glob(above + pattern)):
                return path.parent
    return None


def unpack(
    archive: Path,
    folder: Path,
    wanted: Wanted = lambda name: True,
    limit_bytes: int = LARGEST_BYTES,
) -> Path:
    """Unpack a zip (or wheel) or 7z archive into a new folder, completely or not at all.

    Args:
        archive: the archive, or its first volume (`NAME.7z.001`).
        wanted: whether to unpack a member, by its name.
        limit_bytes: largest total size of these members.

    Raises:
        UserError: a member is outside the folder, is a link, or has the name of another one on some
            system; a size is wrong, or the total is larger than `limit_bytes`; the archive is
            damaged, truncated, or not an archive.
        OSError: the disk is full.
    """
    working = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(working, ignore_errors=True)  # of a killed process
    working.mkdir(parents=True)
    try:
        zipped = archive.name.lower().endswith((".zip", ".whl"))
        extract = _unpack_zip if zipped else _unpack_7z
        for target, size in extract(archive, working, wanted, limit_bytes).items():
            if not target.is_file() or target.stat().st_size != size:
                raise EOFError(f"{target.name} ends early")
            target.chmod(0o644)  # whatever the archive says
        if folder.exists():
            shutil.rmtree(folder)
        working.rename(folder)
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NAME_ERRORS:
            raise
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(
            f"{archive} is damaged, truncated or not an archive ({reason}): download it again."
        ) from None
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return folder


def unpack_fetched(archive: Path, folder: Path, wanted: Wanted, limit_bytes: int) -> None:
    """Unpack a downloaded archive without a known SHA-256 and delete it, also if it is refused, so
    that the next start downloads it again."""
    try:
        unpack(archive, folder, wanted, limit_bytes)
    except UserError:
        archive.unlink()
        raise
    archive.unlink()


def _unpack_zip(archive: Path, folder: Path, wanted: Wanted, limit_bytes: int) -> dict[Path, int]:
    """Unpack and return path and expected size of each file."""
    with zipfile.ZipFile(archive) as opened:
        found = [info for info in opened.infolist() if not info.is_dir() and wanted(info.filename)]
        kinds = [stat.S_IFMT(info.external_attr >> 16) for info in found]
        members = [
            Member(info.filename, info.file_size, kind in (0, stat.S_IFREG))
            for info, kind in zip(found, kinds, strict=True)
        ]
        targets = _checked(archive, members, folder, limit_bytes)
        for info, target in zip(found, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file)
    return targets


def _unpack_7z(archive: Path, folder: Path, wanted: Wanted, limit_bytes: int) -> dict[Path, int]:
    """Unpack and return path and expected size of each file."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in _volumes(archive)]
        # A file object rather than a name: given a name, py7zr writes from several threads at once.
        opened = stack.enter_context(py7zr.SevenZipFile(io.BufferedReader(_Volumes(files))))
        members = [
            Member(
                file.filename,
                file.uncompressed or 0,
                not (file.is_symlink or file.is_junction or file.is_socket),
            )
            for file in opened.files
            if not file.is_directory and wanted(file.filename)
        ]
        targets = _checked(archive, members, folder, limit_bytes)
        opened.extract(folder, [member.name for member in members])
    return targets


def _checked(
    archive: Path, members: Sequence[Member], folder: Path, limit_bytes: int
) -> dict[Path, int]:
    """Path and size of the files that may be written, in the order of the members."""
    if len(members) > MAX_MEMBERS:
        raise UserError(
            f"{archive} has {len(members)} members, too many for a data set: do not use it."
        )
    paths = [PurePosixPath(member.name.replace("\\", "/")) for member in members]
    seen: dict[str, str] = {}
    for (name, _, regular), path in zip(members, paths, strict=True):
        outside = path.is_absolute() or ".." in path.parts or ":" in name
        if outside or not path.parts or not name.isprintable():
            raise UserError(f"{archive} has a member {name!r} outside its folder: do not use it.")
        if not regular:
            raise UserError(f"{archive} has a member {name!r} that is a link: do not use it.")
        same = _folded(path)
        if same in seen:
            raise UserError(
                f"{archive} has {seen[same]!r} and {name!r}, which are the same file on some "
                "systems: unpack it manually, rename one, and put the folder in place of the archive."
            )
        seen[same] = name
    for parent in itertools.chain.from_iterable(path.parents for path in paths):
        if _folded(parent) in seen:
            raise UserError(f"{archive} has {parent} as a file and as a folder: do not use it.")
    total = sum(member.size_bytes for member in members)
    if total > limit_bytes:
        raise UserError(
            f"{archive} holds {total / 2**30:.1f} GiB unpacked, more than the expected "
            f"{limit_bytes / 2**30:.1f} GiB: do not use it."
        )
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"{archive} needs {total / 2**30:.1f} GiB unpacked, but {folder.parent} has "
            f"{free / 2**30:.1f} GiB free: free some space."
        )
    return {folder / path: one.size_bytes for path, one in zip(paths, members, strict=True)}


def _folded(path: PurePosixPath) -> str:
    """A name for comparison on file systems that ignore case and Unicode composition."""
    return unicodedata.normalize("NFC", str(path).casefold())


def _volumes(archive: Path) -> list[Path]:
    """An archive's volumes in order (NAME.7z.001, NAME.7z.002, ...), or the archive itself."""
    if archive.suffix.lower() == ".7z":
        return [archive]
    digits = len(archive.suffix) - 1
    volumes = sorted(archive.parent.glob(f"{archive.stem}.{'[0-9]' * digits}"))
    wanted = [f"{archive.stem}.{number + 1:0{digits}}" for number in range(len(volumes))]
    missing = sorted(set(wanted) - {path.name for path in volumes})
    if missing:
        raise UserError(f"{archive.parent / missing[0]} is missing: download all volumes.")
    return volumes


class _Volumes(io.RawIOBase):
    """Several files read as one. The library that py7zr recommends for this (multivolumefile) includes
    every file with the same prefix, for instance partial downloads."""

    def __init__(self, files: Sequence[io.BufferedReader]) -> None:
        self.files = files
        self.ends = list(itertools.accumulate(file.seek(0, io.SEEK_END) for file in files))
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, self.ends[-1])[whence])
        return self.position

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self.ends, self.position)
        if number == len(self.files):
            return 0
        left = self.ends[number] - self.position  # in this volume
        self.files[number].seek(-left, io.SEEK_END)
        count = self.files[number].readinto(memoryview(buffer)[:left])
        self.position += count
        return count
