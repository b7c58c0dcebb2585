"""Files of static figures, made by other processes."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.files import write_bytes
from bench.report.figures.palette import RC

Drawing = Callable[[], Figure]
PNG_DPI = 200
_NO_DATES: Mapping[str, dict[str, None]] = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "png": {"Software": None},
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}


def render(figure: Figure, kinds: Sequence[str]) -> dict[str, bytes]:
    """Kind -> file content, the same bytes for the same figure; `kinds`: svg, png, pdf."""
    files = {}
    with mpl.rc_context(RC):
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # the layout is done; each file would repeat it
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=_NO_DATES[kind])
            files[kind] = buffer.getvalue()
    return files


@contextmanager
def written(drawings: Mapping[str, Drawing], folder: Path) -> Iterator[None]:
    """Draw figures and write NAME.KIND below `folder` while the block runs; the files exist at its
    end. Training curves have no PDF: they have too many points."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    # Forked processes need no imports; elsewhere than on Linux a fork is not safe.
    context = get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(min(cores, len(drawings)), context) as pool:
        with warnings.catch_warnings():
            # Python 3.12 warns of forking with threads; those here are idle threads of a library.
            warnings.simplefilter("ignore", DeprecationWarning)
            running = [
                pool.submit(_write, drawing, folder, name) for name, drawing in drawings.items()
            ]
        yield
        for one in running:
            one.result()


def _write(drawing: Drawing, folder: Path, name: str) -> None:
    kinds = ("svg", "png") if name == "training" else ("svg", "png", "pdf")
    for kind, content in render(drawing(), kinds).items():
        write_bytes(folder / f"{name}.{kind}", content)
