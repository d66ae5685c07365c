"""Functions written as statements, for what no loop nest over elements computes: sorting, choosing one after the other.

A *team* of threads works on each image: a block of them on a GPU, a single one on a CPU, so that one text serves both.
All of them run the statements. They share out loops by `each`, and meet at `sync`: what a thread writes, the others may
read after the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from cnnc.ir.types import TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.tensor import Expr, Tensor


@dataclass(frozen=True)
class Team:
    """The threads that work on one image, seen by one of them."""

    threads: int
    me: Expr
    """Which thread this is."""
    _sums: Any = None

    def each(self, start: Expr, stop: Expr) -> Any:
        """A loop (a context whose value is the index) over start .. stop - 1, shared out one index after the other."""
        return T.serial(start + self.me, stop, step=self.threads)

    def sync(self) -> None:
        """Wait until every thread is here; all or none must come."""
        if self.threads > 1:
            T.evaluate(T.tvm_storage_sync("shared"))

    def sums(self, value: Expr) -> tuple[Expr, Expr]:
        """The sum of the integers `value` of the threads before this one, and of all. A `sync`, or many."""
        own = T.bind(value)
        if self.threads == 1:
            return 0, own
        sums = self._sums
        T.buffer_store(sums, own, [self.me])
        self.sync()
        with T.serial((self.threads - 1).bit_length()) as step:  # each adds the sum that ends 2^step before its own
            before = T.bind(self.me - (tirx.const(1, "int32") << step))
            more = T.bind(tirx.if_then_else(before >= 0, sums[before], 0))
            self.sync()
            T.buffer_store(sums, sums[self.me] + more, [self.me])
            self.sync()
        result = T.bind(sums[self.me] - own), T.bind(sums[self.threads - 1])
        self.sync()
        return result


class Variable:
    """A variable of each thread."""

    def __init__(self, value: Expr, dtype: str = "int32") -> None:
        self._memory = T.alloc_buffer((1,), dtype, scope="local")
        self.set(value)

    def get(self) -> Expr:
        return self._memory[0]

    def set(self, value: Expr) -> None:
        T.buffer_store(self._memory, value, [0])


def by_teams(b: Builder, threads: int, type: TensorType, write: Callable[..., None], *operands: Tensor) -> Tensor:
    """A tensor [images, ...] in memory, made by the statements that `write(team, image, *buffers)` emits."""
    images = b.size(type.shape[0])

    def statements(*buffers: Any) -> None:
        if threads == 1:
            with T.parallel(images) as image:
                write(Team(1, 0), image, *buffers)
        else:
            blocks, block = (
                T.thread_binding(images, thread="blockIdx.x"),
                T.thread_binding(threads, thread="threadIdx.x"),
            )
            with blocks as image, block as me:
                write(Team(threads, me, T.alloc_buffer((threads,), "int32", scope="shared")), image, *buffers)

    return b.written(type, statements, *operands)


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """What is emitted inside runs only where the condition holds."""
    with T.If(condition), T.Then():
        yield
