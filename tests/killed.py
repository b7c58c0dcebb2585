"""In a process of its own: labels an image again and again, killed at every stage, and prints the
number of kills. Used by test_large_files.py.

    python killed.py FOLDER METHOD STRATEGY"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from test_large_files import job_of

from bench.streaming import image, predict_file, raster
from bench.streaming.budget import MemoryNeed
from bench.streaming.planes import Plane
from bench.windows.score_sums import ScoreSums


def dies_in(owner: Any, name: str, calls: int) -> Callable[[], None]:
    """Kill the process in a function's call of that number."""

    def prepare() -> None:
        real, left = getattr(owner, name), calls

        def mortal(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, mortal)

    return prepare


DEATHS = [
    dies_in(Plane, "write", 2),  # the image is being unpacked
    dies_in(image.DiskMapStore, "__setitem__", 5),  # local maps are being merged
    dies_in(ScoreSums, "add", 7),  # in the second row of patches
    dies_in(ScoreSums, "_store_carry", 6),
    dies_in(ScoreSums, "add", 6),
    dies_in(raster, "_verify", 1),  # the output is written, under another name
]


def main(folder: Path, method: str, strategy: str) -> None:
    """All processes together label image.tif."""
    image.SAVE_INTERVAL_S = 0.0
    # Memory is another test's concern, and takes longer to predict than all the labels.
    sys.modules[predict_file.__module__].fit_memory = lambda run, *_: (run, MemoryNeed(0, 0), True)
    output = folder / "labels.tif"
    job = job_of(method, strategy)
    killed = 0
    for prepare in DEATHS:
        child = os.fork()
        if not child:
            prepare()
            predict_file(folder / "image.tif", output, job, silent=True)
            os._exit(0)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert not output.exists(), "nothing has the output's name before it is whole"
    predict_file(folder / "image.tif", output, job, silent=True)
    print("killed", killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
