"""Training: the same weights however often it was killed, and a clear word where it cannot go
on."""

import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from two_processes import train_as

import bench.training_step
from bench import record
from bench.config import Suite, read_suite
from bench.errors import UserError
from bench.files import file_sha256, load_state, load_tensors
from bench.parallel.processes import PRELOAD
from bench.pipeline.train import PARTIAL, train
from bench.run import open_run
from bench.training_step import learning_rate_at

Edit = Callable[[Callable[[dict[str, Any]], None]], None]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def trained_anew(suite: Suite, name: str) -> Path:
    """As `train`, without the progress that a finished training leaves."""
    shutil.rmtree(PARTIAL, ignore_errors=True)
    return train(suite, name)


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch, suite: Suite, name: str) -> None:
    """Train until the `number`-th optimiser step is about to begin."""
    import bench.run as module

    load = module.load

    def loading(method: str) -> Any:
        found = load(method)
        calls = iter(range(10**6))

        def backward(*arguments: Any) -> float:
            if next(calls) == number:
                raise KeyboardInterrupt
            return found.backward(*arguments)

        return type(found)(**{**vars(found), "backward": backward})

    with monkeypatch.context() as patch:
        patch.setattr(module, "load", loading)
        with pytest.raises(KeyboardInterrupt):
            train(suite, name)


@pytest.mark.parametrize(
    ("name", "kills"), [("pspnet", (1, 1)), ("glnet", (2, 0, 4)), ("fpn", (0,)), ("colour", (0,))]
)
def test_killed_and_resumed_gives_the_same_weights(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, kills: tuple[int, ...]
) -> None:
    """PSPNet and FPN have dropout, GLNet three phases: generator states and phase changes count."""
    suite = read_suite()
    straight = weights(train(suite, name))
    curve = record.read(record.path_of("tiny", "train", name)).values["loss"]
    shutil.rmtree(PARTIAL)
    for number in kills:
        killed_at(number, monkeypatch, suite, name)
    assert same(straight, weights(train(suite, name)))
    assert record.read(record.path_of("tiny", "train", name)).values["loss"] == curve
    assert load_tensors(PARTIAL / f"{name}.pt")["optimizer"] is None, "it is kept, as finished"


@pytest.mark.slow
def test_the_kernels_kill_loses_at_most_the_steps_since_the_checkpoint(
    project: Path, edit_suite: Edit, tmp_path: Path
) -> None:
    def longer(suite: dict[str, Any]) -> None:
        suite["models"]["unet"]["training"]["phases"]["train"]["steps"] = 40

    edit_suite(longer)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    process = context.Process(
        target=train_as, args=({}, "unet", tmp_path / "out", tmp_path / "err")
    )
    process.start()
    partial = PARTIAL / "unet.pt"
    while not partial.exists() and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    assert weights(partial)["step"] >= 1
    assert not Path("checkpoints/unet.pt").exists()
    resumed = weights(train(read_suite(), "unet"))
    assert same(resumed, weights(trained_anew(read_suite(), "unet")))


def test_what_is_trained_is_not_trained_again_after_a_kill_before_dvc_records_it(
    project: Path, edit_suite: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC removes the outputs of a stage and runs it again. Progress on other threads is not taken,
    for rounding differs."""
    path = record.path_of("tiny", "train", "glnet")
    before, first = weights(train(read_suite(), "glnet")), record.read(path)
    for output in (path, Path("checkpoints/glnet.pt")):
        output.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(bench.training_step, "poly", lambda *_: pytest.fail("it is trained again"))
        assert same(before, weights(train(read_suite(), "glnet")))
        assert record.read(path) == first
    edit_suite(lambda suite: suite["compute"].update(threads=2))
    steps = iter(range(10**6))
    fed = bench.training_step.poly
    monkeypatch.setattr(bench.training_step, "poly", lambda *given: (next(steps), fed(*given))[1])
    train(read_suite(), "glnet")
    assert next(steps) == 9


def test_other_settings_do_not_take_up_old_progress(
    project: Path, edit_suite: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(2, monkeypatch, read_suite(), "unet")

    def other_seed(suite: dict[str, Any]) -> None:
        suite["models"]["unet"]["seed"] = 1

    edit_suite(other_seed)
    mixed = weights(train(read_suite(), "unet"))
    assert same(mixed, weights(trained_anew(read_suite(), "unet")))


def test_seeds_of_one_line_are_trained_as_if_each_had_its_own(
    project: Path, edit_suite: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if killed between two of them; and what one seed has left makes room for several."""
    apart = {}
    for seed in (1, 0):
        edit_suite(lambda suite, seed=seed: suite["models"]["unet"].update(seed=seed))
        apart[seed] = weights(train(read_suite(), "unet"))
    alone = record.read(record.path_of("tiny", "train", "unet")).values
    assert "other_seeds" not in alone

    edit_suite(lambda suite: suite["models"]["unet"].update(seeds=[1, 0]))
    steps = iter(range(10**6))
    fed = bench.training_step.poly

    def stopping(*given: Any) -> float:
        if next(steps) == 4:
            raise KeyboardInterrupt
        return fed(*given)

    with monkeypatch.context() as patch:
        patch.setattr(bench.training_step, "poly", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(read_suite(), "unet")
    steps = iter(range(10**6))
    monkeypatch.setattr(bench.training_step, "poly", lambda *given: (next(steps), fed(*given))[1])
    folder = train(read_suite(), "unet")
    assert next(steps) == 2 * 3 - 4, "what the first seed had learnt is not learnt again"
    assert sorted(path.name for path in folder.iterdir()) == ["0.pt", "1.pt"]
    assert all(same(apart[seed], weights(folder / f"{seed}.pt")) for seed in (0, 1))
    assert sorted(PARTIAL.rglob("*.pt")) == [PARTIAL / "unet/0.pt", PARTIAL / "unet/1.pt"]
    together = record.read(record.path_of("tiny", "train", "unet"))
    assert list(together.values["other_seeds"]) == ["0"]
    assert together.values["other_seeds"]["0"]["loss"] == alone["loss"]
    assert "seed" not in together.settings["model"]
    for seed, values in ((1, together.values), (0, together.values["other_seeds"]["0"])):
        path = f"results/tiny/train/unet/plots/metrics/seed{seed}/train/loss.tsv"
        losses = [row[2] for row in values["loss"][:3]]
        assert pd.read_csv(path, sep="\t")["loss"].tolist() == pytest.approx(losses)

    edit_suite(lambda suite: suite["models"]["unet"].update(seeds=[0]))
    assert [path.name for path in train(read_suite(), "unet").iterdir()] == ["0.pt"]
    edit_suite(lambda suite: None)
    assert same(apart[0], weights(train(read_suite(), "unet")))
    assert list(PARTIAL.rglob("*.pt")) == [PARTIAL / "unet.pt"]


def test_loader_processes_do_not_change_the_weights(project: Path, edit_suite: Edit) -> None:
    alone = weights(train(read_suite(), "unet"))
    edit_suite(lambda suite: suite["compute"].update(workers=2))
    assert same(alone, weights(trained_anew(read_suite(), "unet")))


def test_activations_that_are_computed_again_do_not_change_the_weights(
    project: Path, edit_suite: Edit
) -> None:
    kept = {name: weights(train(read_suite(), name)) for name in ("unet", "glnet")}

    def change(suite: dict[str, Any]) -> None:
        for name in kept:
            suite["models"][name]["training"]["recomputed"] = True

    edit_suite(change)
    for name, before in kept.items():
        assert same(before, weights(train(read_suite(), name)))


def test_a_compiled_network_learns_the_same(
    project: Path, edit_suite: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The default compiler makes kernels for a minute.
    traced = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    plain = weights(train(read_suite(), "unet"))
    edit_suite(lambda suite: suite["models"]["unet"]["training"].update(compiled=True))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = weights(train(read_suite(), "unet"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        # Adam's step is as large for a gradient of rounding alone.
        torch.testing.assert_close(compiled[key], value, rtol=0, atol=6e-3)


def test_what_training_leaves(project: Path) -> None:
    train(read_suite(), "glnet")
    found = record.read(record.path_of("tiny", "train", "glnet"))
    assert list(found.values["phases"]) == ["global", "global-to-local", "local-to-global"]
    assert len(found.values["loss"]) == 9
    for cost in found.values["phases"].values():
        assert cost["steps_per_s"] * cost["seconds"] == pytest.approx(3)
        assert 0 < cost["waiting_s"] < cost["seconds"]
        assert cost["waiting_share"] == pytest.approx(cost["waiting_s"] / cost["seconds"])
    assert found.provenance["device"] == "cpu"
    assert len(found.provenance["data_sha256"]) == 64
    curve = pd.read_csv("results/tiny/train/glnet/plots/metrics/global/loss.tsv", sep="\t")
    assert curve["loss"].tolist() == pytest.approx([row[2] for row in found.values["loss"][:3]])


def test_it_learns(project: Path, edit_suite: Edit) -> None:
    def longer(suite: dict[str, Any]) -> None:
        suite["models"]["unet"]["training"]["phases"]["train"]["steps"] = 25

    edit_suite(longer)
    train(read_suite(), "unet")
    losses = [row[2] for row in record.read(record.path_of("tiny", "train", "unet")).values["loss"]]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_training_that_diverges_says_so(project: Path, edit_suite: Edit) -> None:
    def too_fast(suite: dict[str, Any]) -> None:
        suite["models"]["unet"]["training"]["phases"]["train"]["learning_rate"] = 1e30

    edit_suite(too_fast)
    with pytest.raises(UserError, match=r"diverged in phase train at step \d+: lower models.unet"):
        train(read_suite(), "unet")
    assert not Path("checkpoints/unet.pt").exists()


def test_weights_that_the_last_step_spoils_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is that of the weights before it."""
    adam, steps = torch.optim.Adam.step, iter(range(10**6))

    def spoilt(self: torch.optim.Adam, *given: Any) -> None:
        adam(self, *given)
        if next(steps) == 2:
            self.param_groups[0]["params"][0].data.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spoilt)
        with pytest.raises(UserError, match=r"in its last step \(\S+ has numbers that are not f"):
            train(read_suite(), "unet")
    assert next(steps) == 3
    assert not Path("checkpoints/unet.pt").exists()
    assert not record.path_of("tiny", "train", "unet").exists()
    assert load_tensors(PARTIAL / "unet.pt")["step"] == 2
    train(read_suite(), "unet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["models"]["unet"]["spec"].update(encoder="resnet51"), "no encoder 'resnet51'"),
        (
            lambda s: s["models"]["unet"]["training"].update(
                phases={"x": {"steps": 1, "learning_rate": 1, "batch": 1}}
            ),
            "models.unet.training.phases has x, but the method's spec trains train",
        ),
        (lambda s: s["compute"].update(device="cuda"), "torch sees no CUDA device"),
        (lambda s: s["models"].pop("unet") and s["runs"].clear(), "has no model 'unet'; it has"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    project: Path, edit_suite: Edit, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    if "CUDA" in message and torch.cuda.is_available():
        message = "never"
        return
    edit_suite(change)
    with pytest.raises(UserError, match=message):
        train(read_suite(), "unet")


def test_missing_or_damaged_inputs_are_named(project: Path) -> None:
    start = Path("checkpoints/start/nothing.pt")
    start.write_bytes(start.read_bytes()[:100])
    with pytest.raises(UserError, match=r"nothing\.pt is damaged"):
        train(read_suite(), "unet")
    start.unlink()
    with pytest.raises(UserError, match=r"nothing\.pt is missing: run `dvc repro`"):
        train(read_suite(), "unet")


def test_a_pickle_that_is_more_than_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"x": print}, path)
    with pytest.raises(UserError, match="is damaged, or holds more than tensors") as refused:
        load_state(path)
    assert "weights_only" not in str(refused.value)  # torch advises to switch it off
    assert str(refused.value).isprintable()  # without its colour codes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "download the file with `git lfs pull",
        ),
        ([torch.zeros(1)], "is not a state dict"),
        ({"a": 1}, "is not a state dict"),
        ({1: torch.zeros(1)}, "is not a state dict"),
        ({"w": torch.tensor([0, torch.nan])}, "has numbers that are not finite in w: run"),
        ({"w": torch.tensor([-torch.inf]).half()}, "has numbers that are not finite in w"),
        ({"w": torch.zeros(1, dtype=torch.complex64)}, "numbers of the type complex64 in w"),
        ({"w": torch.zeros(1, dtype=torch.bool)}, "numbers of the type bool in w"),
        ({"w": torch.zeros(1, dtype=torch.int8)}, "numbers of the type int8 in w"),
        ({"w": torch.zeros(1).to_sparse()}, "no plain array of numbers in w"),
        ({"w": torch.zeros(1, device="meta")}, "no plain array of numbers in w"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_files_that_are_no_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_state(path)


def test_a_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """torch alone takes other numbers from most places."""
    path = tmp_path / "a.pt"
    state = {"w": torch.arange(40.0), "count": torch.tensor(3)}
    torch.save(state, path)
    sound, found = path.read_bytes(), 0
    for place in range(len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
        try:
            assert same(load_state(path), state)  # padding
        except UserError:
            found += 1
    assert found > len(sound) / 3
    torch.save(state, path, _use_new_zipfile_serialization=False)  # without checksums
    assert same(load_state(path), state)


def test_a_layer_that_would_normalise_a_single_value(project: Path, edit_suite: Edit) -> None:
    def change(suite: dict[str, Any]) -> None:
        suite["models"]["deeplabv3plus"]["training"]["phases"]["train"]["batch"] = 1

    edit_suite(change)
    with pytest.raises(UserError, match="phase train a layer normalises over a single value: give"):
        train(read_suite(), "deeplabv3plus")


def test_a_network_that_came_from_a_file_is_taken_as_it_is(project: Path, edit_suite: Edit) -> None:
    """As the released GLNet is: no phase, no step, but a checkpoint and a record as of any."""
    from bench.pipeline.evaluate import evaluate

    trained = weights(train(read_suite(), "glnet"))
    torch.save(trained, "checkpoints/start/imported.pt")

    def imported(suite: dict[str, Any]) -> None:
        suite["weights"]["imported"] = {"encoder": "any", "source": "file", "path": "glnet.ckpt"}
        line = {**suite["models"]["glnet"], "start": "imported", "training": {"phases": {}}}
        suite["models"]["glnet-imported"] = line
        suite["runs"]["imported"] = {"model": "glnet-imported", "strategy": "collaborative"}

    edit_suite(imported)
    suite = read_suite()
    assert same(trained, weights(train(suite, "glnet-imported")))
    found = record.read(record.path_of("tiny", "train", "glnet-imported"))
    digest = file_sha256(Path("checkpoints/glnet-imported.pt"))
    assert found.values == {"phases": {}, "loss": [], "checkpoint_sha256": digest}
    ours, theirs = (
        evaluate(open_run(suite, name), suite) for name in ("imported", "glnet-collaborative")
    )
    assert ours.values["splits"] == theirs.values["splits"]
    other = {key: value for key, value in trained.items() if "aggregation.conv.bias" not in key}
    torch.save(other, "checkpoints/start/imported.pt")
    with pytest.raises(UserError, match="does not fit the network"):
        train(suite, "glnet-imported")


def test_sgd_and_a_least_rate_are_trained_with(project: Path, edit_suite: Edit) -> None:
    adam = weights(train(read_suite(), "unet"))

    def other(suite: dict[str, Any]) -> None:
        training = suite["models"]["unet"]["training"]
        training |= {"optimiser": "sgd", "least_rate": 5e-4}
        training["phases"]["train"] = {**training["phases"]["train"], "poly_steps": 6}

    edit_suite(other)
    assert not same(adam, weights(train(read_suite(), "unet")))
    model = read_suite().models["unet"]
    expected = [5e-4 + 5e-4 * (1 - step / 6) ** 0.9 for step in range(3)]
    rates = [learning_rate_at(model, model.training.phases["train"], step) for step in range(3)]
    assert rates == pytest.approx(expected)
