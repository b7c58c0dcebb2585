"""The course of memory in a few hundred numbers: how much was alive when, by category."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.memory.tracker import Category, Event

MOMENTS = 120
"""Kept at most; enough for a picture."""


def course(
    events: Sequence[Event], categories: Sequence[Category], moments: int = MOMENTS
) -> dict[str, Any]:
    """Bytes alive at moments spread over a piece of work: of each stretch of events the one at
    which most is alive, so that the peak is among them.

    Args:
        events: in order, on one device.
        categories: of each event's block (`Booking.timeline`).

    Returns:
        `events`: the numbers of the chosen ones, from 0; `bytes`: by category, one number for each.
    """
    if not events:
        return {"events": [], "bytes": {}}
    names = list(dict.fromkeys(categories))
    changes = np.zeros((len(events), len(names)), np.int64)
    for number, (event, category) in enumerate(zip(events, categories, strict=True)):
        changes[number, names.index(category)] = event.bytes
    alive = changes.cumsum(0)  # (events, categories)
    total = alive.sum(1)
    stretches = np.array_split(np.arange(len(events)), min(moments, len(events)))
    chosen = [int(stretch[total[stretch].argmax()]) for stretch in stretches]
    return {
        "events": chosen,
        "bytes": {name: alive[chosen, place].tolist() for place, name in enumerate(names)},
    }
