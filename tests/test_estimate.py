"""Questions about memory: what is needed, and what fits."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from test_contract import CLASSES, made

from bench.__main__ import main
from bench.cli import parse_bytes
from bench.commands import estimate
from bench.commands.estimate import MIB, fit
from bench.commands.question import (
    Question,
    answer,
    find,
    largest,
    lowered,
    needs,
    varied,
)
from bench.errors import UserError
from bench.memory.cpu_allocator import record_cpu_allocations
from bench.memory.runs import predict_run
from bench.memory.tracker import bytes_of, tensors_of
from bench.method import network_for
from bench.run import resolve, run_of


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def question(name: str = "enet", strategy: str = "patch", **changes: Any) -> Question:
    model, config = find(name, None, strategy)
    run = resolve(name, config, model, {"size_px": 64, "overlap_px": 8}, estimate.CLASSES)
    return Question(run, **{"size": (128, 160), "device": "cpu", "batch": 2, **changes})


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["glnet-bench", "estimate", *words])
    main()


@pytest.mark.parametrize("budget", [10, 11, 55, 1000, 1699])
def test_the_largest_number_is_tight_and_found_in_few_steps(budget: int) -> None:
    asked = []

    def bytes_at(number: int) -> int:
        asked.append(number)
        return 5 + 5 * number

    value, needed, over = largest(bytes_at, budget, 1, 512)
    assert value == (budget - 5) // 5
    assert (needed, over) == (5 + 5 * value, 10 + 5 * value)
    assert len(asked) <= 14
    assert len(asked) == len(set(asked))


def test_nothing_fits_and_all_fits() -> None:
    assert largest(lambda number: 10 * number, 9, 1, 8) == (0, 10, None)
    assert largest(lambda number: 10 * number, 999, 1, 8) == (8, 80, None)


def test_the_colours_means_are_counted_by_hand() -> None:
    model, config = find("colour", None, "whole")
    run = resolve("colour", config, model, classes=estimate.CLASSES)
    (found,) = answer(Question(run, size=(64, 96), device="cpu"))
    predicted = found.prediction
    # Sums (7, 3) and counts (7), float64; the image and its labels lie on the host.
    assert predicted.by_category["weights"] == 7 * 3 * 8 + 7 * 8
    assert predicted.by_category["inputs"] == 3 * 64 * 96
    assert found.shown_bytes == predicted.device_bytes == predicted.host_bytes


def test_a_card_shows_its_context_too() -> None:
    (found,) = answer(question(device="cuda"))
    reserved = found.prediction.reserved_on()
    assert reserved >= found.prediction.device_bytes
    assert found.shown_bytes > reserved + 100 * MIB


def test_a_card_with_tf32_holds_copies_that_an_older_one_does_not() -> None:
    asked = question("unet", "whole", device="cuda")
    old, new = (
        answer(asked)[0].prediction.reserved_on(card)
        for card in ("GeForce GTX 1080 Ti", "NVIDIA A100-SXM4-80GB")
    )
    assert new > old


def test_what_is_said_to_fit_fits_and_the_next_does_not() -> None:
    asked = question("enet", "whole")
    budget = needs(varied(asked, "image", 160)) + 1
    assert needs(varied(asked, "image", 160)) <= budget < needs(varied(asked, "image", 192))
    said = fit(asked, "image", budget)
    assert "is 160 px" in said
    assert "192 px would need" in said


def test_the_largest_batch_of_training() -> None:
    asked = question(training=True)
    budget = needs(varied(asked, "batch", 1))
    assert "is 1, which needs" in fit(asked, "batch", budget)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_halves_weights_and_activations(precision: str) -> None:
    (whole,), (half,) = (answer(question(precision=one)) for one in ("fp32", precision))
    assert half.prediction.by_category["weights"] == pytest.approx(
        whole.prediction.by_category["weights"] / 2, rel=0.01
    )
    (whole,), (half,) = (
        answer(question("unet", "whole", precision=one, device="cuda"))
        for one in ("fp32", precision)
    )
    kept = [one.prediction.by_category["activations"] for one in (whole, half)]
    assert kept[1] == pytest.approx(kept[0] / 2, rel=0.05)


def test_autocast_leaves_weights_and_state_in_full() -> None:
    (whole,), (half,) = (
        answer(question("unet", training=True, precision=one)) for one in ("fp32", "bf16")
    )
    assert half.prediction.by_category["weights"] == whole.prediction.by_category["weights"]
    assert (
        half.prediction.by_category["optimiser state"]
        == whole.prediction.by_category["optimiser state"]
    )


@pytest.mark.parametrize(
    ("package", "network", "strategy"),
    [
        ("baselines/generic", "unet", "whole"),
        ("baselines/generic", "pspnet", "patch"),
        ("glnet", "", "collaborative"),
    ],
)
def test_half_precision_against_the_allocators_account(
    package: str, network: str, strategy: str
) -> None:
    _, plan, settings = made(package, network or "glnet", strategy)
    run = run_of(package, strategy, settings, CLASSES)
    method = lowered(run.method, "bf16", training=False)
    run = replace(run, model=replace(run.model, given_method=method))
    size = (160, 96)
    model = network_for(method, plan, settings, CLASSES)
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    with torch.inference_mode(), record_cpu_allocations() as allocations:
        plan.predict(model, image, settings)
    allocated_bytes_of = bytes_of([*tensors_of(model), image]) + allocations.peak_bytes
    predicted = predict_run(run, size, "cpu")
    # Without AVX-512, and with AMX, bf16 takes other kernels, whose workspace was never measured.
    avx512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
    measured = avx512 and not torch.cpu._is_amx_tile_supported()
    assert predicted.device_bytes == pytest.approx(
        allocated_bytes_of, rel=0.05 if measured else 0.2
    )


def test_the_table_and_the_plot_with_its_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.svg"
    words = ["enet", "--size", "128x160", "--set", "size_px=64", "overlap_px=8"]
    run(monkeypatch, *words, "--plot", str(plot))
    printed = capsys.readouterr().out
    for row in ("tensors", "reserved", "context", "host", "operator at the peak", "peak: weights"):
        assert row in printed
    drawn = plot.read_text()
    assert "peak " in drawn
    assert "aten." in drawn
    assert "activations" in drawn


def test_any_torch_module_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.svg"
    words = ["torch.nn:Linear", "--set", "in_features=1024", "out_features=256", "bias=false"]
    words += ["--input", "512x1024", "--train", "adamw", "--device", "cpu"]
    run(monkeypatch, *words, "--fit", "1MiB", "--plot", str(plot))
    printed = capsys.readouterr().out
    assert re.search(r"peak: weights +1\.0 MiB", printed)
    assert re.search(r"peak: optimiser state +2\.0 MiB", printed)
    assert re.search(r"fits into 1\.0 MiB +no", printed)
    assert "doubt" not in printed
    assert "peak " in plot.read_text()
    run(monkeypatch, *words, "--precision", "16-mixed", "--device", "cuda")
    assert "doubt: autocast was traced" in capsys.readouterr().out


def test_the_timeline_ends_at_the_peak_that_is_told() -> None:
    (found,) = answer(question())
    wide, at = estimate.timeline(found)
    assert wide.iloc[at].sum() == found.prediction.device_bytes
    assert {
        key: value for key, value in wide.iloc[at].items() if value
    } == found.prediction.by_category


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["unett"], "no method or run 'unett'; did you mean unet"),
        (["unet", "--size", "0x5"], "--size is '0x5'"),
        (["unet", "--size", "9" * 30], "--size is '999"),
        (["unet", "--size", "9" * 5000], "--size is '999"),
        (["unet", "--classes", "255"], "--classes is 255: give a whole number from 1 to 254"),
        (["unet", "--batch", "0", "--phase", "training"], "--batch is 0"),
        (["unet", "--fit", "two"], "--fit is 'two'"),
        (["unet", "--fit", "1MiB", "--size", "64"], "Nothing fits into 1.0 MiB"),
        (["unet", "--fit", "2GiB", "--of", "batch"], "A batch is of training"),
        (["unet", "--strategy", "whole", "--fit", "2GiB", "--of", "patch"], "has no patch"),
        (["unet", "--strategy", "wholly"], "strategy is 'wholly'"),
        (["unet", "--set", "sizepx=3"], "sizepx is unknown"),
        (["unet", "--plot", "plot.txt"], "ends in .png"),
        (["unet", "--of", "image"], "give a budget"),
        (["unet", "--phase", "training", "--precision", "fp16"], "does not train in fp16"),
        ([], "Name a METHOD"),
        (["unet", "--input", "1x3x64x64"], "are of any torch module"),
        (["torch.nn:ReLU"], "Give the shape of its inputs"),
        (["torch.nn:ReLU", "--input", "3y4"], "--input is '3y4'"),
        (["torch.nn:ReLU", "--input", "3x4:half_int"], "--input is '3x4:half_int'"),
        (["torch.nn:ReLU", "--input", "3x4", "--of", "image"], "--of is of the suite's methods"),
        (["torch.nn:ReLU", "--input", "3x4", "--train", "sgd"], "no weight that requires"),
        (["torch.nn:ReLUU", "--input", "3x4"], "There is no torch.nn:ReLUU"),
        (["torch.nn:functional", "--input", "3x4"], "cannot be called"),
        (["math:nextafter", "--input", "3x4", "--set", "x=1"], "does not run on 3x4"),
        (["torch.nn:Linear", "--input", "3x4", "--set", "in_features=5", "out_features=2"], "3x4:"),
    ],
)
def test_what_cannot_be_asked(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *words)
    assert said in str(stopped.value)


def test_refusals_are_typed() -> None:
    with pytest.raises(UserError):
        parse_bytes("0GiB", "--fit")
    assert parse_bytes("2GiB", "--fit") == 2**31
    assert estimate.parse_size("100x200") == (100, 200)
