"""Resident memory of this process, as the system reports it."""

import re
import threading
from pathlib import Path

import psutil


class PeakResident:
    """Peak resident set of this process inside a block, and its size at the start.

    Linux keeps a high-water mark, which is reset, so that no peak is missed. If the reset is not
    permitted, and on other systems, a thread samples every 5 ms and can miss shorter peaks. `how`
    says which method was used."""

    def __init__(self) -> None:
        self.base_bytes = 0
        self.peak_bytes = 0
        self.how = "sampled every 5 ms"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakResident":
        self.base_bytes = self.peak_bytes = psutil.Process().memory_info().rss
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.how = "VmHWM, reset before"
        except OSError:
            self._thread.start()  # slows the measured code by some 7 % on two cores
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()
        else:
            self.peak_bytes = max(self.peak_bytes, _high_water())

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.005):
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)


def _high_water() -> int:
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
