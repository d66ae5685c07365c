"""Targets: what a graph can be compiled to, and the programs that come out.

A target is an entry point of the group `cnnc.targets` that names a `Target` subclass, so a package can add one without
touching cnnc. A backend writes one function per op class in a `Rules` table; an op without a rule is a diagnostic at
the line of the model that used it, never a silent fallback.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar, cast

from cnnc.diagnostics import CnncError, Diagnostic, Label, error
from cnnc.ir.dim import Sym, evaluate, solve, substitute
from cnnc.ir.graph import Graph, Input
from cnnc.ir.op import Op
from cnnc.ir.types import DType, TensorType
from cnnc.ops.fused import parts_of

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]
    Weights: TypeAlias = Mapping[str, Array]

Contents: TypeAlias = bytes | memoryview
"""What a member of an artifact holds."""

Rule = TypeVar("Rule", bound=Callable[..., Any])


class Rules(Generic[Rule]):
    """A backend's table: one function per op class."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._rules: dict[type[Op], Rule] = {}

    def __call__(self, *ops: type[Op]) -> Callable[[Rule], Rule]:
        """Decorator: the function lowers these op classes."""

        def add(rule: Rule) -> Rule:
            for op in ops:
                if op in self._rules:
                    raise ValueError(f"{self.target} has two rules for {op.__name__}")
                self._rules[op] = rule
            return rule

        return add

    def __getitem__(self, op: Op) -> Rule:
        return self._rules[type(op)]

    def __contains__(self, op: type[Op]) -> bool:
        return op in self._rules

    def __iter__(self) -> Iterator[type[Op]]:
        return iter(self._rules)

    def check(self, graph: Graph) -> None:
        """CnncError E0601, a diagnostic for each node whose op has no rule."""
        lacking = {
            node.name: f"has no rule for `{op.name}`"
            for node in graph.nodes for op in parts_of(node.op) if type(op) not in self._rules
        }  # fmt: skip
        unsupported(self.target, lacking, graph)


def unsupported(target: str, reasons: Mapping[str, str], graph: Graph) -> None:
    """Raise E0601 at the source line of each node named in `reasons`, which completes "target `cpu` ..."."""
    found = []
    for node in graph.nodes:
        if node.name in reasons:
            labels = (Label(node.origin.span, primary=True),) if node.origin else ()
            path = node.origin.frame.path() if node.origin and node.origin.frame else ()
            where = "" if labels else f" (node `{node.name}`)"
            found.append(Diagnostic("E0601", f"target `{target}` {reasons[node.name]}{where}", labels, path))
    if found:
        raise CnncError(tuple(found))


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a program; a symbolic dim is bound at each run."""

    name: str
    type: TensorType
    doc: str = ""


class Program(ABC):
    """A compiled network: call it with an array for each input, get a dict of output arrays.

    Inputs are NumPy arrays, or anything that exports DLPack, of the port's element type; the outputs are NumPy arrays
    (which export DLPack). Wrong names and what is no array are CnncError E0204, wrong element types E0303, wrong ranks
    and sizes E0320.
    """

    def __init__(self, target: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        self.target, self.inputs, self.outputs = target, inputs, outputs

    inner_sizes: tuple[Sym, ...] = ()
    """Symbolic sizes inside the network, each of which an input that is large enough makes at least 1."""

    made_from: str = ""
    """The digest of all that it was compiled from (cnnc/cache.py), where that was asked for."""

    artifact: tuple[Path, tuple[int, ...]] | None = None
    """A file that holds it, as it was when it was last known to (cnnc/artifact.py)."""

    _fitting: tuple[tuple[tuple[int, ...], ...], Mapping[str, int]] | None = None
    """The shapes of inputs that fitted last, and their dims: most runs have the shapes of the run before."""

    remade: Callable[[], Program] | None = None
    """Compiles it again, where it came from the compile cache: for what an artifact does not hold."""

    suffix: ClassVar[str] = ""
    """The file ending of the target's own format (`.onnx`, `.py`), where it has one: `save("x.onnx")` writes that."""

    @abstractmethod
    def run(self, inputs: dict[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        """The outputs for checked inputs; `dims` has the value of each symbolic dim."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """What an artifact holds of this program, by member name; `Target.load` takes it back."""

    def export(self, path: Path) -> None:
        """Write the target's own format to `path`, which ends in `suffix`, atomically; other files go beside it."""
        raise NotImplementedError(f"{self.target} has no format of its own")

    def source(self) -> str:
        """The generated source a person can read; '' where there is none."""
        return ""

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(f"{x.name}: {x.type}" for x in ports) for ports in (self.inputs, self.outputs))
        return f"<Program for {self.target}({inputs}) -> {outputs}>"

    def __call__(self, /, **arrays: object) -> dict[str, Array]:
        inputs, dims = self._checked(arrays)
        return self.run(inputs, dims)

    def save(self, path: str | Path) -> Path:
        """Write the program to a file: the target's own format if `path` ends in `suffix`, else an artifact."""
        from cnnc.artifact import save

        return save(self, Path(path))

    def _checked(self, arrays: Mapping[str, object]) -> tuple[dict[str, Array], Mapping[str, int]]:
        if arrays.keys() != {port.name for port in self.inputs}:
            raise self._misnamed(arrays)
        inputs = {port.name: as_array(arrays[port.name], port) for port in self.inputs}
        shapes = tuple([array.shape for array in inputs.values()])
        fitting = self._fitting
        if fitting is None or fitting[0] != shapes:
            self._fitting = fitting = shapes, self._dims(inputs)
        return inputs, fitting[1]

    def _misnamed(self, arrays: Mapping[str, object]) -> CnncError:
        expected = [port.name for port in self.inputs]
        wrong = [f"`{name}` is missing" for name in expected if name not in arrays]
        wrong += [f"there is no input `{name}`" for name in arrays if name not in expected]
        names = ", ".join(f"{port.name}: {port.type}" for port in self.inputs)
        return error("E0204", f"wrong inputs: {'; '.join(wrong)}", notes=[f"the inputs are {names}"])

    def _dims(self, inputs: Mapping[str, Array]) -> Mapping[str, int]:
        """The dims of inputs that are large enough for the network."""
        dims = bind_dims(self.inputs, inputs)
        for port in self.outputs:
            shape = [evaluate(dim, dims) for dim in port.type.shape]
            if any(size < 1 for size in shape):
                given = ", ".join(f"`{name}` {list(array.shape)}" for name, array in inputs.items())
                message = f"the inputs are too small: output `{port.name}`, {port.type}, would have shape {shape}"
                raise error("E0320", message, notes=[f"given: {given}"])
        for size in self.inner_sizes:
            if evaluate(size, dims) < 1:
                message = f"the inputs are too small: inside the network {size} would be {evaluate(size, dims)}"
                raise error("E0320", message, notes=[f"given: {', '.join(f'{k}={v}' for k, v in dims.items())}"])
        return dims


def as_array(value: object, port: Port | Input) -> Array:
    """`value` as a contiguous array of the port's element type; CnncError E0204 or E0303 if it is none."""
    import numpy as np

    try:
        foreign = not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__")
        array = np.from_dlpack(value) if foreign else np.asarray(value)  # type: ignore[arg-type]
    except (BufferError, RuntimeError, TypeError, ValueError) as e:  # on a GPU, say, or tracked by autograd
        raise error("E0204", f"input `{port.name}` cannot be read as an array: {e}") from None
    if array.dtype != (wanted := numpy_dtype(port.type.dtype)):
        name = f"ml_dtypes.{wanted}" if port.type.dtype is DType.BF16 else f'"{wanted}"'  # which NumPy alone lacks
        raise error(
            "E0303", f"input `{port.name}` has elements of {array.dtype}, the network takes {port.type.dtype}",
            help=f"convert it: `{port.name}.astype({name})`",
        )  # fmt: skip
    return np.asarray(array, order="C")


def bind_dims(ports: Sequence[Port | Input], arrays: Mapping[str, Array]) -> Mapping[str, int]:
    """The symbolic dims of inputs whose arrays, by name, have these shapes.

    CnncError E0320 where an array has another rank or shape, and where a size is 0.
    """
    dims: dict[str, int] = {}
    for port in ports:
        shape = arrays[port.name].shape
        if len(shape) != port.type.rank:
            raise error("E0320", f"input `{port.name}` has shape {list(shape)}, the network takes {port.type}")
        for dim, size in zip(port.type.shape, shape, strict=True):
            for name, bound in (solve(substitute(dim, dims), size) or {}).items():
                if isinstance(bound, int):
                    dims.setdefault(name, bound)
    for port in ports:  # now that every symbol is bound: 16*h and h may come in any order
        _check_shape(arrays[port.name].shape, port, dims)
    return dims


def _check_shape(shape: tuple[int, ...], port: Port | Input, dims: Mapping[str, int]) -> None:
    try:
        expected = tuple(evaluate(dim, dims) for dim in port.type.shape)
    except KeyError:
        expected = ()
    if 0 in shape:
        raise error("E0320", f"input `{port.name}` has shape {list(shape)}: a dimension has a size of at least 1")
    if shape != expected:
        known = {name: size for name, size in dims.items() if name in port.type.symbols}
        where = f" for {', '.join(f'{k}={v}' for k, v in known.items())}" if known else ""
        raise error("E0320", f"input `{port.name}` has shape {list(shape)}, the network takes {port.type}{where}")


@cache
def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """NumPy's name for an element type; bf16 is ml_dtypes'."""
    import numpy as np

    if dtype is DType.BF16:
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(np.float32 if dtype is DType.F32 else np.float16)


def inner_sizes(graph: Graph) -> tuple[Sym, ...]:
    """The symbolic sizes of the nodes of a graph, each once: what windows leave of an input of any size."""
    found = dict.fromkeys(dim for node in graph.nodes for dim in node.type.shape)
    return tuple(dim for dim in found if isinstance(dim, Sym))


def ports(graph: Graph) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and outputs of a graph as ports."""
    inputs = tuple(Port(x.name, x.type, x.doc) for x in graph.inputs)
    return inputs, tuple(Port(name, x.type) for name, x in graph.outputs.items())


@dataclass(frozen=True, slots=True)
class Status:
    """Whether a target works on this machine; `detail` has versions, or the reason and what to do."""

    works: bool
    detail: str


class Target(ABC):
    """A backend. Constructing one imports nothing heavy; the methods do, lazily."""

    name: ClassVar[str]
    doc: ClassVar[str]
    """One line: what comes out."""
    options: ClassVar[Mapping[str, str]] = {}
    """The options `compile` takes, each with a line of documentation."""
    passes: ClassVar[bool] = True
    """Whether graphs are optimised before this target gets them; not so where the result is to be trained further."""
    fuses: ClassVar[bool] = False
    """Whether it takes `fused` nodes (cnnc/ops/fused.py); else it gets their parts as nodes."""
    native: ClassVar[bool] = False
    """Whether artifacts hold native code, which is loaded only from a trusted artifact."""
    winograd: ClassVar[bool] = False
    """Whether it may compute convolutions by Winograd's algorithm, which rounds more than a sum of products does: the
    bounds of `cnnc.verification` allow for that."""

    mapped: ClassVar[frozenset[str]] = frozenset()
    """Members of artifacts that `load` takes as views of the file, which is mapped to memory; the others are bytes."""

    @abstractmethod
    def status(self) -> Status:
        """What `cnnc doctor` says of it. Never raises."""

    @abstractmethod
    def compile(self, graph: Graph, weights: Weights, **options: str) -> Program:
        """The program for a verified graph; weights are complete and match `graph.params`. Unknown options are refused
        before this is called."""

    def toolchain(self, options: Mapping[str, str]) -> Mapping[str, str] | None:
        """What a program depends on beside its graph, weights and `options`: the compilers' versions, and what of this
        machine decides. The compile cache keeps the programs of a target that says so; None is for one that compiles in
        less time than reading its programs takes, or that does not work here."""
        return None

    @abstractmethod
    def load(self, manifest: Mapping[str, Any], files: Mapping[str, Any]) -> Program:
        """The program whose `files()` these are; `manifest` is the artifact's."""


@cache
def installed() -> Mapping[str, EntryPoint]:
    """Where each installed target is, in order of their names. Read once: it takes 20 ms, and tests compile thousands
    of programs."""
    entries = entry_points(group="cnnc.targets")
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}


def targets() -> dict[str, type[Target]]:
    """The installed targets by name; the classes are loaded, their heavy libraries are not."""
    return {name: entry.load() for name, entry in installed().items()}


def target(name: str) -> Target:
    """The target of that name; CnncError E0602 if none is installed under it."""
    known = installed()
    if not isinstance(name, str) or name not in known:
        near = get_close_matches(str(name), known, n=1, cutoff=0.7)  # `gpu` is no misspelt `cpu`
        raise error(
            "E0602", f"there is no target `{name}`", notes=[f"installed targets: {', '.join(known)}"],
            help=f"did you mean `{near[0]}`?" if near else None,
        )  # fmt: skip
    cls: type[Target] = known[name].load()
    return cls()


class Evaluator(Protocol):
    """What the target `numpy` offers beside programs."""

    def reference(
        self, graph: Graph, weights: Weights, inputs: Mapping[str, Array], *, exact: bool = True
    ) -> dict[str, Array]: ...


def reference(graph: Graph, weights: Weights, inputs: Mapping[str, Array], *, exact: bool = True) -> dict[str, Array]:
    """The outputs of a graph in float64; unless `exact` with each value rounded to its element type.

    CnncError E0601 for ops that the target `numpy` lacks, E0320 for inputs that do not fit.
    """
    return cast(Evaluator, target("numpy")).reference(graph, weights, inputs, exact=exact)
