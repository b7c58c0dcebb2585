"""`python -m bench.cluster.task`, in a worker's checkout: runs one task."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from filelock import FileLock

from bench import cli
from bench.files import write_bytes, write_text


def main() -> None:
    """Run the task that a line of standard input describes; its result is a file under .dvc/tmp."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_worker, daemon=True).start()
    used = Path(".dvc/tmp/task.lock")
    resumed = used.exists()
    used.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(used):
        if resumed and "stage" in job:
            subprocess.run([sys.executable, "-m", "bench.pipeline.mend"], check=True)
        for path, text in job["files"].items():
            write_bytes(Path(path), text.encode())
        work = importlib.import_module(job["module"]).work
        write_text(Path(".dvc/tmp/result.json"), json.dumps({"files": []} | work(job)))


def _end_with_worker() -> None:
    """End this process and all that it has started once the worker has closed our input."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    cli.report_errors(main)
