"""Safe unpacking: the name, kind and size of every member are checked before anything is written, and
the number of bytes while writing."""

import bisect
import io
import lzma
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import py7zr
import py7zr.exceptions
from py7zr.io import Py7zIO, WriterFactory

from bench.errors import UserError

PIECE_BYTES = 2**20
LARGEST_BYTES = 200 * 2**30
"""No archive of a data set is larger when it is unpacked."""
MOST_MEMBERS = 200_000
# RuntimeError: encrypted; NotImplementedError, UnsupportedCompressionMethodError: packed in a way
# that the reader does not know; ValueError, IndexError, TypeError: what damaged headers lead to.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,
    py7zr.exceptions.ArchiveError,
    py7zr.exceptions.PasswordRequired,
)
Wanted = Callable[[str], bool]


@dataclass(frozen=True)
class Member:
    """A file that an archive says it holds."""

    name: str
    """As the archive has it."""
    path: PurePosixPath
    """Where it goes, below the folder that is unpacked into."""
    size_bytes: int


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive, or of the first volume of one."""
    name = path.name.lower()
    return name.endswith((".zip", ".7z", ".7z.001", ".7z.0001"))


def archive_in(folder: Path) -> Path | None:
    """The archive in a folder, if there is one; of several volumes the first.

    Raises:
        UserError: there is more than one.
    """
    found = [path for path in folder.iterdir() if path.is_file() and is_archive(path)]
    if len(found) > 1:
        raise UserError(f"{folder} holds several archives: leave the one with the images there.")
    return found[0] if found else None


def find_folder(root: Path, names: Sequence[str], test: Callable[[Path], bool]) -> Path | None:
    """The first folder of one of these names, at most two levels below `root`, that passes a
    test."""
    for above in ("", "*/", "*/*/"):
        for name in names:
            for folder in sorted(root.glob(f"{above}{name}")):
                if test(folder):
                    return folder
    return None


def unpack(
    archive: Path,
    folder: Path,
    wanted: Wanted = lambda name: True,
    limit_bytes: int = LARGEST_BYTES,
) -> Path:
    """Unpack a zip or 7z archive into a new folder, whole or not at all.

    Args:
        archive: of several volumes the first one (`NAME.7z.001`).
        wanted: which members, by their names.
        limit_bytes: how large the wanted ones may be in all.

    Raises:
        UserError: a member would leave the folder, is a link, has a name that another one has on some
            system, is larger than it says or all are larger than `limit_bytes`; the archive is
            damaged, cut, or no archive.
        OSError: the disk is full.
    """
    working = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(working, ignore_errors=True)  # left by a kill
    working.mkdir(parents=True)
    try:
        with _reporting_damage(archive):
            if archive.name.lower().endswith(".zip"):
                _unpack_zip(archive, working, wanted, limit_bytes)
            else:
                _unpack_7z(archive, working, wanted, limit_bytes)
        if folder.exists():
            shutil.rmtree(folder)
        working.rename(folder)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    return folder


def unpack_fetched(
    archive: Path,
    folder: Path,
    wanted: Wanted = lambda name: True,
    limit_bytes: int = LARGEST_BYTES,
) -> Path:
    """`unpack` of a downloaded archive without a known SHA-256: it is deleted afterwards, and also
    when it is refused, so that the next start downloads it again."""
    try:
        unpack(archive, folder, wanted, limit_bytes)
    except UserError:
        archive.unlink()
        raise
    archive.unlink()
    return folder


@contextmanager
def _reporting_damage(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(
            f"{archive} is damaged, cut short or no archive ({reason}): get it again."
        ) from None


def _checked(
    archive: Path, listed: Sequence[tuple[str, int, bool]], folder: Path, limit_bytes: int
) -> list[Member]:
    """What may be written, from (name, size, is it a plain file) of each member."""
    if len(listed) > MOST_MEMBERS:
        raise UserError(
            f"{archive} has {len(listed)} members, more than any data set: do not use it."
        )
    members: list[Member] = []
    seen: dict[str, str] = {}
    for name, size, plain in listed:
        path = PurePosixPath(name.replace("\\", "/"))
        outside = path.is_absolute() or ".." in path.parts or ":" in name
        if outside or not path.parts or not name.isprintable():
            raise UserError(
                f"{archive} has a member {name!r} that would leave its folder: do not use it."
            )
        if not plain:
            raise UserError(f"{archive} has a member {name!r} that is a link: do not use it.")
        same = _folded(path)
        if same in seen:
            raise UserError(
                f"{archive} has {seen[same]!r} and {name!r}, which are one file on some systems: "
                "unpack it manually, rename one, and put the folder in its place."
            )
        seen[same] = name
        members.append(Member(name, path, size))
    for member in members:
        for parent in member.path.parents:
            if _folded(parent) in seen:
                raise UserError(f"{archive} has {parent} as a file and as a folder: do not use it.")
    total = sum(member.size_bytes for member in members)
    if total > limit_bytes:
        raise UserError(
            f"{archive} says it holds {total / 2**30:.1f} GiB, more than the "
            f"{limit_bytes / 2**30:.1f} GiB that are expected: nothing was unpacked."
        )
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"{archive} needs {total / 2**30:.1f} GiB unpacked, but {folder.parent} has "
            f"{free / 2**30:.1f} GiB free: free some space."
        )
    return members


def _folded(path: PurePosixPath) -> str:
    """A name as file systems compare it that ignore case and Unicode composition."""
    return unicodedata.normalize("NFC", str(path).casefold())


def _too_large(archive: Path, name: str) -> UserError:
    return UserError(f"{archive}: {name!r} is larger than the archive says: do not use it.")


def _unpack_zip(archive: Path, folder: Path, wanted: Wanted, limit_bytes: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        found = [info for info in opened.infolist() if not info.is_dir() and wanted(info.filename)]
        listed = []
        for info in found:
            kind = stat.S_IFMT(info.external_attr >> 16)
            listed.append((info.filename, info.file_size, kind in (0, stat.S_IFREG)))
        members = _checked(archive, listed, folder, limit_bytes)
        for info, member in zip(found, members, strict=True):
            target = folder / member.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as packed, target.open("wb") as file:
                _copy(archive, member, packed, file)


def _copy(archive: Path, member: Member, packed: IO[bytes], file: IO[bytes]) -> None:
    left = member.size_bytes
    while piece := packed.read(PIECE_BYTES):
        left -= len(piece)
        if left < 0:
            raise _too_large(archive, member.name)
        file.write(piece)
    if left:
        raise EOFError(f"{member.name} ends early")


def _unpack_7z(archive: Path, folder: Path, wanted: Wanted, limit_bytes: int) -> None:
    # A file object rather than a name: given a name, py7zr writes from several threads at once.
    with _Volumes(_volumes(archive)) as volumes, py7zr.SevenZipFile(cast(Any, volumes)) as opened:
        found = [file for file in opened.files if not file.is_directory and wanted(file.filename)]
        listed = []
        for file in found:
            plain = not (file.is_symlink or file.is_junction or file.is_socket)
            listed.append((file.filename, file.uncompressed or 0, plain))
        members = _checked(archive, listed, folder, limit_bytes)
        with _Files(archive, folder, members) as factory:
            opened.extract(targets=[member.name for member in members], factory=factory)
        for member in members:
            target = folder / member.path
            if not member.size_bytes:  # never asked for
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            if target.stat().st_size != member.size_bytes:
                raise EOFError(f"{member.name} ends early")


def _volumes(archive: Path) -> list[Path]:
    """An archive's volumes in order: NAME.7z.001, NAME.7z.002 and so on, or itself alone."""
    if archive.suffix.lower() == ".7z":
        return [archive]
    digits = len(archive.suffix) - 1
    volumes = sorted(archive.parent.glob(f"{archive.stem}.{'[0-9]' * digits}"))
    wanted = [f"{archive.stem}.{number + 1:0{digits}}" for number in range(len(volumes))]
    missing = sorted(set(wanted) - {path.name for path in volumes})
    if missing:
        raise UserError(f"{archive.parent / missing[0]} is missing: all volumes are needed.")
    return volumes


class _Volumes(io.RawIOBase):
    """Several files read as one; the library that py7zr recommends for this includes every file with
    the same prefix, such as partial downloads."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files: list[IO[bytes]] = [path.open("rb") for path in paths]
        sizes = [path.stat().st_size for path in paths]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at}.get(whence, self.starts[-1])
        return self.at

    def readinto(self, buffer: Any) -> int:
        if not 0 <= self.at < self.starts[-1]:
            return 0
        number = bisect.bisect_right(self.starts, self.at) - 1
        view = memoryview(buffer).cast("B")
        self.files[number].seek(self.at - self.starts[number])
        piece = self.files[number].read(min(len(view), self.starts[number + 1] - self.at))
        view[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)

    def read(self, size: int | None = -1, /) -> bytes:
        """As much as is asked for, across the borders of volumes."""
        left = self.starts[-1] - self.at if size is None or size < 0 else size
        pieces = []
        while left > 0 and (piece := super().read(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        for file in getattr(self, "files", []):
            file.close()
        super().close()


class _Files(WriterFactory):
    """The files that py7zr writes; none may grow beyond its listed size."""

    def __init__(self, archive: Path, folder: Path, members: Sequence[Member]) -> None:
        self.archive, self.folder = archive, folder
        self.members = {str(member.path): member for member in members}
        self.opened: list[_File] = []

    def create(self, filename: str) -> Py7zIO:
        member = self.members[str(PurePosixPath(filename.replace("\\", "/")))]
        target = self.folder / member.path
        target.parent.mkdir(parents=True, exist_ok=True)
        self.opened.append(_File(self.archive, member, target.open("w+b")))
        return self.opened[-1]

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.opened:
            one.close()


class _File(Py7zIO):
    def __init__(self, archive: Path, member: Member, file: IO[bytes]) -> None:
        self.archive, self.member, self.file = archive, member, file
        self.left = member.size_bytes

    def write(self, s: bytes | bytearray) -> int:
        self.left -= len(s)
        if self.left < 0:
            raise _too_large(self.archive, self.member.name)
        return self.file.write(s)

    def read(self, size: int | None = None) -> bytes:
        return self.file.read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def flush(self) -> None:
        self.file.flush()

    def size(self) -> int:
        return self.member.size_bytes - self.left

    def close(self) -> None:
        self.file.close()
