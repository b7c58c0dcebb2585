"""What `glnet-bench cluster` with two local workers costs over `dvc repro`, each in a fresh clone of this
commit. Needs the machine for itself, and writes `results/cluster/overhead-SUITE.json`:

    python tests/cluster_overhead.py smoke earthcover
"""

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster_kills import add_remote, git, start
from conftest import ROOT

from bench import record

SUBREAPER = 36
"""Of prctl: orphans, such as Ray's services, become our children, whose processor time counts."""
DEFINITION = (
    "wall and processor seconds of `dvc repro`, and of `glnet-bench cluster --workers 2` with its own "
    "last `dvc repro`, from a clone without results; stages_s: from the start of the first stage of "
    "`dvc repro` to its end; overhead: the wall seconds that the cluster took more, as a share of them"
)


def clone(folder: Path, suite: str, raw: Path | None = None) -> Path:
    """A clone with a suite and no results, but for downloads."""
    git(ROOT, "clone", "--quiet", f"file://{ROOT}", str(folder))
    shutil.copy(folder / f"suites/{suite}.yaml", folder / "params.yaml")
    made = ("dvc.lock", f"results/{suite}", f"report/{suite}")
    git(folder, "rm", "-r", "--quiet", "--ignore-unmatch", *made)
    git(folder, "commit", "--quiet", "--all", "--allow-empty", "--message", suite)
    if raw:
        shutil.copytree(raw / "data/raw", folder / "data/raw", dirs_exist_ok=True)
    return folder


def timed(process: subprocess.Popen[str], log: Path) -> dict[str, float]:
    """Seconds until it has ended, and those of processors."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.wait() == 0, log.read_text()[-3000:]
    wall_s = time.monotonic() - begun
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return {"s": wall_s, "processor_s": used}


def repro(folder: Path, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dvc", "repro"]
    with log.open("w") as output:
        return subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, text=True
        )


def matrices(folder: Path, suite: str) -> dict[str, Any]:
    """Of each run's scenes."""
    paths = sorted((folder / f"results/{suite}/evaluate").glob("*.json"))
    return {path.name: json.loads(path.read_text())["values"]["splits"] for path in paths}


def measure(suite: str, place: Path) -> None:
    here, cluster = clone(place / "here", suite), place / "cluster"
    log = place / "log"
    first = [sys.executable, "-m", "dvc", "repro", "download"]
    subprocess.run(first, cwd=here, check=True, capture_output=True)
    begun = timed(repro(here, log), log)
    clone(cluster, suite, raw=here)
    add_remote(cluster)
    spread = timed(start(cluster), cluster / "log")
    print((cluster / "log").read_text())
    assert matrices(here, suite) == matrices(cluster, suite) != {}
    assert repro(cluster, log).wait() == 0
    assert "Running stage" not in log.read_text()
    row = {f"repro_{key}": value for key, value in begun.items()}
    row |= {f"cluster_{key}": value for key, value in spread.items()}
    row["overhead"] = (row["cluster_s"] - row["repro_s"]) / row["repro_s"]
    print(row)
    values = {"rows": [row], "definition": DEFINITION}
    path = record.RESULTS / f"cluster/overhead-{suite}.json"
    settings = {"suite": suite, "workers": 2}
    made = record.Record("cluster", path.stem, settings, values, record.provenance())
    record.write(ROOT / path, made)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    os.environ.pop("PYTHONPATH", None)
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="overhead") as folder:
            measure(name, Path(folder))
