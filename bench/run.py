"""From a line of the suite to a trained network on its device: what evaluating and measuring
share."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.config import Compute, ModelConfig, RunConfig, Suite, checkpoint_of, pick
from bench.errors import UserError
from bench.files import write_bytes
from bench.method import Method, Strategy, check_strategy, load, load_weights, network_for, spec_of
from data.dataset import Dataset, open_dataset


@dataclass(frozen=True)
class Run:
    """One line of the table `runs`, with all that its words stand for."""

    run: RunConfig
    model: ModelConfig
    spec: Any
    method: Method
    strategy: Strategy
    dataset: Dataset

    @property
    def settings(self) -> dict[str, Any]:
        """As records keep them."""
        return {"run": asdict(self.run), "model": self.model.settings()}

    def network(self, device: torch.device, seed: int | None = None) -> nn.Module:
        """The trained network in eval mode on the device, only the parts that the strategy
        needs; of the model's first seed where none is named."""
        seed = self.model.trainings[0].seed if seed is None else seed
        path = checkpoint_of(self.run.model, self.model, seed)
        state = load_checkpoint(path)
        classes = len(self.dataset.classes)
        network = network_for(self.method, self.strategy, self.spec, classes)
        load_weights(network, state, str(path))
        return self.strategy.prepare(network, self.spec).to(device)

    def predict(self, network: nn.Module, image: Tensor) -> Tensor:
        """Labels (H, W) uint8 of an image (3, H, W) uint8, both on the host."""
        with torch.inference_mode():
            return self.strategy.predict(network, image, self.spec)


def open_run(suite: Suite, name: str) -> Run:
    """The line `name` of the table `runs`."""
    run = pick(suite.runs, name, "run")
    model = suite.models[run.model]
    check_strategy(name, run, model)
    method = load(model.method)
    return Run(
        run=run,
        model=model,
        spec=spec_of(run.model, model, run),
        method=method,
        strategy=method.strategies[run.strategy],
        dataset=open_dataset(model.dataset),
    )


def set_up(compute: Compute) -> torch.device:
    """Set torch's threads and say which device the suite runs on."""
    torch.set_num_threads(compute.threads)
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "params.yaml asks for compute.device cuda, but torch sees no CUDA device: "
            "set it to auto or cpu."
        )
    use_cuda = compute.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def device_facts(device: torch.device, compute: Compute) -> dict[str, Any]:
    """What a record says of the device."""
    facts: dict[str, Any] = {"device": device.type, "threads": compute.threads}
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        facts["cuda"] = torch.version.cuda
    return facts


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """A state dict from disk, tensors alone.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`.") from None
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"{path} cannot be read ({reason}): delete it and run `dvc repro`."
        ) from None
    return state


def save(path: Path, content: Any) -> None:
    """torch.save, whole or not at all; a full disk is an OSError, not torch's RuntimeError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
