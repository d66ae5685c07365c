"""Schedules for CPUs: the outer loops in parallel, the inner ones in an order that vectorises."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, s_tir, tirx

from cnnc_tvm.tensor import Function, Loops

_BRANCH, _C_FUNCTION = ir.Op.get("prim.if_then_else"), ir.Op.get("tirx.call_pure_extern")


def schedule(function: Function) -> Any:
    """The function's body with its loops ordered for a CPU."""
    if function.loops.kind in ("kernel", "written"):
        return function.body
    sch = s_tir.Schedule(function.body)
    reduction, result = prepare(sch)
    if reduction is None and function.loops.blocked:
        _places(sch, result)
    elif reduction is None:
        _elements(sch, result, fuse=function.loops.kind == "points")
    elif function.loops.kind != "lanes" and function.loops.blocked:
        _blocks(sch, reduction, result)
    elif function.loops.kind == "lanes":
        _lanes(sch, reduction, result, function.loops)
    elif function.loops.kind == "windows":
        _windows(sch, reduction, result)
    else:
        _sums(sch, reduction, result)
    return sch.mod["main"]


def prepare(sch: Any) -> tuple[Any, Any]:
    """The blocks of the reduction, where there is one, and of the result; the reduction gets a local buffer."""
    *before, result = sch.get_child_blocks(sch.get_sblock("root"))
    if before:
        (reduction,) = before
        sch.set_scope(reduction, 0, "local")
        return reduction, result
    if not any(i.iter_type == tirx.IterVar.CommReduce for i in sch.get(result).iter_vars):
        return None, result
    return result, sch.cache_write(result, 0, "local")


def _elements(sch: Any, result: Any, *, fuse: bool) -> None:
    """The last axis (of an image the last two, if elements are read at their own place) is LLVM's to vectorise."""
    loops = sch.get_loops(result)
    inner = 2 if fuse and len(loops) > 3 else 1
    if fuse and inner == 2:
        loops = [*loops[:-2], sch.fuse(*loops[-2:])]
    if len(loops) > 1:
        sch.parallel(sch.fuse(*loops[:-1]))
    elif loops:
        outer, _ = sch.split(loops[0], [None, 1024])
        sch.parallel(outer)


def _places(sch: Any, result: Any) -> None:
    """Row by row; the channels of a block are a vector."""
    n, block, row, _, lane = sch.get_loops(result)
    _vectorise(sch, result, lane)
    sch.parallel(sch.fuse(n, block, row))


def _blocks(sch: Any, reduction: Any, result: Any) -> None:
    """Place by place: the sums of a block of channels are a vector."""
    n, block, row, column, _ = sch.get_loops(result)
    sch.parallel(sch.fuse(n, block, row))
    sch.compute_at(reduction, column)
    reduced = _reduced_loops(sch, reduction)
    lane = sch.get_loops(reduction)[-len(reduced) - 1]
    sch.reorder(*reduced, lane)
    _vectorise(sch, reduction, lane)
    _vectorise(sch, result, sch.get_loops(result)[-1])
    sch.decompose_reduction(reduction, reduced[0])


def _vectorise(sch: Any, block: Any, lane: Any) -> None:
    """The loop over the lanes as vectors, unless lanes branch or call functions: TVM takes such loops apart, and
    stumbles over `Let`."""
    index = sch.get(block).iter_vars[4].var
    apart: list[bool] = []

    def visit(call: Any) -> None:
        apart.append(call.op.same_as(_C_FUNCTION))
        if call.op.same_as(_BRANCH):
            tvm_ffi.structural_walk(call.args[0], (tirx.Var, lambda x: apart.append(x.same_as(index))))

    tvm_ffi.structural_walk(sch.get(block).body, (ir.Call, visit))
    if not any(apart):
        sch.vectorize(lane)


def _sums(sch: Any, reduction: Any, result: Any) -> None:
    if loops := sch.get_loops(result):  # none where everything is reduced to one number
        whole = sch.fuse(*loops)
        sch.parallel(whole)
        sch.compute_at(reduction, whole)
    sch.decompose_reduction(reduction, _reduced_loops(sch, reduction)[0])


def _windows(sch: Any, reduction: Any, result: Any) -> None:
    """Row by row: for each place of the window, a vectorised sweep along the row."""
    *outer, row, _ = sch.get_loops(result)
    sch.parallel(sch.fuse(*outer))
    sch.compute_at(reduction, row)
    reduced = _reduced_loops(sch, reduction)
    along = sch.get_loops(reduction)[2 : -len(reduced)]
    sch.reorder(*reduced, *along)
    sch.decompose_reduction(reduction, reduced[0])


def _lanes(sch: Any, reduction: Any, result: Any, form: Loops) -> None:
    """A tile of places times a block of channels in registers, the whole reduction around it."""
    loops = sch.get_loops(result)
    if form.blocked:
        n, blocks, row, column, lane = loops
        block, part = sch.split(blocks, [None, form.lanes // sch.get(lane).extent])
        tiles, place = sch.split(column, [None, form.tile])
        sch.reorder(n, block, row, tiles, part, place, lane)
        outer = [n, block, row]
    elif len(loops) == 4:
        n, channels, row, column = loops
        block, lane = sch.split(channels, [None, form.lanes])
        tiles, place = sch.split(column, [None, form.tile])
        sch.reorder(n, block, row, tiles, lane, place)
        outer = [n, block, row]
    else:
        n, channels = loops
        block, lane = sch.split(channels, [None, form.lanes])
        tiles, outer = None, [n, block]
    whole = sch.fuse(*outer)
    sch.parallel(whole)
    sch.compute_at(reduction, tiles or whole)
    reduced = _reduced_loops(sch, reduction)
    inner = sch.get_loops(reduction)[2 if tiles else 1 : -len(reduced)]
    sch.reorder(*reduced, *inner)
    sch.vectorize(inner[-1])
    for loop in inner[:-1]:
        sch.unroll(loop)
    sch.decompose_reduction(reduction, reduced[0])


def _reduced_loops(sch: Any, reduction: Any) -> list[Any]:
    """The loops over what is reduced, which come last."""
    count = sum(i.iter_type == tirx.IterVar.CommReduce for i in sch.get(reduction).iter_vars)
    return list(sch.get_loops(reduction)[-count:])
