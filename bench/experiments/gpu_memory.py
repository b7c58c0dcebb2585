"""Measures memory and time of the published settings on a GPU, to compare with the predictions.

The runs are those of the stages `predict` and `successors`: suites/deepglobe.yaml and the
ultra-high-resolution methods at the papers' image sizes. Weights are random and the image is noise,
so that no data set is needed. Memory is measured in one process per run, time in one process for
all runs, one after another.

Few machines have such a GPU, so that this is not a stage of the pipeline: commit the record
`results/card/MACHINE.json`; the report reads all such records."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import cli, record
from bench.config import Compute, read_suite
from bench.errors import UserError, out_of_memory
from bench.experiments.noise import noise
from bench.latency import THEIR_SCALE
from bench.memory import Case, paper_memory, predict_case, published_settings
from bench.memory.meters import measure_first_on_gpu
from bench.parallel import Report, run_isolated, threads
from bench.run import clock, device_facts, set_up

FOLDER = record.RESULTS / "card"
PRELOAD = ("bench.memory.meters", "bench.experiments.noise", "segmentation_models_pytorch")
LIMIT_S = 300.0
"""Time limit for the memory of one run."""
TIMING_S = 1800.0
"""Time limit for the timing of all runs."""
ENOUGH_S = 0.5
ROUNDS = 5
"""Timed predictions of a run; fewer once they take `ENOUGH_S` together."""
MEASURED = ("status", "reason", "meters", "missing", "device", "predicted")
"""Keys of the result of `measure`."""
PREDICTED = ("device_bytes", "tf32_allocated_bytes", "tf32_reserved_bytes")
"""What the record keeps of a prediction, by the same code as what is measured."""
DEFINITION = (
    "one image of noise at several scales, random weights, patches one at a time; meters: of the "
    "first prediction of its process, as in the stage `measure`; wall_s: seconds of each further "
    "prediction, image in host memory to labels in host memory, the card having finished at both "
    "ends; forward_s: of a forward pass alone over normal noise at .8 of the sides, where a method "
    "sees an image in one pass"
)


def published_cases() -> Iterator[Case]:
    """Every run with a published row, at the published size, and GLNet with collapsed heads."""
    for case in paper_memory.paper_cases():
        if case.run.config.published or "head" in case.run.config.overrides:
            yield case
    for place in published_settings.PLACES:
        yield from published_settings.uhr_cases(place)


def measure(case: Case, compute: Compute) -> dict[str, Any]:
    """The figures of all meters for the first prediction of a case, and what is predicted of them;
    out of memory is a result."""
    figures = predict_case(case)
    outcome = run_isolated(_measure, case, compute, limit_s=LIMIT_S, preload=PRELOAD)
    return {
        "status": outcome.status,
        "reason": outcome.reason,
        "predicted": {name: figures[name] for name in PREDICTED},
        **outcome.reported,
    }


def _measure(report: Report, case: Case, compute: Compute) -> None:
    """In a fresh process."""
    device = set_up(compute)

    def first() -> Any:
        network = case.run.build().to(device)
        image = noise(case.side_px)
        case.run.predict(network, image)
        return network, image

    found = measure_first_on_gpu(first, device)
    facts = device_facts(device, compute)
    report({"meters": found.defined, "missing": found.missing, "device": facts})


def time_all(
    found: Mapping[str, Case], compute: Compute, limit_s: float = TIMING_S
) -> dict[str, dict[str, Any]]:
    """Seconds of every case by key, measured in one process, until the time limit.

    Raises:
        UserError: nothing could be timed.
    """
    outcome = run_isolated(_time, dict(found), compute, limit_s=limit_s, preload=PRELOAD)
    if found and not outcome.reported:
        raise UserError(f"Nothing could be timed: {outcome.reason}.")
    return outcome.reported


def _time(report: Report, found: Mapping[str, Case], compute: Compute) -> None:
    """In a fresh process: reports seconds by key."""
    device = set_up(compute)
    for key, case in cli.with_progress(found.items(), len(found), "time", "run"):
        try:
            report({key: _seconds(case, device)})
        except Exception as error:  # the next one may fit
            if not out_of_memory(error):
                raise
            report({key: {"reason": str(error).split("\n", 1)[0]}})
        torch.cuda.empty_cache()


def _seconds(case: Case, device: torch.device) -> dict[str, Any]:
    run = case.run
    with torch.device(device):  # random weights are drawn faster there
        network = run.build().to(device)
    image = noise(case.side_px)
    seconds = {"wall_s": _repeated(lambda: run.predict(network, image), device)}
    if forward := run.strategy.forward:
        side = round(case.side_px * THEIR_SCALE)
        source = torch.randn(1, 3, side, side, device=device)

        def one_pass() -> None:
            with torch.inference_mode():
                forward(network, source, run.spec)

        seconds["forward_s"] = _repeated(one_pass, device)
    return seconds


def _repeated(work: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of each repetition, after one for warm-up."""
    work()
    seconds: list[float] = []
    while len(seconds) < ROUNDS and sum(seconds) < ENOUGH_S:
        with clock(device) as took:
            work()
        seconds += took
    return seconds


def work(arguments: argparse.Namespace) -> None:
    """Measure the memory and time of the published settings on this machine's GPU."""
    suite = read_suite()
    compute = replace(suite.compute, device="cuda")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if not torch.cuda.is_available():
        raise UserError(
            "torch sees no CUDA device here: what is predicted without one is in "
            f"{record.RESULTS}/predict.json and {record.RESULTS}/successors.json."
        )
    chosen = {case.key: case for case in published_cases() if arguments.only.search(case.key)}
    if not chosen:
        raise UserError(
            f"No run matches {arguments.only.pattern!r}: leave --only out to see them all."
        )
    path = FOLDER / f"{arguments.machine or suite.machine}.json"
    settings = {"compute": asdict(compute), "jobs": arguments.jobs}
    record.other_parts(path, settings, chosen, "rows")
    rows = _measured(path) if arguments.timing else measure_all(chosen, compute, arguments.jobs)
    chosen = {key: case for key, case in chosen.items() if key in rows}
    facts = [row["device"] for row in rows.values() if "device" in row]

    def write(seconds: Mapping[str, Mapping[str, Any]]) -> None:
        found = [
            {"key": key, **_about(case), **rows[key], **seconds.get(key, {})}
            for key, case in chosen.items()
        ]
        provenance = record.provenance(machine=path.stem, **(facts[0] if facts else {}))
        values = {"definition": DEFINITION, "rows": found}
        made = record.Record("card", path.stem, settings, values, provenance)
        record.write(path, made, parts="rows")

    if not path.exists():
        write({})  # keeps memory, even if timing fails
    fitting = {key: case for key, case in chosen.items() if rows[key]["status"] == "ok"}
    seconds = time_all(fitting, compute, arguments.time_limit) if arguments.time_limit > 0 else {}
    write(seconds)
    print(path)


def _measured(path: Path) -> dict[str, dict[str, Any]]:
    """Memory of every case in the record at `path`, by key."""
    rows = record.read(path).values["rows"]
    return {row["key"]: {name: row[name] for name in MEASURED if name in row} for row in rows}


def measure_all(
    chosen: Mapping[str, Case], compute: Compute, jobs: int
) -> dict[str, dict[str, Any]]:
    """Memory of every case by key, in `jobs` processes at once."""
    with threads(jobs) as pool:
        rows = pool.map(partial(measure, compute=compute), chosen.values())
        rows = cli.with_progress(rows, len(chosen), "measure", "run")
        return dict(zip(chosen, rows, strict=True))


def _about(case: Case) -> dict[str, Any]:
    """The fields of a case in the record."""
    return {
        "dataset": case.dataset,
        "side_px": case.side_px,
        "run": case.run.name,
        "done": case.done,
        "method": case.run.model.config.method,
        "strategy": case.run.config.strategy,
        "published": case.run.config.published,
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--machine", type=cli.name, metavar="NAME", help="instead of what params.yaml has"
    )
    parser.add_argument(
        "--only",
        type=cli.expression,
        default="",
        metavar="PATTERN",
        help="runs whose name this expression finds",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="processes that measure at once; more than one where NVML reports what each holds",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=TIMING_S,
        metavar="S",
        help="seconds for timing; a run that is not reached by then has no time in the record",
    )
    parser.add_argument(
        "--timing", action="store_true", help="time again what the record has memory of"
    )


if __name__ == "__main__":
    cli.main(work, _arguments)
