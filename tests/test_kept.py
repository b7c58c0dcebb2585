"""No command replaces a good record by a worse one: each is run where it fails or sees less than an
earlier one did."""

import ast
import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT, call_command, tiny_suite, write_suite
from source import modules, tree
from test_report import write_measurement

from bench import record
from bench.cluster import start
from bench.config import read_suite
from bench.errors import UserError
from bench.experiments import any_network, collapsed_head, gpu_memory, growth, sub_batch
from bench.parallel import Outcome
from bench.pipeline import (
    evaluate,
    measure,
    measure_training,
    predict_memory,
    predict_uhr_methods,
    tune,
)
from bench.pipeline.train import train
from bench.record import Record
from bench.report.__main__ import report
from bench.report.load_records import load_records
from bench.run import Run, open_run

MACHINE = "test-machine"
ONE_RUN = {"colour": {"model": "colour", "strategy": "whole"}}


def good(path: Path, settings: Any = None, **values: Any) -> None:
    """A record that must survive."""
    values = {"phases": {}, **values}
    record.write(path, Record("train", path.stem, settings or {}, values, {"commit": "earlier"}))


def breaks(*_: Any, **__: Any) -> None:
    raise UserError("It breaks here.")


def of_train(patch: pytest.MonkeyPatch) -> Path:
    suite = tiny_suite()
    suite["models"]["unet"]["training"]["phases"]["train"]["learning_rate"] = 1e30
    write_suite(Path(), suite)
    path = record.path_of("tiny", "train", "unet")
    good(path)
    with pytest.raises(UserError, match="diverged"):
        train(read_suite(), "unet")
    return path


def of_evaluate(patch: pytest.MonkeyPatch) -> Path:
    def no_memory(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    train(read_suite(), "colour")
    path = record.path_of("tiny", "evaluate", "colour")
    good(path, open_run(read_suite(), "colour").settings)
    patch.setattr(Run, "predict", no_memory)
    with pytest.raises(UserError, match=r"colour.json was not replaced, .* can't allocate"):
        evaluate.evaluate_all(read_suite(), ["colour"])
    return path


def of_measure(patch: pytest.MonkeyPatch) -> Path:
    shutil.rmtree("data/prepared/tiny")
    path = record.path_of("tiny", "measure", "colour", MACHINE)
    good(path)
    with pytest.raises(
        UserError, match=r"Measuring colour failed, and .*colour.json was not replaced"
    ):
        measure.measure_all(read_suite(), ["colour"])
    return path


def broken(module: Any, name: str, path: Path) -> Callable[[pytest.MonkeyPatch], Path]:
    """A command that fails in the middle of what it computes."""

    def make(patch: pytest.MonkeyPatch) -> Path:
        good(path)
        patch.setattr(module, name, breaks)
        with pytest.raises(UserError, match="It breaks here"):
            run(getattr(module, "_arguments", lambda _: None), module.work)
        return path

    return make


def of_tune(patch: pytest.MonkeyPatch) -> Path:
    """The second candidate diverges: the first one's result and an earlier one's stay."""
    path = record.path_of("tiny", "tune", "fpn")
    patch.setattr(tune, "_miou", lambda *_: 0.5)
    run(tune.command, tune.work, "fpn", "--factors", "0.1")
    content = record.read(path)
    record.write(path, replace(content, provenance={"commit": "earlier"}))
    scores = iter([0.25])
    patch.setattr(tune, "_miou", lambda *_: next(scores, None) or breaks())
    with pytest.raises(UserError, match="It breaks here"):
        run(tune.command, tune.work, "fpn", "--factors", "1", "3")
    assert {key: one["miou"] for key, one in entries(path, "candidates").items()} == {
        "0.1": 0.5,
        "1": 0.25,
    }
    record.write(path, replace(record.read(path), provenance={"commit": "earlier"}))
    with pytest.raises(UserError, match="It breaks here"):
        run(tune.command, tune.work, "fpn", "--factors", "1")
    return path


def of_collapsed_head(patch: pytest.MonkeyPatch) -> Path:
    def compare(suite: Any, side: int, *_: Any) -> Any:
        done = {"device": {}, "wall_s": 1.0, "network_s": 1.0, "peak_rss_bytes": side}
        costs = {"device_bytes": 1, "weights_bytes": 1, "flops": 1}
        head = {"repetitions": [done], "predicted": costs}
        return {"plain": head, "collapsed": head}

    patch.setattr(collapsed_head, "compare", compare)
    path = record.RESULTS / f"fast/{MACHINE}.json"
    run(collapsed_head._arguments, collapsed_head.work, "--side", 512, 2448)
    before = entries(path, "sides")
    run(collapsed_head._arguments, collapsed_head.work, "--side", 64)
    assert entries(path, "sides").keys() == {"512", "2448", "64"}
    assert before.items() <= entries(path, "sides").items()
    path.write_text(
        path.read_text().replace('"isa": "native",', "")
    )  # as it was before there was isa
    run(collapsed_head._arguments, collapsed_head.work, "--side", 32)
    patch.setattr(collapsed_head, "compare", lambda *_: pytest.fail("it is refused before"))
    for change in ({"threads": 2}, {"isa": "avx2"}):
        write_suite(Path(), tiny_suite() | {"compute": tiny_suite()["compute"] | change})
        with pytest.raises(UserError, match=r"has results with compute .*: move the file away"):
            run(collapsed_head._arguments, collapsed_head.work, "--side", 64)
    return path


def of_sub_batch(patch: pytest.MonkeyPatch) -> Path:
    """Points that are measured again replace theirs, and no others."""
    status = {"status": "ok"}

    def measure(run: Run, *_: Any) -> Any:
        size = run.spec.sub_batch
        found = {"kind": run.name, "others": {"sub_batch": size}, "wall_s": [1.0]}
        sizes = dict.fromkeys(("allocated_bytes", "predicted_bytes"), size)
        return {"key": f"{run.name} {size}", **found, **sizes, **status}

    patch.setattr(sub_batch, "measure", measure)
    path = record.RESULTS / f"sub_batch/{MACHINE}.json"
    run(sub_batch._arguments, sub_batch.work, "unet-patch")
    before = entries(path, "rows")
    run(sub_batch._arguments, sub_batch.work, "fpn-patch")
    assert before.items() <= entries(path, "rows").items()
    assert len(entries(path, "rows")) == 2 * len(before)
    patch.setattr(sub_batch, "measure", breaks)
    with pytest.raises(UserError, match="It breaks here"):
        run(sub_batch._arguments, sub_batch.work, "unet-patch")
    with pytest.raises(UserError, match="has results with side_px 720"):
        run(sub_batch._arguments, sub_batch.work, "glnet-local", "--side", 64)
    return path


def of_gpu_memory(patch: pytest.MonkeyPatch) -> Path:
    """Of a GPU that is not there."""
    found = {"status": "ok", "reason": None, "meters": {"allocated": {"bytes": 7}}}
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(gpu_memory, "measure", lambda case, compute: dict(found))
    patch.setattr(gpu_memory, "time_all", lambda some, *_: {key: {"wall_s": [1]} for key in some})
    path = record.RESULTS / f"card/{MACHINE}.json"
    run(gpu_memory._arguments, gpu_memory.work)
    before = entries(path, "rows")
    assert len(before) > 40
    found["meters"] = {"allocated": {"bytes": 9}}
    run(gpu_memory._arguments, gpu_memory.work, "--only", "fctl")
    after = entries(path, "rows")
    renewed = {key for key in after if after[key]["meters"] == found["meters"]}
    assert {key for key in after if "fctl" in key} == renewed
    assert all(before[key] == after[key] for key in before.keys() - renewed)
    assert "provenance" in record.entries_of(record.read(path).values["rows"])[min(before)]
    # A GPU that others use now, and a time limit that is too short.
    found |= {"status": "oom", "reason": "full"}
    run(gpu_memory._arguments, gpu_memory.work, "--only", "fctl")
    patch.setattr(gpu_memory, "time_all", breaks)
    with pytest.raises(UserError, match="It breaks here"):
        run(gpu_memory._arguments, gpu_memory.work)
    assert entries(path, "rows") == after
    return path


def of_any_network(patch: pytest.MonkeyPatch) -> Path:
    """A case that fails leaves its earlier result, and the others'."""
    row = dict.fromkeys(("network", "kind", "mode", "precision"), "x")
    sizes = dict.fromkeys(("side_px", "allocated_bytes", "predicted_bytes"), 1)
    patch.setattr(any_network, "VERSIONS", ())
    patch.setattr(
        any_network, "measure", lambda case, _: {"key": case.key, **row, **sizes, "others": {}}
    )
    path = record.RESULTS / f"estimates/{MACHINE}.json"
    run(any_network._arguments, any_network.work, MACHINE, "--only", "resnet50 .* fp32 128")
    before = entries(path, "rows")
    assert {key.split()[1] for key in before} == {"inference", "training"}
    patch.setattr(any_network, "measure", breaks)
    with pytest.raises(
        UserError, match="Not all cases ran: resnet50 inference fp32 128: UserError"
    ):
        run(any_network._arguments, any_network.work, MACHINE, "--only", "^resnet50 inference")
    with pytest.raises(UserError, match="or all are done"):
        run(
            any_network._arguments,
            any_network.work,
            MACHINE,
            "--only",
            "^resnet50 .*fp32 128",
            "--missing",
        )
    assert entries(path, "rows") == before
    return path


def of_growth(patch: pytest.MonkeyPatch) -> Path:
    def measured(work: Any, run: str, settings: Any, seed: Any, side: int, **_: Any) -> Outcome:
        row = {"settings": growth._said(settings), "weights": growth._weights(seed), "threads": 1}
        row |= {"isa": read_suite().compute.isa}
        row |= {"height_px": side, "width_px": side, "wall_s": 1.0, "cpu_s": 1.0}
        return Outcome(reported=row | {"peak_rss_bytes": 1, "processor": record.processor()})

    patch.setattr(growth, "run_isolated", measured)
    path = record.RESULTS / f"large/{MACHINE}/colour.csv"
    run(growth.command, growth.work, "colour", "--sides", 64)
    earlier = path.read_text()
    run(growth.command, growth.work, "colour", "--sides", 128)
    assert path.read_text().startswith(earlier)
    for other, key in ((["--random", 0], "weights"), (["--set", "size_px=32"], "settings")):
        with pytest.raises(UserError, match=rf"colour.csv has results with {key} .*: move"):
            run(growth.command, growth.work, "colour", "--sides", 256, *other)
    rows = pd.read_csv(path, keep_default_na=False)
    rows.drop(columns="isa").to_csv(path, index=False)  # as it was before there was isa
    run(growth.command, growth.work, "colour", "--sides", 128)
    assert pd.read_csv(path, keep_default_na=False)[[*rows]].equals(rows)
    write_suite(Path(), tiny_suite() | {"compute": tiny_suite()["compute"] | {"isa": "avx2"}})
    with pytest.raises(UserError, match=r"colour.csv has results with isa 'native', .*: move"):
        run(growth.command, growth.work, "colour", "--sides", 128)
    return path


def of_report(patch: pytest.MonkeyPatch) -> Path:
    """A clone on another machine, which has no measurement."""
    suite = tiny_suite() | {"runs": ONE_RUN, "models": {"colour": tiny_suite()["models"]["colour"]}}
    write_suite(Path(), suite)
    train(read_suite(), "colour")
    evaluate.evaluate_all(read_suite(), ["colour"])
    write_measurement("colour", 7)
    report(load_records(read_suite()))
    kept = {path: path.read_bytes() for path in Path("report/tiny").rglob("*.*")}
    assert {"latency.csv", "runs.csv", "colour.json"} <= {path.name for path in kept}
    inputs = load_records(read_suite())
    with pytest.MonkeyPatch.context() as fault:
        fault.setattr("bench.report.__main__._write_pages", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report(inputs)
    assert kept == {path: path.read_bytes() for path in Path("report/tiny").rglob("*.*")}
    page = report(load_records(replace(read_suite(), machine="another")))
    assert kept == {path: path.read_bytes() for path in Path("report/tiny").rglob("*.*")}
    assert page.is_file()
    shutil.rmtree("report")  # as DVC does before a stage
    report(load_records(replace(read_suite(), machine="another")))
    assert not Path("report/tiny/tables/latency.csv").exists()
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path("report/tiny/tables/latency.csv")


def of_simulate(patch: pytest.MonkeyPatch) -> Path:
    write_suite(Path(), tiny_suite())
    path = record.RESULTS / "cluster/tiny.json"
    good(path)
    patch.setattr(start, "tasks_of", lambda *_: [])
    patch.setattr(start, "makespan_s", breaks)
    with pytest.raises(UserError, match="It breaks here"):
        start.start(Namespace(simulate=1))
    return path


STEPS = record.path_of("tiny", "steps", MACHINE)
COMMANDS = {
    "bench.cluster.start": of_simulate,
    "bench.pipeline.progress": of_train,
    "bench.pipeline.tune": of_tune,
    "bench.pipeline.evaluate": of_evaluate,
    "bench.pipeline.measure": of_measure,
    "bench.pipeline.measure_training": broken(measure_training, "measure_steps", STEPS),
    "bench.pipeline.predict_memory": broken(predict_memory, "scale", predict_memory.RESULT),
    "bench.pipeline.predict_uhr_methods": broken(
        predict_uhr_methods, "predict", predict_uhr_methods.RESULT
    ),
    "bench.experiments.any_network": of_any_network,
    "bench.experiments.collapsed_head": of_collapsed_head,
    "bench.experiments.gpu_memory": of_gpu_memory,
    "bench.experiments.growth": of_growth,
    "bench.experiments.sub_batch": of_sub_batch,
    "bench.report.__main__": of_report,
}
"""By the module that writes records, tables or metrics which git keeps."""


def run(fill: Any, work: Any, *words: object) -> None:
    def both(parser: Any) -> None:
        fill(parser)
        parser.set_defaults(work=work)

    call_command(both, *words)


def entries(path: Path, parts: str) -> dict[str, Any]:
    """The entries of a record, without the provenance that kept ones get."""
    table = record.entries_of(record.read(path).values[parts])
    return {
        key: {name: value for name, value in entry.items() if name != "provenance"}
        for key, entry in table.items()
    }


@pytest.mark.parametrize("module", COMMANDS)
def test_a_good_record_survives(
    module: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "suites").symlink_to(ROOT / "suites")
    monkeypatch.setattr(predict_memory, "paper_cases", lambda: ())  # it breaks after these
    path = COMMANDS[module](monkeypatch)
    if path.suffix == ".json" and "experiments" not in module:
        assert json.loads(path.read_text())["provenance"] == {"commit": "earlier"}
    assert path.stat().st_size > 0


def test_every_module_that_writes_results_is_tried() -> None:
    """Each that calls `record.write`, and those that write tables below a constant folder."""
    found = {
        name
        for name, path in modules().items()
        if name != "bench.record"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) == ("record", "write")
    }
    assert found | {"bench.experiments.growth", "bench.report.__main__"} == COMMANDS.keys()


def test_a_result_of_other_settings_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    good(path, {"size": 1})
    full = Record("train", "a", {"size": 2}, {}, {}, "oom", "full")
    record.write(path, full)
    assert record.read(path) == full
    with pytest.raises(UserError, match=r"a\.json was not replaced"):
        record.write(path, replace(full, status="failed"))
    path.write_text("{")  # is no record
    record.write(path, replace(full, status="failed"))
    good(path)
    assert record.read(path).status == "ok"
