"""Running a plan: memory for its tensors on a device, then its steps one after the other.

No compiler is imported here. What differs between CPU and GPU is behind `Device`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from cnnc.ir.dim import evaluate
from cnnc.ir.types import DType
from cnnc.target import Port, Program
from cnnc_tvm import PLAN, WEIGHTS
from cnnc_tvm.plan import Plan, Step
from cnnc_tvm.stored import dump

if TYPE_CHECKING:
    from cnnc.profiling import StepTimes
    from cnnc.target import Array

Memory = Any
"""A piece of a device's memory."""
View = Any
"""A piece of memory with a shape and an element type, as the device's functions take it."""


class Device(Protocol):
    """Where the functions of a plan run."""

    def enter(self) -> None:
        """To be called before each run, by its thread. CnncError where it cannot run here."""

    def memory(self, size: int) -> Memory:
        """That many bytes of memory, which live as long as the value does."""

    def part(self, memory: Memory, start: int, size: int) -> Memory:
        """That many of its bytes, from `start` on."""

    def view(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> View:
        """The memory as a tensor."""

    def constant(self, array: Array) -> Memory:
        """A contiguous array as memory that steps only read: its own, where they can."""

    def writer(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> Callable[[Array], object]:
        """What copies a contiguous array of this shape into memory."""
        ...

    def reader(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> Callable[[], Array]:
        """What copies memory into a new array, when all steps before are done."""
        ...

    def call(self, step: Step, args: list[View], dims: Mapping[str, int]) -> Callable[[], object]:
        """The step as a function of nothing, to be called at each run."""
        ...


@dataclass(frozen=True)
class _Frame:
    """What runs with the same symbolic dims have in common: the inputs, steps and outputs, bound to their memory."""

    dims: Mapping[str, int]
    inputs: Mapping[str, Callable[[Array], object]]
    calls: list[Callable[[], object]]
    outputs: Mapping[str, Callable[[], Array]]


class TvmProgram(Program):
    """A network compiled to functions and a plan. `open` gives the device, at the first run."""

    def __init__(
        self, target: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...], plan: Plan,
        weights: Mapping[str, Array], code: Mapping[str, bytes], text: Callable[[], str], open: Callable[[], Device],
    ) -> None:  # fmt: skip
        super().__init__(target, inputs, outputs)
        self.plan, self.weights = plan, weights
        self._code, self._text, self._open = code, text, open
        self._frame: _Frame | None = None
        self._lock = Lock()

    def run(self, inputs: dict[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        with self._lock:  # the scratch memory is one
            self._device.enter()
            frame = self._filled(inputs, dims)
            for call in frame.calls:
                call()
            return {name: read() for name, read in frame.outputs.items()}

    def timed(self, runs: int, between: Callable[[], object], /, **arrays: object) -> list[StepTimes]:
        """The times of each step in `runs` runs on these inputs, after one that warms up; before each, `between` is
        called. The device must be one that is done with a step when its call returns."""
        from cnnc.profiling import StepTimes

        inputs, dims = self._checked(arrays)
        self.run(inputs, dims)
        times: list[list[float]] = [[] for _ in self.plan.steps]
        with self._lock:
            for _ in range(runs):
                between()
                for call, own in zip(self._filled(inputs, dims).calls, times, strict=True):
                    start = perf_counter()
                    call()
                    own.append(perf_counter() - start)
        return [
            StepTimes(step.function, step.nodes, self._bytes(step, dims), tuple(own))
            for step, own in zip(self.plan.steps, times, strict=True)
        ]

    def files(self) -> dict[str, bytes]:
        return {PLAN: self.plan.to_json(), WEIGHTS: dump(self.weights), **self._code}

    def source(self) -> str:
        """CUDA C, or LLVM's assembly of the CPU functions; '' for a loaded CPU program, whose artifact has none."""
        return self._text() or (self.remade().source() if self.remade else "")

    def _filled(self, inputs: Mapping[str, Array], dims: Mapping[str, int]) -> _Frame:
        """The frame for these dims with the inputs in its memory, where steps may write over them."""
        frame = self._frame_for(dims)
        for name, write in frame.inputs.items():
            write(inputs[name])
        return frame

    def _bytes(self, step: Step, dims: Mapping[str, int]) -> int:
        return sum(self.plan.tensors[i].type.bytes_at(dims) for i in dict.fromkeys(step.args))

    @cached_property
    def _device(self) -> Device:
        return self._open()

    @cached_property
    def _weights(self) -> Mapping[str, Memory]:
        """The weights on the device."""
        return {name: self._device.constant(array) for name, array in self.weights.items()}

    def _frame_for(self, dims: Mapping[str, int]) -> _Frame:
        """The frame of the last run if it had these dims, else a new one in its place: memory is held for one."""
        if self._frame is None or self._frame.dims != dims:
            self._frame = None
            self._frame = self._new_frame(dict(dims))
        return self._frame

    def _new_frame(self, dims: Mapping[str, int]) -> _Frame:
        plan, arena = self.plan, self.plan.arena(dims)
        whole = self._device.memory(arena.size)
        blocks = [
            self._device.part(whole, start, size)
            for start, size in zip(arena.offsets, plan.block_bytes(dims), strict=True)
        ]

        def place(position: int) -> tuple[Memory, tuple[int, ...], DType]:
            x = plan.tensors[position]
            memory = self._weights[x.memory] if isinstance(x.memory, str) else blocks[x.memory]
            return memory, tuple(evaluate(dim, dims) for dim in x.shape), x.type.dtype

        calls = []
        for step in plan.steps:
            args = [self._device.view(*place(i)) for i in step.args]
            calls.append(self._device.call(step, args, plan.values(step, dims)))
        inputs = {name: self._device.writer(*place(i)) for name, i in plan.inputs.items()}
        outputs = {port.name: self._device.reader(*place(plan.outputs[port.name])) for port in self.outputs}
        return _Frame(dims, inputs, calls, outputs)
