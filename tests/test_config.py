"""A wrong params.yaml is refused in one sentence that names the key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, tiny_suite, write_suite

from bench.config import Compute, read_suite
from bench.errors import UserError
from bench.method import check_strategy, spec_of

Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(machin="x"), "the key machin is unknown"),
        (lambda s: s.pop("machine"), "the key machine is missing"),
        (lambda s: s.update(machin=s.pop("machine")), "the key machin is unknown"),
        (lambda s: s["models"]["unet"].pop("start"), "the key models.unet.start is missing"),
        (lambda s: s["compute"].update(threads="many"), "compute.threads is 'many'"),
        (lambda s: s["compute"].update(device="tpu"), "compute.device is 'tpu'"),
        (
            lambda s: s["models"]["unet"].update(dataset="moon"),
            "models.unet.dataset is 'moon', which no line defines; there is tiny",
        ),
        (lambda s: s["runs"]["colour"].update(model="x"), "runs.colour.model is 'x'"),
        (
            lambda s: s["models"]["unet"]["training"]["phases"]["train"].pop("batch"),
            "models.unet.training.phases.train.batch is missing",
        ),
        (lambda s: s["models"]["unet"].update(seeds=[]), "models.unet.seeds"),
        (
            lambda s: s["models"]["unet"].update(seeds=[1, 1]),
            "models.unet.seeds names a seed twice",
        ),
        (
            lambda s: s["models"]["unet"].update(seed=1, seeds=[1, 2]),
            "models.unet has both seed and seeds",
        ),
    ],
)
def test_every_key_is_checked(tmp_path: Path, change: Change, message: str) -> None:
    suite = tiny_suite()
    change(suite)
    write_suite(tmp_path, suite)
    with pytest.raises(UserError) as refused:
        read_suite(tmp_path / "params.yaml")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- a", "holds no table"), (None, "There is no")]
)
def test_a_file_that_is_no_suite(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_suite(path)


def test_a_methods_own_settings_are_checked_by_it(tmp_path: Path) -> None:
    values = tiny_suite()
    values["models"]["unet"]["spec"]["size"] = 3
    values["models"]["glnet"]["method"] = "glnett"
    values["runs"]["unet-patch"]["strategy"] = "tiles"
    write_suite(tmp_path, values)
    suite = read_suite(tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"models\.unet\.spec: the key size is unknown"):
        spec_of("unet", suite.models["unet"])
    with pytest.raises(
        UserError, match=r"method 'glnett', but there is no folder glnett/ with a spec\.py"
    ):
        spec_of("glnet", suite.models["glnet"])
    with pytest.raises(
        UserError, match="'tiles'; method baselines/generic has downsample, patch, whole"
    ):
        check_strategy("unet-patch", suite.runs["unet-patch"], suite.models["unet"])


def test_a_run_may_override_its_models_spec() -> None:
    suite = read_suite(ROOT / "params.yaml")
    run = suite.runs["unet-patch"]
    changed = type(run)(model=run.model, strategy=run.strategy, overrides={"overlap_px": 40})
    assert spec_of(run.model, suite.models[run.model], changed).overlap_px == 40


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *(ROOT / "suites").glob("*.yaml")], ids=str)
def test_the_suites_that_come_along_are_right(path: Path) -> None:
    suite = read_suite(path)
    for name, model in suite.models.items():
        spec_of(name, model)
    for name, run in suite.runs.items():
        check_strategy(name, run, suite.models[run.model])
        spec_of(run.model, suite.models[run.model], run)


def test_the_active_suite_is_earthcover() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "suites/earthcover.yaml").read_text()


@pytest.mark.parametrize(("threads", "jobs", "each"), [(8, 2, 4), (2, 2, 1), (2, 8, 1), (3, 1, 3)])
def test_processes_at_once_share_the_threads(threads: int, jobs: int, each: int) -> None:
    assert Compute(threads=threads).shared(jobs).threads == each


def test_a_method_may_be_named_by_its_earlier_place(tmp_path: Path) -> None:
    values = tiny_suite()
    values["models"]["unet"]["method"] = "baselines"
    write_suite(tmp_path, values)
    assert read_suite(tmp_path / "params.yaml").models["unet"].method == "baselines/generic"
