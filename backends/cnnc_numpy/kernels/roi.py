"""Features of regions: rois [N, R, 4 or more] hold x1, y1, x2, y2 for R regions of each image of x [N, C, H, W]."""

from __future__ import annotations

import math

import numpy as np

from cnnc_numpy.kernels import Array


def roi_pool(x: Array, rois: Array, *, size: tuple[int, int], scale: float = 1.0) -> Array:
    """The maximum over each cell of a `size` grid on each region, 0 where a cell is empty: [N*R, C, h, w]."""
    boxes = rois[..., :4] * scale
    boxes = np.trunc(boxes + np.copysign(0.5, boxes)).astype(int)  # to nearest, halves away from zero
    y = np.zeros((*boxes.shape[:2], x.shape[1], *size), x.dtype)
    for image, regions, grids in zip(x, boxes, y, strict=True):
        for (left, top, right, bottom), grid in zip(regions, grids, strict=True):
            rows = roi_cells(top, bottom, size[0], x.shape[2])
            cols = roi_cells(left, right, size[1], x.shape[3])
            for i, row in enumerate(rows):
                for j, col in enumerate(cols):
                    cell = image[:, row, col]
                    if cell.size:
                        grid[:, i, j] = cell.max((1, 2))
    return y.reshape(-1, *y.shape[2:])


def roi_cells(first: int, last: int, count: int, length: int) -> list[slice]:
    """The cells of a region from `first` to `last`, cut to the image; neighbours overlap where sizes do not divide."""
    extent = max(last - first + 1, 1)
    edges = [(first + i * extent // count, first - (-(i + 1) * extent // count)) for i in range(count)]
    return [slice(min(max(a, 0), length), min(max(b, 0), length)) for a, b in edges]


def roi_align(
    x: Array, rois: Array, *, size: tuple[int, int], scale: float = 1.0, samples: int = 2, aligned: bool = False
) -> Array:
    """The mean of samples^2 bilinear readings in each cell of a `size` grid on each region: [N*R, C, h, w]."""
    boxes = rois[..., :4] * scale - (0.5 if aligned else 0.0)
    y = np.empty((*boxes.shape[:2], x.shape[1], *size), x.dtype)
    for image, regions, grids in zip(x, boxes, y, strict=True):
        for (left, top, right, bottom), grid in zip(regions, grids, strict=True):
            height, width = bottom - top, right - left
            if not aligned:
                height, width = max(height, 1), max(width, 1)
            rows = roi_readings(top, height, size[0], samples, x.shape[2]).astype(x.dtype)
            cols = roi_readings(left, width, size[1], samples, x.shape[3]).astype(x.dtype)
            grid[:] = rows @ image @ cols.T
    return y.reshape(-1, *y.shape[2:])


def roi_readings(start: float, extent: float, count: int, samples: int, length: int) -> Array:
    """How much each of `length` rows contributes to each of `count` cells; readings outside -1 .. length count as 0."""
    place = start + (np.arange(count * samples) + 0.5) * extent / (count * samples)
    inside = (place >= -1) & (place <= length)
    place = np.clip(place, 0, length - 1)
    first = place.astype(int)
    share = place - first
    weights = np.zeros((count * samples, length))
    i = np.arange(count * samples)
    weights[i, first] = np.where(inside, 1 - share, 0)
    weights[i, np.minimum(first + 1, length - 1)] += np.where(inside, share, 0)
    return weights.reshape(count, samples, length).mean(1)


def roi_align_pyramid(
    rois: Array, *levels: Array, size: tuple[int, int], scales: tuple[float, ...], samples: int = 2
) -> Array:
    """`roi_align` of each region on the one of the levels, which have these scales, that suits its size."""
    width, height = rois[..., 2] - rois[..., 0], rois[..., 3] - rois[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):  # no area: the first level; a negative one: none
        suited = np.floor(4 + np.log2(np.sqrt(width * height) / 224) + 1e-6) - round(-math.log2(scales[0]))
    suited = np.clip(suited, 0, len(levels) - 1)
    y = np.zeros((*rois.shape[:2], levels[0].shape[1], *size), levels[0].dtype)
    for n, regions in enumerate(rois):
        for i, (x, scale) in enumerate(zip(levels, scales, strict=True)):
            chosen = suited[n] == i
            y[n, chosen] = roi_align(x[n : n + 1], regions[None, chosen], size=size, scale=scale, samples=samples)
    return y.reshape(-1, *y.shape[2:])
