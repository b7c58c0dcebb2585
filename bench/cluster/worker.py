"""What an engine runs on a worker. It is sent by value, so that a worker needs Python and the packages
of the lock, but nothing of ours: the code comes with the task."""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any


def perform(code: bytes | str, job: dict[str, Any]) -> dict[str, Any]:
    """Run one task in a checkout of its own, which is removed once it has ended well; what a killed
    worker leaves there, such as a training's last checkpoint, is gone on from.

    Args:
        code: a tar file of the head's `.git`, with the one commit that is needed; or its path.
        job: as `bench.cluster.head` makes it.

    Returns:
        `host`, `seconds` that the task took, and either `files`, the content of its outputs that DVC
        does not store, by path, and of a stage `lock`, its entry of dvc.lock, and the seconds of its
        command; or `log`, the last lines of what a failed task printed.
    """
    begun = time.monotonic()
    base = Path(job["folder"]).expanduser().resolve()
    place = base / job["place"]
    if not place.is_dir():
        _unpack(code, place)
    log = base / f"{job['place']}.log"
    environment = {
        **os.environ,
        **job.get("environment", {}),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "DVC_SITE_CACHE_DIR": str(place / ".dvc/site"),
    }
    with log.open("wb") as output:
        # It ends when its input does, with all that it has started: no work goes on without a worker.
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.cluster.task"],
            cwd=place,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdin
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended: the log says why
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            status = process.wait()
        finally:
            process.stdin.close()
    result: dict[str, Any] = {"host": socket.gethostname()}
    if status:
        result["log"] = log.read_text(errors="replace")[-3000:]
    else:
        result |= json.loads((place / ".dvc/tmp/result.json").read_text())
        result["files"] = {path: (place / path).read_bytes() for path in result["files"]}
        shutil.rmtree(place, ignore_errors=True)
        log.unlink()
    return {**result, "seconds": time.monotonic() - begun}


def _unpack(code: bytes | str, place: Path) -> None:
    """A checkout of the commit, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    content = Path(code).read_bytes() if isinstance(code, str) else code
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            # It is the head's own .git. Python has filters since 3.11.4.
            options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(f"{name}/new", **options)  # noqa: S202
        subprocess.run(["git", "reset", "--quiet", "--hard"], cwd=f"{name}/new", check=True)
        Path(name, "new").rename(place)
