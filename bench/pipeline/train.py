"""Stage `train`: trains a model; one checkpoint, or one per seed.

A training that was killed resumes from the last checkpoint and ends with the same weights: the
views of a step depend only on the seed and the step's number, and all other state is in the
checkpoint.

Under torchrun or srun the processes share each step's images, with the same result as a single
process; rank 0 writes the files."""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from bench import cli
from bench.config import CHECKPOINTS, Suite, read_suite
from bench.errors import UserError
from bench.files import code_sha256, fault_of, file_sha256, load_state
from bench.method import Phase, View, load_weights
from bench.parallel import distributed
from bench.pipeline.cache import code_of
from bench.pipeline.progress import Progress, TrainingResult, settled, validate, write_results
from bench.run import Model, device_facts, open_model, require_prepared, set_up
from bench.training_step import PhaseTraining, enter_phase, learning_rate_at, training_step

PARTIAL = CHECKPOINTS / "partial"
START_WEIGHTS = CHECKPOINTS / "start"


class Views(torch.utils.data.Dataset[View]):
    """The endless sequence of views of one phase; view i is the same in every process and training."""

    def __init__(self, model: Model, phase: str) -> None:
        self.model, self.phase = model, phase
        self.ids = model.dataset.ids("train")

    def __getitem__(self, i: int) -> View:
        epoch, place = divmod(i, len(self.ids))
        order = torch.randperm(len(self.ids), generator=self._rng("order", epoch))
        # Only the part that the view uses is read from the disk; the system caches it.
        image, label = self.model.dataset.mapped(self.ids[int(order[place])])
        view = self.model.method.view
        return view(image, label, self.model.spec, self.phase, self._rng("view", i))

    def _rng(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(
            _seed(self.model.config.seed, self.phase, purpose, number)
        )


def train(suite: Suite, name: str) -> Path:
    """Train the model `name` of a suite with each of its seeds, or resume a killed training; returns
    the path of the checkpoint, or of the folder with one per seed.

    The progress files of finished trainings stay until the model is trained with other settings, data
    or code: DVC removes the outputs of a stage before it runs it, and runs it again if it, or the
    machine, was stopped before DVC had recorded the outputs."""
    model = open_model(suite, name)
    require_prepared(suite, name)
    partial = {
        one.seed: PARTIAL / name / f"{one.seed}.pt"
        if model.config.seeds
        else PARTIAL / f"{name}.pt"
        for one in model.config.trainings
    }
    results = {
        one.seed: train_seed(suite, replace(model, config=one), partial[one.seed])
        for one in model.config.trainings
    }
    if distributed.rank() == 0:
        write_results(suite, model, results)
        of_any_seed = {PARTIAL / f"{name}.pt", *(PARTIAL / name).glob("*.pt")}
        for other in of_any_seed - set(partial.values()):
            other.unlink(missing_ok=True)
    return CHECKPOINTS / f"{name}.pt"


def train_seed(suite: Suite, model: Model, partial: Path) -> TrainingResult:
    """Train one model with its one seed.

    Args:
        partial: where its progress is kept.
    """
    config, method = model.config, model.method
    device = set_up(suite.compute)
    weights = START_WEIGHTS / f"{config.start}.pt"

    torch.manual_seed(config.seed)
    network = model.build()
    start = load_state(weights)
    imported = not config.training.phases
    if imported:
        load_weights(network, start, str(weights))
    elif start:
        method.start(network, start)
    # NHWC is the faster layout for convolutions on both kinds of device; results differ by rounding
    # alone.
    network.to(device).to(memory_format=torch.channels_last)
    if config.training.compiled:
        for part in network.children():  # the phases call the parts, not the whole
            part.compile()
    phases = [] if imported else method.phases(network, model.spec)
    _check_schedules(model, phases)

    progress = Progress(partial, _fingerprint(suite, model, weights, device))
    state = f"{progress.fingerprint} {progress.phase} {progress.step}"
    distributed.agree(state, "settings, code, data and checkpoints")
    fabric = _fabric(device, suite.compute.precision)
    for number, phase in enumerate(phases):
        if number < progress.phase:
            continue
        training = replace(
            enter_phase(method, model.spec, network, phase, config.training),
            backward=fabric.backward,
            autocast=fabric.autocast,
        )
        batches = _batches(model, phase, progress.step, suite.compute.workers)
        for spent in (progress.seconds, progress.waiting_s):
            spent.setdefault(phase.name, 0.0)
        views = map(fabric.to_device, _waited_for(batches, phase.name, progress))
        _train_phase(model, training, views, progress)
        progress.phase, progress.step = number + 1, 0
        progress.save(network, None)

    progress.restore(network, None)  # if it was killed between the last step and here
    network.to(memory_format=torch.contiguous_format)
    return TrainingResult(
        weights={key: value.cpu() for key, value in network.state_dict().items()},
        parameters={
            phase.name: sum(p.numel() for module in phase.trains for p in module.parameters())
            for phase in phases
        },
        progress=progress,
    )


def _train_phase(
    model: Model, training: PhaseTraining, batches: Iterator[list[View]], progress: Progress
) -> None:
    """Run the remaining steps of a phase, with regular checkpoints."""
    config, network, phase = model.config.training, training.network, training.phase
    schedule = config.phases[phase.name]
    progress.restore(network, training.optimizer if progress.step else None)
    if progress.step == 0:
        phase.begin()

    every = config.validate_every
    begun = time.perf_counter()
    title, silent = f"{model.name} · {phase.name}", distributed.rank() > 0
    bar = cli.progress(schedule.steps, title, "step", progress.step, silent)
    for batch in batches:
        rate = learning_rate_at(model.config, schedule, progress.step)
        # For dropout: each step and process has its own seed, and no checkpoint needs a generator's
        # state.
        number = progress.step
        torch.manual_seed(_seed(model.config.seed, phase.name, "step", number, distributed.rank()))
        loss = training_step(training, batch, rate)
        if not math.isfinite(loss):
            raise _diverged(model, phase, f"at step {number}")
        progress.history.append((phase.name, number, loss, rate))
        progress.step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if every and (progress.step % every == 0 or progress.step == schedule.steps):
            score = validate(model, network, phase)
            progress.looked(phase.name, distributed.mean_of(score, network), network)
            if settled(progress.validations, phase.name, config.patience):
                break
        if progress.step % config.checkpoint_every == 0 and progress.step < schedule.steps:
            now = time.perf_counter()
            progress.seconds[phase.name] += now - begun
            begun = now
            progress.save(network, training.optimizer)
    bar.close()
    if progress.best is not None:
        network.load_state_dict(progress.best)
        progress.best = None
    for key, tensor in network.state_dict().items():  # no loss tells of the last step
        if fault := fault_of(tensor):
            raise _diverged(model, phase, f"in its last step ({key} has {fault})")
    progress.seconds[phase.name] += time.perf_counter() - begun


def _diverged(model: Model, phase: Phase, where: str) -> UserError:
    return UserError(
        f"Training of {model.name} diverged in phase {phase.name} {where}: lower "
        f"models.{model.name}.training.phases.{phase.name}.learning_rate."
    )


def _waited_for(
    batches: Iterator[list[View]], phase: str, progress: Progress
) -> Iterator[list[View]]:
    """The batches; adds the waiting time for each to the phase's."""
    while True:
        begun = time.perf_counter()
        batch = next(batches, None)
        waited = time.perf_counter() - begun
        if batch is None:
            return
        progress.waiting_s[phase] += waited
        yield batch


def _fabric(device: torch.device, precision: Any) -> Any:
    """A Fabric with the precision and this process's device, which does not look for other
    processes."""
    from lightning_fabric import Fabric  # takes seconds to import
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    devices = [device.index] if device.type == "cuda" else 1
    alone = LightningEnvironment()
    return Fabric(accelerator=device.type, devices=devices, precision=precision, plugins=[alone])


def _batches(model: Model, phase: Phase, first: int, workers: int) -> Iterator[list[View]]:
    """This process's views of each step from `first` on."""
    schedule = model.config.training.phases[phase.name]
    share = schedule.batch // distributed.size()
    begin = distributed.rank() * share
    numbers = [
        step * schedule.batch + place
        for step in range(first, schedule.steps)
        for place in range(begin, begin + share)
    ]
    loader = DataLoader(
        Views(model, phase.name),
        batch_size=share,
        sampler=numbers,
        num_workers=workers,
        collate_fn=list,  # views of one batch may differ in shape
        generator=torch.Generator(),  # else the loader draws from the state that dropout uses
    )
    return iter(loader)


def _check_schedules(model: Model, phases: list[Phase]) -> None:
    """Raise a UserError if the phases are not the method's, or a batch cannot be divided."""
    names, given = [phase.name for phase in phases], model.config.training.phases
    if set(names) != set(given):
        raise UserError(
            f"params.yaml: models.{model.name}.training.phases has {', '.join(given) or 'none'}, "
            f"but the method's spec trains {', '.join(names)}."
        )
    for phase in names:
        where = f"params.yaml: models.{model.name}.training.phases.{phase}.batch"
        distributed.require_even(given[phase].batch, where)
    settings = model.config.training
    if distributed.size() > 1 and (settings.recomputed or settings.compiled):
        # Statistics over all processes are taken by a mode that neither of them keeps.
        raise UserError(
            f"models.{model.name}.training: `recomputed` and `compiled` work in one process alone: "
            "set them to false, or train without torchrun."
        )


def _seed(*parts: object) -> int:
    """A seed derived from a name."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _fingerprint(suite: Suite, model: Model, weights: Path, device: torch.device) -> str:
    """SHA-256 of all that the trained weights depend on, so that progress with other settings, data
    or code is not resumed."""
    parts = [
        json.dumps(model.config.settings(), sort_keys=True),
        suite.compute.precision,
        torch.__version__,
        # Rounding on a CPU depends on its threads and instruction set.
        json.dumps(device_facts(device, suite.compute) if device.type == "cpu" else {}),
        file_sha256(model.dataset.root / "dataset.json"),
        file_sha256(weights),
        *(code_sha256(path) for path in code_of("training_code", model.config.method)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def work(arguments: argparse.Namespace) -> None:
    """Train one model of params.yaml, or resume a killed training."""
    suite = read_suite()
    with distributed.processes(set_up(suite.compute)):
        path = train(suite, arguments.model)
        if distributed.rank() == 0:
            print(path)


if __name__ == "__main__":
    cli.main(work, model="a key of the table models")
