"""The plan of a compiled network: which function runs on which tensors, and where the tensors lie.

A plan is data and is all a program needs besides its machine code and its weights: no compiler takes part in a run.
Shapes may hold symbolic dims, which a run has values of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from cnnc.diagnostics import error
from cnnc.ir.dim import Dim, evaluate, parse_dim
from cnnc.ir.op import MAX_ELEMENTS
from cnnc.ir.types import TensorType
from cnnc.memory import Arena, Block, pack


@dataclass(frozen=True, slots=True)
class Part:
    """Where in a larger tensor, of `size` along `axis`, one begins that is joined with others."""

    axis: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor and where it lies: in the memory of a weight, by its name, or in a block of the arena, by its number.

    Several tensors may lie in one block: one after the other, as views, or as parts.
    """

    type: TensorType
    memory: str | int
    part: Part | None = None

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of the memory: of a part that of the whole."""
        if (part := self.part) is None:
            return self.type.shape
        return (*self.type.shape[: part.axis], part.size, *self.type.shape[part.axis + 1 :])


def part_names(arg: int) -> tuple[str, str]:
    """The names of a function's parameters for the size of the whole and the start of an argument that is a part."""
    return f"__size{arg}", f"__start{arg}"


@dataclass(frozen=True, slots=True)
class Step:
    """A call of `function` on the tensors `args`, the result last, and then on the values of the names `dims`: symbols,
    names of `Plan.sizes`, and the numbers of parts."""

    function: str
    nodes: tuple[str, ...]
    """The nodes of the graph it computes, operands first, for errors and profiles. Of the last it may be a part."""
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
    blocks: tuple[Block, ...]
    steps: tuple[Step, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    sizes: Mapping[str, Dim] = field(default_factory=dict)
    """What names among the `dims` of steps stand for."""

    def arena(self, dims: Mapping[str, int]) -> Arena:
        """Where the blocks lie for these sizes. CnncError E0502 where a tensor has too many elements."""
        for type in dict.fromkeys(x.type for x in self.tensors):
            elements = type.size_at(dims)
            if elements >= MAX_ELEMENTS:
                given = ", ".join(f"{name}={value}" for name, value in dims.items())
                message = f"{type} has {elements:,} elements for {given}: the limit is {MAX_ELEMENTS:,}"
                raise error("E0502", message)
        return pack(self.blocks, self.block_bytes(dims))

    def block_bytes(self, dims: Mapping[str, int]) -> list[int]:
        """The sizes of the blocks."""
        return [block.type.bytes_at(dims) for block in self.blocks]

    def values(self, step: Step, dims: Mapping[str, int]) -> dict[str, int]:
        """The values of a step's `dims`."""
        values = dict(dims) | {name: evaluate(self.sizes[name], dims) for name in step.dims if name in self.sizes}
        for i, arg in enumerate(step.args):
            if (part := self.tensors[arg].part) is not None:
                size, start = part_names(i)
                values |= {size: part.size, start: part.start}
        return values

    def to_json(self) -> bytes:
        data = {
            "tensors": [[str(x.type), x.memory, x.part and list(astuple(x.part))] for x in self.tensors],
            "blocks": [[str(x.type), x.first, x.last] for x in self.blocks],
            "steps": [[s.function, list(s.nodes), list(s.args), list(s.dims)] for s in self.steps],
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "kernels": {
                name: {"args": list(k.args), "grid": list(map(str, k.grid)), "block": list(k.block)}
                for name, k in self.kernels.items()
            },
            "sizes": {name: str(dim) for name, dim in self.sizes.items()},
        }
        return json.dumps(data, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> Plan:
        """The plan that `to_json` wrote."""
        data = json.loads(text)
        return Plan(
            tuple(Tensor(TensorType.parse(type), place, part and Part(*part)) for type, place, part in data["tensors"]),
            tuple(Block(TensorType.parse(type), first, last) for type, first, last in data["blocks"]),
            tuple(Step(f, tuple(nodes), tuple(args), tuple(dims)) for f, nodes, args, dims in data["steps"]),
            data["inputs"],
            data["outputs"],
            {name: _kernel(kernel) for name, kernel in data["kernels"].items()},
            {name: parse_dim(dim) for name, dim in data["sizes"].items()},
        )


def _kernel(data: Mapping[str, Any]) -> Kernel:
    x, y, z = map(parse_dim, data["grid"])
    a, b, c = data["block"]
    return Kernel(tuple(data["args"]), (x, y, z), (a, b, c))
