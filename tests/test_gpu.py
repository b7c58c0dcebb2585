"""What only a card can show: that the device code gives what the host's gives, and that predicted
memory is what CUDA's allocator says. Run wherever there is a card, with `pytest -m gpu`."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ROOT, THREE_PHASES
from test_contract import CASES, CLASSES, FCTL_VARIANTS, NETWORKS, ids, made, spec

from bench.config import Compute
from bench.experiments import gpu_memory
from bench.experiments.gpu_memory import published_cases
from bench.experiments.noise import noise
from bench.memory.runs import predict_run
from bench.method import load
from bench.run import clock, run_of
from glnet.spec import Spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
SIZE = (200, 150)
MIB = 2**20
PHASES: dict[str, Any] = {"local": ("local",), "collaborative": THREE_PHASES}
DROPOUTS = (torch.nn.Dropout, torch.nn.Dropout2d)
METERS = """
import json, time
import torch
from bench.memory.nvml import NvmlSampler
with NvmlSampler() as card:
    torch.zeros(1, device="cuda")
    card.mark_idle()
    torch.cuda.reset_peak_memory_stats()
    block = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    time.sleep(5 * card.interval_s)
    del block
print(json.dumps({
    "missing": card.missing, "idle": card.idle_bytes, "peak": card.peak_bytes, "how": card.how,
    "allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
}))
"""
LEARNING = [
    *(
        ("baselines/generic", n) for n in NETWORKS if n != "colour"
    ),  # which learns without a gradient
    ("glnet", ""),
    ("glnet", "alone"),
    ("baselines/isdnet", ""),
    ("baselines/cascadepsp", ""),
    ("baselines/pointrend", ""),
    ("baselines/magnet", ""),
    ("baselines/rue", ""),
    ("baselines/f2net", ""),
    ("baselines/sgnet", ""),
    *(("baselines/fctl", v) for v in FCTL_VARIANTS),
]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32: a difference shall be a mistake."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(("method", "network", "strategy"), CASES, ids=ids)
def test_labels_are_those_of_the_host(method: str, network: str, strategy: str) -> None:
    image = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8)
    model, plan, settings = made(method, network, strategy)
    with torch.inference_mode():
        on_host = plan.predict(model, image, settings)
        on_card = plan.predict(model.to("cuda"), image, settings)
    assert on_card.device.type == "cpu"
    assert (on_host == on_card).float().mean() > 0.995  # rounding breaks ties


@pytest.mark.parametrize(("method", "network", "strategy"), CASES, ids=ids)
def test_predicted_memory_is_what_the_allocator_says(
    method: str, network: str, strategy: str
) -> None:
    """But for cuDNN's workspaces, which only add."""
    image = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8)
    model, plan, settings = made(method, network, strategy)
    predicted = predict_run(run_of(method, strategy, settings, CLASSES), SIZE, "cuda")
    torch.cuda.empty_cache()
    there = torch.cuda.memory_allocated()
    model.to("cuda")
    with torch.inference_mode():
        plan.predict(model, image, settings)  # handles of the libraries
        torch.cuda.synchronize()
        extra = torch.cuda.memory_allocated() - there
        weights = sum(-(-t.nbytes // 512) * 512 for t in (*model.parameters(), *model.buffers()))
        torch.cuda.reset_peak_memory_stats()
        plan.predict(model, image, settings)
    seen = torch.cuda.max_memory_allocated() - there - max(0, extra - weights)
    assert predicted.allocated_bytes is not None
    assert seen >= 0.9 * predicted.allocated_bytes


@pytest.mark.parametrize("strategy", ["local", "collaborative"])
def test_graphs_give_the_same_labels_sooner(strategy: str) -> None:
    """36 patches of the paper's network: what is captured is the GPU's work, not Python's."""
    plain = run_of("glnet", strategy, Spec(phases=PHASES[strategy], sub_batch=1), 7)
    run = replace(plain, config=replace(plain.config, graphs=True))
    image = noise(2448)
    torch.manual_seed(0)
    network = run.build().to("cuda")
    labels, seconds = [], []
    for one in (run, plain):
        if one is plain:
            for module in (network, *network.children()):
                del module.forward
        one.predict(network, image)
        one.predict(network, image)
        with clock(torch.device("cuda")) as took:
            labels.append(one.predict(network, image))
        seconds += took
    assert (labels[0] == labels[1]).float().mean() > 0.9999
    assert seconds[0] < seconds[1]


@pytest.mark.parametrize("more", [{"precision": "ieee"}, {"layout": "nhwc"}], ids=str)
def test_settings_of_a_run_change_few_labels(more: dict[str, Any]) -> None:
    plain = run_of("baselines/generic", "patch", spec("baselines/generic", "fpn"), CLASSES)
    run = replace(plain, config=replace(plain.config, **more))
    image = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8)
    torch.manual_seed(0)
    network = plain.build().to("cuda")
    wanted = plain.predict(network, image)
    found = run.predict(run.strategy.prepare(network, run.spec), image)
    assert (found == wanted).float().mean() > 0.995


@pytest.mark.parametrize(("method", "network"), LEARNING)
def test_a_training_step_is_that_of_the_host(method: str, network: str) -> None:
    package, settings = load(method), spec(method, network)
    found: dict[str, list[Any]] = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = package.build(settings, CLASSES).to(device)
        found[device] = []
        for phase in package.phases(model, settings):
            phase.begin()
            model.eval().requires_grad_(False)
            for module in phase.trains:
                module.train().requires_grad_(True)
            for dropped in (m for m in model.modules() if isinstance(m, DROPOUTS)):
                dropped.eval()  # draws differ by device
            rng = torch.Generator().manual_seed(1)
            views = [
                package.view(
                    torch.randint(0, 255, (3, 150, 170), dtype=torch.uint8, generator=rng),
                    torch.randint(0, CLASSES, (150, 170), dtype=torch.uint8, generator=rng),
                    settings,
                    phase.name,
                    rng,
                )
                for _ in range(2)
            ]
            views = [{k: v.to(device) for k, v in view.items()} for view in views]
            loss = package.backward(model, views, settings, phase.name, torch.Tensor.backward)
            found[device].append(float(loss))
            model.zero_grad(set_to_none=True)
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.01)


def test_meters_on_a_card() -> None:
    """Order of the meters on real hardware: tensors <= reserved <= what the card saw. In a process
    of its own, for a stand-in of NVML may be in this one."""
    found = json.loads(
        subprocess.run(
            [sys.executable, "-c", METERS], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
    )
    assert not found["missing"]
    assert 256 * MIB <= found["allocated"] <= found["reserved"]
    assert found["peak"] - found["idle"] >= 250 * MIB
    assert found["idle"] >= 100 * MIB, "a context takes some"


def test_a_published_setting_is_measured_and_timed() -> None:
    chosen = {case.key: case for case in published_cases() if case.run.name == "enet-whole"}
    compute = Compute(device="cuda")
    rows = gpu_memory.measure_all(chosen, compute, jobs=1)
    seconds = gpu_memory.time_all(chosen, compute)
    for key in chosen:
        meters = rows[key]["meters"]
        assert rows[key]["status"] == "ok"
        assert meters["allocated"]["bytes"] <= meters["reserved"]["bytes"]
        assert min(seconds[key]["wall_s"]) > 0
