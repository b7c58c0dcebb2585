"""One case in one mode: every map on the way to the labels, ours against the official ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bench.metrics import confusion
from bench.tiling import labels_of, resize, scores_by_patches
from glnet.inference import (
    Scores,
    boxes_of,
    scores_collaborative,
    scores_global,
    scores_global_to_local,
)
from glnet.model import GLNet
from reference.glnet.cases import FLOAT, Case, Check, fingerprint, network_of, pictures

MODES: dict[int, Scores] = {
    1: scores_global,
    2: scores_global_to_local,
    3: scores_collaborative,
}
NOISE = 3
"""A difference of so many times the official code's own float32 noise is none,"""
NOISE_ELSEWHERE = 10
"""and in float32 so many times where convolutions add up in another order than they did there, with
AVX-512 (with AVX2 8 are seen). Equality itself is what float64 shows, everywhere alike."""
RELATIVE = 1e-5
"""Of an array's largest magnitude, where no noise was measured; and of sums over whole arrays."""
FEATURES = ("c5", "c4", "c3", "c2")
MATRICES = {"metrics_global": "pred_global", "metrics_local": "pred_local", "metrics": "pred"}

Found = dict[str, NDArray[Any]]


def check_case(case: Case, mode: int, dtype: str) -> list[Check]:
    """All comparisons of one case in one mode and precision."""
    network = network_of(case.setting, mode, FLOAT[dtype])
    image, small, label = pictures(case.setting, case.setting.seed)
    times = NOISE if dtype == "float64" or _same_order() else NOISE_ELSEWHERE
    inputs = {
        "image_sha256": image.permute(1, 2, 0).numpy(),
        "image_glb_resized_sha256": small.permute(1, 2, 0).numpy(),
        "label_sha256": label.numpy(),
    }

    def check(quantity: str, difference: float, tolerance: float) -> Check:
        return Check(case.name, mode, dtype, quantity, difference, tolerance)

    checks = [
        check(f"{name} (bytes equal)", float(fingerprint(array) != case.golden[name]), 0)
        for name, array in inputs.items()
        if name in case.golden
    ]
    with torch.inference_mode():
        found = evaluate(network, case, mode, image, small)
    golden = case.golden["modes"][str(mode)]
    for name, whole in found.items():
        key = f"m{mode}_{name}"
        if name.startswith("pred"):
            checks.append(_check_labels(check, case, key, name, whole, found, times))
            continue
        noise = case.noise.get(key, {}).get("max_abs_diff")
        stats = golden["stats"].get(name, {})
        if key in case.arrays:
            ours = _sampled(name, whole)
            theirs = case.arrays[key]
            largest = stats.get("absmax", float(np.abs(theirs).max()))
            tolerance = RELATIVE * largest if noise is None else times * noise
            same = ours.shape == theirs.shape
            difference = float(np.abs(ours - theirs).max()) if same else float("inf")
            checks.append(check(name, difference, tolerance))
        for statistic, value in _statistics(whole).items():
            if stats.get(statistic):
                relative = abs(value / stats[statistic] - 1)
                checks.append(check(f"{name}, {statistic} of all (share)", relative, RELATIVE))
    for name, prediction in MATRICES.items():
        if prediction in found and name in golden["confusion"]:
            ours = confusion(label.numpy(), found[prediction], case.setting.classes)[:-1]
            moved = np.abs(ours - np.array(golden["confusion"][name])).sum() / 2
            allowed = _pixels(case, f"m{mode}_{prediction}", times)
            checks.append(check(f"confusion {name} (pixels)", float(moved), allowed))
    return checks


def evaluate(network: GLNet, case: Case, mode: int, image: Tensor, small: Tensor) -> Found:
    """What a strategy computes on its way to the labels, by the names of the golden data; whole
    arrays."""
    spec = case.setting.spec
    size = (case.setting.height, case.setting.width)
    with _listening(network) as heard:
        scores = MODES[mode](network, image, small, spec)
    first = heard["global_branch"][0][1]
    if mode == 1:
        enlarged = resize(scores[None], size, "nearest")[0]
        return _arrays(output_g=first.logits, ps3_g=first.fused, pred_global=labels_of(enlarged))

    local = [output for _, output in heard["local_branch"]]
    joined = heard["aggregation" if mode == 2 else "aggregation_borrowing"]
    remaining = iter(output.logits for output in local)
    scores_local = scores_by_patches(
        image, boxes_of(*size, spec), spec.sub_batch, lambda group: next(remaining), torch.float64
    )
    found = {
        "output_l": torch.cat([output.logits for output in local]),
        "ensemble": torch.cat([logits for _, logits in joined]),
        "ps3_l": torch.cat([output.fused for output in local]),
        "scores_local": scores_local,
        "scores": scores,
        "pred_local": labels_of(scores_local),
        "pred": labels_of(scores),
    }
    if mode == 2:
        # the feature-map regularisation of each group, which evaluation computes there as well
        found["fmreg_mse"] = torch.stack(
            [F.mse_loss(own, resize(lent, own.shape[-2:])) for (own, lent), _ in joined]
        )
        whole = first
    else:
        (_, merged), whole = heard["global_borrowing"][0]
        found |= {"output_g_fixed": first.logits}
        found |= dict(zip((f"merged_{c}_ext" for c in FEATURES), merged[0], strict=True))
        for kind, maps in enumerate(merged[1:]):
            found |= {f"merged_ps{kind}_ext_{level}": map for level, map in enumerate(maps)}
    enlarged = resize(whole.logits, size, "nearest")[0]
    found |= {"output_g": whole.logits, "ps3_g": whole.fused, "pred_global": labels_of(enlarged)}
    return _arrays(**found)


@contextmanager
def _listening(network: nn.Module) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """(arguments, output) of every call of each part of the network."""
    heard: dict[str, list[tuple[Any, Any]]] = {name: [] for name, _ in network.named_children()}

    def listener(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            heard[name].append((arguments, output))

        return hook

    handles = [
        part.register_forward_hook(listener(name)) for name, part in network.named_children()
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _sampled(name: str, whole: NDArray[Any]) -> NDArray[Any]:
    """The part of an array that the golden data keeps."""
    if name in ("output_l", "ensemble"):
        return whole[::3]
    if name == "ps3_l":
        return whole[::6, ::64]
    if name == "ps3_g":
        return whole[:, ::64]
    if name.startswith("merged"):
        return whole[:, :: max(1, whole.shape[1] // 8)]
    return whole[:, ::3, ::3] if name.startswith("scores") else whole


def _statistics(whole: NDArray[Any]) -> dict[str, float]:
    values = whole.astype(np.float64)
    magnitude = np.abs(values)
    return {
        "std": float(values.std()),
        "absmax": float(magnitude.max()),
        "abssum": float(magnitude.sum()),
    }


def _check_labels(
    check: Any,
    case: Case,
    key: str,
    name: str,
    ours: NDArray[Any],
    found: Found,
    times: int,
) -> Check:
    """Labels that differ, but for those whose two best scores tie within the noise."""
    if key not in case.arrays:
        expected = case.golden["modes"][key[1]]["pred_sha256"][name]
        return check(f"{name} (bytes equal)", float(fingerprint(ours) != expected), 0)  # type: ignore[no-any-return]
    differing = ours != case.arrays[key]
    scores = {"pred": "scores", "pred_local": "scores_local", "pred_global": "output_g"}[name]
    noise = case.noise.get(f"{key[:2]}_{scores}", {}).get("max_abs_diff", 0)
    whole = torch.from_numpy(found[scores]).reshape(-1, *found[scores].shape[-2:])
    best = resize(whole[None], ours.shape, "nearest")[0].topk(2, dim=0).values
    tied = (best[0] - best[1]).numpy() <= 2 * times * noise
    wrong = int((differing & ~tied).sum())
    return check(f"{name} (pixels that no tie explains)", float(wrong), 0)  # type: ignore[no-any-return]


def _same_order() -> bool:
    """Whether this processor's convolutions add up in the order of those that the golden data came
    from."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def _pixels(case: Case, key: str, times: int) -> float:
    """How many labels the official code itself changes between float32 and float64."""
    return float(times * case.noise.get(key, {}).get("pixels_different", 0))


def _arrays(**tensors: Tensor) -> Found:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
