"""Bundles of results and of checkpoints: what goes in comes out, and whatever is changed in one is
found."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SIZE, call_command, run, scene, tiny_suite, write_suite
from PIL import Image

from bench.commands.bundle import bundle_command, evaluate_command, submit_command, verify
from bench.commands.predict import command as predict_command
from bench.config import read_suite
from bench.errors import UserError
from bench.pipeline.train import train
from data import crate

SUITE = "idrid"
EVALUATED = f"results/{SUITE}/evaluate/unet-patch.json"
MEASURED = f"results/{SUITE}/measure/cpu-2-cores/unet-patch.json"
TABLE = f"report/{SUITE}/tables/runs.csv"


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of committed records."""
    target = tmp_path_factory.mktemp("submission") / "results.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        call_command(submit_command, f"suites/{SUITE}.yaml", "-o", target)
    return target


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edited(bundle: Path, name: str, edit: Callable[[Any], object], target: Path) -> Path:
    """The same bundle with a changed record, or table as a list of lines, described anew."""
    folder = target.with_suffix("")
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    (folder / crate.DESCRIPTION).unlink()
    path, is_record = folder / name, name.endswith(".json")
    content = json.loads(path.read_text()) if is_record else path.read_text().splitlines()
    edit(content)
    path.write_text(json.dumps(content) if is_record else "\n".join(content) + "\n")
    crate.pack(target, folder, {"name": "edited"})
    return target


def test_a_submission_holds_the_records_and_what_follows_from_them(
    submission: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(submission, install=True) == Path(f"suites/{SUITE}.yaml")
    assert "17 runs follow from its records; 50 files installed" in capsys.readouterr().out
    for name in (EVALUATED, MEASURED, f"suites/{SUITE}.yaml"):
        assert Path(name).read_bytes() == (ROOT / name).read_bytes()
    verify(submission, install=True)  # nothing is there that differs
    Path(MEASURED).write_text("{}")
    with pytest.raises(UserError, match=r"unet-patch\.json is there and differs"):
        verify(submission, install=True)


def test_the_same_results_make_the_same_bytes(submission: Path, elsewhere: Path) -> None:
    packed = edited(submission, MEASURED, lambda values: None, elsewhere / "a.zip").read_bytes()
    again = edited(submission, MEASURED, lambda values: None, elsewhere / "b.zip").read_bytes()
    assert packed == again


def test_a_submission_is_an_ro_crate(submission: Path) -> None:
    """What https://w3id.org/ro/crate/1.1 demands of every crate."""
    with zipfile.ZipFile(submission) as archive:
        names = set(archive.namelist())
        found = json.loads(archive.read(crate.DESCRIPTION))
    entities = {one["@id"]: one for one in found["@graph"]}
    assert len(entities) == len(found["@graph"])
    assert found["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    descriptor, root = entities["ro-crate-metadata.json"], entities["./"]
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert (descriptor["@type"], descriptor["about"]) == ("CreativeWork", {"@id": "./"})
    assert root["@type"] == "Dataset"
    assert all(root[key] for key in ("name", "description", "datePublished", "license"))
    parts = {one["@id"] for one in root["hasPart"]}
    assert parts == names - {crate.DESCRIPTION}
    assert all(entities[name]["@type"] == "File" for name in parts)
    refers = json.dumps([root, *found["@graph"]])
    known = [one for one in entities if not one.startswith("./")]
    assert all(f'"@id": "{name}"' in refers for name in known)


def matrix(record: Any) -> Any:
    return next(iter(record["values"]["splits"]["test"].values()))


def better(record: Any) -> None:
    """All that was wrong in a line of a matrix was right."""
    for number, line in enumerate(matrix(record)[:-1]):
        right = sum(line)
        line[:] = [right if k == number else 0 for k in range(len(line))]


def other_labels(record: Any) -> None:
    matrix(record)[0][0] += 1


def table(lines: list[str]) -> None:
    column = lines[0].split(",").index("miou")
    cells = lines[1].split(",")
    cells[column] = str(float(cells[column]) * 1.0001)
    lines[1] = ",".join(cells)


CHANGES: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "matrix": (EVALUATED, better, r"tables/runs\.csv does not follow from the records"),
    "table": (TABLE, table, r"tables/runs\.csv does not follow from the records.*miou"),
    "labels": (EVALUATED, other_labels, "true pixels by class of .* are others than in other resu"),
    "size": (MEASURED, lambda one: one["values"].update(height_px=1), "px were measured"),
    "version": (MEASURED, lambda one: one.update(benchmark=2), "no record of benchmark version 1"),
    "commit": (MEASURED, lambda one: one["provenance"].update(dirty=True), "without changes"),
    "settings": (EVALUATED, lambda one: one["settings"]["model"].update(seed=5), "seed was 5"),
    "weights": (
        EVALUATED,
        lambda one: one["provenance"].update(checkpoint_sha256="0" * 64),
        "(evaluated|made) with other weights than (measured|train has recorded)",
    ),
    "latency": (
        MEASURED,
        lambda one: one["values"].update(latency_s=[1e-9]),
        "the network alone took longer than the whole prediction",
    ),
    "memory": (
        MEASURED,
        lambda one: one["values"]["meters"]["allocated"].update(bytes=1000),
        "less memory was allocated than its parameters take",
    ),
    "status": (MEASURED, lambda one: one.update(status="failed", reason="it broke"), "it broke"),
    "damaged": (EVALUATED, lambda one: one["values"].pop("classes"), "classes is missing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_records_do_not_say_is_found(
    submission: Path, elsewhere: Path, change: str
) -> None:
    name, edit, message = CHANGES[change]
    with pytest.raises(UserError, match=message):
        verify(edited(submission, name, edit, elsewhere / "edited.zip"), install=True)
    assert not Path("results").exists()


def test_the_labels_must_be_those_of_results_that_are_here(
    submission: Path, elsewhere: Path
) -> None:
    Path(EVALUATED).parent.mkdir(parents=True)
    other = json.loads((ROOT / EVALUATED).read_text())
    other_labels(other)
    Path(EVALUATED).write_text(json.dumps(other))
    with pytest.raises(UserError, match="true pixels by class"):
        verify(submission)


def rewritten(bundle: Path, target: Path, **changed: bytes | None) -> Path:
    """The same zip with members changed, added or left out, and the same description."""
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(target, "w") as new:
        members = {name: old.read(name) for name in old.namelist()} | changed
        for name, content in members.items():
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({EVALUATED: b"{}"}, "another SHA-256"),
        ({EVALUATED: None}, "is described, but missing"),
        ({"bench/cli.py": b""}, r"'bench/cli\.py' has no place in a bundle"),
        ({"suites/../params.yaml": b""}, "outside its folder"),
        ({"results/x/train/x.json": b"{}"}, "another SHA-256, or none"),
        ({crate.DESCRIPTION: b"[]"}, "no sound ro-crate-metadata"),
        ({crate.DESCRIPTION: b'{"@graph": [{"@type": "File"}]}'}, "no sound ro-crate-metadata"),
        ({crate.DESCRIPTION: None}, "no sound ro-crate-metadata"),
        ({crate.DESCRIPTION: b"[" * 100_000}, "no sound ro-crate-metadata"),
    ],
)
def test_files_that_are_not_as_described_are_refused(
    submission: Path, elsewhere: Path, changed: dict[str, bytes | None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        verify(rewritten(submission, elsewhere / "hostile.zip", **changed))


def test_a_file_that_is_larger_than_any_record_is_not_read(
    submission: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crate, "LARGEST_TEXT_BYTES", 1000)
    with pytest.raises(UserError, match="is larger than any record"):
        verify(submission)


@pytest.fixture
def released(project: Path) -> Path:
    """A bundle of one small trained network, in a project that git knows."""
    suite = tiny_suite() | {"runs": {"colour": {"model": "colour", "strategy": "whole"}}}
    suite["models"] = {"colour": suite["models"]["colour"]}
    write_suite(project, suite)
    shutil.copy(ROOT / "LICENSE", project)
    for command in (["init", "-q"], ["add", "LICENSE"]):
        run("git", *command, cwd=project)
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    run("git", *who, "commit", "-qm", "first", cwd=project)
    train(read_suite(), "colour")
    call_command(bundle_command)
    return project / "tiny-checkpoints.zip"


def test_checkpoints_are_used_without_training(released: Path, project: Path) -> None:
    wanted = {path: path.read_bytes() for path in (Path("checkpoints/colour.pt"),)}
    with zipfile.ZipFile(released) as archive:
        found = json.loads(archive.read(crate.DESCRIPTION))["@graph"]
    assert "Made by a formula." in [one.get("description") for one in found]
    shutil.rmtree("results")
    Path("checkpoints/colour.pt").unlink()
    Image.fromarray(scene(0)[0]).save("a.png")
    call_command(predict_command, "a.png", "-o", "b.png", "--run", "colour", "--bundle", released)
    with Image.open("b.png") as labels:
        assert labels.size == (SIZE[1], SIZE[0])
    assert {path: path.read_bytes() for path in wanted} == wanted
    with pytest.raises(SystemExit, match=r"^0$"):
        call_command(evaluate_command, released)
    assert Path("results/tiny/evaluate/colour.json").exists()
    write_suite(project, tiny_suite())
    with pytest.raises(UserError, match=r"copy suites/tiny\.yaml to it"):
        call_command(evaluate_command, released)


def test_other_checkpoints_are_found_and_none_is_replaced(released: Path, project: Path) -> None:
    Path("checkpoints/colour.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"checkpoints/colour\.pt is there and differs"):
        verify(released, install=True)
    assert Path("checkpoints/colour.pt").read_bytes() == b"mine"
    folder = project / "unpacked"
    crate.open_crate(released, folder)
    (folder / crate.DESCRIPTION).unlink()
    (folder / "checkpoints/colour.pt").write_bytes(b"mine")
    crate.pack(released, folder, {"name": "edited"})
    with pytest.raises(UserError, match=r"colour\.pt is not from the training of"):
        verify(released)
