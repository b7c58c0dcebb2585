"""`glnet-bench tune MODEL`: short trainings with other learning rates, compared on val."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from bench import record
from bench.config import ModelConfig, Suite, read_suite
from bench.errors import UserError
from bench.pipeline.progress import validate
from bench.run import Model, device_facts, open_model, set_up

FACTORS = (0.3, 1.0, 3.0)
SHARE = 0.25


def command(parser: argparse.ArgumentParser) -> None:
    """Try models of params.yaml with other learning rates and a share of their steps, and compare
    mIoU on val. Test is not read."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a key of the table models")
    parser.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=FACTORS,
        help="of the learning rates of all phases (default: 0.3 1 3)",
    )
    parser.add_argument(
        "--share", type=float, default=SHARE, help="of the steps of all phases (default: 0.25)"
    )
    parser.epilog = "example: glnet-bench tune unet-patch glnet --factors 0.3 1 3 --share 0.25"
    parser.set_defaults(work=work, in_root=True)


def work(arguments: argparse.Namespace) -> None:
    """Tune models of params.yaml."""
    if not 0 < arguments.share <= 1:
        raise UserError(f"--share is {arguments.share}: give a number above 0 and at most 1.")
    if min(arguments.factors) <= 0:
        raise UserError("--factors has to hold numbers above 0.")
    suite = read_suite()
    for name in arguments.models:
        model = open_model(suite, name)
        for factor, miou in tune(suite, model, arguments.factors, arguments.share).items():
            print(f"{name}  learning rate x {factor:g}  mIoU on val {100 * miou:.1f} %")


def tune(suite: Suite, model: Model, factors: Sequence[float], share: float) -> dict[float, float]:
    """mIoU on val, 0..1, by factor; writes them to `results/SUITE/tune/MODEL.json`."""
    device = set_up(suite.compute)
    path = record.path_of(suite.suite, "tune", model.name)
    found: dict[float, float] = {}
    for factor in factors:
        found[factor] = _miou(suite, replace(model, config=candidate(model.config, factor, share)))
        content = record.Record(
            stage="tune",
            name=model.name,
            settings={"model": model.config.settings(), "share": share},
            values={
                "candidates": {f"{key:g}": {"miou": value} for key, value in found.items()},
                "definition": "mIoU on val, 0..1, by the factor of all learning rates",
            },
            provenance=record.provenance(
                seed=model.config.trainings[0].seed, **device_facts(device, suite.compute)
            ),
        )
        record.write(path, content, parts="candidates")
    return found


def candidate(config: ModelConfig, factor: float, share: float) -> ModelConfig:
    """A model's configuration with one seed, other learning rates and fewer steps."""
    first = config.trainings[0]
    phases = {
        name: replace(
            schedule,
            learning_rate=schedule.learning_rate * factor,
            steps=max(1, round(schedule.steps * share)),
        )
        for name, schedule in first.training.phases.items()
    }
    return replace(first, training=replace(first.training, phases=phases))


def _miou(suite: Suite, model: Model) -> float:
    """Train one candidate and judge it on val by the strategy of its last phase."""
    from bench.pipeline.train import PARTIAL, train_seed  # takes seconds to import

    partial = PARTIAL / f"{model.name}.tune.pt"
    result = train_seed(suite, model, partial)
    network = model.build().to(set_up(suite.compute))
    network.load_state_dict(result.weights)
    miou = validate(model, network, model.method.phases(network, model.spec)[-1])
    partial.unlink(missing_ok=True)
    return miou
