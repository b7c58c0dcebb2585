"""FCtL: its windows, its parts and what they cost, its phases, and the released names of its
weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FCTL, call_command

from baselines.fctl.inference import STRATEGIES, contexts, scores
from baselines.fctl.model import VGG, Blend, Enlarge, FCtL, Maps, build, start
from baselines.fctl.spec import Spec
from baselines.fctl.training import backward, phases, seen, view
from bench.errors import UserError
from bench.memory.runs import predict_run
from bench.run import run_of
from bench.tiling import Box, cut, grid
from reference.checkpoint_io import from_fctl, import_fctl_command
from reference.keys import PHASES, fctl_source

GOLDEN = Path(__file__).parent / "golden/fctl"
IMAGE = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.manual_seed(3))
LABEL = torch.randint(0, 3, (70, 90), dtype=torch.uint8, generator=torch.manual_seed(4))


def small(**more: Any) -> tuple[FCtL, Spec]:
    torch.manual_seed(0)
    spec = Spec(**{**FCTL, **more})
    return build(spec, 3), spec


def learnt(**more: Any) -> tuple[FCtL, Spec]:
    """A network whose contexts count: at the start their gains are 0 and their weights tiny."""
    network, spec = small(**more)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 2
            parameter.copy_(torch.randn_like(parameter) * (2 / fan_in) ** 0.5)
    return network.eval().requires_grad_(False), spec


@pytest.mark.parametrize("factor", [1.5, 2, 2.5, 3, 4])
def test_a_window_has_the_patch_in_its_middle(factor: float) -> None:
    patch = 16
    image = torch.zeros(3, 200, 240, dtype=torch.uint8)
    box = Box(96, 112, patch, patch)
    box.of(image).fill_(255)
    small = contexts(image, [box], factor)[0, 0].double() / 255
    places = torch.arange(patch) + 0.5
    assert small.mean() == pytest.approx(factor**-2, abs=0.01)
    for axis in (0, 1):
        centre = (small.sum(1 - axis) * places).sum() / small.sum()
        assert centre == pytest.approx(patch / 2, abs=1e-6)


def test_beyond_the_image_a_window_is_black() -> None:
    white = torch.full((3, 48, 40), 255, dtype=torch.uint8)
    first, middle, last = contexts(
        white, [Box(0, 0, 16, 16), Box(16, 12, 16, 16), Box(32, 24, 16, 16)], 3
    )[:, 0]
    # The corner's window shows 32 of its 48 px each way, the outer thirds are black.
    assert float(first.double().mean()) / 255 == pytest.approx(4 / 9, abs=0.01)
    assert int(first[:4].max()) == 0
    assert int(first[7:, 7:].min()) == 255
    assert float(middle[:, 4:12].double().mean()) == 255
    assert torch.equal(last, first.flip(-1, -2))


def test_a_window_of_one_patch_is_the_patch() -> None:
    boxes = grid(70, 90, (21, 17), 4)
    assert torch.equal(contexts(IMAGE, boxes, 1), cut(IMAGE, boxes))


def test_an_odd_patch_has_its_window_half_a_pixel_to_the_right() -> None:
    image = torch.zeros(3, 61, 61, dtype=torch.uint8)
    Box(20, 20, 21, 21).of(image).fill_(255)
    small = contexts(image, [Box(20, 20, 21, 21)], 2)[0, 0].double()
    centre = (small.sum(0) * (torch.arange(21) + 0.5)).sum() / small.sum()
    assert centre == pytest.approx(10.25, abs=0.02)


def test_maps_of_a_patch_have_the_released_sizes() -> None:
    for side, sizes in {508: (89, 45, 23), 128: (41, 21, 11), 101: (38, 19, 10)}.items():
        with torch.device("meta"):
            maps = VGG(4)(torch.empty(1, 3, side, side))
        assert tuple(one.shape[-1] for one in maps) == sizes
    with torch.device("meta"):
        assert sum(p.numel() for p in VGG(64).parameters()) == 14714688


@pytest.mark.parametrize("side", [1, 7, 32, 33, 100, 127, 199, 500, 536, 559])
def test_scores_have_the_size_of_the_patch(side: int) -> None:
    with torch.device("meta"):
        network = build(Spec(**{**FCTL, "phases": ["plain"]}), 3)
        assert network.plain(torch.empty(1, 3, side, side + 1)).shape == (1, 3, side, side + 1)


def test_enlarging_is_linear_between_centres() -> None:
    x = torch.arange(4.0).expand(1, 1, 4, 4)
    enlarged = Enlarge(2)(x)
    assert enlarged.shape[-1] == 10
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
    assert enlarged[0, 0, 4, 1:8].tolist() == pytest.approx(expected)


def test_a_correlation_is_a_mean_of_values_weighed_by_likeness() -> None:
    """Against numbers worked out place by place."""
    network, _ = learnt()
    one = network.local.blend.correlate["large"]
    x, context = torch.rand(1, 48, 2, 3), torch.rand(1, 48, 3, 3)
    found = one(x, context)
    query, key, value = one.query(x)[0], one.key(context)[0], one.value(context)[0]
    for row, column in ((0, 0), (1, 2)):
        alike = torch.stack([query[:, row, column] @ key[:, i // 3, i % 3] for i in range(9)])
        weights = alike.exp() / alike.exp().sum()
        expected = one.gain * sum(weights[i] * value[:, i // 3, i % 3] for i in range(9))
        torch.testing.assert_close(found[0, :, row, column], expected, atol=1e-5, rtol=1e-4)


def test_the_mean_of_the_key_has_no_effect_and_that_of_the_query_has() -> None:
    network, _ = learnt(variant="deepglobe")
    one = network.local.blend.correlate["medium"]
    assert one.centred
    x, context = torch.rand(1, 48, 3, 3), torch.rand(1, 48, 3, 3)
    before = one(x, context)
    one.key.bias.add_(1)
    torch.testing.assert_close(one(x, context), before)
    one.query.bias.add_(1)
    torch.testing.assert_close(one(x, context), before)
    one.centred = False
    assert (one(x, context) - before).abs().max() > 1e-3


def test_at_the_start_contexts_change_nothing() -> None:
    blend = Blend(8, ("medium", "large", "local"), False)
    x = torch.rand(2, 8, 3, 3)
    assert torch.equal(blend(x, torch.rand(2, 8, 3, 3), torch.rand(1, 8, 4, 4)), x)


def test_shares_are_bounded_because_a_sigmoid_comes_first() -> None:
    gates = [torch.tensor(a).view(1, 1, 1, 1) for a in (1.0, 0.0, 0.0)]
    assert Blend.shares(gates)[0].item() == pytest.approx(0.5761, abs=1e-4)
    gates = [1 - gate for gate in gates]
    assert Blend.shares(gates)[0].item() == pytest.approx(0.1554, abs=1e-4)


@pytest.mark.parametrize("variant", ["inria", "deepglobe"])
def test_every_part_of_a_strategy_counts(variant: Any) -> None:
    network, spec = learnt(variant=variant)
    before = scores(network, IMAGE, spec, "contexts")
    for part in ("medium_vgg", "large_vgg", "local.blend.trans", "local.decoder.adapt3"):
        kept = {k: v.clone() for k, v in network.get_submodule(part).state_dict().items()}
        for parameter in network.get_submodule(part).parameters():
            parameter.mul_(1.5)
        assert (scores(network, IMAGE, spec, "contexts") - before).abs().max() > 1e-6, part
        network.get_submodule(part).load_state_dict(kept)
    assert torch.equal(scores(network, IMAGE, spec, "contexts"), before)


def test_turning_the_image_turns_the_labels() -> None:
    network, spec = learnt(test_time=("flips", "turns"), patch_px=48)
    square = IMAGE[:, :, :70]
    with torch.inference_mode():
        labels = STRATEGIES["contexts"].predict(network, square, spec)
        turned = STRATEGIES["contexts"].predict(network, square.rot90(1, (1, 2)), spec)
    assert (turned.rot90(-1) == labels).float().mean() > 0.99  # shrinking in 8 bit rounds


def test_what_it_costs_is_what_is_known_of_the_released_code() -> None:
    """Operations of a 2448 px image, and weights with and without those never used."""
    size = (2448, 2448)
    # (variant, strategy, idle) -> tera-operations, MiB of weights
    known = {
        ("inria", "plain", True): (13.59, 984),
        ("inria", "medium", True): (24.73, 1008),
        ("inria", "contexts", True): (36.07, 2064),
        ("inria", "contexts", False): (36.07, 649),
        ("deepglobe", "contexts", True): (25.3, 2520),
        ("deepglobe", "contexts", False): (25.3, 649),
    }
    for (variant, strategy, idle), (operations, weights) in known.items():
        official = ("idle-weights",) if idle else ()
        spec = Spec(variant=variant, sub_batch=1, official=official)  # type: ignore[arg-type]
        found = predict_run(run_of("baselines/fctl", strategy, spec, 7), size, "cuda")
        assert found.flops is not None
        assert found.flops / 1e12 == pytest.approx(operations, rel=0.01), (variant, strategy)
        assert found.weights_bytes / 2**20 == pytest.approx(weights, rel=0.005), (variant, strategy)
        if idle and strategy == "contexts":
            total = {"inria": 2318, "deepglobe": 2770}[variant]
            assert found.device_bytes / 2**20 == pytest.approx(total, rel=0.03)


def test_as_many_parameters_learn_as_in_the_released_code() -> None:
    with torch.device("meta"):
        network = build(Spec(), 7)
    for phase in phases(network, Spec()):
        mode = {"plain": 1, "medium": 2, "large": 2, "all": 3}[phase.name]
        known = json.loads((GOLDEN / f"train_mode{mode}.json").read_text())["n_params_with_grad"]
        learning = sum(p.numel() for module in phase.trains for p in module.parameters())
        assert learning == known, phase.name


def test_names_and_shapes_are_those_of_the_released_weights() -> None:
    golden = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    modes = {"plain": 1, "medium": 2, "large": 2, "all": 3}
    lists = {phase: f"FCN8_mode{mode}" for phase, mode in modes.items()}
    with torch.device("meta"):
        own = build(Spec(), 7).state_dict()
    found: dict[str, set[str]] = {phase: set() for phase in PHASES}
    for key, value in own.items():
        phase, name = fctl_source(key, "inria")
        assert golden[lists[phase]][name] == list(value.shape), key
        found[phase].add(name)
    for phase, name in lists.items():
        own_tensors = {key for key, shape in golden[name].items() if not isinstance(shape, str)}
        left = {key for key in own_tensors - found[phase] if "classifier" not in key}
        if phase in ("medium", "large"):  # two of three correlations, and the fusion, lie idle
            left = {key for key in left if not key.startswith("big_attention.")}
        assert left == {"up_output.weight", "up_pool4_out.weight", "up_final.weight"}, phase


def test_names_are_those_of_the_deepglobe_variant() -> None:
    golden = json.loads((GOLDEN / "golden_fctl_deepglobe.json").read_text())["unaliased_keys"]
    with torch.device("meta"):
        own = build(Spec(variant="deepglobe"), 7).state_dict()
    found = {fctl_source(key, "deepglobe").key for key in own if key.startswith("local.")}
    assert found == {key for key in golden if not key.startswith(("up_", "vgg.classifier"))}


@pytest.mark.parametrize("variant", ["inria", "deepglobe"])
def test_released_checkpoints_are_imported(variant: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    # Only widths that the released code has can be told from a checkpoint; meta tensors do.
    with torch.device("meta"):
        ours = build(Spec(variant=variant), 3).state_dict()
    states: dict[str, dict[str, torch.Tensor]] = {phase: {} for phase in PHASES}
    for key, value in ours.items():
        phase, name = fctl_source(key, variant)
        states[phase][f"module.{name}"] = value
    back = from_fctl(states, variant)
    assert back.keys() == ours.keys()
    assert all(back[key] is value for key, value in ours.items())
    alone = from_fctl({"plain": states["plain"]}, variant)
    assert {key.split(".")[0] for key in alone} == {"plain"}
    with pytest.raises(UserError, match="needs those of `medium` and `large`"):
        from_fctl({"all": states["all"]}, variant)
    del states["large"]["module.output.3.bias"]
    with pytest.raises(UserError, match=r"phase `large`.*output.3.bias"):
        from_fctl(states, variant)
    with pytest.raises(UserError, match="is missing: get the released file again"):
        call_command(
            import_fctl_command,
            "--plain",
            tmp_path / "Bfcn.pth",
            f"--variant={variant}",
            "-o",
            tmp_path / "x.pt",
        )


@pytest.mark.parametrize("variant", ["inria", "deepglobe"])
def test_a_phase_starts_where_an_earlier_one_ended(variant: Any) -> None:
    network, spec = small(variant=variant)
    plan = {phase.name: phase for phase in phases(network, spec)}
    with torch.no_grad():
        network.plain.decoder.head[0].weight.fill_(1)
    plan["medium"].begin()
    assert network.medium_rest.decoder.head[0].weight.min() == 1
    plan["large"].begin()
    assert (network.large_rest.decoder.head[0].weight.min() == 1) == (variant == "inria")
    with torch.no_grad():
        network.medium_rest.decoder.head[0].weight.fill_(2)
        network.medium_rest.correlate.gain.fill_(5)  # type: ignore[union-attr]
    plan["all"].begin()
    assert network.local.decoder.head[0].weight.min() == (2 if variant == "inria" else 1)
    gains = {name: float(one.gain.detach()) for name, one in network.local.blend.correlate.items()}
    assert gains == {"medium": 5 if variant == "inria" else 0, "large": 0, "local": 0}


def test_contexts_are_frozen_while_the_last_phase_learns() -> None:
    network, spec = small(dropout=0)
    with torch.no_grad():
        for one in network.local.blend.correlate.values():
            one.gain.fill_(1)
    views = [seen(IMAGE, LABEL, spec, "all", torch.manual_seed(0))]
    backward(network, views, spec, "all", torch.Tensor.backward)
    moved = {key.split(".")[0] for key, p in network.named_parameters() if p.grad is not None}
    assert moved == {"local"}


def gradients(sub_batch: int, official: tuple[Any, ...] = ()) -> tuple[torch.Tensor, float]:
    network, spec = small(
        sub_batch=sub_batch, dropout=0, official=official, patches_per_image=None, phases=["plain"]
    )
    image, label = IMAGE[:, :40, :40], LABEL[:40, :40]
    views = [seen(image, label, spec, "plain", torch.manual_seed(0))] * 2
    loss = backward(network, views, spec, "plain", torch.Tensor.backward)
    weight = network.plain.decoder.head[-1].weight
    assert weight.grad is not None
    return weight.grad, loss


def test_the_sub_batch_does_not_change_a_step_unless_groups_are_summed() -> None:
    """Four patches of each of two images, in groups of 4, or of 3 and 1."""
    whole, loss = gradients(4)
    parts, same = gradients(3)
    torch.testing.assert_close(whole, parts)
    assert loss == pytest.approx(same)
    summed, last = gradients(4, ("summed-gradients", "last-loss"))
    torch.testing.assert_close(summed, 2 * whole)
    assert last == pytest.approx(loss)
    assert gradients(3, ("last-loss",))[1] != pytest.approx(loss, rel=1e-4)


def test_views_hold_what_their_phase_needs() -> None:
    rng = torch.Generator()
    for variant, phase, keys in (
        ("inria", "plain", {"patches", "labels"}),
        ("inria", "medium", {"patches", "labels", "medium"}),
        ("inria", "large", {"patches", "labels", "large"}),
        ("inria", "all", {"patches", "labels", "medium", "large"}),
        ("deepglobe", "large", {"whole", "labels"}),
        ("deepglobe", "all", {"patches", "labels", "medium", "whole"}),
    ):
        spec = Spec(**{**FCTL, "variant": variant})  # type: ignore[arg-type]
        found = view(IMAGE, LABEL, spec, phase, rng.manual_seed(1))
        assert found.keys() == keys
        if phase == "all":
            assert found["patches"].shape == (2, 3, 32, 32) == found["medium"].shape


def test_start_weights_fill_every_network() -> None:
    network, _ = small()
    state = {key: torch.ones_like(value) for key, value in VGG(6).state_dict().items()}
    dense = {
        "classifier.0.weight": torch.full((24, 48 * 49), 2.0),
        "classifier.0.bias": torch.full((24,), 2.0),
        "classifier.3.weight": torch.full((24, 24), 3.0),
        "classifier.3.bias": torch.full((24,), 3.0),
    }
    start(network, state | dense)
    for vgg in (network.plain.vgg, network.medium_vgg, network.large_vgg, network.local.vgg):
        assert all(bool((value == 1).all()) for value in vgg.state_dict().values())
    assert network.large_rest.decoder.head[0].weight.unique().tolist() == [2]
    assert network.local.decoder.head[3].bias.unique().tolist() == [3]
    with pytest.raises(ValueError, match="VGG-16 without batch norm"):
        start(network, {"features.0.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(ValueError, match="head_width"):
        start(network, state | dense | {"classifier.3.bias": torch.zeros(17)})


def test_idle_weights_are_in_no_checkpoint() -> None:
    idle, _ = small(official=("idle-weights",))
    lean, _ = small()
    assert idle.state_dict().keys() == lean.state_dict().keys()
    assert sum(b.numel() for b in idle.buffers()) > sum(b.numel() for b in lean.buffers())


def test_finer_maps_weigh_by_their_factors() -> None:
    network, spec = learnt()
    decoder = network.plain.decoder
    maps = network.plain.vgg(torch.rand(1, 3, 32, 32))
    finer = Maps(maps.pool3 * 10000, maps.pool4 * 100, maps.pool5)
    decoder.adapt3.bias.zero_()
    decoder.adapt4.bias.zero_()
    plain = decoder(Maps(maps.pool3 * 0, maps.pool4 * 0, maps.pool5), (32, 32))
    part = decoder(maps, (32, 32)) - plain
    assert part.abs().max() > 0
    assert spec.patch_size == (32, 32)
    assert (decoder(finer, (32, 32)) - plain).abs().max() > 50 * part.abs().max()
