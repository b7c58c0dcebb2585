"""What is done of an image that is not done yet: a folder beside the output, and what it is of."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.errors import UserError
from bench.files import write_text


class Partial:
    """The folder, held by one process at a time; begun anew where it is of something else."""

    def __init__(self, output: Path, fingerprint: Mapping[str, Any], fresh: bool = False) -> None:
        """
        Args:
            output: what it will become.
            fingerprint: of image, weights and settings, as JSON has it.
            fresh: begin anew in any case.

        Raises:
            UserError: another process works on it.
        """
        self.folder = output.parent / f".{output.name}.partial"
        self._lock = FileLock(output.parent / f".{output.name}.lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"Another process is making {output}: wait for it or end it.") from None
        known = self.folder / "fingerprint.json"
        wanted = json.dumps(fingerprint, indent=1, sort_keys=True)
        if fresh or not known.exists() or known.read_text() != wanted:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            write_text(known, wanted)
        self.resumed = bool(self.done)

    @property
    def done(self) -> dict[str, int]:
        """How far each kind of work has come, by its name."""
        path = self.folder / "done.json"
        found: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def note(self, what: str, count: int) -> None:
        """Work has come so far; what it made must be on the disk by now."""
        write_text(self.folder / "done.json", json.dumps({**self.done, what: count}))

    def remove(self) -> None:
        """Everything is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Let another process at it; nothing is left where nothing was done."""
        if not self.done:
            self.remove()
        self._lock.release()
        if not self.folder.exists():
            Path(self._lock.lock_file).unlink(missing_ok=True)
