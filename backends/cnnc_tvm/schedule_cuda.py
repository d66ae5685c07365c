"""Schedules for GPUs: a thread for each element of the result, which reduces in a register."""

from __future__ import annotations

from typing import Any

from tvm import s_tir

from cnnc_tvm.schedule_cpu import prepare
from cnnc_tvm.tensor import Function

THREADS = 256
"""Threads of a block."""


def schedule(function: Function) -> Any:
    """The function's body as one kernel."""
    if function.loops.kind == "written":
        return function.body
    sch = s_tir.Schedule(function.body)
    reduction, result = prepare(sch)
    loops = sch.get_loops(result) or [sch.add_unit_loop(result)]
    block, thread = sch.split(sch.fuse(*loops), [None, THREADS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if reduction is not None:
        sch.compute_at(reduction, thread)
    return sch.mod["main"]
