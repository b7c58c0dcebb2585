"""The meters: each is one definition of peak memory, and says so beside its number.

account.py      what the CPU allocator itself says: `allocated` on the CPU, and the yardstick
booking.py      tensors alive, by operator, module and category
course.py       how much was alive when, in a few hundred numbers
prediction.py   the same on fake tensors, with what the rules know besides
replay.py       calls that repeat, so that 1000 patches take no longer than one
rules_cpu.py    what operators take inside, on the CPU
rules_cuda.py   the same on CUDA
caching.py      what CUDA's caching allocator would hold
cards.py        what a card holds besides: context and workspace
card.py         what the card says, and the clock
resident.py     resident memory of this process
"""

from bench.memory.nvml import CardSampler, card_bytes, clock
from bench.memory.prediction import Prediction, predict_memory, predict_training
from bench.memory.rss import PeakResident
from bench.memory.tracker import Booking, tensors_of

__all__ = [
    "DEFINITIONS",
    "Booking",
    "CardSampler",
    "PeakResident",
    "Prediction",
    "card_bytes",
    "clock",
    "predict_memory",
    "predict_training",
    "tensors_of",
]

DEFINITIONS = {
    "allocated": (
        "bytes of all tensors alive at the peak of one prediction, the network's weights and the "
        "image and what operators take inside themselves included; on CUDA "
        "torch.cuda.max_memory_allocated, on the CPU what torch's CPU allocator books"
    ),
    "reserved": "bytes that torch's caching allocator held: torch.cuda.max_memory_reserved",
    "nvml": (
        "bytes that the card saw, sampled through NVML: of this process where it tells, else used "
        "on the card minus used before; includes the CUDA context, which is also recorded apart"
    ),
    "rss": (
        "peak resident set of a fresh process during its first prediction, less what it held after "
        "loading its libraries: weights, image, activations and the allocator's slack"
    ),
    "predicted": (
        "as allocated, worked out on fake tensors without weights, data or a device: bytes of all "
        "tensors alive at the peak on the device that the network is on, and by rule what "
        "operators take inside themselves"
    ),
}
