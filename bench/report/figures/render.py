"""Files of static figures, made by forked processes beside other work."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
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
    end. Training curves have no PDF: they have too many points.

    Worker processes are forked, so the program must have one thread. Without fork, or with one
    core, the files are written before the block."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if "fork" not in get_all_start_methods() or cores < 2 or sys.platform != "linux":
        for name in drawings:
            _write(drawings, folder, name)
        yield
        return
    with warnings.catch_warnings():
        # Python 3.12 warns of forking with threads; those here are idle threads of a library.
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = get_context("fork").Pool(min(cores, len(drawings)), _inherit, (drawings, folder))
    with pool:
        running = pool.map_async(_write_inherited, drawings, chunksize=1)
        yield
        running.get()


_inherited: tuple[Mapping[str, Drawing], Path]


def _inherit(drawings: Mapping[str, Drawing], folder: Path) -> None:
    global _inherited
    _inherited = drawings, folder


def _write_inherited(name: str) -> None:
    _write(*_inherited, name)


def _write(drawings: Mapping[str, Drawing], folder: Path, name: str) -> None:
    kinds = ("svg", "png") if name == "training" else ("svg", "png", "pdf")
    for kind, content in render(drawings[name](), kinds).items():
        write_bytes(folder / f"{name}.{kind}", content)
