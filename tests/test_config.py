"""A wrong params.yaml is refused in one sentence that names the key."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, tiny_suite, write_suite

from baselines.rue.model import DEEP_SCALE
from baselines.rue.spec import Spec as RueSpec
from bench.config import Compute, read_suite, strict
from bench.errors import UserError
from bench.method import check_strategy, spec_of

Change = Callable[[dict[str, Any]], object]
METHODS = ["glnet", *sorted(f"baselines/{p.parent.name}" for p in ROOT.glob("baselines/*/spec.py"))]


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
        *(
            (lambda s, key=key: s["compute"].update({key: -1}), f"compute.{key} is -1")
            for key in ("threads", "workers", "jobs")
        ),
        (lambda s: s["compute"].update(threads=10**400), "compute.threads is 1000"),
        *(
            (lambda s, n=n: s.update({n: {"a/b": next(iter(s[n].values()))}}), f"{n}.a/b is 'a/b'")
            for n in ("datasets", "weights", "models", "runs")
        ),
        *(
            (lambda s, name=name: s.update(suite=name), "suite is ")
            for name in ("", "..", "a/b", "-x", "a b", "a\n", "é" * 101, 3)
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


LEVELS = range(1, 60)
BOMB = "a0: &a0 [1, 2]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in LEVELS)
MERGES = "a0: &a0 {x: 1}\n"
MERGES += "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in LEVELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no"),
        (b"a: [", "is not YAML: .*line 1"),
        (b"- a", "holds no table"),
        (b"suite: caf\xe9", "is not YAML: 'utf-8' codec"),
        ("suite: a".encode("utf-16"), "is not YAML"),
        (b"[" * 3000, "nested too deeply"),
        (b"suite: a\nsuite: b", "duplicate key .*line 2"),
        (b"suite: 2024-99-99", "is not YAML: month must be"),
        (b"seed: " + b"9" * 5000, "is not YAML"),
        (b"suite: !!python/object:os.system a", "is not YAML"),
        (b"x: " + b"a" * 200_000, "has more than 50000 bytes"),
        (BOMB.encode(), "aliases stand for more than"),
        (MERGES.encode(), "aliases stand for more than"),
        (b"suite: &a [*a]", "aliases stand for"),
    ],
)
def test_a_file_that_is_no_suite(tmp_path: Path, text: bytes | None, message: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=message) as refused:
        read_suite(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


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


@pytest.mark.parametrize("key", ["steps", "batch", "checkpoint_every"])
@pytest.mark.parametrize("value", [0, -1, 0.5, 3.0, True, "3", float("nan"), "a"])
def test_counts_of_a_training_are_at_least_one(tmp_path: Path, key: str, value: object) -> None:
    values = tiny_suite()
    training = values["models"]["unet"]["training"]
    (training if key in training else training["phases"]["train"])[key] = value
    write_suite(tmp_path, values)
    with pytest.raises(UserError, match=rf"models\.unet\.training\..*{key} is "):
        read_suite(tmp_path / "params.yaml")


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf"), True, "1e-3"])
def test_learning_rates_are_finite_numbers(tmp_path: Path, value: object) -> None:
    values = tiny_suite()
    values["models"]["unet"]["training"]["phases"]["train"]["learning_rate"] = value
    write_suite(tmp_path, values)
    with pytest.raises(UserError, match=r"train\.learning_rate is "):
        read_suite(tmp_path / "params.yaml")


def test_a_whole_number_is_a_learning_rate_too(tmp_path: Path) -> None:
    values = tiny_suite()
    values["models"]["unet"]["training"]["phases"]["train"]["learning_rate"] = 1
    write_suite(tmp_path, values)
    suite = read_suite(tmp_path / "params.yaml")
    rate = suite.models["unet"].training.phases["train"].learning_rate
    assert (rate, type(rate)) == (1.0, float)


SIZES = ("_px", "_width", "width", "sub_batch", "patches_per_image", "depth")


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_method_is_a_finite_number_and_a_size_is_above_zero(method: str) -> None:
    """Of all fields of every `Spec`, whatever they are called; `_px` and the like are sizes."""
    spec: Any = importlib.import_module(f"{method.replace('/', '.')}.spec").Spec
    given = {"network": "unet", "train_on": "patch"} if method == "baselines/generic" else {}
    refused = 0
    for name, field in spec.__dataclass_fields__.items():
        usual = given.get(name, field.default)
        wrong: list[Any] = [str(usual)] if isinstance(usual, int | float) else []
        if isinstance(usual, float):
            wrong += [True, float("nan"), float("inf"), float("-inf")]
        if isinstance(usual, bool):
            wrong += [int(usual)]
        elif isinstance(usual, int):
            wrong += [True, -1, *([0] if name.endswith(SIZES) and name not in MAY_BE_ZERO else [])]
        if isinstance(usual, tuple) and isinstance(next(iter(usual), None), float):
            wrong += [[float("nan")] * len(usual)]
        for value in wrong:
            with pytest.raises(UserError, match=f"the key {name}"):
                strict(spec, {**given, name: value}, "params.yaml")
            refused += 1
    assert refused > 4


MAY_BE_ZERO = {"overlap_px", "margin_px", "fcn_pad_px", "frame_px"}


@pytest.mark.parametrize("method", ["glnet", "baselines/generic", "baselines/fctl"])
def test_patches_overlap_by_less_than_their_side(method: str) -> None:
    model = read_suite(ROOT / "suites/deepglobe.yaml").models["glnet"]
    name = "size_px" if method == "baselines/generic" else "patch_px"
    given = {"network": "unet", "train_on": "patch"} if method == "baselines/generic" else {}
    for side, overlap in ((50, 50), (64, 900), *([] if given else [([64, 40], 40)])):
        spec = {**given, name: side, "overlap_px": overlap}
        with pytest.raises(
            UserError, match=f"`overlap_px` has to be smaller than `{name}`"
        ) as told:
            spec_of("a", replace(model, method=method, spec=spec))
        assert "models.a.spec" in str(told.value)


@pytest.mark.parametrize(
    "method", ["", ".", "..", "../glnet", "/glnet", "os", "json", "__main__", "glnet.spec", "bench"]
)
def test_what_is_no_method(method: str) -> None:
    model = read_suite(ROOT / "params.yaml").models["glnet"]
    with pytest.raises(UserError, match="there is no folder"):
        spec_of("a", replace(model, method=method))


def test_a_message_is_one_line_whatever_it_names() -> None:
    assert str(UserError("a\nb\x1b[31m.png is \udcff")) == r"a\nb\x1b[31m.png is \udcff"


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


@pytest.mark.parametrize("name", ["idrid", "dubai"])
def test_networks_on_real_images_have_equal_budgets(name: str) -> None:
    """docs/protocol.md: pixels of network input through which gradients pass, and all else but the
    learning rate alike."""
    suite = read_suite(ROOT / f"suites/{name}.yaml")
    budgets, recipes, encoders = [], set(), set()
    for model in suite.models.values():
        spec = model.spec
        if spec.get("network") == "colour":
            continue
        whole = spec.get("global_px", 512) ** 2
        crop_px = spec.get("crop_px")
        if crop_px:  # of RUE: both streams
            patches = crop_px**2 * (1 / DEEP_SCALE**2 + RueSpec.selected)
        else:
            patches = (spec.get("patch_px") or spec["size_px"]) ** 2
            patches *= spec.get("patches_per_image", 1)
        per_image = {"global": whole, "local-to-global": whole + patches}
        phases = model.training.phases
        budgets.append(
            sum(
                schedule.steps * schedule.batch * per_image.get(phase, patches)
                for phase, schedule in phases.items()
            )
        )
        shared = ("focal_gamma", "class_weights", "sample_classes", "overlap_px")
        if not crop_px:  # RUE has losses and crops of its own
            recipes.add(str({key: spec.get(key) for key in shared}))
        if not model.start.startswith("random-"):
            encoders.add(spec["encoder"])
        recipes.add(str({**vars(model.training), "phases": None, "checkpoint_every": None}))
    assert max(budgets) <= 1.02 * min(budgets)
    assert len(recipes) == 2
    assert len(encoders) == 1
    for run in suite.runs.values():  # in inference all see patches of one size
        spec = suite.models[run.model].spec | run.overrides
        if run.strategy not in ("whole", "global"):
            assert spec.get("patch_px", spec.get("size_px")) == 512
