"""Instruction sets: which operators differ, what `compute.isa: avx2` makes equal, and what records and
progress files keep of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, tiny_suite, write_suite
from test_train import killed_at, same, weights

from bench import record
from bench.config import AVX2, Compute, read_suite
from bench.errors import UserError
from bench.optim import adam
from bench.pipeline.train import train
from bench.run import set_up

Edit = Callable[[Callable[[dict[str, Any]], None]], None]
CAPABILITY = torch.backends.cpu.get_cpu_capability()
has_avx2 = pytest.mark.skipif("AVX" not in CAPABILITY, reason="an x86 processor with AVX2")
LESS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""Makes the libraries see an older processor."""


@pytest.fixture(autouse=True)
def _unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever params.yaml asks for here."""
    for key in AVX2:
        monkeypatch.delenv(key, raising=False)


def start(*command: object, **environment: str) -> str:
    """What a new process prints, whose processor is this one's, or as the environment says."""
    plain = {key: value for key, value in os.environ.items() if key not in AVX2}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**plain, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(isa: str, environment: Mapping[str, str], core: int | None = None) -> dict[str, Any]:
    """The weights of a training in a new process."""
    suite = tiny_suite()
    suite["compute"]["isa"] = isa
    write_suite(Path(), suite)
    here = os.sched_getaffinity(0)
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        start("-m", "bench.pipeline.train", "glnet-local", **environment)
    finally:
        os.sched_setaffinity(0, here)
    return weights(Path("checkpoints/glnet-local.pt"))


@pytest.mark.slow
@has_avx2
def test_with_avx2_weights_do_not_depend_on_the_processor(project: Path) -> None:
    first, last = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    limited = trained("avx2", {}, first)
    about = record.read(record.path_of("tiny", "train", "glnet-local")).provenance
    assert (about["threads"], about["isa"], about["cpu_capability"]) == (1, "avx2", "AVX2")
    assert same(limited, trained("avx2", LESS, last))
    native = trained("native", LESS)
    about = record.read(record.path_of("tiny", "train", "glnet-local")).provenance
    assert (about["isa"], about["cpu_capability"]) == ("native", "DEFAULT")
    assert not same(limited, native)


@pytest.mark.slow
@has_avx2
def test_workers_and_predictions_of_memory_are_limited_too(project: Path) -> None:
    suite = tiny_suite()
    suite["compute"] |= {"isa": "avx2", "jobs": 2}
    suite["models"] = {name: suite["models"][name] for name in ("unet", "colour")}
    both = ("whole", "patch")
    suite["runs"] = {strategy: {"model": "colour", "strategy": strategy} for strategy in both}
    write_suite(project, suite)
    train(replace(read_suite(), compute=Compute(device="cpu", threads=1)), "colour")
    start("-m", "bench.pipeline.evaluate")
    start("-m", "bench.pipeline.measure_training")
    start("-m", "bench.pipeline.measure")
    for run in suite["runs"]:
        for path in (("evaluate", run), ("measure", run, "test-machine")):
            about = record.read(record.path_of("tiny", *path)).provenance
            assert about["cpu_capability"] == "AVX2"
    steps = record.read(record.path_of("tiny", "steps", "test-machine"))
    assert steps.provenance["cpu_capability"] == "AVX2"
    bytes_ = steps.values["models"]["unet"]["train"]
    assert bytes_["predicted_bytes"] == pytest.approx(bytes_["allocated_bytes"], rel=0.05)


@pytest.mark.slow
@has_avx2
@pytest.mark.parametrize("isa", ["avx2", "native"])
def test_benchmarks_run_with_the_instructions_of_their_suite(
    project: Path, edit_suite: Edit, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    # pytest-benchmark refuses to time anything in a process that a worker of pytest-xdist started.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    edit_suite(lambda suite: suite["compute"].update(isa=isa))
    words = ("--benchmark-only", "--benchmark-json=found.json", "-p", "no:cacheprovider")
    start("-m", "pytest", *words, "-k", "colour-end", "tests/test_benchmark.py")
    (case,) = json.loads(Path("found.json").read_text())["benchmarks"]
    native = start("-c", "import torch; print(torch.backends.cpu.get_cpu_capability())").strip()
    assert case["extra_info"]["cpu_capability"] == ("AVX2" if isa == "avx2" else native)


def test_a_program_that_was_not_started_for_it_refuses_avx2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="isa avx2, which needs an x86 processor with AVX2 and"):
        set_up(Compute(isa="avx2"))
    for key, value in AVX2.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NO AVX")
    with pytest.raises(UserError, match="set it to native"):
        set_up(Compute(isa="avx2"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    set_up(Compute(isa="avx2", threads=1))


@pytest.mark.parametrize("change", ["threads", "instructions", "nothing"])
def test_progress_of_other_threads_or_instructions_is_not_resumed(
    project: Path, edit_suite: Edit, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    killed_at(2, monkeypatch, read_suite(), "unet")
    if change == "threads":
        edit_suite(lambda suite: suite["compute"].update(threads=2))
    elif change == "instructions":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    done: list[int] = []
    step = bench_step()
    monkeypatch.setattr(
        "bench.pipeline.train.training_step", lambda *given: done.append(1) or step(*given)
    )
    train(read_suite(), "unet")
    assert len(done) == (1 if change == "nothing" else 3)


def bench_step() -> Callable[..., float]:
    from bench.training_step import training_step

    return training_step


def test_adam_takes_no_square_root_of_mkl_with_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = adam([layer], 0.1)
    assert optimizer
    assert not optimizer.defaults["fused"]
    for key, value in AVX2.items():
        monkeypatch.setenv(key, value)
    optimizer = adam([layer], 0.1)
    assert optimizer
    assert optimizer.defaults["fused"]
    meta = adam([torch.nn.Linear(3, 2, device="meta")], 0.1)
    assert meta
    assert not meta.defaults["fused"]


OPERATORS = """
import hashlib, json, torch
from torch.nn import functional as F

torch.set_num_threads(1)
numbers = torch.Generator().manual_seed(0)
found = {}


def draw(*shape):
    exact = torch.randint(-(2**20), 2**20, shape, generator=numbers).float() / 2**19
    return (exact.to(memory_format=torch.channels_last) if len(shape) == 4 else exact).requires_grad_()


def note(name, work, *given):
    out = work(*given)
    out.backward(draw(*out.shape).detach())
    gradients = zip((" gradient", " weights gradient"), given)
    parts = {"": out} | {part: one.grad for part, one in gradients}
    for part, one in parts.items():
        found[name + part] = hashlib.sha256(one.detach().numpy().tobytes()).hexdigest()


for name, kernel, groups in (("3 x 3", 3, 1), ("1 x 1", 1, 1), ("depthwise", 5, 32)):
    convolution = lambda x, w: F.conv2d(x, w, padding=kernel // 2, groups=groups)
    note(name, convolution, draw(2, 32, 33, 35), draw(32, 32 // groups, kernel, kernel))
note("batch norm", lambda x, w: F.batch_norm(x, None, None, w, None, True), draw(3, 37, 9, 8), draw(37))
note("resize", lambda x: F.interpolate(x, (27, 31), mode="bilinear"), draw(2, 19, 12, 14))
note("softmax", lambda x: x.log_softmax(1), draw(2, 7, 20, 30))
note("matrices", torch.matmul, draw(133, 257), draw(257, 71))
print(json.dumps(found))
"""


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Operators with other bits."""
    seen = [json.loads(start("-c", OPERATORS, **environment)) for environment in (one, other)]
    assert seen[0].keys() == seen[1].keys()
    return {name for name in seen[0] if seen[0][name] != seen[1][name]}


@pytest.mark.skipif(CAPABILITY != "AVX512", reason="a processor with AVX-512")
def test_which_operators_differ_between_avx512_and_avx2() -> None:
    """As docs/devices.md says."""
    kernels = differing({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert kernels == {"3 x 3 weights gradient", "depthwise weights gradient"}
    assert differing({}, {"ATEN_CPU_CAPABILITY": "avx2"}) == {"softmax gradient"}
    products = differing({}, {"MKL_CBWR": "COMPATIBLE"})
    assert products
    assert {name.split()[0] for name in products} <= {"1", "matrices"}
    assert differing(AVX2, AVX2) == set()
