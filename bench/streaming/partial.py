"""The state of an unfinished image, in a folder beside the output, from which a later process resumes."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.errors import UserError
from bench.files import write_text

FINGERPRINT = "fingerprint.json"


def partial_folder(output: Path) -> Path:
    """The folder of an unfinished label file."""
    return output.parent / f".{output.name}.partial"


class State:
    """What is done of an image, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def done(self) -> dict[str, int]:
        """Progress by step; empty if the file is damaged."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads((self.folder / "done.json").read_bytes())
            return found if isinstance(found, dict) else {}
        return {}

    def mark_done(self, step: str, count: int) -> None:
        """Record a step's progress; its results must already be on disk."""
        write_text(self.folder / "done.json", json.dumps({**self.done, step: count}))


class Partial(State):
    """The folder, locked by one process at a time. It is emptied if its fingerprint differs."""

    def __init__(self, output: Path, fingerprint: Mapping[str, Any], fresh: bool = False) -> None:
        """
        Args:
            output: the label file.
            fingerprint: image, weights and settings, as JSON values.
            fresh: always empty the folder.

        Raises:
            UserError: another process holds the lock.
        """
        super().__init__(partial_folder(output))
        self._lock = FileLock(output.parent / f".{output.name}.lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"Another process is writing {output}: wait for it or end it."
            ) from None
        path = self.folder / FINGERPRINT
        text = json.dumps(fingerprint, indent=1, sort_keys=True)
        if fresh or not path.exists() or path.read_bytes() != text.encode():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            write_text(path, text)
        self.resumed = bool(self.done)

    def remove(self) -> None:
        """Delete the folder when everything is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Unlock the folder, and delete it if there is no progress."""
        if not self.done:
            self.remove()
        self._lock.release()
        if not self.folder.exists():
            Path(self._lock.lock_file).unlink(missing_ok=True)
