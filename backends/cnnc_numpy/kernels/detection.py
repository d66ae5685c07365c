"""Boxes of detectors: x1, y1, x2, y2 in [N, K, 4], with their scores in [N, K, 5], as many in every image."""

from __future__ import annotations

import math

import numpy as np

from cnnc_numpy.kernels import Array


def anchors(x: Array, *, corners: tuple[tuple[int, int, int, int], ...], stride: tuple[int, int]) -> Array:
    """Boxes with these corners around each place of x [N, C, H, W], places `stride` apart: [N, H*W*a, 4]."""
    n, _, h, w = x.shape
    down = np.arange(h)[:, None, None, None] * [0, stride[0], 0, stride[0]]
    across = np.arange(w)[:, None, None] * [stride[1], 0, stride[1], 0]
    boxes = down + across + np.array(corners)
    return np.repeat(boxes.reshape(1, -1, 4).astype(x.dtype), n, axis=0)


def decode(anchors: Array, deltas: Array) -> Array:
    """Anchors moved by dx, dy of their sizes and scaled by exp(dw), exp(dh) of deltas [N, 4*a, H, W]."""
    n, _, h, w = deltas.shape
    deltas = deltas.reshape(n, -1, 4, h, w).transpose(0, 3, 4, 1, 2).reshape(n, -1, 4)
    first, size = anchors[..., :2], anchors[..., 2:] - anchors[..., :2]
    centre = first + size / 2 + deltas[..., :2] * size
    half = np.exp(np.minimum(deltas[..., 2:], math.log(1000 / 16))) * size / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def clip_boxes(boxes: Array, image: Array) -> Array:
    """Boxes cut to an image [N, C, H, W]."""
    h, w = image.shape[2:]
    return np.clip(boxes, 0, np.array([w, h, w, h], boxes.dtype))


def nms(boxes: Array, scores: Array, *, pre: int, keep: int, iou: float) -> Array:
    """Of the `pre` best boxes, those that overlap no better one that is kept by more than `iou`: [N, keep, 5].

    The scores are [N, a, H, W]. The list is filled up with zeros.
    """
    scores = scores.transpose(0, 2, 3, 1).reshape(len(scores), -1)
    y = np.zeros((len(boxes), keep, 5), boxes.dtype)
    for image, score, order, kept in zip(boxes, scores, best_first(scores)[:, :pre], y, strict=True):
        rest = order
        for box in kept:
            if not rest.size:
                break
            best, rest = rest[0], rest[1:]
            box[:4], box[4] = image[best], score[best]
            rest = rest[~(overlaps(image[best], image[rest]) > iou)]
    return y


def best_first(scores: Array) -> Array:
    """The order of scores [N, K] from the largest, equal ones as they come; NaN counts as infinity."""
    return np.argsort(-np.where(np.isnan(scores), np.inf, scores), axis=1, kind="stable")


def overlaps(box: Array, others: Array) -> Array:
    """The area that a box has in common with each of the others, divided by that of the two together."""
    common = np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0).prod(1)
    together = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common
    return np.divide(common, together, out=np.zeros_like(common), where=common > 0)


def top(*lists: Array, k: int) -> Array:
    """The `k` best boxes of several lists, best first, filled up with zeros: [N, k, 5]."""
    boxes = np.concatenate(lists, axis=1)
    order = best_first(boxes[..., 4])[:, :k]
    y = np.zeros((len(boxes), k, 5), boxes.dtype)
    y[:, : order.shape[1]] = np.take_along_axis(boxes, order[..., None], axis=1)
    return y
