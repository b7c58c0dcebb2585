"""Latency of one prediction, measured by pytest-benchmark in pedantic mode.

The stage `measure` and `pytest --benchmark-only` run the same benchmark, `tests/test_benchmark.py`;
this module defines what it times, and how often. There are two clocks: wall time of the whole
prediction, and time inside calls of the network."""

import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bench.config import Suite
from bench.errors import UserError
from bench.parallel import Report
from bench.run import open_run, set_up, wait

Part = Literal["end-to-end", "network-alone", "forward-alone"]
DEFINITIONS: dict[Part, str] = {
    "end-to-end": (
        "seconds of one prediction after one that warms up: image in host memory to labels in host "
        "memory, with normalisation, resizing, tiling, copies and arg max, without decoding; the "
        "device has finished at both ends"
    ),
    "network-alone": (
        "of such a prediction, the seconds within calls of the network and its branches, the "
        "device having finished before and after each: no tiling, copies, stitching or arg max"
    ),
    "forward-alone": (
        "seconds of one forward pass over a tensor of normal noise that is on the device, at .8 of "
        "the image's sides, to scores; the device has finished at both ends. As the published "
        "speed of ISDNet was taken, there as the mean of 300 passes; only where a method sees an "
        "image in one pass"
    ),
}
WORDS: dict[Part, str] = {
    "end-to-end": "latency",
    "network-alone": "network",
    "forward-alone": "forward",
}
"""Their names in records."""
NETWORK = "network_s"
"""Key of the network's seconds of each round in a benchmark's extra information."""
BENCHMARK = Path("tests/test_benchmark.py")
ROUNDS: dict[Part, tuple[int, int]] = {
    "end-to-end": (3, 5),
    "network-alone": (2, 5),
    "forward-alone": (2, 5),
}
"""Minimum and maximum; more than the minimum only if all rounds take at most `ENOUGH_S`."""
ENOUGH_S = 1.5
THEIR_SCALE = 0.8
"""Side of the input of a timed forward pass, as a share of the image's side."""


class NetworkClock:
    """A clock that runs only during calls of a watched network; in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    @contextlib.contextmanager
    def watching(self, network: nn.Module, device: torch.device) -> Iterator[None]:
        """Inside the block, calls of `network` and direct calls of its children are timed."""
        inside = False

        def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                if inside:
                    return forward(*args, **kwargs)
                inside = True
                wait(device)
                begun = time.perf_counter()
                try:
                    result = forward(*args, **kwargs)
                    wait(device)
                finally:
                    self.seconds += time.perf_counter() - begun
                    inside = False
                return result

            return called

        modules = [network, *network.children()]
        before = [vars(module).get("forward") for module in modules]
        for module in modules:
            module.forward = timed(module.forward)
        try:
            yield
        finally:
            for module, forward in zip(modules, before, strict=True):
                del module.forward
                if forward:  # replays graphs
                    module.forward = forward


network_clock = NetworkClock()
"""The timer of the benchmarks of `network-alone`: pytest-benchmark uses one timer per case."""


def time_prediction(
    benchmark: Any,
    part: Part,
    predict: Callable[[], Any],
    network: nn.Module,
    device: torch.device,
    warm_s: float,
) -> Any:
    """Time a prediction, or a forward pass, in pytest-benchmark's pedantic mode; returns its result.

    Args:
        benchmark: pytest-benchmark's fixture; for `network-alone` its timer is `network_clock`.
        predict: one prediction, or one forward pass.
        warm_s: seconds that the preceding warm-up took.
    """

    network_s: list[float] = []

    def waited() -> Any:
        before = network_clock.seconds
        result = predict()
        wait(device)
        network_s.append(network_clock.seconds - before)
        return result

    least, most = ROUNDS[part]
    rounds = max(least, min(most, int(ENOUGH_S / warm_s)))
    wait(device)
    both = part == "end-to-end" and at_once(device)
    watched = part == "network-alone" or both
    with network_clock.watching(network, device) if watched else contextlib.nullcontext():
        result = benchmark.pedantic(waited, rounds=rounds)
    if both:
        benchmark.extra_info[NETWORK] = network_s
    return result


def at_once(device: torch.device) -> bool:
    """Whether both clocks can run in the same rounds: on a CPU, where watching the network's calls
    needs no synchronisation."""
    return device.type == "cpu"


def time_runs(report: Report, suite: Suite, names: Sequence[str]) -> None:
    """Measure the latency of runs, one after another, with `pytest --benchmark-only`.

    Reports, by run, seconds of every round (`latency_s`, `network_s` and, where a method sees an
    image in one pass, `forward_s`), and their definitions.

    Raises:
        UserError: the benchmark of some runs failed; the latency of the others is reported.
    """
    import pytest

    both = at_once(set_up(suite.compute))
    wanted = {name: parts(suite, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "benchmark.json"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            # Load one plugin only, and ignore settings of a pytest that started this process.
            for key in [key for key in os.environ if key.startswith("PYTEST_")]:
                del os.environ[key]
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            code = pytest.main(
                [
                    *("-c", os.devnull, "--rootdir", ".", "--quiet", "--assert=plain"),
                    *("-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider"),
                    *("--benchmark-only", f"--benchmark-json={found}"),
                    *(
                        f"{BENCHMARK}::test_latency[{name}-{part}]"
                        for name, its_parts in wanted.items()
                        for part in its_parts
                        if not (both and part == "network-alone")
                    ),
                ]
            )
        cases = json.loads(found.read_text() or "{}")["benchmarks"] if found.exists() else []
    seconds: dict[str, dict[Part, list[float]]] = {}
    for case in cases:
        its = seconds.setdefault(case["params"]["run"], {})
        its[case["params"]["part"]] = case["stats"]["data"]
        if NETWORK in case["extra_info"]:
            its["network-alone"] = case["extra_info"][NETWORK]
    whole = [name for name in names if set(seconds.get(name, ())) == set(wanted[name])]
    report({name: _as_recorded(seconds[name]) for name in whole})
    if code != pytest.ExitCode.OK or len(whole) < len(names):
        last = printed.getvalue().strip().splitlines() or [f"pytest ended with {code}"]
        failed = ", ".join(name for name in names if name not in whole)
        raise UserError(f"The benchmark of {failed} failed: {last[-1]}")


def _as_recorded(seconds: Mapping[Part, list[float]]) -> dict[str, Any]:
    """As records keep them."""
    return {
        key: value
        for part, word in WORDS.items()
        if part in seconds
        for key, value in (
            (f"{word}_s", seconds[part]),
            (f"{word}_definition", DEFINITIONS[part]),
        )
    }


def parts(suite: Suite, name: str) -> list[Part]:
    """The timed parts of a run; `forward-alone` only if its strategy has a single forward pass."""
    whole = open_run(suite, name).strategy.forward is not None
    return [part for part in DEFINITIONS if part != "forward-alone" or whole]
