"""Stage `train`: one line of the table `models` -> one checkpoint, or one a seed.

Killed at any moment, the next start goes on from the last checkpoint and ends with the same
weights: what a step sees depends on the seed and the step's number alone, and all state that it
does depend on is in the checkpoint.

Under torchrun or srun the processes share each step's images and learn what one alone would have
learnt; rank 0 writes."""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from bench import cli
from bench.config import CHECKPOINTS, ModelConfig, Schedule, Suite, pick, read_suite
from bench.errors import UserError
from bench.files import file_sha256
from bench.method import Method, Phase, View, load, load_weights, spec_of
from bench.optim import adam, poly, sgd, stepped
from bench.parallel import distributed
from bench.pipeline import validation
from bench.pipeline.training_results import TrainingResult, write_results
from bench.run import load_checkpoint, save, set_up
from data.dataset import Dataset, open_dataset

PARTIAL = CHECKPOINTS / "partial"
START_WEIGHTS = CHECKPOINTS / "start"


class Views(torch.utils.data.Dataset[View]):
    """The endless sequence of views of one phase: the i-th is the same in every process and every
    run."""

    def __init__(self, dataset: Dataset, method: Method, spec: Any, phase: str, seed: int) -> None:
        self.dataset, self.method, self.spec = dataset, method, spec
        self.phase, self.seed = phase, seed
        self.ids = dataset.ids("train")

    def __getitem__(self, i: int) -> View:
        epoch, place = divmod(i, len(self.ids))
        order = torch.randperm(len(self.ids), generator=self._rng("order", epoch))
        # From the disk comes what the view looks at; the system keeps what is looked at often.
        image, label = self.dataset.mapped(self.ids[int(order[place])])
        return self.method.view(image, label, self.spec, self.phase, self._rng("view", i))

    def _rng(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(_seed(self.seed, self.phase, purpose, number))


class Progress:
    """Where a training stands, on disk and in memory."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Reads `path` if it belongs to the same training; anything else there starts anew."""
        self.path, self.fingerprint = path, fingerprint
        self.phase, self.step = 0, 0
        self.history: list[tuple[str, int, float, float]] = []
        """(phase, step, loss, learning rate) of every step done."""
        self.seconds: dict[str, float] = {}
        self.waiting_s: dict[str, float] = {}
        """Of these, waiting for views that were not ready."""
        self.looks: list[validation.Look] = []
        self.best: dict[str, torch.Tensor] | None = None
        """All weights at the phase's best look."""
        self.restored: dict[str, Any] | None = None
        if path.exists():
            state: dict[str, Any] = load_checkpoint(path)
            if state["fingerprint"] == fingerprint:
                self.restored = state
                self.phase, self.step = state["phase"], state["step"]
                self.history = [tuple(row) for row in state["history"]]
                self.seconds = state["seconds"]
                self.waiting_s = state["waiting_s"]
                self.looks = [tuple(row) for row in state["looks"]]
                self.best = state["best"]

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Everything the next step depends on, whole or not at all; rank 0 writes for all."""
        if distributed.rank() > 0:
            return
        state = {
            "fingerprint": self.fingerprint,
            "phase": self.phase,
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "waiting_s": self.waiting_s,
            "looks": self.looks,
            "best": self.best,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        save(self.path, state)

    def looked(self, phase: str, miou: float, network: nn.Module) -> None:
        """Take a look at val into account; the best one's weights are kept."""
        self.looks.append((phase, self.step, miou))
        if validation.best(self.looks, phase) == len(self.looks) - 1:
            self.best = {key: value.cpu().clone() for key, value in network.state_dict().items()}

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Put back what `save` wrote."""
        assert self.restored is not None
        network.load_state_dict(self.restored["network"])
        if optimizer:
            optimizer.load_state_dict(self.restored["optimizer"])
        self.restored = None


def train(suite: Suite, name: str) -> Path:
    """Train the model `name` of a suite with each of its seeds, or go on where it was killed;
    returns the path of the checkpoint, or of the folder with one a seed.

    What a seed has learnt stays in its progress until all are done, so that none is trained
    twice."""
    model = pick(suite.models, name, "model")
    learnt = {one.seed: _learn(suite, name, one, model) for one in model.trainings}
    path = CHECKPOINTS / f"{name}.pt"
    if distributed.rank() > 0:
        return path
    write_results(suite, name, model, learnt)
    for one in model.trainings:  # an imported network has made no progress
        _partial(name, model, one.seed).unlink(missing_ok=True)
    return path


def _learn(suite: Suite, name: str, model: ModelConfig, line: ModelConfig) -> TrainingResult:
    """Train one model with one seed.

    Args:
        line: as the suite has it, which may have more seeds.
    """
    spec = spec_of(name, model)
    method = load(model.method)
    dataset = open_dataset(model.dataset)
    device = set_up(suite.compute)
    weights = START_WEIGHTS / f"{model.start}.pt"

    torch.manual_seed(model.seed)
    network = method.build(spec, len(dataset.classes))
    start = load_checkpoint(weights)
    imported = not model.training.phases
    if imported:
        load_weights(network, start, str(weights))
    elif start:
        method.start(network, start)
    # NHWC is the faster layout for convolutions on both kinds of device; results differ by rounding
    # alone.
    network.to(device).to(memory_format=torch.channels_last)
    phases = [] if imported else method.phases(network, spec)
    schedules = _schedules(name, model, phases)

    mark = _fingerprint(suite, model, dataset, weights)
    progress = Progress(_partial(name, line, model.seed), mark)
    stand = f"{progress.fingerprint} {progress.phase} {progress.step}"
    distributed.agree(stand, "settings, code, data and checkpoints")
    for number, (phase, schedule) in enumerate(zip(phases, schedules, strict=True)):
        if number < progress.phase:
            continue
        views = Views(dataset, method, spec, phase.name, model.seed)
        _train_phase(suite, name, model, method, spec, network, phase, schedule, views, progress)
        progress.phase, progress.step = number + 1, 0
        progress.save(network, None)

    if progress.restored:  # killed between the last step and here
        progress.restore(network, None)
    network.to(memory_format=torch.contiguous_format)
    return TrainingResult(
        weights={key: value.cpu() for key, value in network.state_dict().items()},
        parameters={
            phase.name: sum(p.numel() for module in phase.trains for p in module.parameters())
            for phase in phases
        },
        seconds=progress.seconds,
        waiting_s=progress.waiting_s,
        history=progress.history,
        looks=progress.looks if model.training.validate_every else None,
    )


def _partial(name: str, line: ModelConfig, seed: int) -> Path:
    """Where the progress of a model's seed is kept."""
    return (PARTIAL / name / f"{seed}.pt") if line.seeds else PARTIAL / f"{name}.pt"


def _train_phase(
    suite: Suite,
    name: str,
    model: ModelConfig,
    method: Method,
    spec: Any,
    network: nn.Module,
    phase: Phase,
    schedule: Schedule,
    views: Views,
    progress: Progress,
) -> None:
    device = next(iter(network.state_dict().values())).device
    fabric = _fabric(device, suite.compute.precision)
    network.eval().requires_grad_(False)
    for module in phase.trains:
        module.train().requires_grad_(True)
    moving = [p for p in network.parameters() if p.requires_grad]
    make = {"adam": adam, "sgd": sgd}[model.training.optimiser]
    optimizer = make(phase.trains, model.training.weight_decay)
    if progress.restored:
        progress.restore(network, optimizer if progress.step else None)
    if progress.step == 0:
        phase.begin()

    every = model.training.validate_every
    begun = time.perf_counter()
    title, silent = f"{name} · {phase.name}", distributed.rank() > 0
    bar = cli.progress(schedule.steps, title, "step", progress.step, silent)
    batches = _batches(views, schedule, progress.step, suite.compute.workers)
    for batch in _waited_for(batches, phase.name, progress):
        rate = rate_of(model, schedule, progress.step)
        # Dropout's draws: no two steps and no two processes have the same, and no checkpoint needs
        # a generator's state.
        torch.manual_seed(_seed(model.seed, phase.name, "step", progress.step, distributed.rank()))
        with fabric.autocast(), distributed.as_one(phase.trains, phase.whole_batch):
            loss = method.backward(
                network, fabric.to_device(batch), spec, phase.name, fabric.backward
            )
        loss = _agreed(loss, device)
        if not math.isfinite(loss):
            raise UserError(
                f"Training of {name} diverged in phase {phase.name} at step {progress.step}: "
                f"lower models.{name}.training.phases.{phase.name}.learning_rate."
            )
        distributed.join_gradients(moving, phase.gradients)
        if optimizer:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        progress.history.append((phase.name, progress.step, loss, rate))
        progress.step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if every and (progress.step % every == 0 or progress.step == schedule.steps):
            seen = validation.look(network, method, spec, phase, views.dataset)
            progress.looked(phase.name, _agreed(seen, device), network)
            if validation.settled(progress.looks, phase.name, model.training.patience):
                break
        if progress.step % model.training.checkpoint_every == 0 and progress.step < schedule.steps:
            now = time.perf_counter()
            progress.seconds[phase.name] = progress.seconds.get(phase.name, 0.0) + now - begun
            begun = now
            progress.save(network, optimizer)
    bar.close()
    if progress.best is not None:
        network.load_state_dict(progress.best)
        progress.best = None
    spent = time.perf_counter() - begun
    progress.seconds[phase.name] = progress.seconds.get(phase.name, 0.0) + spent


def rate_of(model: ModelConfig, schedule: Schedule, step: int) -> float:
    """The learning rate of a step."""
    first, training = schedule.learning_rate, model.training
    if schedule.drops:
        return stepped(first, step, schedule.drops)
    steps = schedule.poly_steps or schedule.steps
    return poly(first, training.least_rate, step, steps, training.poly_power)


def _waited_for(
    batches: Iterator[list[View]], phase: str, progress: Progress
) -> Iterator[list[View]]:
    """The batches; what the wait for each took is added to the phase's."""
    while True:
        begun = time.perf_counter()
        batch = next(batches, None)
        waited = time.perf_counter() - begun
        if batch is None:
            return
        progress.waiting_s[phase] = progress.waiting_s.get(phase, 0.0) + waited
        yield batch


def _agreed(value: float, device: torch.device) -> float:
    """The processes' mean: the same for all, so that all decide alike."""
    return float(distributed.mean(torch.tensor(value, dtype=torch.float64, device=device)))


def _fabric(device: torch.device, precision: Any) -> Any:
    """Precision and this process's device; Fabric need not know of other processes, and is kept
    from looking for them."""
    from lightning_fabric import Fabric  # takes seconds to import
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    devices = [device.index] if device.type == "cuda" else 1
    alone = LightningEnvironment()
    return Fabric(accelerator=device.type, devices=devices, precision=precision, plugins=[alone])


def _batches(views: Views, schedule: Schedule, first: int, workers: int) -> Iterator[list[View]]:
    """What this process sees of each step from `first` on."""
    share = schedule.batch // distributed.size()
    begin = distributed.rank() * share
    numbers = [
        step * schedule.batch + place
        for step in range(first, schedule.steps)
        for place in range(begin, begin + share)
    ]
    loader = DataLoader(
        views,
        batch_size=share,
        sampler=numbers,
        num_workers=workers,
        collate_fn=list,  # views of one batch may differ in shape
        generator=torch.Generator(),  # else the loader draws from the state that dropout uses
    )
    return iter(loader)


def _schedules(name: str, model: ModelConfig, phases: list[Phase]) -> list[Schedule]:
    names, given = [phase.name for phase in phases], model.training.phases
    if set(names) != set(given):
        raise UserError(
            f"params.yaml: models.{name}.training.phases has {', '.join(given) or 'none'}, "
            f"but the method's spec trains {', '.join(names)}."
        )
    for phase in names:
        where = f"params.yaml: models.{name}.training.phases.{phase}.batch"
        distributed.require_even(given[phase].batch, where)
    return [given[phase] for phase in names]


def _seed(*parts: object) -> int:
    """A seed of its own for everything that has another name."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _fingerprint(suite: Suite, model: ModelConfig, dataset: Dataset, weights: Path) -> str:
    """Changes with everything that the trained weights depend on, so that no stale progress is
    taken up."""
    sources = [*Path(model.method).rglob("*.py"), *Path("bench").glob("*.py")]
    parts = [
        json.dumps(model.settings(), sort_keys=True),
        suite.compute.precision,
        torch.__version__,
        file_sha256(dataset.root / "dataset.json"),
        file_sha256(weights),
        *(file_sha256(path) for path in sorted(sources)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def work(arguments: argparse.Namespace) -> None:
    """Train one model of params.yaml, or go on with it where it was killed."""
    suite = read_suite()
    with distributed.processes(set_up(suite.compute)):
        path = train(suite, arguments.model)
        if distributed.rank() == 0:
            print(path)


if __name__ == "__main__":
    cli.main(work, model="a key of the table models")
