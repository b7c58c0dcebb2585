"""Numbers that README and docs print, computed from the committed records."""

import importlib.util
from collections.abc import Callable, Sequence
from statistics import mean, median
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from conftest import ROOT

from bench.streaming import budget, raster
from data.image_header import CACHE_BYTES


def load_generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()
values: Callable[[str], Any] = generate.values
MIB, GIB = 2**20, 2**30
HEADS = ("collaborative", "collapsed")


def gpu_rows(run: str = "", side_px: int = 0) -> list[Any]:
    rows = values("card/h100.json")["rows"]
    return [
        row
        for row in rows
        if (not run or row["run"] == run) and (not side_px or row["side_px"] == side_px)
    ]


def gpu(run: str, meter: str) -> float:
    """Bytes of one run at 2448 px on the H100."""
    return float(gpu_rows(run, 2448)[0]["meters"][meter]["bytes"])


def gpu_deviations(meter: str) -> list[float]:
    """How far the prediction of each published setting is from the H100: cuDNN's copies, and
    cuBLAS's workspace of 32 MiB, included."""
    found = []
    for row in gpu_rows():
        size = row["predicted"][f"tf32_{meter}_bytes"] + 32 * MIB
        found.append(abs(size / row["meters"][meter]["bytes"] - 1))
    return found


def within(deviations: Sequence[float], bound: float) -> int:
    return sum(deviation <= bound for deviation in deviations)


def phases(suite: str, machine: str) -> list[Any]:
    models = values(f"{suite}/steps/{machine}.json")["models"]
    return [phase for model in models.values() for phase in model.values()]


def ratios(suite: str, machine: str) -> list[float]:
    """Predicted over allocated, of every run at two sizes and of every training phase."""
    found = [p["predicted_bytes"] / p["allocated_bytes"] for p in phases(suite, machine)]
    for name in generate.names(f"{suite}/measure/{machine}"):
        record = values(f"{suite}/measure/{machine}/{name}.json")
        meters = record["meters"]
        predicted = meters["predicted"]
        size = predicted.get("expected_allocated_bytes") or predicted["allocated_bytes"]
        found += [(size or predicted["bytes"]) / meters["allocated"]["bytes"]]
        found += [record["part"]["predicted_bytes"] / record["part"]["allocated_bytes"]]
    return found


def on_cpu() -> list[float]:
    return ratios("earthcover", "cpu-2-cores") + ratios("mosaic", "cpu-2-cores")


def on_h100() -> list[float]:
    return [abs(ratio - 1) for ratio in ratios("earthcover-long", "h100")]


def too_high_mib() -> list[float]:
    """What is predicted of training steps above what they took on the H100."""
    found = phases("earthcover-long", "h100")
    return [(phase["predicted_bytes"] - phase["allocated_bytes"]) / MIB for phase in found]


def training_minutes(suite: str) -> float:
    records = [values(f"{suite}/train/{name}.json") for name in generate.names(f"{suite}/train")]
    return sum(p["seconds"] for record in records for p in record["phases"].values()) / 60


def long(run: str, what: str) -> float:
    return long_meters(run)[what]


def head(path: str, what: str, machine: str = "cpu-2-cores") -> float:
    """Median over repetitions at 2448 px on two CPU cores."""
    found = values(f"fast/{machine}.json")["sides"]["2448"][path]
    return median(repetition[what] for repetition in found["repetitions"])


def head_predicted(path: str, what: str) -> float:
    found = values("fast/cpu-2-cores.json")["sides"]["2448"][path]["predicted"]
    return float(found[what] - (found["weights_bytes"] if what == "device_bytes" else 0))


def head_factors() -> list[float]:
    """Of both processors."""
    found = []
    for machine in ("cpu-2-cores", "epyc-2-cores"):
        sides = values(f"fast/{machine}.json")["sides"]["2448"]
        pairs = zip(sides["plain"]["repetitions"], sides["collapsed"]["repetitions"], strict=True)
        found += [plain["wall_s"] / collapsed["wall_s"] for plain, collapsed in pairs]
    return found


def two_patches_at_once(key: str) -> list[float]:
    """By run, the median of a measurement over that of one patch at a time."""
    rows = values("sub_batch/cpu-2-cores.json")["rows"]
    found = {(row["kind"], row["others"]["sub_batch"]): np.median(row[key]) for row in rows}
    return [found[run, 2] / one for (run, patches), one in found.items() if patches == 1]


def growth() -> pd.DataFrame:
    return pd.read_csv(ROOT / "results/large/cpu-2-cores/enet-patch.csv")


def avx2_factors(*parts: str) -> list[float]:
    """Median processor seconds with AVX2 over those with AVX-512, of steps or predictions; the first
    of each process warms up."""
    rows = pd.read_json(ROOT / "results/isa/cpu-2-cores.jsonl", lines=True)
    assert set(rows.threads) == {1}
    rows = rows.assign(processor_s=rows.processor_s.str[1:]).explode("processor_s")
    found = rows.groupby(["part", "cpu_capability"]).processor_s.median().unstack()
    assert set(found.index) >= set(parts)
    return [float(found.AVX2[part] / found.AVX512[part]) for part in parts]


def steps_avx2() -> list[float]:
    """`avx2_factors` of the training steps."""
    return avx2_factors("train", "global", "global-to-local", "local-to-global")


def published(method: str, column: str, paper: str = "GLNet") -> float:
    rows = pd.read_csv(ROOT / "bench/published.csv")
    rows = rows[(rows.method == method) & (rows.paper == paper) & (rows.dataset == "DeepGlobe")]
    return float(rows[column].dropna().iloc[0])


def published_memory_met() -> list[float]:
    """Settings with published memory, how many the H100 meets within 15 %, the 15, and how many take
    more than twice as much. One variant each: the released one, then the one without a variant."""
    table = pd.read_csv(ROOT / "bench/published.csv")
    table = table[table.dataset == "DeepGlobe"].dropna(subset=["memory_mb"])
    printed = dict(zip(table.method + " / " + table.inference, table.memory_mb * MIB, strict=True))
    order = ("as released", "", "corrected")
    chosen: dict[str, Any] = {}
    for row in sorted(gpu_rows(side_px=2448), key=lambda row: order.index(row["done"])):
        if row["published"] in printed:
            chosen.setdefault(row["published"], row)
    ratios = [row["meters"]["nvml"]["bytes"] / printed[key] for key, row in chosen.items()]
    return [len(ratios), sum(abs(r - 1) <= 0.15 for r in ratios), 15, sum(r > 2 for r in ratios)]


def paper_model(part: str, name: str) -> float:
    return float(values("predict.json")["published"][part][name])


def mosaic_ceilings() -> dict[str, float]:
    return {k: 100 * v for k, v in values("mosaic/evaluate/global-seed0.json")["ceilings"].items()}


def mosaic_miou(run: str) -> float:
    return mean(generate.miou("mosaic", f"{run}-seed{seed}") for seed in range(3))


def interval_coverage(scenes: int) -> float:
    """Percent of normally distributed samples whose bootstrap interval of the mean has the truth."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4000, scenes))
    shares = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=2000) / scenes
    low, high = np.percentile(samples @ shares.T, [2.5, 97.5], axis=1)
    return float(100 * np.mean((low <= 0) & (high >= 0)))


def settings_within() -> tuple[int, int]:
    """How many published settings there are, and how many of them the prediction meets to 1 %;
    that the collapsed head is not one of them is read from the record itself."""
    pairs = zip(gpu_rows(), gpu_deviations("allocated"), strict=True)
    assert {row["run"] for row, deviation in pairs if deviation > 0.01} == {"glnet-collapsed"}
    return len(gpu_rows()), within(gpu_deviations("allocated"), 0.01)


def glnet_at_paper_size() -> tuple[float, float, float]:
    """MiB that torch allocated and that NVML saw of `collaborative`; MB that the paper prints."""
    allocated, process = (
        gpu("glnet-collaborative", meter) / MIB for meter in ("allocated", "nvml")
    )
    return allocated, process, published("GLNet G<->L", "memory_mb")


def beside_mib() -> list[float]:
    """What the process held on the H100 beside what the allocator reserved."""
    return [
        median(
            (r["meters"]["nvml"]["bytes"] - r["meters"]["reserved"]["bytes"]) / MIB
            for r in gpu_rows()
        )
    ]


def long_meters(run: str) -> dict[str, float]:
    found: dict[str, float] = generate.measured("earthcover-long", "h100", run)
    return found


def cpu_within() -> tuple[int, int]:
    return within([abs(ratio - 1) for ratio in on_cpu()], 0.01), len(on_cpu())


def steps_on_h100() -> tuple[float, ...]:
    *others, most = sorted(abs(mib) for mib in too_high_mib())
    return len(others) + 1, len(others), others[-1], most


def simulated() -> tuple[float, ...]:
    """Trainings, then workers and percent for two rows, then the longest path in seconds."""
    found = values("cluster/earthcover.json")
    shares = {row["workers"]: 100 * row["efficiency"] for row in found["rows"]}
    return found["trainings"], 16, shares[16], 64, shares[64], found["longest_s"]


def streaming_limits() -> tuple[float, ...]:
    fixed = (CACHE_BYTES, raster.BLOCK_BYTES)
    sizes = (budget.BUFFER_BYTES, *fixed, budget.BUFFER_BYTES - sum(fixed))
    return tuple(size / MIB for size in sizes)


def estimate_ratios(tool: str = "", machine: str = "cpu-2-cores", **which: str) -> list[float]:
    """What a tool says over what was allocated, of networks of other projects."""
    found = []
    for row in values(f"estimates/{machine}.json")["rows"]:
        said = row["others"].get(tool) if tool else row["predicted_bytes"]
        if said and all(row[key] == value for key, value in which.items()):
            found.append(said / row["allocated_bytes"])
    return found


def estimate_errors(tool: str = "", **which: str) -> tuple[float, float, float]:
    """Median, 95th percentile and largest, in percent."""
    off = [100 * abs(ratio - 1) for ratio in estimate_ratios(tool, **which)]
    return median(off), float(np.percentile(off, 95)), max(off)


def misjudged(tool: str = "", margin: float = 0.0, **which: str) -> tuple[float, float]:
    """Percent of false fits and of false refusals, of all cases at budgets from 0.8 to 1.25 times
    what was allocated."""
    budgets = np.arange(80, 126) / 100
    needed = np.array(estimate_ratios(tool, **which))[:, None] * (1 + margin)
    fits = needed <= budgets
    return (
        float(100 * np.mean(fits & (budgets < 1))),
        float(100 * np.mean(~fits & (budgets >= 1))),
    )
