"""One model with three coefficients for all memory figures that the GLNet paper prints.

The paper read gpustat, which shows the process total: the segments of torch's allocator, the
workspace that cuDNN chose for a convolution, and the CUDA context. So

    published = context + holding x reserved + workspace x largest convolution

with the three coefficients fitted to all rows together. `reserved` is the predicted size of the
allocator's segments, `largest convolution` the bytes of its unfolded input. The leave-one-out error
says how well the other rows predict a row. It is not known which variant of a network the authors
ran: each of `VARIANTS` is applied to all rows of its network, never to one row."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bench.config import Suite, read_suite
from bench.memory.runs import Case, predict_run
from bench.parallel import parallel_map
from bench.run import Run, open_run

MB = 2**20
"""The paper read gpustat, whose MB are MiB."""
SIDE_PX = 2448
CLASSES = 7
PAPER = Path("suites/deepglobe.yaml")
"""GLNet's paper: its networks and sizes."""
SUITES = ("deepglobe", "deepglobe-sweep", "deepglobe-ablation")
PUBLISHED = Path(__file__).parent.parent / "published.csv"
EXPLAINED = 0.15
"""A row is explained if the relative error of the model is at most this."""
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "fcn8s": ({"fcn_pad_px": 0},),
    "pspnet": ({"encoder": "resnet101"}, {"output_stride": 16}),
    "deeplabv3plus": ({"encoder": "resnet101"}, {"output_stride": 8}),
    "unet2015": ({"width": 32},),
}
"""Spec fields by network, as in ports of that time or in the paper's text."""


@dataclass(frozen=True)
class Row:
    """A published figure, and the predicted memory of our network of that name at the same input."""

    row: str
    """`METHOD / inference` in bench/published.csv."""
    network: str
    strategy: str
    input_px: int
    """Side of the network's input."""
    published_mb: float
    tensors_mb: float
    """All tensors alive at the peak, predicted."""
    reserved_mb: float
    """Segments that the caching allocator would hold for them."""
    workspace_mb: float
    """Unfolded input of the largest convolution."""


@dataclass(frozen=True)
class Fit:
    """The three coefficients."""

    context_mb: float
    holding: float
    """Times `reserved_mb`."""
    workspace: float
    """Times `workspace_mb`."""

    def of(self, row: Row) -> float:
        """Modelled memory of a row, in MB."""
        return self.context_mb + self.holding * row.reserved_mb + self.workspace * row.workspace_mb


def fit(rows: Sequence[Row]) -> Fit:
    """The three non-negative coefficients with the least sum of absolute relative errors.

    Absolute errors, not squares, because some of the authors' networks differ from ours: outliers
    must not distort the fit. A minimum of such a sum meets as many equations exactly as there are
    coefficients, so that trying all triples finds it."""
    published = np.array([row.published_mb for row in rows])
    parts = np.array([[1.0, row.reserved_mb, row.workspace_mb] for row in rows])
    shares = parts / published[:, None]  # (n, 3)
    left = np.concatenate([shares, np.eye(3)])  # a row met exactly, or a coefficient of 0
    right = np.concatenate([np.ones(len(rows)), np.zeros(3)])
    triples = np.array(list(itertools.combinations(range(len(left)), 3)))
    solvable = triples[np.abs(np.linalg.det(left[triples])) > 1e-12]
    found = np.linalg.solve(left[solvable], right[solvable][..., None])[..., 0]  # (m, 3)
    found = found[(found > -1e-9).all(1)].clip(min=0)
    errors = np.abs(found @ shares.T - 1).sum(1)
    return Fit(*(float(value) for value in found[errors.argmin()]))


def possible(row: Row) -> bool:
    """Whether the published figure is at least the size of the tensors; if not, the authors' network
    or input was another one, which no such model can explain."""
    return row.published_mb >= row.tensors_mb


def explain(rows: Sequence[Row]) -> pd.DataFrame:
    """For each row, the figure modelled from all possible rows, and the leave-one-out error.

    `ratio` is modelled / published; `left_out_error` is the relative error of the fit to the other
    rows. Rows that repeat the same figure are left out together. Rows that are not possible have
    both figures too, but are not part of any fit."""
    whole = fit([row for row in rows if possible(row)])
    modelled = [whole.of(row) for row in rows]
    left_out = [
        fit([other for other in rows if possible(other) and not _same(other, row)]).of(row)
        for row in rows
    ]
    frame = pd.DataFrame([asdict(row) for row in rows]).drop(
        columns=["reserved_mb", "workspace_mb"]
    )
    return frame.rename(columns={"tensors_mb": "predicted_mb"}).assign(
        modelled_mb=modelled,
        ratio=modelled / frame.published_mb,
        left_out_error=(left_out / frame.published_mb - 1).abs(),
        note=[_note(*pair) for pair in zip(rows, modelled, strict=True)],
    )


def _note(row: Row, modelled_mb: float) -> str:
    if not possible(row):
        return "not explained: the tensors alone are more, so theirs was a smaller network or input"
    if abs(modelled_mb / row.published_mb - 1) <= EXPLAINED:
        return f"explained within {EXPLAINED:.0%}"
    needed = row.published_mb - modelled_mb
    return f"not explained: theirs held {abs(needed):.0f} MB {'more' if needed > 0 else 'less'}"


def _same(one: Row, other: Row) -> bool:
    """Whether two rows repeat one figure: the paper repeats its main table in Figure 1 and in the
    ablation."""
    alike = abs(one.published_mb - other.published_mb) <= 0.01 * one.published_mb
    return one.network == other.network and one.input_px == other.input_px and alike


def summary(frame: pd.DataFrame) -> dict[str, float]:
    """Rank correlation of modelled and published, median error of leaving a row out, and the share
    of rows that are explained."""
    ranks = frame[["modelled_mb", "published_mb"]].rank().to_numpy()
    return {
        "rows": float(len(frame)),
        "rank_correlation": float(np.corrcoef(ranks.T)[0, 1]),
        "median_left_out_error": float(frame.left_out_error.median()),
        "explained": float((frame.ratio - 1).abs().le(EXPLAINED).mean()),
    }


def published_rows(
    suites: Sequence[Suite],
    variant: Mapping[str, Mapping[str, Any]] | None = None,
    worked_out: Sequence[Row] = (),
) -> list[Row]:
    """Every published memory figure that has a run in the suites, once each.

    Args:
        variant: by network, spec fields to override.
        worked_out: rows without a variant, reused for the networks that it does not change.
    """
    variant = variant or {}
    table = pd.read_csv(PUBLISHED)
    table = table[table.memory_mb.notna() & (table.confidence != "recalled")]
    known = dict(zip(table.method + " / " + table.inference, table.memory_mb, strict=True))
    answers: dict[str, Run] = {}
    for suite in suites:
        for name, config in suite.runs.items():
            if config.published and config.published in known:
                answers.setdefault(config.published, open_run(suite, name, classes=CLASSES))
    rows = {row.row: row for row in worked_out if row.network not in variant}
    tasks = {
        key: (run.varied(**variant.get(network_of(run), {})), float(known[key]))
        for key, run in answers.items()
        if key not in rows
    }
    title = "explain what is published"
    rows |= zip(tasks, parallel_map(_row, list(tasks.values()), title, "row"), strict=True)
    return [rows[key] for key in answers]


def _row(run: Run, published_mb: float) -> Row:
    with largest_convolution() as unfolded:
        found = predict_run(run, (SIDE_PX, SIDE_PX), "cuda")
    side = getattr(run.spec, "size_px", getattr(run.spec, "patch_px", SIDE_PX))
    return Row(
        row=str(run.config.published),
        network=network_of(run),
        strategy=run.config.strategy,
        input_px=SIDE_PX if run.config.strategy == "whole" else side,
        published_mb=published_mb,
        tensors_mb=found.device_bytes / MB,
        reserved_mb=(found.reserved_bytes or 0) / MB,
        workspace_mb=max(unfolded, default=0) / MB,
    )


def paper_cases() -> Iterator[Case]:
    """Every run of the suite of GLNet's paper."""
    suite = read_suite(PAPER)
    for name in suite.runs:
        yield Case("DeepGlobe", SIDE_PX, "", open_run(suite, name, classes=CLASSES))


def network_of(run: Run) -> str:
    """The name of a run's network; the method's where that has only one."""
    return str(getattr(run.spec, "network", run.model.config.method.rpartition("/")[2]))


@contextmanager
def largest_convolution() -> Iterator[list[int]]:
    """Bytes of the unfolded float32 input of each convolution inside the block.

    1 x 1 convolutions, which are matrix products without unfolding, and grouped ones are left out.
    """
    found: list[int] = []

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.groups == 1 and isinstance(output, Tensor):
            taps = module.kernel_size[0] * module.kernel_size[1]
            if taps > 1:
                pixels = output.shape[0] * output.shape[-2] * output.shape[-1]
                found.append(4 * module.in_channels * taps * pixels)

    handle = register_module_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


def explain_published() -> dict[str, Any]:
    """The model's figure for every published one, and the effect of each variant of a network: the
    part `published` of the record of the stage `predict`."""
    suites = [read_suite(Path(f"suites/{name}.yaml")) for name in SUITES]
    rows = published_rows(suites)
    frame = explain(rows)
    variants = [
        {
            "network": network,
            "choice": dict(choice),
            **summary(explain(published_rows(suites, {network: choice}, rows))),
        }
        for network, choices in VARIANTS.items()
        for choice in choices
    ]
    return {
        "rows": frame.to_dict("records"),
        "fit": asdict(fit(rows)),
        "summary": summary(frame),
        "variants": variants,
    }
