"""Measuring: the same model and inputs for every system, results compared before any is timed, then rounds of turns.

In a round each system runs for a turn, one after the other, in an order that is reversed every other round. The machine
may be busy and its clock may change, so times of different rounds are not compared: what counts is the ratio of two
systems in each round, its median and its quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cnnc import driver, weights
from cnnc.bench.process import Worker
from cnnc.bench.systems import CNNC, PEERS, SYSTEMS
from cnnc.diagnostics import CnncError, error
from cnnc.ir.bind import bind
from cnnc.ir.dim import symbols
from cnnc.ir.graph import Graph, Value
from cnnc.ir.types import DType
from cnnc.target import target
from cnnc.verification import Agreement, Case, Expected, Fault, Setting

if TYPE_CHECKING:
    from cnnc.target import Program

AS_WRITTEN: Final = 0
"""The optimisation level of what peers get: they optimise it in their own way."""


@dataclass(frozen=True)
class Settings:
    """How cnnc compiles, and how it is measured: seconds of the turns, and of the pauses in which threads that wait
    actively for work fall asleep; seconds that a worker has to answer."""

    target: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    optimise: int = 2
    passes: str = ""
    threads: int = 1
    rounds: int = 11
    turn: float = 0.5
    pause: float = 0.3
    limit: float = 600.0


@dataclass(frozen=True)
class Quartiles:
    """The middle half of some figures."""

    lower: float
    median: float
    upper: float

    @staticmethod
    def of(figures: Sequence[float]) -> Quartiles:
        return Quartiles(*(float(x) for x in np.quantile(figures, (0.25, 0.5, 0.75))))


@dataclass
class Timed:
    """A system in one comparison. `seconds` has the median run of each of its turns; `error` is that of its outputs,
    relative to the largest value; `peak_bytes` is the most memory its process used, None where that is not known."""

    system: str
    version: str
    load_seconds: float
    error: float
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    def ratios(self, other: Timed) -> list[float]:
        """This system's time over the other's in each round."""
        return [x / y for x, y in zip(self.seconds, other.seconds, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """A model at one batch, in one element type: cnnc, its peers, and why others were left out."""

    model: str
    batch: int
    dtype: DType
    own: Timed
    peers: tuple[Timed, ...]
    left_out: Mapping[str, str]

    @property
    def title(self) -> str:
        """The model, and the element type where it is another than f32."""
        return self.model if self.dtype is DType.F32 else f"{self.model} in {self.dtype}"

    @property
    def fastest(self) -> Timed | None:
        """The peer beside which cnnc looks worst; None if all were left out."""
        return max(self.peers, key=lambda peer: self.ratio(peer).median, default=None)

    def ratio(self, peer: Timed) -> Quartiles:
        """The time of cnnc over that of a peer, round by round."""
        return Quartiles.of(self.own.ratios(peer))


def check_systems(names: Iterable[str]) -> None:
    """CnncError E0902 for a name that is no system's, or given twice."""
    seen: set[str] = set()
    for name in names:
        if name not in PEERS:
            near = get_close_matches(name, PEERS, n=1)
            raise error(
                "E0902", f"there is no system `{name}` to compare with", notes=[f"there are {', '.join(PEERS)}"],
                help=f"did you mean `{near[0]}`?" if near else None,
            )  # fmt: skip
        if name in seen:
            raise error("E0902", f"system `{name}` is given twice")
        seen.add(name)


def dtype_of(graph: Graph) -> DType:
    """The element type of all values of a graph; CnncError E0902 where they have several."""
    values: tuple[Value, ...] = (*graph.inputs, *graph.nodes)
    first, *others = sorted({x.type.dtype for x in values})
    if others:
        raise error("E0902", f"`{graph.name}` is in {first} and {others[0]}: systems are compared in one element type")
    return first


def with_batch(graph: Graph, batch: int | None) -> tuple[Graph, int]:
    """The graph at a batch, and that batch: the first dim of its inputs. None is 1, or the one that it has.

    CnncError E0902 for a graph of another batch, or of several element types.
    """
    dtype_of(graph)
    leading = [x.type.shape[0] for x in graph.inputs if x.type.rank]
    if names := {name for dim in leading for name in symbols(dim)}:
        batch = batch or 1
        return bind(graph, dict.fromkeys(names, batch)), batch
    fixed = next((dim for dim in leading if isinstance(dim, int)), 1)
    if batch not in (None, fixed):
        hint = "leave `--batch` out, or do not bind it with `--dim`"
        raise error("E0902", f"the batch of `{graph.name}` is {fixed}, not {batch}", help=hint)
    return graph, fixed


def compare(
    model: str, batch: int, case: Case, peers: Sequence[str], settings: Settings,
    tell: Callable[[str], None] = lambda text: None,
) -> Comparison:  # fmt: skip
    """Measure a case. `tell` is called with what is being done.

    A peer that cannot run it, computes something else, dies or does not answer is left out. CnncError E0801 where cnnc
    computes something else, E0802 where all values of an output are the same, and what compiling it or its worker
    raises.
    """
    tell("computing the reference in float64")
    dtype = dtype_of(case.graph)
    expected = Expected(case, late=True)  # to derive the bound, as `cnnc verify` does, takes longer than to measure
    expected.check_varied()
    with ExitStack() as stack:
        bench = _Bench(case, dtype, expected, settings, stack)
        for name in (CNNC, *peers):
            tell(f"preparing {name}")
            bench.attempt(name, bench.start)
        tell("warming up")
        for name in list(bench.timed):
            bench.attempt(name, bench.turn)
        for number in range(settings.rounds):
            tell(f"round {number + 1} of {settings.rounds}")
            for name in list(bench.timed)[:: -1 if number % 2 else 1]:
                bench.attempt(name, bench.timed_turn)
    own, *others = bench.timed.values()
    return Comparison(model, batch, dtype, own, tuple(others), bench.left_out)


class _Bench:
    """A case and what it should give, the workers and what they have measured so far.

    A system is in `timed` as long as nothing is wrong with it, and in `left_out` from then on.
    """

    def __init__(
        self, case: Case, dtype: DType, expected: Expected, settings: Settings, stack: ExitStack
    ) -> None:
        self._case, self._dtype, self._expected, self._settings, self._stack = case, dtype, expected, settings, stack
        self._folder = Path(stack.enter_context(TemporaryDirectory(prefix="cnnc-bench-")))
        self._workers: dict[str, Worker] = {}
        self.timed: dict[str, Timed] = {}
        self.left_out: dict[str, str] = {}

    def attempt(self, name: str, work: Callable[[str], object]) -> None:
        """Do the work for a system, and leave a peer out that fails. CnncError where cnnc does."""
        try:
            work(name)
        except CnncError as e:
            if name == CNNC:
                raise
            self.left_out[name] = e.diagnostics[0].message.removeprefix(f"`{name}` ")
            self.timed.pop(name, None)
            if name in self._workers:
                self._workers[name].close()

    def start(self, name: str) -> None:
        """Have a worker load the model, and compare its outputs. CnncErrors as of the worker, and E0801."""
        model = self._model(name)
        worker = self._stack.enter_context(Worker(name, self._settings.threads, self._settings.limit))
        self._workers[name] = worker
        inputs, outputs = self._folder / "inputs.safetensors", self._folder / "outputs.safetensors"
        weights.save(inputs, self._case.inputs)
        how = {"dtype": self._dtype.value, "threads": self._settings.threads}
        loaded = worker.ask(do="load", system=name, model=str(model), inputs=str(inputs), **how)
        worker.ask(do="run", outputs=str(outputs))
        winograd = target(self._settings.target).winograd
        agreements = self._expected.compare(weights.from_bytes(outputs.read_bytes(), outputs.name), winograd=winograd)
        if wrong := next((x for x in agreements if x.mismatch), None):
            raise self._mismatch(name, wrong)
        self.timed[name] = Timed(name, loaded["version"], loaded["seconds"], max(x.error for x in agreements))

    def turn(self, name: str) -> dict[str, Any]:
        """Let a system run for a turn, after a pause, and give what it answers."""
        time.sleep(self._settings.pause)
        return self._workers[name].ask(do="time", seconds=self._settings.turn)

    def timed_turn(self, name: str) -> None:
        """A turn that counts."""
        answer = self.turn(name)
        self.timed[name].seconds.append(answer["seconds"])
        self.timed[name].peak_bytes = answer["peak_bytes"]

    def _model(self, name: str) -> Path:
        """The file of the model for a system, compiled for it unless another has the same. CnncError E0607 where the
        system is not installed, and what `cnnc.compile` raises."""
        system, settings = SYSTEMS[name], self._settings
        if name == CNNC:
            options: dict[str, Any] = dict(settings.options)
            program = self._compile(settings.target, optimise=settings.optimise, passes=settings.passes, **options)
            return program.save(self._folder / f"{name}{system.suffix}")
        if reason := system.missing():
            raise error("E0607", reason)
        path = self._folder / f"{system.target}{system.suffix}"
        return path if path.exists() else self._compile(system.target, optimise=AS_WRITTEN).save(path)

    def _compile(self, name: str, **how: Any) -> Program:
        return driver.compile(self._case.graph, name, self._case.weights, **how)

    def _mismatch(self, name: str, found: Agreement) -> CnncError:
        if name == CNNC:
            return CnncError((Fault(Setting(self._settings.target), False, self._case, None, found).diagnostic(),))
        far = f"off by {found.error:.1e} of the largest value, {found.bound:.1e} is allowed"
        return error("E0801", f"`{name}` computes another value of output `{found.output}`: {far}")
