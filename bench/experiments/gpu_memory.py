"""What the published settings take on a real card, beside what is predicted without one.

Every run of suites/deepglobe.yaml and every ultra-high-resolution method at the papers' image sizes
(the rows of the stages `predict` and `successors`), with random weights, over an image of noise: no
data set is needed. Memory is asked for in a process each; seconds are taken in one process, one run
after another, with nothing else at work.

No stage of the pipeline, since few machines have such a card: the record
`results/card/MACHINE.json` is made when there is one, is kept in git like any other, and the report
takes up all that there are."""

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import cli, record
from bench.config import Compute, RunConfig, Suite, read_suite
from bench.errors import UserError
from bench.parallel.isolated import Report, run_isolated
from bench.pipeline import predict_memory, predict_uhr_methods

FOLDER = record.RESULTS / "card"
PRELOAD = ("bench.memory.meters", "bench.experiments.noise", "segmentation_models_pytorch")
LIMIT_S = 300.0
"""Seconds that memory of one run may take."""
TIMING_S = 1800.0
"""Seconds that the timing of all may take."""
ENOUGH_S = 0.5
ROUNDS = 5
"""Predictions that are timed of a run; fewer once they took `ENOUGH_S` together."""
WEIGHED = ("status", "reason", "meters", "missing", "device")
"""What `weigh` finds out."""
DEFINITION = (
    "one image of noise at several scales, random weights, patches one at a time; meters: of the "
    "first prediction of its process, as in the stage `measure`; wall_s: seconds of each further "
    "prediction, image in host memory to labels in host memory, the card having finished at both "
    "ends; forward_s: of a forward pass alone over normal noise at .8 of the sides, where a method "
    "sees an image in one pass"
)


@dataclass(frozen=True)
class Case:
    """A run at an image size."""

    dataset: str
    """Whose papers print memory of this size, as bench/published.csv has it."""
    side_px: int
    classes: int
    name: str
    done: str
    """As the stages `predict` and `successors` tell ways of doing a run apart; empty for `predict`,
    which has one."""
    suite: Suite
    run: RunConfig

    @property
    def key(self) -> str:
        """Unique among all cases."""
        return " ".join(filter(None, (self.dataset, self.name, self.done)))


def cases() -> Iterator[Case]:
    """Every run that answers to a published row, at the size that it is published of, and GLNet
    with its heads collapsed."""
    suite = read_suite(predict_memory.SUITE)
    side = predict_memory.SIZE_PX[0]
    for name, run in suite.runs.items():
        if run.published or "head" in run.overrides:
            yield Case("DeepGlobe", side, predict_memory.CLASSES, name, "", suite, run)
    for place in predict_uhr_methods.PLACES:
        for name, suite, done, run in predict_uhr_methods.cases(place):
            yield Case(place.dataset, place.side_px, place.classes, name, done, suite, run)


def weigh(case: Case, compute: Compute) -> dict[str, Any]:
    """What every meter says of the first prediction of a case; running out of memory is a
    result."""
    outcome = run_isolated(_weigh, case, compute, limit_s=LIMIT_S, preload=PRELOAD)
    return {"status": outcome.status, "reason": outcome.reason, **outcome.reported}


def _weigh(report: Report, case: Case, compute: Compute) -> None:
    """In a process of its own."""
    from bench.experiments.noise import noise
    from bench.memory import DEFINITIONS, meters
    from bench.run import device_facts, set_up

    device = set_up(compute)
    prediction = _Prediction(case)

    def first() -> Any:
        network = prediction.network().to(device)
        image = noise(case.side_px)
        prediction.labels(network, image)
        return network, image

    found = meters.on_card(first, device)
    defined = {
        meter: {**said, "definition": DEFINITIONS[meter]} for meter, said in found.meters.items()
    }
    report({"meters": defined, "missing": found.missing, "device": device_facts(device, compute)})


class _Prediction:
    """How the network of a case is made and used."""

    def __init__(self, case: Case) -> None:
        from bench.method import load, spec_of

        model = case.suite.models[case.run.model]
        self.method = load(model.method)
        self.spec = spec_of(case.run.model, model, case.run)
        self.strategy = self.method.strategies[case.run.strategy]
        self.classes = case.classes

    def network(self) -> Any:
        """With random weights, in eval mode."""
        from bench.method import network_for

        network = network_for(self.method, self.strategy, self.spec, self.classes)
        return self.strategy.prepare(network, self.spec)

    def labels(self, network: Any, image: Any) -> Any:
        """Of an image."""
        import torch

        with torch.inference_mode():
            return self.strategy.predict(network, image, self.spec)

    def scores(self, network: Any, image: Any) -> Any:
        """Of a normalised image on the card, in one pass."""
        import torch

        assert self.strategy.forward is not None
        with torch.inference_mode():
            return self.strategy.forward(network, image, self.spec)


def time_all(
    found: Mapping[str, Case], compute: Compute, limit_s: float = TIMING_S
) -> dict[str, dict[str, Any]]:
    """Seconds of every case, one after another in one process, by key; without those that there
    was no time for.

    Raises:
        UserError: nothing could be timed.
    """
    outcome = run_isolated(_time, dict(found), compute, limit_s=limit_s, preload=PRELOAD)
    if found and not outcome.reported:
        raise UserError(f"Nothing could be timed: {outcome.reason}.")
    return outcome.reported


def _time(report: Report, found: Mapping[str, Case], compute: Compute) -> None:
    """In a process of its own: tells seconds by key."""
    import torch

    from bench.errors import out_of_memory
    from bench.run import set_up

    device = set_up(compute)
    bar = cli.progress(len(found), "time", "run")
    for key, case in found.items():
        try:
            report({key: _seconds(case, device)})
        except Exception as error:  # the next one may fit
            if not out_of_memory(error):
                raise
            report({key: {"reason": str(error).split("\n", 1)[0]}})
        torch.cuda.empty_cache()
        bar.update()
    bar.close()


def _seconds(case: Case, device: Any) -> dict[str, Any]:
    import torch

    from bench.experiments.noise import noise
    from bench.latency import THEIR_SCALE

    prediction = _Prediction(case)
    with torch.device(device):  # random numbers come faster there
        network = prediction.network().to(device)
    image = noise(case.side_px)
    reported = {"wall_s": _repeated(lambda: prediction.labels(network, image), device)}
    if prediction.strategy.forward:
        side = round(case.side_px * THEIR_SCALE)
        source = torch.randn(1, 3, side, side, device=device)
        reported["forward_s"] = _repeated(lambda: prediction.scores(network, source), device)
    return reported


def _repeated(work: Any, device: Any) -> list[float]:
    """Seconds of each repetition but the first, which warms up."""
    from bench.memory import clock

    work()
    seconds: list[float] = []
    while len(seconds) < ROUNDS and sum(seconds) < ENOUGH_S:
        with clock(device) as took:
            work()
        seconds += took
    return seconds


def work(arguments: argparse.Namespace) -> None:
    """Measure on this machine's card what the published settings take: memory by every meter, and
    seconds."""
    import torch

    suite = read_suite()
    compute = replace(suite.compute, device="cuda")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if not torch.cuda.is_available():
        raise UserError(
            "torch sees no CUDA device here: what is predicted without one is in "
            f"{predict_memory.RESULT} and {predict_uhr_methods.RESULT}."
        )
    chosen = {case.key: case for case in cases() if _wanted(case, arguments.only)}
    if not chosen:
        raise UserError(f"No run matches {arguments.only!r}: leave --only out to see them all.")
    path = FOLDER / f"{arguments.machine or suite.machine}.json"
    rows = _weighed(path) if arguments.timing else weigh_all(chosen, compute, arguments.jobs)
    chosen = {key: case for key, case in chosen.items() if key in rows}
    facts = [row["device"] for row in rows.values() if "device" in row]
    settings = {"compute": asdict(compute), "jobs": arguments.jobs}

    def write(seconds: Mapping[str, Mapping[str, Any]]) -> None:
        found = [
            {"key": key, **_told(case), **rows[key], **seconds.get(key, {})}
            for key, case in chosen.items()
        ]
        provenance = record.provenance(machine=path.stem, **(facts[0] if facts else {}))
        values = {"definition": DEFINITION, "rows": found}
        record.write(path, record.Record("card", path.stem, settings, values, provenance))

    write({})  # so that memory is kept, whatever becomes of time
    fitting = {key: case for key, case in chosen.items() if rows[key]["status"] == "ok"}
    if arguments.time_limit > 0:
        write(time_all(fitting, compute, arguments.time_limit))
    print(path)


def _weighed(path: Path) -> dict[str, dict[str, Any]]:
    """Memory of every case that the record at `path` holds, by key."""
    rows = record.read(path).values["rows"]
    return {row["key"]: {name: row[name] for name in WEIGHED if name in row} for row in rows}


def weigh_all(chosen: Mapping[str, Case], compute: Compute, jobs: int) -> dict[str, dict[str, Any]]:
    """Memory of every case, by key; `jobs` processes at once."""
    bar = cli.progress(len(chosen), "weigh", "run")

    def one(case: Case) -> dict[str, Any]:
        row = weigh(case, compute)
        bar.update()
        return row

    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(one, chosen.values()))
    bar.close()
    return dict(zip(chosen, rows, strict=True))


def _wanted(case: Case, only: str | None) -> bool:
    return only is None or re.search(only, case.key) is not None


def _told(case: Case) -> dict[str, Any]:
    """What a record says of a case."""
    return {
        "dataset": case.dataset,
        "side_px": case.side_px,
        "run": case.name,
        "done": case.done,
        "method": case.suite.models[case.run.model].method,
        "strategy": case.run.strategy,
        "published": case.run.published,
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machine", metavar="NAME", help="instead of what params.yaml has")
    parser.add_argument("--only", metavar="PATTERN", help="runs whose name this expression finds")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="processes that weigh at once; more than one where NVML tells what each holds",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=TIMING_S,
        metavar="S",
        help="seconds for timing; a run that is not reached by then has no time in the record",
    )
    parser.add_argument(
        "--timing", action="store_true", help="time anew what the record has been weighed of"
    )


if __name__ == "__main__":
    cli.main(work, _arguments)
