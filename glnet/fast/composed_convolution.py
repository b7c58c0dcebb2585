"""A chain of 3 x 3 convolutions with nothing between them, as one larger convolution.

n convolutions, each padded with zeros, are one of (2 n + 1) x (2 n + 1) everywhere but in a ring of
n - 1 pixels at the border: there the chain reads zeros where the one convolution would read what
lies between its input and them. A pixel of the ring has its own kernel, which depends only on its
distance to the border. All kernels, inner and border ones, are derivatives of the chain on a small
map.

A chain is given by its weights (out, in, 3, 3) or (out, in, 1, 1), the first one applied first; C
and M are the channels that go in and come out. Biases are not part of it, but for the last one's.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Chain = Sequence[Tensor]
Size = tuple[int, int]
LANES = 16
"""Channels in one vector register: a convolution to fewer channels wastes the rest."""


class _BorderKernels(nn.Module):
    """The kernels of the ring at the border."""

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor
    corners: Tensor
    bias: Tensor | None

    def __init__(self, chain: Chain, bias: Tensor | None) -> None:
        super().__init__()
        self.n = sum(weight.shape[-1] // 2 for weight in chain)
        self.channels = chain[-1].shape[0]
        self.register_buffer("bias", bias)
        if self.n < 2:
            return
        n, side, ring = self.n, 2 * self.n + 1, self.n - 1
        places = [*range(ring), n, *range(side - ring, side)]  # rows and columns of a small map
        derivative = _derivative(chain, places, side)  # (row, column, M, C, side, side)
        first, middle, last = slice(ring), ring, slice(ring + 1, None)
        near, far = slice(side - 2), slice(2, None)

        def together(kernels: Tensor) -> Tensor:
            # One kernel for each distance to the border: these become channels.
            return kernels.flatten(end_dim=-4).contiguous(memory_format=torch.channels_last)

        self.register_buffer("top", together(derivative[first, middle, :, :, near, :]))
        self.register_buffer("bottom", together(derivative[last, middle, :, :, far, :]))
        self.register_buffer("left", together(derivative[middle, first, :, :, :, near].mT))
        self.register_buffer("right", together(derivative[middle, last, :, :, :, far].mT))
        corners = [
            derivative[rows, columns, :, :, up, along].flatten(end_dim=-4).flatten(1)
            for rows, up in ((first, near), (last, far))
            for columns, along in ((first, near), (last, far))
        ]
        self.register_buffer("corners", torch.stack(corners))

    @property
    def least(self) -> int:
        """The smallest side of a map, in px, on which no pixel is near two borders at once."""
        return max(2 * self.n - 1, 1)

    def put_ring(
        self, out: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor
    ) -> Tensor:
        """Write the ring of `out` (N, M, H, W), from the outermost 2 n - 1 rows (N, C, 2 n - 1, W)
        and columns, transposed, (N, C, 2 n - 1, H) of the input."""
        n, ring, reach = self.n, self.n - 1, self.least

        def along(strip: Tensor, kernels: Tensor) -> Tensor:
            strip = strip.contiguous(memory_format=torch.channels_last)
            found = F.conv2d(strip, kernels, padding=(0, n))[:, :, 0]
            found = _split(found, 1, (ring, self.channels)).transpose(1, 2)
            return found if self.bias is None else found + self.bias[:, None, None]

        out[..., :ring, :] = along(top, self.top)
        out[..., -ring:, :] = along(bottom, self.bottom)
        out[..., :ring] = along(left, self.left).mT
        out[..., -ring:] = along(right, self.right).mT
        first, last = slice(ring), slice(-ring, None)
        ends = [(rows, columns) for rows in (first, last) for columns in (first, last)]
        blocks = (top[..., :reach], top[..., -reach:], bottom[..., :reach], bottom[..., -reach:])
        for (rows, columns), block, kernels in zip(ends, blocks, self.corners, strict=True):
            found = _split(F.linear(block.flatten(1), kernels), 1, (ring, ring, self.channels))
            found = found if self.bias is None else found + self.bias
            out[..., rows, columns] = found.permute(0, 3, 1, 2)
        return out


class ComposedConvolution(_BorderKernels):
    """A chain of convolutions as one convolution."""

    kernel: Tensor

    def __init__(self, chain: Chain, bias: Tensor | None = None) -> None:
        super().__init__(chain, bias)
        kernel = inner(chain)
        self.by_lines = self.n > 1 and self.channels < LANES
        if self.by_lines:
            # A channel for each line of the kernel, to be shifted and added up.
            kernel = kernel.transpose(1, 2).flatten(0, 1)[:, :, None]
        self.register_buffer("kernel", kernel.contiguous(memory_format=torch.channels_last))

    def forward(self, map: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, M, H, W)."""
        if not self.by_lines:
            out = F.conv2d(map, self.kernel, self.bias, padding=self.n)
        else:
            lines = F.conv2d(map, self.kernel, padding=(0, self.n))
            out = _shifted_sum(_split(lines, 1, (self.channels, -1)))
            if self.bias is not None:
                out += self.bias[:, None, None]
        if self.n < 2:
            return out
        reach = self.least
        edges = [(one[..., :reach, :], one[..., -reach:, :]) for one in (map, map.mT)]
        return self.put_ring(out, *edges[0], *edges[1])


class UpsampledConvolution(_BorderKernels):
    """A chain on an upsampled map that is never computed: channels are mixed at the map's own size,
    once for each tap of the kernel, and the result is upsampled."""

    mixing: Tensor

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain, None)
        self.register_buffer("mixing", mixing_of(chain))

    def forward(self, map: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """
        Args:
            map: (N, C, h, w).
            rows: (H, h), columns: (W, w): the matrices that upsample it.

        Returns:
            (N, M, H, W).
        """
        out = spread(mix(map, self.mixing), taps(rows, self.n), taps(columns, self.n))
        if self.n < 2:
            return out
        reach = self.least
        map = map.contiguous()  # else each channel is copied and multiplied separately
        return self.put_ring(
            out,
            rows[:reach] @ map @ columns.T,
            rows[-reach:] @ map @ columns.T,
            columns[:reach] @ map.mT @ rows.T,
            columns[-reach:] @ map.mT @ rows.T,
        )


def inner(chain: Chain) -> Tensor:
    """The kernel of a chain beyond the ring: (M, C, 2 n + 1, 2 n + 1)."""
    n = sum(weight.shape[-1] // 2 for weight in chain)
    return _derivative(chain, [n], 2 * n + 1)[0, 0]


def mixing_of(chain: Chain) -> Tensor:
    """The inner kernel as a 1 x 1 convolution to M channels for each tap, as `spread` takes them:
    (M taps taps, C, 1, 1), a column's taps together."""
    kernel = inner(chain)
    return kernel.permute(0, 3, 2, 1).reshape(-1, kernel.shape[1], 1, 1)


def mix(map: Tensor, mixing: Tensor) -> Tensor:
    """A 1 x 1 convolution as a matrix product, whose result is in NCHW, as `spread` needs it:
    (N, C, h, w) -> (N, M taps taps, h, w)."""
    return _split(mixing.flatten(1) @ map.flatten(2), 2, map.shape[2:])


def spread(mixed: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Upsample mixed channels, shift each to its tap's position, and add them up.

    Args:
        mixed: (N, M taps taps, h, w), a column's taps together.
        rows: (taps, H, h), columns: (taps, W, w).

    Returns:
        (N, M, H, W).
    """
    count = len(rows)
    down = rows.transpose(0, 1).flatten(1)  # (H, taps h)
    across = columns.mT.flatten(0, 1)  # (taps w, W)
    tall = down @ _split(mixed, 1, (-1, count, count)).flatten(3, 4)  # (N, M, taps, H, w)
    return tall.transpose(2, 3).flatten(3) @ across


def resizing(cells: int, side: int, like: Tensor) -> Tensor:
    """The matrix (side, cells) of bilinear resizing along one axis: the resized identity."""
    one = torch.eye(cells, dtype=like.dtype, device=like.device)
    if side == cells:
        return one
    matrix: Tensor = F.interpolate(one[None], side, mode="linear", align_corners=False)[0].T
    return matrix


def resizings(map: Tensor, *sizes: Size) -> list[Tensor]:
    """The matrices (H, h) and (W, w) of bilinear resizing to each of `sizes` in turn."""
    found = []
    for axis in (0, 1):
        matrix = resizing(size_of(map)[axis], sizes[0][axis], map)
        for one, other in pairwise(sizes):
            matrix = resizing(one[axis], other[axis], map) @ matrix
        found.append(matrix)
    return found


def size_of(map: Tensor) -> Size:
    """(H, W)."""
    return map.shape[-2], map.shape[-1]


def taps(matrix: Tensor, n: int) -> Tensor:
    """(H, h) -> (2 n + 1, H, h): the rows that each tap of a kernel reads, 0 beyond the border."""
    padded = F.pad(matrix, (0, 0, n, n))
    return torch.stack([padded[tap : tap + len(matrix)] for tap in range(2 * n + 1)])


def inside(cells: int, side: int, ring: int) -> bool:
    """Whether bilinear shrinking of `cells` to `side` reads no cell of a ring at the border."""
    return side < cells and int((cells / side - 1) / 2) >= ring


def shrunk(map: Tensor, side: int, dim: int, n: int) -> Iterator[Tensor]:
    """The map that each of 2 n + 1 taps along one axis reads, shrunk bilinearly, tap after tap.

    Args:
        map: zeros beyond its border; best with axes behind `dim` that lie together in memory.
        side: of the result along `dim`; `inside` holds for a ring of n - 1.
    """
    cells = map.shape[dim]
    centres = [(i + 0.5) * cells / side - 0.5 for i in range(side)]
    share = torch.tensor([centre % 1 for centre in centres], dtype=map.dtype, device=map.device)
    share = share.view(-1, *[1] * (map.dim() - dim - 1))

    def line(tap: int) -> Tensor:
        read = [int(centre) + tap for centre in centres]
        known = [min(max(cell, 0), cells - 1) for cell in read]
        seen = map.index_select(dim, torch.tensor(known, device=map.device))
        for i, cell in enumerate(read):
            if not 0 <= cell < cells:
                seen.select(dim, i).zero_()
        return seen

    # Bilinear shrinking reads two neighbours, the second of which is the next tap's first.
    return (torch.lerp(*pair, share) for pair in pairwise(line(tap) for tap in range(-n, n + 2)))


def _derivative(chain: Chain, places: Sequence[int], side: int) -> Tensor:
    """Derivative of the chain's outputs at (row, column) of a map of `side` px by all its inputs:
    (row, column, M, C, side, side)."""
    channels, count = chain[-1].shape[0], len(places)
    one = chain[-1].new_zeros(count, count, channels, channels, side, side)
    for i, row in enumerate(places):
        for j, column in enumerate(places):
            one[i, j, :, :, row, column] = torch.eye(channels)
    back = one.flatten(0, 2)
    for weight in reversed(chain):
        back = F.conv_transpose2d(back, weight, padding=weight.shape[-1] // 2)
    return _split(back, 0, (count, count, channels))


def _split(map: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    found: Tensor = map.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return found


def _shifted_sum(lines: Tensor) -> Tensor:
    """The sum of a kernel's lines (N, M, 2 n + 1, H, W), each shifted to its row: (N, M, H, W)."""
    n, height = lines.shape[2] // 2, lines.shape[3]
    out = lines[:, :, n].contiguous()
    for shift in range(1, min(n, height - 1) + 1):
        out[:, :, :-shift] += lines[:, :, n + shift, shift:]
        out[:, :, shift:] += lines[:, :, n - shift, :-shift]
    return out
