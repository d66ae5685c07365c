"""The plan of a compiled network: which function runs on which tensors, and where the tensors lie.

A plan is data and is all a program needs besides its machine code and its weights: no compiler takes part in a run.
Shapes may hold symbolic dims; `Plan.sizes` evaluates them for a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cnnc.diagnostics import error
from cnnc.ir.dim import Dim, evaluate, parse_dim
from cnnc.ir.op import MAX_ELEMENTS
from cnnc.ir.types import TensorType

Place: TypeAlias = Literal["input", "weight", "slot"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor and where it lies: in an input or a weight (by name), or in a slot of scratch memory (by number).

    Several tensors may lie in one slot, at different times or, as views, at once.
    """

    type: TensorType
    place: Place
    key: str | int


@dataclass(frozen=True, slots=True)
class Step:
    """A call of `function` on the tensors `args`, the result last, and then on the values of the symbols `dims`."""

    function: str
    node: str
    """The node of the graph it computes, for errors and profiles."""
    args: tuple[int, ...]
    dims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a CUDA kernel is launched: its arguments in order (positions in `Step.args`, or symbols) and its sizes."""

    args: tuple[int | str, ...]
    grid: tuple[Dim, Dim, Dim]
    block: tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """`inputs` and `outputs` name tensors by position in `tensors`; `kernels` is empty where functions are called."""

    tensors: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    kernels: Mapping[str, Kernel] = field(default_factory=dict)

    def slot_sizes(self, dims: Mapping[str, int]) -> dict[int, int]:
        """Bytes of each slot: those of its largest tensor. CnncError E0502 where a tensor has too many elements."""
        sizes: dict[int, int] = {}
        for tensor in self.tensors:
            if isinstance(tensor.key, int):
                elements = evaluate(tensor.type.size, dims)
                if elements >= MAX_ELEMENTS:
                    given = ", ".join(f"{name}={value}" for name, value in dims.items())
                    raise error(
                        "E0502", f"{tensor.type} has {elements:,} elements for {given}: the limit is {MAX_ELEMENTS:,}"
                    )
                sizes[tensor.key] = max(sizes.get(tensor.key, 0), elements * tensor.type.dtype.size)
        return sizes

    def to_json(self) -> bytes:
        data = {
            "tensors": [[str(x.type), x.place, x.key] for x in self.tensors],
            "steps": [[s.function, s.node, list(s.args), list(s.dims)] for s in self.steps],
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "kernels": {
                name: {"args": list(k.args), "grid": list(map(str, k.grid)), "block": list(k.block)}
                for name, k in self.kernels.items()
            },
        }
        return json.dumps(data, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> Plan:
        """The plan that `to_json` wrote."""
        data = json.loads(text)
        return Plan(
            tuple(Tensor(TensorType.parse(type), place, key) for type, place, key in data["tensors"]),
            tuple(Step(f, node, tuple(args), tuple(dims)) for f, node, args, dims in data["steps"]),
            data["inputs"],
            data["outputs"],
            {name: _kernel(kernel) for name, kernel in data["kernels"].items()},
        )


def _kernel(data: Mapping[str, Any]) -> Kernel:
    x, y, z = map(parse_dim, data["grid"])
    a, b, c = data["block"]
    return Kernel(tuple(data["args"]), (x, y, z), (a, b, c))


def place_in_slots(
    tensors: list[TensorType], views: Mapping[int, int], steps: tuple[Step, ...], kept: set[int]
) -> dict[int, int]:
    """A slot for each tensor that steps write, such that no two tensors alive at once share one.

    `views` maps a tensor to the one whose memory it is; `kept` are read after the last step. A freed slot goes to the
    tensor nearest to it in size, symbols taken as 64 (any choice is correct: a slot is as large as its largest tensor).
    """

    def root(i: int) -> int:
        while i in views:
            i = views[i]
        return i

    last = {root(i): step for step, s in enumerate(steps) for i in s.args}
    last.update((root(i), len(steps)) for i in kept)
    slots: dict[int, int] = {}
    sizes: dict[int, int] = {}  # of slots, as they stand
    free: set[int] = set()
    for step, s in enumerate(steps):
        made = root(s.args[-1])
        size = _nominal_bytes(tensors[made])
        if made not in slots:
            slot = min(free, key=lambda i: (abs(sizes[i] - size), i), default=len(sizes))
            free.discard(slot)
            slots[made] = slot
            sizes[slot] = max(sizes.get(slot, 0), size)
        free.update(slots[i] for i in {root(i) for i in s.args} if i in slots and last[i] == step)
    return slots


def _nominal_bytes(x: TensorType) -> int:
    return evaluate(x.bytes, dict.fromkeys(x.symbols, 64))
