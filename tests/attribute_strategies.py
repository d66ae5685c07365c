"""Hypothesis strategies of op attributes: what their kinds declare, and what fits operands of given types."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

from hypothesis import strategies as st

from cnnc import ops
from cnnc.ir.attrs import Bool, Choice, Float, Int, Kind, PairKind
from cnnc.ir.op import Op, attributes
from cnnc.ir.types import DType, TensorType
from cnnc.ops.pool import Pool

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]


def draw_attributes(draw: Draw, cls: type[Op], operands: Sequence[TensorType]) -> dict[str, Any]:
    """Values for all attributes of an op, by their Python names, with which it takes these operands."""
    chosen = dependent(draw, cls, operands)
    rest = [field for field in attributes(cls) if field.name not in chosen]
    return chosen | {field.name: _independent(draw, field, operands[0]) for field in rest}


def _independent(draw: Draw, field: dataclasses.Field[Any], x: TensorType) -> object:
    """A value for an attribute that depends on no other: by its name, or else by its kind."""
    match field.name:
        case "axis":
            return draw(st.integers(1, x.rank - 1))  # axis 0 is the batch
        case "groups":
            return draw(_divisors(size(x, 1)))
        case "init":
            return field.default  # tests make weights of their own
        case _:
            return draw(_of_kind(field.metadata["kind"]))


def _of_kind(kind: Kind) -> st.SearchStrategy[Any]:
    """Small, plain values of an attribute kind."""
    match kind:
        case Bool():
            return st.booleans()
        case Choice(words=words):
            return st.sampled_from(words)
        case PairKind(low=low):
            return _pair(st.integers(low, low + 3))
        case Int(low=low, high=high):
            return st.integers(low, min(low + 4, high))
        case Float(low=low, above=above, below=below):
            return st.sampled_from([v for v in (0.5, 0.1, 0.01, 0.75, 1.0) if low <= v and above < v < below])
    raise TypeError(f"no values of {kind} are known: give them in `dependent`")


def dependent(draw: Draw, cls: type[Op], operands: Sequence[TensorType]) -> dict[str, Any]:
    """The attributes that depend on one another or on the operands, or that only some values of make sense."""
    x = operands[0]
    if cls in (ops.Conv, ops.Local) or issubclass(cls, Pool):
        return _window(draw, cls, x)
    match cls.name:
        case "deconv":
            return _deconv(draw, x)
        case "unpool":
            kernel = tuple(draw(st.integers(1, min(3, size(x, axis)))) for axis in (2, 3))
            return {"kernel": kernel, "stride": draw(_pair(st.integers(1, 4)))}
        case "concat":
            return {} if all(y.shape == x.shape for y in operands) else {"axis": 1}
        case "resize":
            return {"size": draw(_pair(st.integers(1, 9))) if len(operands) == 1 else None, **_mode(draw)}
        case "upsample":
            return {"scale": draw(_pair(st.integers(1, 3))), **_mode(draw)}
        case "pixel_shuffle":
            return {"scale": 1 if size(x, 1) % 4 else 2}
        case "crop":
            return {"offset": [draw(st.integers(0, size(x, axis) - size(operands[1], axis))) for axis in (2, 3)]}
        case "slice":
            axis = draw(st.integers(1, x.rank - 1))
            start = draw(st.integers(0, size(x, axis) - 1))
            stop = draw(st.integers(start + 1, size(x, axis)))
            from_end = draw(st.booleans())
            return {"axis": axis, "start": start - size(x, axis) if from_end else start, "stop": stop}
        case "take":
            axis = draw(st.integers(1, x.rank - 1))
            positions = st.integers(0, size(x, axis) - 1)
            return {"axis": axis, "indices": draw(st.lists(positions, min_size=1, max_size=4))}
        case "reshape":
            total = prod(sizes(x))
            first = draw(_divisors(total))
            second = draw(_divisors(total // first))
            third = total // first // second
            return {"dims": draw(st.sampled_from([(first, second, -1), (first, -1), (-1,), (first, second, third)]))}
        case "transpose":
            return {"axes": [0, *draw(st.permutations(range(1, x.rank)))]}
        case "reduce_mean" | "reduce_sum" | "reduce_max" | "reduce_min":
            return {"axes": sorted(draw(st.sets(st.integers(1, x.rank - 1), min_size=1, max_size=2)))}
        case "normalize":
            count = draw(st.sampled_from([1, size(x, 1)]))
            mean, std = (_list(draw, values, count) for values in ([0.5, 0.25, -0.5], [0.5, 0.25]))
            return {"mean": mean, "std": std}
        case "clip":
            return {"low": draw(st.sampled_from([0.0, -1.0, -0.5])), "high": draw(st.sampled_from([6.0, 1.0, 0.5]))}
        case "roi_pool" | "roi_align":
            return {"scale": draw(st.sampled_from([1.0, 0.5]))}  # regions of a size that holds something
        case "pad":
            return {"pad": draw(_sides(2))}
        case "softmax" | "log_softmax":
            return {"axis": draw(st.sampled_from([axis for axis in range(1, x.rank) if size(x, axis) > 1]))}
        case "layer_norm":
            several = [axis for axis in range(1, x.rank) if prod(sizes(x)[axis - 1 :]) > 1]
            return {"axis": draw(st.sampled_from(several))}
        case "group_norm":
            return {"groups": draw(_divisors(size(x, 1)).filter(lambda groups: prod(sizes(x)) > groups))}
        case "cast":
            return {"dtype": draw(st.sampled_from([DType.F32, x.dtype]))}
        case "constant":
            shape = draw(st.sampled_from([(), sizes(x)[-1:], (size(x, 1), *[1] * (x.rank - 2))]))
            return {"shape": shape, "values": _list(draw, [0.5, 1.0, -1.0, 2.0], prod(shape)), "dtype": x.dtype}
        case _:
            return {}


def _window(draw: Draw, cls: type[Op], x: TensorType) -> dict[str, Any]:
    """Kernel, stride, dilation and padding of windows on x, and a convolution's groups and channels."""
    kernel = draw(_pair(st.sampled_from([3, 1, 2, 5])))
    # A dilated window may lie in the padding with all its places: of a small map, or of a max pool, which gives -Inf.
    small = min(size(x, 2), size(x, 3)) < 3
    dilation = draw(_pair(st.sampled_from([1, 2]))) if cls is ops.Conv and not small else (1, 1)
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(0, -(-(k - size(x, axis)) // 2)) for axis, k in enumerate(span, start=2)]
    sides = [st.integers(low, min(low + 1, k - 1)) for low, k in zip(least, span, strict=True)]
    pads = [st.tuples(*sides, *sides), st.sampled_from(["same_upper", "same_lower"])]
    if all(k % 2 for k in span):
        pads.append(st.just("half"))
    given = {"kernel": kernel, "pad": draw(st.one_of(pads)), "stride": draw(_pair(st.integers(1, 3)))}
    if cls is ops.Conv:
        groups = draw(_divisors(size(x, 1)))
        given |= {"dilation": dilation, "groups": groups, "channels": groups * draw(st.integers(1, 3))}
    return given | ({"dilation": dilation} if cls is ops.MaxPool else {})


def _deconv(draw: Draw, x: TensorType) -> dict[str, Any]:
    groups = draw(_divisors(size(x, 1)))
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    return {
        "groups": groups, "channels": groups * draw(st.integers(1, 2)), "kernel": kernel, "stride": stride,
        "dilation": dilation, "pad": draw(_sides(dilation * (kernel - 1) // 2)),
        "out_pad": draw(st.integers(0, min(1, stride - 1))),  # ONNX has no more, even where dilation would allow it
    }  # fmt: skip


def _mode(draw: Draw) -> dict[str, Any]:
    """How an image is resampled."""
    bilinear = draw(st.booleans())
    return {"mode": "bilinear" if bilinear else "nearest", "align_corners": bilinear and draw(st.booleans())}


def _pair(items: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(items, items)


def _sides(most: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Top, left, bottom, right."""
    return st.tuples(*[st.integers(0, most)] * 4)


def _list(draw: Draw, values: Sequence[float], count: int) -> Any:
    return draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))


def _divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([d for d in range(1, min(number, 16) + 1) if number % d == 0])


def sizes(x: TensorType) -> tuple[int, ...]:
    """The sizes of all axes but the batch, which is symbolic."""
    return tuple(dim for dim in x.shape if isinstance(dim, int))


def size(x: TensorType, axis: int) -> int:
    """The size of an axis other than the batch."""
    dim = x.shape[axis]
    assert isinstance(dim, int)
    return dim
