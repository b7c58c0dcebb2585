"""The finished parts of an unfinished image: a folder beside the output, with its fingerprint."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.errors import UserError
from bench.files import write_text


class Partial:
    """The folder, locked by one process at a time; emptied if its fingerprint differs."""

    def __init__(self, output: Path, fingerprint: Mapping[str, Any], fresh: bool = False) -> None:
        """
        Args:
            output: the label file.
            fingerprint: of image, weights and settings, in JSON's types.
            fresh: empty the folder in any case.

        Raises:
            UserError: another process holds the lock.
        """
        self.folder = output.parent / f".{output.name}.partial"
        self._lock = FileLock(output.parent / f".{output.name}.lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"Another process is making {output}: wait for it or end it.") from None
        known = self.folder / "fingerprint.json"
        wanted = json.dumps(fingerprint, indent=1, sort_keys=True)
        if fresh or not known.exists() or known.read_bytes() != wanted.encode():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            write_text(known, wanted)
        self.resumed = bool(self.done)

    @property
    def done(self) -> dict[str, int]:
        """Progress of each step, by its name; a damaged file tells of none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads((self.folder / "done.json").read_bytes())
            return found if isinstance(found, dict) else {}
        return {}

    def note(self, what: str, count: int) -> None:
        """Record a step's progress; its results must already be on the disk."""
        write_text(self.folder / "done.json", json.dumps({**self.done, what: count}))

    def remove(self) -> None:
        """Delete the folder: everything is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Unlock the folder; without any progress it is deleted."""
        if not self.done:
            self.remove()
        self._lock.release()
        if not self.folder.exists():
            Path(self._lock.lock_file).unlink(missing_ok=True)
