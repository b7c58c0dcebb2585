"""Start weights from a file that is cut short, and the hint for a mistyped encoder of timm."""

from pathlib import Path

import pytest
import torch

from bench.errors import UserError
from data import weights


def test_a_file_with_too_few_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch as smp

    own = smp.encoders.get_encoder("tu-tf_efficientnet_lite0", weights=None).state_dict()
    path = tmp_path / "a.pth"
    torch.save(dict(list(own.items())[:-1]), path)
    monkeypatch.setattr(weights, "fetch", lambda *_: path)
    with pytest.raises(UserError, match=f"{list(own)[-1]} is missing"):
        weights.encoder_state("tu-tf_efficientnet_lite0", "package")


def test_a_mistyped_encoder_of_timm_is_told_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"similar names: .*tu-resnet50"):
        weights.encoder_state("tu-resnt50", "none")


def test_a_whole_network_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "glnet.ckpt"
    torch.save({"a": torch.ones(2)}, path)
    assert weights.encoder_state("resnet50", "file", str(path))["a"].tolist() == [1, 1]
    path.write_bytes(path.read_bytes()[:50])
    for arguments, message in (
        (("resnet50", "file"), "need a `path`"),
        (
            ("resnet50", "file", str(path)),
            "is damaged, or holds .*: put a checkpoint",
        ),
        (("resnet50", "file", "nowhere.ckpt"), "is missing: .* import-official"),
    ):
        with pytest.raises(UserError, match=message):
            weights.encoder_state(*arguments)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="is not a state dict"):
        weights.encoder_state("resnet50", "file", str(path))
