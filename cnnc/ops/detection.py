"""Ops of region-based detectors: regions cut out of feature maps, anchors, boxes and their selection.

A box is x1, y1, x2, y2 in pixels of the image; a scored box has its score as a fifth number. Every image has the same
number of boxes: lists are filled up with boxes of score 0.
"""

from __future__ import annotations

from math import sqrt

from cnnc.ir.attrs import Bool, Float, Int, ListOf, Pair, PairKind, attr
from cnnc.ir.dim import Dim
from cnnc.ir.op import Op, OpError, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import channels, check_same, images


@register
class RoiPool(Op):
    """The maximum of each cell of a grid laid over each region.

    A region is rounded to places of x (times `scale`, halves away from 0), both ends included, and at least one place;
    cell i of h rows spans floor(i*rows/h) to ceil((i + 1)*rows/h) - 1 of its rows, cut to x; an empty cell is 0.

    Shapes: x [N, C, H, W], rois [N, R, 4 or 5], a fifth number ignored -> [N*R, C, h, w], the regions of image 0 first.
    Source: Girshick 2015 (Fast R-CNN); torchvision.ops.roi_pool.
    """

    name = "roi_pool"
    size: Pair = attr(PairKind(), "size")
    scale: float = attr(Float(above=0), "scale", default=1.0)

    def infer(self, x: TensorType, rois: TensorType) -> TensorType:
        return _regions(self.name, self.size, rois, 1, x, 0)


@register
class RoiAlign(Op):
    """The mean of samples x samples points in each cell of a grid laid over each region, read bilinearly.

    A region is multiplied by `scale` and not rounded. With `aligned` half a place is subtracted, so that the value of a
    place stands at its centre; without it a region is at least one place wide and high. Points more than one place
    outside x are 0; others are cut to it.

    Shapes: x [N, C, H, W], rois [N, R, 4 or 5], a fifth number ignored -> [N*R, C, h, w], the regions of image 0 first.
    Source: He et al. 2017 (Mask R-CNN); torchvision.ops.roi_align.
    """

    name = "roi_align"
    size: Pair = attr(PairKind(), "size")
    scale: float = attr(Float(above=0), "scale", default=1.0)
    samples: int = attr(Int(1), "samples", default=2)
    aligned: bool = attr(Bool(), "aligned", default=False)

    def infer(self, x: TensorType, rois: TensorType) -> TensorType:
        return _regions(self.name, self.size, rois, 1, x, 0)


@register
class RoiAlignPyramid(Op):
    """`roi_align` of each region on the pyramid level that suits its size.

    The level, counted from the first, is floor(4 + log2(sqrt(width * height) / 224) + 1e-6) - round(-log2(scales[0])),
    cut to those there are: the first for a region without area. A region of negative area has none, and is 0.

    Shapes: rois [N, R, 4 or 5], levels [N, C, Hi, Wi], one for each of `scales`, finest first -> [N*R, C, h, w].
    Source: Lin et al. 2017 (FPN), equation 1; torchvision.ops.MultiScaleRoIAlign.
    """

    name = "roi_align_pyramid"
    size: Pair = attr(PairKind(), "size")
    scales: tuple[float, ...] = attr(ListOf(Float(above=0)), "scales")
    samples: int = attr(Int(1), "samples", default=2)

    def infer(self, rois: TensorType, level: TensorType, *levels: TensorType) -> TensorType:
        if len(self.scales) != 1 + len(levels):
            raise OpError("E0302", f"`{self.name}` has {len(self.scales)} scales, but {1 + len(levels)} levels")
        out = _regions(self.name, self.size, rois, 0, level, 1)
        for operand, other in enumerate(levels, start=2):
            images(other, self.name, operand)
            for axis in (0, 1):
                check_same(self.name, 4, axis, level.shape[axis], other.shape[axis], operand, nouns="levels")
        return out


@register
class Anchors(Op):
    """Boxes around every place of a map: for each ratio, for each size, one that is size*sqrt(ratio) high.

    It is size/sqrt(ratio) wide, and the box of place (i, j) is centred on (j*stride, i*stride); its corners, seen from
    the centre, are rounded to whole pixels, halves to even.

    Shapes: x [N, C, H, W] -> [N, H*W*a, 4], a = len(sizes)*len(ratios), a place's boxes together.
    Source: Ren et al. 2015; torchvision's AnchorGenerator.
    """

    name = "anchors"
    sizes: tuple[float, ...] = attr(ListOf(Float(above=0)), "sizes")
    ratios: tuple[float, ...] = attr(ListOf(Float(above=0)), "ratios")
    stride: Pair = attr(PairKind(), "stride")

    def infer(self, x: TensorType) -> TensorType:
        n, _, h, w = images(x, self.name)
        return x.with_shape((n, h * w * (len(self.sizes) * len(self.ratios)), 4))

    @property
    def corners(self) -> tuple[tuple[int, int, int, int], ...]:
        """x1, y1, x2, y2 of a place's boxes, seen from the centre."""
        halves = [(size / sqrt(ratio) / 2, size * sqrt(ratio) / 2) for ratio in self.ratios for size in self.sizes]
        return tuple((round(-x), round(-y), round(x), round(y)) for x, y in halves)


@register
class Decode(Op):
    """Anchors moved and scaled by predicted deltas dx, dy, dw, dh.

    The centre moves by (dx*w, dy*h), w and h are multiplied by exp(dw) and exp(dh); dw and dh are at most log(1000/16).
    Shapes: anchors [N, H*W*a, 4], deltas [N, 4*a, H, W] (the four of an anchor together) -> [N, H*W*a, 4].
    Source: Girshick et al. 2014, appendix C; torchvision's BoxCoder.
    """

    name = "decode"

    def infer(self, anchors: TensorType, deltas: TensorType) -> TensorType:
        n, count = _boxes(self.name, anchors, 0)
        m, _, h, w = images(deltas, self.name, operand=1)
        check_same(self.name, 3, 0, n, m, operand=1)
        _check_count(self.name, count, h * w * channels(deltas, self.name), 4)
        return anchors


@register
class ClipBoxes(Op):
    """Boxes cut to the image: x1, x2 to 0 .. W, y1, y2 to 0 .. H; NaN stays.

    Shapes: boxes [N, K, 4], image [N, C, H, W] -> [N, K, 4].
    """

    name = "clip_boxes"

    def infer(self, boxes: TensorType, image: TensorType) -> TensorType:
        n, _ = _boxes(self.name, boxes, 0)
        m, _, _, _ = images(image, self.name, operand=1)
        check_same(self.name, 3, 0, n, m, operand=1)
        return boxes


@register
class Nms(Op):
    """Non-maximum suppression: the best boxes of each image that do not overlap a kept one by more than `iou`.

    The `pre` best by score are considered, or all where there are fewer, best first: of equal scores the first, and NaN
    counts as infinity. At most `keep` are kept; the list is filled up with zeros, whatever the scores. The overlap is
    the area of the intersection divided by that of the union; a box with x2 <= x1, y2 <= y1 or NaN overlaps none.

    Shapes: boxes [N, K, 4], scores [N, a, H, W] with K = H*W*a -> [N, keep, 5].
    Source: Girshick et al. 2014; torchvision.ops.nms.
    """

    name = "nms"
    pre: int = attr(Int(1), "pre")
    keep: int = attr(Int(1), "keep")
    iou: float = attr(Float(low=0), "iou")

    def infer(self, boxes: TensorType, scores: TensorType) -> TensorType:
        n, count = _boxes(self.name, boxes, 0)
        m, a, h, w = images(scores, self.name, operand=1)
        check_same(self.name, 3, 0, n, m, operand=1)
        _check_count(self.name, count, h * w * a, 1)
        return boxes.with_shape((n, self.keep, 5))


@register
class Top(Op):
    """The k best of several lists of scored boxes, best first; filled up with zeros where there are fewer.

    Of equal scores the first is better, an earlier list's before a later one's, and NaN counts as infinity. The zeros
    that fill up a list are boxes of score 0 here, better than negative ones: let scores be positive, as by `sigmoid`.

    Shapes: lists [N, Ki, 5] -> [N, k, 5].
    """

    name = "top"
    k: int = attr(Int(1), "k")

    def infer(self, *lists: TensorType) -> TensorType:
        n: Dim = lists[0].shape[0] if lists[0].rank else 1
        for operand, boxes in enumerate(lists):
            m, _ = _boxes(self.name, boxes, operand, widths=(5,))
            check_same(self.name, 3, 0, n, m, operand)
        return lists[0].with_shape((n, self.k, 5))


def _boxes(op: str, x: TensorType, operand: int, widths: tuple[int, ...] = (4,)) -> tuple[Dim, Dim]:
    """The number of images and of boxes in each, of an operand that must be a list of boxes."""
    if x.rank != 3 or x.shape[2] not in widths:
        wanted = " or ".join(map(str, widths))
        raise OpError("E0308", f"`{op}` takes boxes [N, K, {wanted}], not {x}", operand=operand)
    return x.shape[0], x.shape[1]


def _regions(op: str, size: Pair, rois: TensorType, at: int, x: TensorType, x_at: int) -> TensorType:
    """The type of regions cut out of x; `at` and `x_at` are the positions of the operands."""
    n, c, _, _ = images(x, op, x_at)
    m, count = _boxes(op, rois, at, widths=(4, 5))
    check_same(op, 3, 0, n, m, operand=at)
    return x.with_shape((n * count, c, *size))


def _check_count(op: str, boxes: Dim, values: Dim, each: int) -> None:
    if boxes * each != values:
        raise OpError("E0313", f"`{op}` needs {boxes * each} values for {boxes} boxes, not {values}", operand=1)
