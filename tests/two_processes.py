"""What `test_distributed.py` starts in two processes. By torchrun: every check compares two processes
with one that has both shares."""

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from bench.errors import UserError
from bench.optim import focal_loss
from bench.parallel import distributed
from bench.parallel.distributed import agree, as_one, join_gradients, processes


def train_as(environment: Mapping[str, str], model: str, output: Path, errors: Path) -> None:
    """`python -m bench.pipeline.train MODEL` in this process, which starts with the libraries
    loaded, with what a launcher leaves in the environment."""
    from bench import cli
    from bench.pipeline.train import work

    os.environ.update(environment)
    sys.argv = ["bench.pipeline.train", model]
    with (
        output.open("w") as out,
        errors.open("w") as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        cli.main(work, model="a model")


def norms() -> nn.ModuleList:
    """Batch norm as torch and timm have it, the latter with an activation; no two channels are
    alike."""
    torch.manual_seed(0)
    modules = nn.ModuleList(
        [nn.BatchNorm2d(5, momentum=0.3), BatchNormAct2d(5), nn.BatchNorm2d(5, affine=False)]
    )
    for parameter in modules.parameters():
        nn.init.normal_(parameter)
    return modules


def images(seed: int, count: int = 4) -> Tensor:
    """(count, 5, 3, 2), with a mean far from 0 and another spread in every image and channel."""
    rng = torch.Generator().manual_seed(seed)
    spread = torch.rand(count, 5, 1, 1, generator=rng)
    return 20 + spread * torch.randn(count, 5, 3, 2, generator=rng)


def own(whole: Tensor) -> Tensor:
    return whole.chunk(distributed.size())[distributed.rank()]


def step(network: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient with respect to x of a loss that no output is alike to."""
    x = x.clone().requires_grad_()
    output = torch.cat([norm(x) for norm in network], 1)
    output.sin().mean().backward()
    assert x.grad is not None
    return output.detach(), x.grad


def check_batch_norm_sees_all_images() -> None:
    one, several, x = norms(), norms(), images(1)
    output, gradient = step(one, x)
    with as_one(list(several), whole_batch=True):
        own_output, own_gradient = step(several, own(x))
    torch.testing.assert_close(own_output, own(output))
    # The loss is the processes' mean, and a share counts less in it than alone.
    torch.testing.assert_close(own_gradient / distributed.size(), own(gradient))
    join_gradients(several.parameters(), "mean")
    for parameter, expected in zip(several.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    same_state(several, one)
    assert int(several[0].num_batches_tracked) == 1


def check_batch_norm_in_eval_mode_stays_as_it_is() -> None:
    network = norms().eval()
    before, x = network.state_dict(), images(1)
    with as_one(list(network), whole_batch=True):
        outputs = [norm(x) for norm in network]
    for output, norm in zip(outputs, network, strict=True):
        assert torch.equal(output, norm(x))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def check_running_statistics_follow_one_another() -> None:
    """Rank 0 has two forwards, rank 1 three: one process has all five, in this order; twice."""
    one, several = norms(), norms()
    counter = nn.Module()
    counter.register_buffer("seen", torch.tensor([3, 0]))
    for first in (0, 5):
        seen = {0: range(first, first + 2), 1: range(first + 2, first + 5)}
        for seed in [*seen[0], *seen[1]]:
            step(one, images(seed))
        with as_one([several, counter], whole_batch=False):
            for seed in seen[distributed.rank()]:
                step(several, images(seed))
                counter.seen[1] += seed
        same_state(several, one)
    assert int(several[0].num_batches_tracked) == 10
    assert counter.seen.tolist() == [3, sum(range(10))]


def check_gradients_join() -> None:
    number = distributed.rank() + 1
    for how, factor in (("mean", 1.5), ("sum", 3.0)):
        shapes = [(2, 3), (4,), (3, 2, 5, 5)]
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        base = [torch.arange(p.numel()).float().reshape(p.shape) for p in parameters]
        for parameter, gradient in zip(parameters, base, strict=True):
            parameter.grad = number * gradient
        parameters[2].grad = parameters[2].grad.to(memory_format=torch.channels_last)
        join_gradients([*parameters, nn.Parameter(torch.zeros(1))], how)
        for parameter, gradient in zip(parameters, base, strict=True):
            assert torch.equal(parameter.grad, factor * gradient)


def check_a_loss_counts_the_pixels_of_all() -> None:
    logits = images(7)
    label = torch.randint(5, (4, 3, 2), generator=torch.Generator().manual_seed(1)).byte()
    label[0] = 255
    loss = focal_loss(own(logits), own(label), 2.0, whole_batch=True)
    torch.testing.assert_close(distributed.mean(loss).float(), focal_loss(logits, label, 2.0))
    nothing = torch.full_like(label, 255)
    assert focal_loss(logits, nothing, 2.0, whole_batch=True) == 0


def check_what_differs_is_refused() -> None:
    agree("the same", "words")
    with pytest.raises(UserError, match="do not see the same words"):
        agree(str(distributed.rank()), "words")


def same_state(one: nn.Module, other: nn.Module) -> None:
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], msg=key)


if __name__ == "__main__":
    distributed.BUCKET_BYTES = 64  # several buckets, and one gradient that is larger
    with processes(torch.device("cpu")):
        assert distributed.size() == int(os.environ["WORLD_SIZE"]) == 2
        for name, check in list(globals().items()):
            if name.startswith("check_"):
                check()
                if distributed.rank() == 0:
                    print(name)
