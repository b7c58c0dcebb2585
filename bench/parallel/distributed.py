"""Distributed training with the results of a single process: the process group, and reductions.

Every process runs the same program on its share of a step's images. Gradients, losses and batch
norm's statistics are reduced here to the values that one process would compute from all images. For
a process that was started alone all functions here do nothing.

torch's DistributedDataParallel does not fit, because it expects one backward pass per step and
methods run several."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from bench.errors import UserError

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others, at the start and in every exchange."""
BUCKET_BYTES = 64 * 2**20
"""Gradients that travel together: few messages, and no second copy of all of them."""
TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Set by Open MPI, and by MPICH and Intel MPI: there is nobody to say where the others are."""


@dataclass(frozen=True)
class Place:
    """This process's rank among those that were started with it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those on the same machine."""
    meeting: str = "env://"
    """Where they find each other, in torch's words."""


class _Mean(torch.autograd.Function):
    """The mean of a tensor over all processes; its gradient is the mean of their gradients, because
    the loss of every process depends on it."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _mean(gradient)


class _SynchronisedBatchNorm(TorchFunctionMode):
    """Computes the statistics of every batch norm in train mode over all processes.

    It overrides the function that all batch-norm modules call, including timm's with built-in
    activation. Thus no module is replaced and no key of a checkpoint changes.
    torch.nn.SyncBatchNorm replaces modules, and does not support the CPU."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def rank() -> int:
    """The number of this process; rank 0 writes the files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun or srun started into one group, each with its own device;
    does nothing in a process that was started alone.

    Args:
        device: its type is used by all; each process gets its own GPU.

    Raises:
        UserError: there are several processes, but they cannot connect.
    """
    place = find_place(os.environ)
    if place.size == 1:
        yield
        return
    own = _own_device(device, place)
    try:
        distributed.init_process_group(
            "gloo" if own is None else "nccl",
            init_method=place.meeting,
            rank=place.rank,
            world_size=place.size,
            timeout=PATIENCE,
            device_id=own,
        )
        distributed.barrier()  # the first message shows whether they can connect
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"Process {place.rank} of {place.size} cannot reach the others ({reason}): "
            "start all of them, by torchrun or srun, on machines that hear each other."
        ) from None
    yield
    # Not after an error: this process would wait for others that wait for it.
    distributed.barrier()
    distributed.destroy_process_group()


def find_place(environment: Mapping[str, str]) -> Place:
    """The place that torchrun or srun has set in the environment; that of a single process if neither
    did.

    Raises:
        UserError: there are several processes, but the environment lacks their address.
    """
    if (size := int(environment.get("WORLD_SIZE", "1"))) > 1:
        if missing := [name for name in TORCHRUN if name not in environment]:
            raise UserError(
                f"WORLD_SIZE says that {size} processes train together, but {missing[0]} is not "
                "set, so that they cannot find each other: start them by torchrun or srun."
            )
        return Place(int(environment["RANK"]), size, int(environment["LOCAL_RANK"]))
    if (size := int(environment.get("SLURM_STEP_NUM_TASKS", "1"))) > 1:
        return _place_in_slurm(environment, size)
    for name in OTHER_LAUNCHERS:
        if (size := int(environment.get(name, "1"))) > 1:
            raise UserError(
                f"{name} says that {size} processes were started, but each would train alone and "
                "write the same files: start them by torchrun or srun."
            )
    return Place()


def require_even(batch: int, what: str) -> None:
    """Raise a UserError if the processes cannot divide a batch evenly; `what` names its key."""
    if batch % size():
        raise UserError(
            f"{what} is {batch}, which {size()} processes cannot divide evenly: "
            "start as many processes as divide it, or change it."
        )


def agree(text: str, what: str) -> None:
    """Raise a UserError unless `text` is the same in all processes; `what` describes it."""
    if size() == 1:
        return
    said: list[Any] = [None] * size()
    distributed.all_gather_object(said, text)
    if len(set(said)) > 1:
        raise UserError(
            f"The processes do not see the same {what}: "
            "the project's directory must be one that all machines share."
        )


def mean(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes, bitwise equal in all of them; without gradient."""
    return x if size() == 1 else _mean(x.detach().double())


def mean_of(number: float, network: nn.Module) -> float:
    """The mean of a number over all processes, equal in all of them, reduced on the network's
    device."""
    if size() == 1:
        return number
    device = next(iter(network.state_dict().values())).device
    return float(mean(torch.tensor(number, dtype=torch.float64, device=device)))


def join_gradients(parameters: Iterable[nn.Parameter], how: Literal["mean", "sum"]) -> None:
    """Replace every gradient by its mean or sum over all processes.

    Parameters without a gradient are left out, as the optimiser does; they are the same ones in all
    processes, which run the same phase."""
    if size() == 1:
        return
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        row = torch.cat([gradient.reshape(-1) for gradient in bucket])
        distributed.all_reduce(row)
        if how == "mean":
            row /= size()
        _write_back(row, bucket)


@contextmanager
def as_one(modules: Sequence[nn.Module], whole_batch: bool) -> Iterator[None]:
    """Inside it a step updates buffers, such as batch norm's statistics, as a single process would.

    Args:
        modules: those in train mode.
        whole_batch: a process passes all its images through at once: statistics are over the images
            of all processes. Otherwise images pass one after another, and buffers are updated as
            if the images of rank 0 came first, then those of rank 1, and so on.
    """
    if size() == 1:
        yield
    elif whole_batch:
        with _SynchronisedBatchNorm():
            yield
    else:
        before = _moves(modules)
        yield
        _join_moves(modules, before)


def _place_in_slurm(environment: Mapping[str, str], size: int) -> Place:
    # Takes seconds to import.
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    host = SLURMEnvironment.resolve_root_node_address(environment["SLURM_STEP_NODELIST"])
    # Two trainings may share a machine: each step of each job has its own port.
    step = int(environment["SLURM_JOB_ID"]) + 1000 * int(environment["SLURM_STEP_ID"])
    port = environment.get("MASTER_PORT", str(15000 + step % 10000))
    local = int(environment["SLURM_LOCALID"])
    return Place(int(environment["SLURM_PROCID"]), size, local, f"tcp://{host}:{port}")


def _own_device(device: torch.device, place: Place) -> torch.device | None:
    """The GPU of this process, made the current one; None on the CPU."""
    if device.type != "cuda":
        return None
    cards = torch.cuda.device_count()
    # Slurm can hide all GPUs but its own from a process.
    number = 0 if cards == 1 and place.meeting != "env://" else place.local_rank
    if number >= cards:
        raise UserError(
            f"There are {cards} cards on this machine, but more processes: "
            "start one process a card, or set compute.device to cpu."
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _mean(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total / size()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists of about BUCKET_BYTES each."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(one.nbytes for one in bucket) + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _write_back(row: Tensor, tensors: Sequence[Tensor]) -> None:
    """Fill tensors from the values in one row."""
    pieces = torch.split(row, [tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch's batch_norm with statistics over all processes, which hold equally many values."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    axes = [axis for axis in range(input.ndim) if axis != 1]
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, axes, correction=0)
    # Squares are averaged, because means differ between processes; in float64, because of the
    # difference of two large numbers.
    moments = torch.stack([mean.double(), variance.double() + mean.double() ** 2])
    mean, square = _Mean.apply(moments)
    variance = square - mean**2
    if running_mean is not None and running_var is not None:
        count = size() * input.numel() // input.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
    shift, scale = shift.to(wide.dtype).view(shape), scale.to(wide.dtype).view(shape)
    # One multiply-add, so that the backward pass keeps the input as its only large tensor.
    return torch.addcmul(shift, wide, scale).to(input.dtype)


def _moves(modules: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """All buffers as one float64 row, and the number of updates of each value so far."""
    values, times = [], []
    for buffer, count, _ in _buffers(modules):
        values.append(buffer.reshape(-1).double())
        times.append(count.double().expand(buffer.numel()))
    if not values:
        return torch.empty(0), torch.empty(0)
    return torch.cat(values), torch.cat(times)


def _join_moves(modules: Sequence[nn.Module], before: tuple[Tensor, Tensor]) -> None:
    """Set buffers as if the processes' forward passes had run one after another, by rank.

    Each forward pass updates a running statistic r -> (1 - m) r + m s and a counter r -> r + s. All
    forward passes of one process together make r -> keep r + add, which is applied rank by rank."""
    buffers = list(_buffers(modules))
    if not buffers:
        return
    value, times = before
    after, times_after = _moves(modules)
    decay = torch.cat([value.new_full((buffer.numel(),), base) for buffer, _, base in buffers])
    keep = decay ** (times_after - times)
    own = torch.stack([keep, after - keep * value])
    gathered = [torch.empty_like(own) for _ in range(size())]
    distributed.all_gather(gathered, own)
    for keep, add in gathered:
        value = keep * value + add
    _write_back(value, [buffer for buffer, _, _ in buffers])


def _buffers(modules: Sequence[nn.Module]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Every buffer, the counter of its updates, and the share of the old value that an update keeps."""
    for module in (inner for outer in modules for inner in outer.modules()):
        for name, buffer in module.named_buffers(recurse=False):
            if isinstance(module, _BatchNorm) and name.startswith("running_"):
                assert module.momentum is not None, "no encoder of ours takes a plain mean"
                assert module.num_batches_tracked is not None
                yield buffer, module.num_batches_tracked, 1 - module.momentum
            else:
                yield buffer, buffer.new_zeros(()), 1.0
