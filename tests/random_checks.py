"""What every random network must satisfy, as functions of a `Case`; the tests and the long run call the same ones.

What holds between runs of networks that differ in a known way is in `relations`.

Programs are compared with the float64 reference in two ways:

- node by node: a program that gives every node as an output is right if each node's values are within that node's
  derived bound of the reference *on the operand values that the program itself gave*. Nothing propagates, and no
  decision (of `step`, say) can fall the other way.
- whole: a program is allowed what `network_bounds` derives.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

import cnnc
from cnnc.ir import bind, from_json, from_text, structurally_equal, to_json, to_text, verify
from cnnc.ir.dim import evaluate as evaluate_dim
from cnnc.ir.graph import Graph, Node
from cnnc.ir.op import Op
from cnnc.ir.types import TensorType
from cnnc.ops.fused import unfused
from cnnc.passes import LEVELS, PASSES, Network, Pass, Pipeline
from cnnc.target import Program, numpy_dtype
from cnnc.target import target as installed_target
from cnnc.verification import bound_on
from cnnc_numpy.evaluator import evaluate
from cnnc_tvm import conv_winograd_plan
from cnnc_tvm.runtime import TvmProgram
from cuda_emulator import runnable
from numerics import Array, assert_close
from strategies import Case, to_cnn


def compiled(graph: Graph, target: str, weights: Mapping[str, Array], level: int = max(LEVELS)) -> Program:
    """The program at a level of the optimiser; that of `cuda` runs on the CPU where there is no GPU.

    `narrow` is `cpu` with vectors of 4, so that images of few channels lie in blocks as well, and with Winograd's
    algorithm wherever it can be used.
    """
    if target == "narrow":
        always = patch.multiple(conv_winograd_plan, _WORTH=float("inf"), _CHANNELS=1)
        with always:
            return cnnc.compile(graph, "cpu", weights, optimise=level, mcpu="x86-64")
    program = cnnc.compile(graph, target, weights, optimise=level)
    return runnable(program) if isinstance(program, TvmProgram) and target == "cuda" else program


def winograd(target: str) -> bool:
    """Whether the programs of `compiled` may use Winograd's algorithm."""
    return target == "narrow" or installed_target(target).winograd


def forms(case: Case) -> None:
    """The verifier accepts the graph; text, JSON and `.cnn` read back as it; sizes bound before and after agree."""
    graph = verify(case.graph)
    assert structurally_equal(from_text(to_text(graph)), graph)
    assert structurally_equal(from_json(to_json(graph)), graph)
    read = cnnc.load(to_cnn(graph))
    assert [str(node.op) for node in read.nodes] == [str(node.op) for node in graph.nodes]
    assert _types(read) == _types(graph)
    assert sorted(str(x.type) for x in read.params.values()) == sorted(str(x.type) for x in graph.params.values())
    bound = verify(bind(graph, case.sizes))
    assert structurally_equal(bound, _concrete(graph, case.sizes))
    symbolic, concrete = (evaluate(x, case.weights, case.inputs) for x in (graph, bound))
    for name, x in symbolic.items():
        np.testing.assert_array_equal(x, concrete[name])


def _types(graph: Graph) -> dict[str, TensorType]:
    return {name: x.type for name, x in graph.outputs.items()}


def _concrete(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The graph made again on inputs whose sizes are numbers."""
    shapes = [[evaluate_dim(dim, sizes) for dim in x.type.shape] for x in graph.inputs]
    inputs = tuple(replace(x, type=x.type.with_shape(shape)) for x, shape in zip(graph.inputs, shapes, strict=True))
    return graph.rebuild(lambda node, xs: Node(node.op, xs, node.params, node.name), inputs)


def nodes_agree(case: Case, target: str) -> None:
    """Each node of the unoptimised program is within its bound on the operands that the program gave it."""
    tapped = case.graph.with_outputs({node.name: node for node in case.graph.nodes})
    outputs = compiled(tapped, target, case.weights, level=0)(**case.inputs)
    values = {x: case.inputs[x.name] for x in case.graph.inputs} | {x: outputs[x.name] for x in case.graph.nodes}
    for node in case.graph.nodes:
        expected, bound = bound_on(node, values, case.weights, winograd=winograd(target))
        assert_close(outputs[node.name], expected, node.type.dtype, bound, f"{node.name} = {node.op}")


def whole_agrees(case: Case, target: str) -> None:
    """The optimised program agrees with the reference, and saved and loaded again it gives the same bits.

    That of `cuda` is not loaded: it would be for a GPU.
    """
    program = compiled(case.graph, target, case.weights)
    outputs = program(**case.inputs)
    within(case, outputs, case.allowed(winograd=winograd(target)))
    if target == "cuda":
        return
    with tempfile.TemporaryDirectory() as folder:
        again = cnnc.load_program(program.save(Path(folder) / "program.cnnx"))(**case.inputs)
    for name, values in outputs.items():
        np.testing.assert_array_equal(again[name], values, err_msg=f"`{name}` of the program saved and loaded")


def within(case: Case, outputs: Mapping[str, Array], allowed: Mapping[str, float]) -> None:
    """The outputs are within what is allowed of what is expected."""
    assert outputs.keys() == case.expected.keys()
    for name, values in outputs.items():
        bound = np.full(case.expected[name].shape, allowed[name])
        assert_close(values, case.expected[name], case.graph.outputs[name].type.dtype, bound, name)


def passes_preserve(case: Case) -> set[str]:
    """Each pass by itself, all in order, and all but each keep the outputs' types and, in float64, their values.

    They also do the same as if they asked their rules about every node. Gives the passes that did something in the row
    of all.
    """
    types = _types(case.graph)

    def preserve(passes: tuple[Pass, ...]) -> set[str]:
        """Check them; which of them did something."""
        optimised = Pipeline(passes).run(Network(case.graph, case.weights))
        asking = Pipeline(tuple(replace(each, of=(Op,)) for each in passes)).run(Network(case.graph, case.weights))
        assert optimised.notes == asking.notes
        assert to_text(optimised.network.graph) == to_text(asking.network.graph)
        applied = {note.passed for note in optimised.notes if note.applied}
        if applied:
            graph = unfused(optimised.network.graph)
            assert _types(graph) == types
            values = evaluate(graph, optimised.network.weights, case.inputs)
            within(case, {k: x.astype(numpy_dtype(types[k].dtype)) for k, x in values.items()}, case.allowed())
        return applied

    every = tuple(PASSES.values())
    for each in every:
        preserve((each,))
    applied = preserve(every)
    for name in applied:
        preserve(tuple(each for each in every if each.name != name))
    return applied
