"""What a card holds besides the allocator's segments: the CUDA context, and cuDNN's workspaces.

Neither can be worked out: the context depends on driver, card and the kernels that were loaded, a
workspace on the algorithm that cuDNN picks. So each is one constant a card family, assumed until
records of that card say better."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Card:
    """What is added to the reserved bytes for what a card sees."""

    family: str
    context_bytes: int
    workspace_bytes: int
    measured: bool
    source: str


# A workspace of 0 is assumed: cuDNN's implicit GEMM needs none, and others are given back.
CARDS = (
    Card(
        "RTX 6000 Ada",
        426 * MIB,
        0,
        False,
        "reported for torch 2.10 with CUDA 13.0, unslothai/unsloth-zoo pull request 1053",
    ),
    Card(
        "any other",
        287_047_680 - 20 * MIB,
        0,
        False,
        "reported in pytorch/pytorch pull request 86509 with lazily loaded kernels, less the "
        "20 MiB segment of its tensor; the card is not named there",
    ),
)


def card_for(name: str, measurements: Iterable[Mapping[str, Any]] = ()) -> Card:
    """The constants of the card `name`.

    Args:
        measurements: values of records of the stage `measure`; those of the same card that are
            not in doubt replace what is assumed: the context by what the idle process held, the
            workspace by what the allocator held above its predicted segments, each the median.
    """
    own = [
        values["meters"]
        for values in measurements
        if (nvml := values.get("meters", {}).get("nvml"))
        and nvml["card"].get("name") == name
        and not nvml.get("doubt")
    ]
    if own:
        extra = [
            max(meters["reserved"]["bytes"] - meters["predicted"]["reserved_bytes"], 0)
            for meters in own
            if meters["predicted"].get("reserved_bytes")
        ]
        return Card(
            family=name,
            context_bytes=int(median(meters["nvml"]["idle_bytes"] for meters in own)),
            workspace_bytes=int(median(extra)) if extra else 0,
            measured=True,
            source=f"{len(own)} records of this card",
        )
    return next((card for card in CARDS if card.family in name), CARDS[-1])
