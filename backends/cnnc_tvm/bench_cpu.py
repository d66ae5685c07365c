"""The kernels of a network, measured one by one: what `cnnc tune` asks of the target `cpu`.

A kernel is compiled as part of a network of one layer, with the epilogue that it has in the whole one, and timed by
TVM's `time_evaluator` where it runs. Before each run its weights are driven out of the caches, as others' are there.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import tvm
from tvm.target import codegen

from cnnc import ops, weights
from cnnc.diagnostics import CnncError
from cnnc.ir.dim import evaluate
from cnnc.ir.graph import Graph, Input, Node
from cnnc.tuned import Plan as Data
from cnnc.tuning import Farm, KernelError, Task
from cnnc_tvm.build_cpu import build
from cnnc_tvm.candidates import Convolution, about, data, plans, surroundings
from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.kernels_cpu import Plan
from cnnc_tvm.lower import Lowered, first_line, lower
from cnnc_tvm.places import Here, Machines, Place
from cnnc_tvm.plan import Step
from cnnc_tvm.rpc_server import SPREAD
from cnnc_tvm.rules import CPU
from cnnc_tvm.tensor import KERNEL

if TYPE_CHECKING:
    from cnnc.target import Array

T = TypeVar("T")

_FLUSH: Final = "cache_flush_cpu_non_first_arg"
"""What TVM's runtime calls before each run: arguments but the first are driven out of the caches."""
_REPEAT: Final = 5
"""Runs of which the fastest counts, after one that does not."""
_SAME: Final = 1e-3
"""How far results of two kernels may be apart, relative to the largest value."""


@dataclass(frozen=True)
class _Kernel:
    """A convolution, and a layer of the network that it is in."""

    convolution: Convolution
    layer: Node
    plans: Mapping[str, Plan]
    """By the text of what stands for them in the task."""


@dataclass(frozen=True)
class Built:
    """A library with the function of a kernel, and its arguments; it is the same array where two share memory."""

    library: bytes
    function: str
    args: tuple[Array, ...]


class CpuBench:
    """The kernels of a graph whose sizes are numbers, for a CPU, measured at a place."""

    def __init__(self, graph: Graph, cpu: str, machine: Machine, place: Place) -> None:
        self._cpu, self._machine, self._place = cpu, machine, place
        self._compiling = Lock()  # by one thread at a time: they would only take turns inside TVM
        self._kernels: dict[str, _Kernel] = {}
        self.places = place.count
        self.tasks = list(self._tasks(graph))

    def _tasks(self, graph: Graph) -> Iterator[Task]:
        """One for each convolution. Its layers may have different epilogues: it is measured with that of the first."""
        nodes: dict[Convolution, list[Node]] = {}
        known: dict[object, Convolution | None] = {}
        for node in graph.nodes:
            layer = str(node.op), *(str(x.type) for x in node.inputs)
            if layer not in known:
                known[layer] = self._convolution(node)
            if (convolution := known[layer]) is not None:
                nodes.setdefault(convolution, []).append(node)
        around = surroundings(self._machine, self._cpu)
        for convolution, each in nodes.items():
            found = {_text(data(plan)): plan for plan in plans(convolution, self._machine)}
            self._kernels[convolution.name] = _Kernel(convolution, each[0], found)
            work = sum(evaluate(node.macs, {}) for node in each)
            layers = tuple(node.name for node in each)
            yield Task(convolution.name, layers, work, about(convolution, around), [json.loads(x) for x in found])

    def _convolution(self, node: Node) -> Convolution | None:
        """The one that a kernel with a choice of plans computes the node by."""
        op = node.op.parts[0] if isinstance(node.op, ops.Fused) else node.op
        if not isinstance(op, ops.Conv):
            return None
        found: list[Convolution] = []

        def asked(shape: ConvShape, plain: bool) -> None:
            found.append(Convolution(shape, plain))

        self._lowered(node, asked)
        return next((each for each in found if len(plans(each, self._machine)) > 1), None)

    def _lowered(self, node: Node, tuned: Any) -> Lowered:
        """A network of that node alone."""
        inputs = {x: Input(x.name, x.type) for x in node.inputs}
        layer = Node(node.op, tuple(inputs[x] for x in node.inputs), node.params, node.name, node.origin)
        graph = Graph(node.name, tuple(inputs.values()), {"result": layer})
        return lower(graph, weights.init(graph, 0), CPU, self._machine, tuned)

    @contextmanager
    def trial(self, task: Task, plans: Sequence[Data]) -> Iterator[CpuTrial]:
        kernel = self._kernels[task.name]
        built = [self._built(number, kernel, plan) for number, plan in enumerate(plans)]
        runs = len(plans) * 2000  # far more than there are, at a speed that is far too low
        session = self._place.session(30 + runs * evaluate(kernel.layer.macs, {}) / 1e11)
        try:
            yield CpuTrial(session, built)
        except KernelError:
            self._place.failed()
            raise
        finally:
            with suppress(Exception):  # TVM's errors, where the other end has gone
                session.get_function("CloseRPCConnection")()

    def _built(self, number: int, kernel: _Kernel, plan: Data) -> Built:
        chosen = kernel.plans[_text(plan)]
        with self._compiling:
            try:
                lowered = self._lowered(kernel.layer, lambda shape, plain: chosen)
                step = next(x for x in lowered.plan.steps if lowered.functions[x.function].loops == KERNEL)
                function = {step.function: lowered.functions[step.function]}
                library, _ = build(function, self._cpu)
            except CnncError as e:
                raise KernelError(number, e.diagnostics[0].message) from e
        return Built(library, step.function, tuple(_arguments(lowered, step)))


def _arguments(lowered: Lowered, step: Step) -> Iterator[Array]:
    random = np.random.default_rng(0)
    made: dict[str | int, Array] = {}
    made.update(lowered.weights)
    for tensor in (lowered.plan.tensors[i] for i in step.args):
        if tensor.memory not in made:
            shape = tuple(evaluate(dim, {}) for dim in tensor.shape)
            made[tensor.memory] = random.standard_normal(shape, np.float32)
        yield made[tensor.memory]


class CpuTrial:
    """Kernels that are loaded in a session."""

    def __init__(self, session: Any, built: Sequence[Built]) -> None:
        self._session, self._built = session, built
        self._sent: dict[int, Any] = {}
        self._timers = [self._guarded(number, partial(self._timer, each)) for number, each in enumerate(built)]
        self.seconds(0)  # starts the threads
        with suppress(Exception):  # TVM's errors: servers of its own, which a farm has, do not know it
            session.get_function(SPREAD)()

    def seconds(self, number: int) -> float:
        return float(min(self._guarded(number, self._timers[number])))

    def agrees(self, number: int) -> bool:
        first, other = (self._guarded(i, partial(self._result, self._built[i])) for i in (0, number))
        return bool(np.abs(first - other).max() <= _SAME * np.abs(first).max())

    def _timer(self, built: Built) -> Callable[[], Sequence[float]]:
        module, args = self._loaded(built), [self._tensor(x) for x in built.args]
        timer = module.time_evaluator(built.function, self._session.cpu(0), 1, _REPEAT, f_preproc=_FLUSH)
        return lambda: timer(*args).results

    def _loaded(self, built: Built) -> Any:
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(built.library)
            file.flush()
            self._session.upload(file.name)
            return self._session.load_module(os.path.basename(file.name))

    def _tensor(self, array: Array) -> Any:
        """The array there; sent once."""
        if id(array) not in self._sent:
            self._sent[id(array)] = tvm.runtime.tensor(array, self._session.cpu(0))
        return self._sent[id(array)]

    def _result(self, built: Built) -> Array:
        self._sent.clear()  # runs have written to some
        args = [self._tensor(x) for x in built.args]
        self._loaded(built)[built.function](*args)
        result: Array = args[-1].numpy()
        return result

    def _guarded(self, number: int, run: Callable[[], T]) -> T:
        """What `run` gives; KernelError for what TVM raises where the process at the other end fails."""
        try:
            return run()
        except Exception as e:
            raise KernelError(number, first_line(e)) from e


@contextmanager
def bench(graph: Graph, cpu: str, machine: Machine, farm: Farm | None) -> Iterator[CpuBench]:
    """The bench of a graph on this machine or a farm. CnncErrors as of `CpuTarget.bench`."""
    like = str(codegen.llvm_get_system_cpu()) if cpu == "native" else None
    place: Place = Here() if farm is None else Machines(farm, like)
    try:
        yield CpuBench(graph, cpu, machine, place)
    finally:
        place.close()


def _text(plan: Data) -> str:
    return json.dumps(plan)
