"""What torch lacks, in PyTorch: the functions and modules that a generated source takes along where it uses them.

The source of each definition is copied as it stands, so it may use only torch, nn, F, Tensor and the other helpers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_pads(x: Tensor, span: Sequence[int], stride: Sequence[int], upper: bool) -> list[int]:
    """Left, right, top, bottom padding for ceil(size / stride) windows; an odd row goes to the end if `upper`."""
    pads: list[int] = []
    for size, k, s in ((x.shape[3], span[1], stride[1]), (x.shape[2], span[0], stride[0])):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        small, large = total // 2, total - total // 2
        pads += [small, large] if upper else [large, small]
    return pads


class SameConv2d(nn.Conv2d):
    """A convolution padded to ceil(size / stride) places; an odd row of padding goes to the end if `upper`."""

    def __init__(self, *sizes: Any, upper: bool = True, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.upper = upper

    def forward(self, x: Tensor) -> Tensor:
        span = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return super().forward(F.pad(x, same_pads(x, span, self.stride, self.upper)))


class PaddedConv2d(nn.Conv2d):
    """A convolution with its own padding on each side: `pads` are left, right, top, bottom."""

    def __init__(self, *sizes: Any, pads: tuple[int, int, int, int], **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.pads = pads

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pads))


class CroppedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution cut by its own amount on each side: `pads` are left, right, top, bottom."""

    def __init__(self, *sizes: Any, pads: tuple[int, int, int, int], **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.cut = [-pad for pad in pads]

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.pad(super().forward(x, output_size), self.cut)


class PixelInstanceNorm(nn.InstanceNorm2d):
    """Instance norm of maps of any rank that may have one place: PyTorch's refuses these, where the mean takes all."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, False)


class LocalConv2d(nn.Module):
    """A convolution whose weights differ from place to place.

    Shapes: x [N, C, H, W], weight [O, rows, columns, C, kh, kw], bias [O, rows, columns] -> [N, O, rows, columns].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.pads = kernel_size, stride, pads
        weight = torch.empty(out_channels, *size, in_channels, *kernel_size, dtype=dtype)
        self.weight = nn.Parameter(nn.init.normal_(weight, std=(2 / weight[0, 0, 0].numel()) ** 0.5))
        self.bias = nn.Parameter(torch.zeros(out_channels, *size, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(F.pad(x, self.pads), self.kernel_size, stride=self.stride)  # [N, C*kh*kw, rows*columns]
        y = torch.einsum("nkp,opk->nop", patches.float(), self.weight.float().flatten(3).flatten(1, 2))
        y = y.view(-1, *self.weight.shape[:3])
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class Rbf(nn.Module):
    """Squared distances to learned points: y[n, o] = sum over f of (x[n, f] - weight[o, f])^2."""

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float()[:, None] - self.weight).square().sum(2).to(x.dtype)


class Scale(nn.Module):
    """A learned factor and offset for each channel."""

    def __init__(self, num_channels: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_channels, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        y = x.float() * self.weight.view(shape)
        return (y if self.bias is None else y + self.bias.view(shape)).to(x.dtype)


class Normalize(nn.Module):
    """(x - mean) / std for each channel, with constants."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return ((x - self.mean.view(shape)) / self.std.view(shape)).to(x.dtype)


class Constant(nn.Module):
    """A tensor of fixed values, which goes to the module's device but not into its state."""

    value: Tensor

    def __init__(self, values: Sequence[float], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(values, dtype=dtype).reshape(shape), persistent=False)

    def forward(self) -> Tensor:
        return self.value


def step(x: Tensor) -> Tensor:
    """1 where x >= 0, else 0."""
    return (x >= 0).to(x.dtype)


def lrn_within(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Local response normalisation over a size x size window of the same channel; outside counts as zero."""
    pads = [size // 2, (size - 1) // 2]
    mean = F.avg_pool2d(F.pad(x.float().square(), pads + pads), size, stride=1)
    return (x / (k + alpha * mean) ** beta).to(x.dtype)


def trim(y: Tensor, x: Tensor, pads: Sequence[int], stride: Sequence[int]) -> Tensor:
    """y without the windows that start in the padding after x; `pads` are left, right, top, bottom."""
    rows, columns = -(-(x.shape[2] + pads[2]) // stride[0]), -(-(x.shape[3] + pads[0]) // stride[1])
    return y[:, :, :rows, :columns]


def max_pool(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pads: list[int],
    dilation: tuple[int, int],
    ceil: bool,
) -> Tensor:
    """Max pooling with its own padding on each side: `pads` are left, right, top, bottom."""
    padded = F.pad(x, pads, value=-torch.inf)
    return trim(F.max_pool2d(padded, kernel, stride, 0, dilation, ceil), x, pads, stride)


def sum_pool(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], pads: list[int], ceil: bool, value: float = 0.0
) -> Tensor:
    """Sums of windows in float32, with its own padding on each side: `pads` are left, right, top, bottom."""
    padded = F.pad(x.float(), pads, value=value)
    return trim(F.avg_pool2d(padded, kernel, stride, 0, ceil, divisor_override=1), x, pads, stride)


def avg_pool(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], pads: list[int], ceil: bool, count_include_pad: bool
) -> Tensor:
    """Average pooling with its own padding on each side: `pads` are left, right, top, bottom."""
    ones = torch.ones_like(x[:1, :1])
    count = sum_pool(ones, kernel, stride, pads, ceil, value=float(count_include_pad))
    return (sum_pool(x, kernel, stride, pads, ceil) / count).to(x.dtype)


def l2_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], pads: list[int], ceil: bool) -> Tensor:
    """The root of the sum of squares of each window, whose gradient is 0 where it is 0."""
    squares = sum_pool(x.float().square(), kernel, stride, pads, ceil)
    return (torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)).to(x.dtype)


def unpool(x: Tensor, source: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """x's values where the windows of `source` have their maxima, zero elsewhere."""
    places = F.max_pool2d(source, kernel, stride, return_indices=True)[1]
    y = torch.zeros_like(source).flatten(2).scatter_add(2, places.flatten(2), x.flatten(2))
    return y.view_as(source)


def crop(x: Tensor, like: Tensor, offset: Sequence[int]) -> Tensor:
    """The part of x that starts `offset` rows and columns in and is as large as `like`."""
    (top, left), (rows, columns) = offset, like.shape[2:]
    return x[:, :, top : top + rows, left : left + columns]
