"""`python -m bench.experiments.any_network MACHINE`: memory predicted for thirty networks of other projects.

The yardstick is what torch's CPU allocator allocates in the real run, weights and inputs included.
Beside it stands what other tools say of the same work. Needs, beside this project, `pip install
transformers torch-kitsune torchinfo`; their answers are recorded, right or wrong, and so is why one has none.
"""

import argparse
import gc
import importlib
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import product
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.optim.optimizer import register_optimizer_step_post_hook

from bench import cli, record
from bench.errors import UserError
from bench.memory import (
    Mode,
    Recipe,
    bytes_of,
    fake_copy,
    inference_work,
    predict_memory,
    record_cpu_allocations,
    tensors_of,
    training_work,
)
from bench.parallel import Report, run_isolated

DEFINITION = (
    "bytes of a call, or of the second of two AdamW steps, of two images on the CPU, one thread; "
    "allocated: weights, inputs and torch's CPU allocator at its peak; predicted: as "
    "bench.memory.predict_memory says; bf16: weights of that type in inference, autocast in training; "
    "others: MemTracker's peak on fake tensors, kitsune's total, torchinfo's input, outputs and "
    "parameters"
)
BATCH = 2
KINDS = ("segmentation", "backbone", "transformer")
CONDITIONS = tuple(
    (mode, precision, side)
    for precision, side in (("fp32", 128), ("bf16", 128), ("fp32", 192))
    for mode in ("inference", "training")
)
"""Mode, precision, and side of the images in pixels."""
PRELOAD = ("segmentation_models_pytorch", "timm", "torchvision.models")
VERSIONS = ("transformers", "torch-kitsune", "torchinfo")
Make = Callable[[int], nn.Module]
"""Makes a network for images of a side in pixels."""


def _smp(name: str, encoder: str) -> Make:
    return lambda _: getattr(smp, name)(encoder, encoder_weights=None)


def _timm(name: str, sized: bool = False) -> Make:
    def make(side: int) -> nn.Module:
        settings: dict[str, Any] = {"img_size": side} if sized else {}
        return timm.create_model(name, **settings)

    return make


def _transformers(name: str, config: str, **settings: Any) -> Make:
    def make(_: int) -> nn.Module:
        package = importlib.import_module("transformers")
        return getattr(package, name)(getattr(package, config)(**settings))  # type: ignore[no-any-return]

    return make


def _tv(make: Callable[..., nn.Module]) -> Make:
    return lambda _: make(weights=None, weights_backbone=None)


SEGMENTATION: dict[str, Make] = {
    f"{name}-{encoder}": _smp(name, encoder)
    for name in ("Unet", "FPN", "DeepLabV3Plus", "PSPNet", "Linknet", "UPerNet")
    for encoder in ("resnet34", "mobilenet_v2")
} | {
    "deeplabv3_resnet50": _tv(tv.segmentation.deeplabv3_resnet50),
    "lraspp_mobilenet_v3_large": _tv(tv.segmentation.lraspp_mobilenet_v3_large),
}
BACKBONES: dict[str, Make] = {
    "resnet50": lambda _: tv.resnet50(),
    "convnext_tiny": lambda _: tv.convnext_tiny(),
    "resnet50-fpn": lambda _: tv.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None
    ),
    "efficientnet_b0": _timm("efficientnet_b0"),
    "regnety_008": _timm("regnety_008"),
    "convnextv2_nano": _timm("convnextv2_nano"),
    "hrnet_w18": _timm("hrnet_w18"),
}
TRANSFORMERS: dict[str, Make] = {
    "swin_t": lambda _: tv.swin_t(),
    "vit_b_16": lambda side: tv.vit_b_16(image_size=side),
    "deit_small": _timm("deit_small_patch16_224", sized=True),
    "swinv2_tiny": _timm("swinv2_tiny_window8_256", sized=True),
    "mixer_s16": _timm("mixer_s16_224", sized=True),
    "mobilevitv2_100": _timm("mobilevitv2_100"),
    "segformer": _transformers("SegformerForSemanticSegmentation", "SegformerConfig"),
    "mask2former": _transformers("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig"),
    "dinov2_small": _transformers(
        "Dinov2Model", "Dinov2Config", hidden_size=384, num_attention_heads=6
    ),
}
NETWORKS = dict(zip(KINDS, (SEGMENTATION, BACKBONES, TRANSFORMERS), strict=True))


@dataclass(frozen=True)
class Case:
    """A network, and what is done with it."""

    kind: str
    network: str
    mode: Mode
    precision: str
    side_px: int

    @property
    def key(self) -> str:
        """Unique among all cases."""
        return f"{self.network} {self.mode} {self.precision} {self.side_px}"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs."""
        half = self.precision == "bf16" and self.mode == "inference"
        return torch.bfloat16 if half else torch.float32

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        autocast = self.precision == "bf16" and self.mode == "training"
        return Recipe(autocast=torch.bfloat16 if autocast else None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images."""
        return BATCH, 3, self.side_px, self.side_px

    def build(self) -> nn.Module:
        """The network with random weights."""
        return NETWORKS[self.kind][self.network](self.side_px).to(self.dtype)

    def work(self, network: nn.Module, image: Tensor) -> Callable[[Any], object]:
        """The call, or the training steps, of real or fake tensors."""
        run = training_work if self.mode == "training" else inference_work
        return run(network, [image], {}, self.recipe)


def cases() -> Iterator[Case]:
    """All cases."""
    for (mode, precision, side), kind in product(CONDITIONS, KINDS):
        for network in NETWORKS[kind]:
            yield Case(kind, network, mode, precision, side)  # type: ignore[arg-type]


def measure(case: Case, limit_s: float) -> dict[str, Any]:
    """Predict a case, run it, and ask the other tools: a row of the record."""
    begun = time.process_time()
    predicted = predict_memory(case.build, (case.shape, case.dtype), "cpu", case.mode, case.recipe)
    processor_s = time.process_time() - begun
    network, image = case.build(), torch.rand(case.shape).to(case.dtype)
    work = case.work(network, image)
    gc.collect()
    with record_cpu_allocations() as allocations:
        work(None)
    found = {
        "key": case.key,
        **asdict(case),
        "allocated_bytes": bytes_of([*tensors_of(network), image]) + allocations.peak_bytes,
        "predicted_bytes": predicted.device_bytes,
        "processor_s": processor_s,
        "doubts": predicted.doubts,
    }
    others, refused = {}, {}
    for name in OTHERS:
        # Elsewhere, since an error inside autograd's hooks can end the process.
        asked = run_isolated(_ask, name, case, limit_s, limit_s=60 * limit_s, preload=PRELOAD)
        if asked.status == "ok":
            others[name] = asked.reported["bytes"]
        else:
            late = f"no answer within {limit_s:g} s of processor time"
            reason = str(asked.reason)
            refused[name] = late if reason.endswith(f"signal {signal.SIGXCPU:d}") else reason[:300]
    return {**found, "others": others, "refused": refused}


def _ask(report: Report, name: str, case: Case, limit_s: float) -> None:
    """What a tool says of a case, in a process that ends after so much processor time."""
    torch.set_num_threads(1)
    network = case.build()
    limit = math.ceil(time.process_time() + limit_s)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    report({"bytes": OTHERS[name](case, network)})


def _memtracker(case: Case, network: nn.Module) -> int:
    """Of torch.distributed: the same work on fake tensors."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    network = fake_copy(network, fake, "cpu")
    with fake:
        image = torch.empty(case.shape, dtype=case.dtype)
        work = case.work(network, image)
        tracker = MemTracker()
        tracker.track_external(network, image)
        # It follows one iteration at a time.
        hook = register_optimizer_step_post_hook(lambda *_: tracker.reset_mod_stats())
        with hook, tracker:
            work(None)
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def _kitsune(case: Case, network: nn.Module) -> int:
    """Its total, overhead included, with AdamW in training."""
    training = case.mode == "training"
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    predict = importlib.import_module("kitsune.predict").predict_memory
    return int(predict(network, case.shape[1:], BATCH, dtype, "adamw", training).total_bytes)


def _torchinfo(case: Case, network: nn.Module) -> int:
    """Its estimated total size; it knows of no optimiser."""
    summary = importlib.import_module("torchinfo").summary
    found = summary(network, case.shape, dtypes=[case.dtype], device="cpu", verbose=0)
    return int(found.total_input + found.total_output_bytes + found.total_param_bytes)


OTHERS = {"MemTracker": _memtracker, "kitsune": _kitsune, "torchinfo": _torchinfo}


def work(arguments: argparse.Namespace) -> None:
    """Compare predictions of networks of other projects with torch's CPU allocator."""
    machine = arguments.machine
    path = record.RESULTS / "estimates" / f"{machine}.json"
    known = record.read(path).values["rows"] if arguments.missing and path.exists() else ()
    done = {row["key"] for row in known}
    chosen = [case for case in cases() if arguments.only.search(case.key) and case.key not in done]
    if not chosen:
        raise UserError(f"No case matches {arguments.only.pattern!r}, or all are done.")
    versions = {name: metadata.version(name) for name in VERSIONS}
    facts: dict[str, Any] = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
    }
    facts["onednn_isa"] = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL")
    failed: list[str] = []
    torch.set_num_threads(1)
    for case in cli.with_progress(chosen, len(chosen), "measure", "case"):
        provenance = record.provenance(machine=machine, others=versions, **facts)
        try:
            values = {"definition": DEFINITION, "rows": [measure(case, arguments.limit)]}
        except Exception as error:  # the other cases still count
            failed.append(f"{case.key}: {type(error).__name__}: {error}"[:300])
            continue
        made = record.Record("estimates", machine, {}, values, provenance)
        record.write(path, made, parts="rows")
    if failed:
        raise UserError(f"Not all cases ran: {'; '.join(failed)}.")
    print(path)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", type=cli.name, help="its name, for the record")
    parser.add_argument(
        "--only",
        type=cli.expression,
        default=cli.expression(""),
        metavar="PATTERN",
        help="cases whose key this expression finds, for instance 'resnet50 training'",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=60,
        metavar="S",
        help="processor seconds that each other tool may take (default: %(default)s)",
    )
    parser.add_argument("--missing", action="store_true", help="those that the record lacks")


if __name__ == "__main__":
    cli.main(work, _arguments)
