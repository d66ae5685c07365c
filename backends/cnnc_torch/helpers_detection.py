"""Regions and boxes in PyTorch, which torchvision has and torch lacks; copied as those of `helpers` are.

Boxes are x1, y1, x2, y2 in [N, K, 4], with their scores in [N, K, 5].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_pool(x: Tensor, rois: Tensor, size: Sequence[int], scale: float) -> Tensor:
    """The maximum of each cell of a grid over each region.

    Shapes: x [N, C, H, W], rois [N, R, 4 or 5] -> [N*R, C, *size].
    """
    corners = rois[..., :4].float() * scale
    corners = (corners.abs() + 0.5).floor().copysign(corners).long()  # halves away from 0
    out = x.new_zeros(*rois.shape[:2], x.shape[1], *size)
    for n, boxes in enumerate(corners.tolist()):
        for r, (left, top, right, bottom) in enumerate(boxes):
            rows, columns = max(bottom - top + 1, 1), max(right - left + 1, 1)
            for i in range(size[0]):
                first, last = top + i * rows // size[0], top - (-(i + 1) * rows // size[0])
                band = x[n, :, max(first, 0) : max(last, 0)]
                for j in range(size[1]):
                    start, stop = left + j * columns // size[1], left - (-(j + 1) * columns // size[1])
                    cell = band[:, :, max(start, 0) : max(stop, 0)]
                    if cell.numel():
                        out[n, r, :, i, j] = cell.amax((1, 2))
    return out.flatten(0, 1)


def roi_align(
    x: Tensor, rois: Tensor, size: Sequence[int], scale: float, samples: int, aligned: bool = False
) -> Tensor:
    """The mean of samples in each cell of a grid over each region.

    Shapes: x [N, C, H, W], rois [N, R, 4 or 5] -> [N*R, C, *size].
    """

    def axis(first: Tensor, last: Tensor, cells: int, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each sample's coordinate: the places before and after it, the weight of the latter, whether it counts."""
        span = last - first if aligned else (last - first).clamp(min=1)
        steps = (torch.arange(cells * samples, device=x.device) + 0.5) / (cells * samples)
        at = first[..., None] + span[..., None] * steps  # [N, R, cells*samples]
        inside = (at >= -1) & (at <= length)
        at = at.clamp(0, length - 1)
        before = at.floor().long()
        return before, (before + 1).clamp(max=length - 1), at - before, inside

    n, c, h, w = x.shape
    left, top, right, bottom = (rois[..., :4].float() * scale - (0.5 if aligned else 0.0)).unbind(-1)
    y0, y1, wy, in_y = axis(top, bottom, size[0], h)
    x0, x1, wx, in_x = axis(left, right, size[1], w)
    image = torch.arange(n, device=x.device).view(n, 1, 1, 1)

    def read(rows: Tensor, columns: Tensor) -> Tensor:
        """x's values at rows [N, R, i] and columns [N, R, j]: [N, R, i, j, C]."""
        return x.permute(0, 2, 3, 1)[image, rows[..., :, None], columns[..., None, :]]

    wy, wx = wy[..., :, None, None], wx[..., None, :, None]
    above = read(y0, x0) * (1 - wx) + read(y0, x1) * wx
    below = read(y1, x0) * (1 - wx) + read(y1, x1) * wx
    value = above * (1 - wy) + below * wy
    value = value * (in_y[..., :, None] & in_x[..., None, :])[..., None]
    cells = value.view(n * rois.shape[1], size[0], samples, size[1], samples, c).mean((2, 4))
    return cells.permute(0, 3, 1, 2).to(x.dtype)


def roi_align_pyramid(
    rois: Tensor, levels: Sequence[Tensor], size: Sequence[int], scales: Sequence[float], samples: int
) -> Tensor:
    """`roi_align` of each region on the level that suits its size.

    Shapes: rois [N, R, 4 or 5], levels [N, C, Hi, Wi] -> [N*R, C, *size].
    """
    left, top, right, bottom = rois[..., :4].float().unbind(-1)
    area = (right - left) * (bottom - top)  # without any, the first level; NaN of a negative one is none
    suited = (4 + (area.sqrt() / 224).log2() + 1e-6).floor() - round(-math.log2(scales[0]))
    suited = suited.clamp(0, len(levels) - 1)
    out = levels[0].new_zeros(*rois.shape[:2], levels[0].shape[1], *size)
    for n in range(len(rois)):
        for i, (x, scale) in enumerate(zip(levels, scales, strict=True)):
            chosen = suited[n] == i
            out[n, chosen] = roi_align(x[n : n + 1], rois[n : n + 1, chosen], size, scale, samples)
    return out.flatten(0, 1)


def anchors(x: Tensor, corners: Sequence[Sequence[int]], stride: Sequence[int]) -> Tensor:
    """Boxes with these corners around each place of x, places `stride` apart.

    Shapes: x [N, C, H, W], a corners -> [N, H*W*a, 4].
    """
    n, _, h, w = x.shape
    rows, columns = torch.arange(h, device=x.device) * stride[0], torch.arange(w, device=x.device) * stride[1]
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack([across, down, across, down], -1)[:, :, None]
    boxes = centres + torch.tensor(corners, device=x.device)
    return boxes.view(1, -1, 4).expand(n, -1, -1).to(x.dtype)


def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
    """Anchors moved by dx, dy of their sizes and scaled by exp(dw), exp(dh).

    Shapes: anchors [N, H*W*a, 4], deltas [N, 4*a, H, W] -> [N, H*W*a, 4].
    """
    n, _, h, w = deltas.shape
    rows = deltas.float().reshape(n, -1, 4, h, w).permute(0, 3, 4, 1, 2).flatten(1, 3)
    first, last = anchors.float().chunk(2, -1)
    shift, growth = rows.chunk(2, -1)
    size = last - first
    centre = first + size / 2 + shift * size
    half = growth.clamp(max=math.log(1000 / 16)).exp() * size / 2
    return torch.cat([centre - half, centre + half], -1).to(deltas.dtype)


def clip_boxes(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes cut to an image [N, C, H, W]."""
    h, w = image.shape[2:]
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([w, h, w, h]))


def nms(boxes: Tensor, scores: Tensor, pre: int, keep: int, iou: float) -> Tensor:
    """Of the `pre` best boxes, those that overlap no better one that is kept by more than `iou`; then zeros.

    Shapes: boxes [N, K, 4], scores [N, a, H, W] with K = H*W*a -> [N, keep, 5].
    """
    scored = torch.cat([boxes, scores.permute(0, 2, 3, 1).reshape(len(boxes), -1, 1)], -1)
    scored = top([scored], min(pre, scored.shape[1]))
    first, last = scored[..., :2].float(), scored[..., 2:4].float()
    area = (last - first).prod(-1)
    kept = torch.ones_like(area, dtype=torch.bool)
    for i in range(scored.shape[1] - 1):
        best, rest = slice(i, i + 1), slice(i + 1, None)
        extent = torch.minimum(last[:, best], last[:, rest]) - torch.maximum(first[:, best], first[:, rest])
        common = extent.clamp(min=0).prod(-1)
        overlap = common / (area[:, best] + area[:, rest] - common)
        kept[:, rest] &= ~(kept[:, best] & (overlap > iou))
    return first_rows(scored.where(kept[..., None], 0), kept, keep)


def top(lists: Sequence[Tensor], k: int) -> Tensor:
    """The k best of lists of scored boxes, best first; NaN counts as infinity; then zeros: [N, k, 5]."""
    scored = torch.cat([*lists], 1)
    return first_rows(scored, scored[..., 4].nan_to_num(torch.inf, torch.inf, -torch.inf), k)


def first_rows(x: Tensor, keys: Tensor, k: int) -> Tensor:
    """The k rows of x [N, K, F] with the largest keys [N, K], of equal ones the first; then zeros."""
    order = keys.sort(dim=1, descending=True, stable=True).indices[:, :k]
    rows = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
    return F.pad(rows, (0, 0, 0, k - rows.shape[1]))
