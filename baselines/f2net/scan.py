"""The selective scan of Mamba-2: a linear recurrence with decays that depend on the input."""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32
"""Steps that are computed at once; changes memory and time, not the result."""


def selective_scan(x: Tensor, log_decay: Tensor, into: Tensor, out: Tensor) -> Tensor:
    """h_l = exp(log_decay_l) h_(l-1) + x_l into_l^T, starting from 0; returns h_l out_l for each l.

    Within a chunk of the sequence this is a product of matrices; states at the ends of chunks are a
    recurrence of the same kind, `recurrence` (Dao and Gu 2024, section 6).

    Args:
        x: (N, L, R, D), for R heads of D channels.
        log_decay: (N, L, R), at most 0.
        into, out: (N, L, S), for a state of S numbers a channel; the same for all heads.

    Returns:
        (N, L, R, D)
    """
    length = x.shape[1]
    chunk = min(CHUNK, length)
    x, log_decay, into, out = (_chunks(one, chunk) for one in (x, log_decay, into, out))
    since = log_decay.cumsum(2)  # (N, C, Q, R)
    # Within each chunk, what step j leaves for step i >= j.
    left = _decays(since.transpose(2, 3))  # (N, C, R, Q, Q)
    near = (left * (out @ into.transpose(2, 3))[:, :, None]) @ x.transpose(2, 3)  # (N, C, R, Q, D)
    del left
    # What each chunk adds to the state (N, C, R, S, D), and the state before it.
    until = (since[:, :, -1:] - since).exp()
    added = into.transpose(2, 3)[:, :, None] @ (x * until[..., None]).transpose(2, 3)
    state = recurrence(since[:, :, -1].transpose(1, 2), added.transpose(1, 2).flatten(3))
    before = F.pad(state[:, :, :-1], (0, 0, 1, 0)).view(added.transpose(1, 2).shape)
    far = out[:, :, None] @ before.transpose(1, 2)  # (N, C, R, Q, D)
    found = near + far * since.transpose(2, 3)[..., None].exp()
    return found.transpose(2, 3).flatten(1, 2)[:, :length]


def recurrence(log_decay: Tensor, added: Tensor) -> Tensor:
    """h_l = exp(log_decay_l) h_(l-1) + added_l, starting from 0.

    Args:
        log_decay: (N, R, L); added: (N, R, L, F).

    Returns:
        (N, R, L, F)
    """
    length = added.shape[2]
    chunk = min(CHUNK, length)
    log_decay = _chunks(log_decay, chunk, 2)  # (N, R, C, Q)
    found = _decays(log_decay.cumsum(-1)) @ _chunks(added, chunk, 2)
    if found.shape[2] > 1:
        since = log_decay.cumsum(-1)
        state = recurrence(since[..., -1], found[..., -1, :])
        before = F.pad(state[:, :, :-1], (0, 0, 1, 0))  # (N, R, C, F)
        found = found + since[..., None].exp() * before[:, :, :, None]
    return found.flatten(2, 3)[:, :, :length]


def _decays(since: Tensor) -> Tensor:
    """exp(since_i - since_j) for i >= j, else 0: (..., Q) -> (..., Q, Q)."""
    apart = since[..., :, None] - since[..., None, :]
    steps = torch.arange(since.shape[-1], device=since.device)
    # -inf before the exponential, whose gradient would not be a number after it.
    return apart.masked_fill(steps[:, None] < steps, float("-inf")).exp()


def _chunks(x: Tensor, chunk: int, axis: int = 1) -> Tensor:
    """An axis cut in chunks of one length; zeros, which add nothing, fill the last one."""
    missing = -x.shape[axis] % chunk
    if missing:
        x = F.pad(x, (*(0, 0) * (x.dim() - axis - 1), 0, missing))
    return x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :])
