"""From a file or text to a graph, and from a graph to a program: what `import cnnc` and the command line offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

from cnnc.diagnostics import CnncError, Diagnostic, Severity, error
from cnnc.ir.bind import bind
from cnnc.ir.graph import Graph
from cnnc.ir.types import DType
from cnnc.ops.fused import unfused

if TYPE_CHECKING:  # each is imported where it is used: programs are loaded without the language, checked without passes
    from cnnc.contracts import FactResult
    from cnnc.frontend.model import Elaborated
    from cnnc.frontend.project import Module
    from cnnc.passes import Network, Optimised, Pass
    from cnnc.target import Array, Program, Target

WeightsOf: TypeAlias = "Mapping[str, Array] | str | Path | int"
"""Arrays by parameter name, a file of them, or a seed."""


def open_module(path_or_text: str | Path) -> Module:
    """The parsed file at a path, or a text that holds a model (it contains a brace or a line break, or is blank)."""
    from cnnc.frontend.project import Project

    if not isinstance(path_or_text, str | Path):
        raise error("E0902", f"a model is a path or a text, not of type {type(path_or_text).__name__}")
    text = str(path_or_text)
    if isinstance(path_or_text, str) and ("{" in text or "\n" in text or not text.strip()):
        return Project.of_text(text)[1]
    return Project.open(Path(path_or_text))[1]


def elaborate(
    path_or_text: str | Path, model: str | None = None, args: Mapping[str, object] | None = None
) -> Elaborated:
    """A model with its symbolic graph, its taps and its default dims. CnncError carries every independent error."""
    from cnnc.frontend.model import choose
    from cnnc.frontend.model import elaborate as elaborate_in

    if not isinstance(model, str | None):
        raise error("E0902", f"`model` is a name, not of type {type(model).__name__}")
    module = open_module(path_or_text)
    return elaborate_in(module, choose(module, model), dict(args or {}))


def finish(
    model: Elaborated, *, dims: Mapping[str, int] | None = None, outputs: Iterable[str] | None = None,
    dtype: str | None = None,
) -> Graph:  # fmt: skip
    """The graph of an elaborated model: pruned to the outputs asked for, default dims bound, others as `dims` says."""
    graph = model.graph
    if outputs is not None:
        names = list(outputs) if isinstance(outputs, Iterable) and not isinstance(outputs, str) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise error("E0902", f"`outputs` is a list of names, not {outputs!r}")
        graph = graph.with_outputs({name: model.tap(name) for name in names})
    if dtype is not None and dtype not in list(DType):
        raise error("E0902", f"`{dtype}` is no element type", help="element types are f32, f16 and bf16")
    return bind(graph, {**model.defaults, **_sizes({} if dims is None else dims)}, DType(dtype) if dtype else None)


def _sizes(dims: object) -> dict[str, int]:
    """Sizes by the names of dims; CnncError E0902 for anything else."""
    if isinstance(dims, Mapping) and all(isinstance(k, str) and not isinstance(v, bool) for k, v in dims.items()):
        with suppress(TypeError):
            return {name: index(size) for name, size in dims.items()}
    raise error("E0902", f"`dims` has a whole number for each name, as {{'N': 8}}, not {dims!r}")


def load(
    path_or_text: str | Path, model: str | None = None, *, dims: Mapping[str, int] | None = None,
    outputs: Iterable[str] | None = None, dtype: str | None = None, **args: object,
) -> Graph:  # fmt: skip
    """The graph of a model.

    `path_or_text` is a `.cnn` file, or the text of one. `model` picks one of several; `args` are its parameters
    (numbers, words, lists). Dims with a default get it unless `dims` says otherwise; those without stay symbolic.
    `outputs` names outputs or any labels to compute instead of the model's outputs; `dtype` overrides the inputs'.
    CnncError carries every independent error found.
    """
    return finish(elaborate(path_or_text, model, args), dims=dims, outputs=outputs, dtype=dtype)


@dataclass(frozen=True)
class Report:
    """What checking a file found: its models that elaborate, every diagnostic, and the facts of its `check` blocks."""

    models: tuple[Elaborated, ...]
    diagnostics: tuple[Diagnostic, ...]
    facts: tuple[FactResult, ...] = ()

    @property
    def error(self) -> CnncError | None:
        """The errors among the diagnostics, as one exception."""
        errors = tuple(d for d in self.diagnostics if d.severity is Severity.ERROR)
        return CnncError(errors) if errors else None


def check_file(
    path_or_text: str | Path, model: str | None = None, args: Mapping[str, object] | None = None, *, facts: bool = False
) -> Report:
    """Elaborate every model of a file, or one with arguments, at its default dims; measure the facts if asked to.

    Never raises for what is wrong with the file: the report has it, each finding once. Of a model that is named, only
    its own `check` blocks are measured.
    """
    from cnnc.frontend.model import choose
    from cnnc.frontend.model import elaborate as elaborate_in

    try:
        module = open_module(path_or_text)
        chosen = [choose(module, model)] if model is not None or args else list(module.models.values())
    except CnncError as e:
        return Report((), e.diagnostics)
    found: list[Diagnostic] = []
    models: list[Elaborated] = []
    results: list[FactResult] = []
    for each in chosen:
        try:
            elaborated = elaborate_in(module, each, dict(args or {}))
            found += elaborated.warnings
            finish(elaborated)
            models.append(elaborated)
        except CnncError as e:
            needs_args = any(p.default is None for p in each.params) and not args
            found += [] if needs_args else e.diagnostics
            if any(d.code == "E0505" for d in e.diagnostics):
                break  # models made of one another would each take as long
    if facts:
        from cnnc.contracts import run_check

        for check in module.checks:
            if model not in (None, check.name.text):
                continue
            try:
                measured, faults = run_check(module, check)
                results += measured
                found += faults
            except CnncError as e:
                found += e.diagnostics
    return Report(tuple(models), tuple(unique(found)), tuple(results))


def unique(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """One of each fault and place: two models of a file share its defs."""
    first: dict[tuple[str, str, str], Diagnostic] = {}
    for d in diagnostics:
        first.setdefault((d.code, d.message, str(d.primary.span) if d.primary else ""), d)
    return list(first.values())


def network_of(graph: Graph, weights: WeightsOf = 0) -> Network:
    """A verified graph with its weights, complete and matching: arrays by parameter name, a `.safetensors`, `.npz` or
    `.pth` file, or a seed for the initialisers. CnncError E0401 for weights that do not fit, E0902 for other values."""
    from cnnc import weights as weight_files
    from cnnc.ir.verify import verify
    from cnnc.passes import Network

    verify(_graph(graph))
    if isinstance(weights, int):
        if weights < 0:
            raise error("E0902", f"a seed is at least 0, not {weights}")
        return Network(graph, weight_files.init(graph, weights))
    if isinstance(weights, str | Path):
        return Network(graph, weight_files.load(weights, graph))
    if isinstance(weights, Mapping):
        return Network(graph, weight_files.check(weights, graph, "the weights given"))
    raise error("E0902", f"`weights` are arrays by name, a file or a seed, not of type {type(weights).__name__}")


def _graph(graph: object) -> Graph:
    """CnncError E0902 for what is no graph."""
    if not isinstance(graph, Graph):
        help = "`cnnc.load` makes one of a file or a text"
        raise error("E0902", f"a graph is needed, not one of type {type(graph).__name__}", help=help)
    return graph


def target_options(target: str, options: Mapping[str, object]) -> dict[str, str]:
    """Options of a target as a command line has them, where Python has numbers and truth values too; CnncError E0902
    for others, and for options that it does not have."""
    from cnnc.target import target as find

    known = find(target).options
    texts: dict[str, str] = {}
    for name, value in options.items():
        if name not in known:
            names = ", ".join(known) or "none"
            raise error("E0902", f"target `{target}` has no option `{name}`", notes=[f"its options: {names}"])
        if not isinstance(value, str | int | float | SupportsIndex):
            kind = type(value).__name__
            raise error("E0902", f"option `{name}` of target `{target}` is a text or a number, not of type {kind}")
        texts[name] = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return texts


def optimise(
    graph: Graph, weights: WeightsOf = 0, *, level: int = 2, passes: str = "",
    after: Callable[[Pass, Network], None] | None = None,
) -> Optimised:  # fmt: skip
    """The optimised graph with its weights, and what each pass did and why not.

    `weights` are as `network_of` has them. `level` is 0 to 3, and `passes` changes to its passes
    ("-fold_batch_norm"); see `cnnc.passes`. `after` is called with each pass and its result.
    """
    from cnnc.passes import choose
    from cnnc.passes import optimise as run

    return run(network_of(graph, weights), choose(level, passes), after)


def compile(
    graph: Graph, target: str = "numpy", weights: WeightsOf = 0, *, optimise: int = 2, passes: str = "",
    after: Callable[[Pass, Network], None] | None = None, cache: bool = True, **options: str | float,
) -> Program:  # fmt: skip
    """The program of a graph for a target.

    `weights`, `passes`, `after` and, as its level, `optimise` are those of the function `optimise`, which runs first
    unless the target wants the graph as it was written.
    `cache` lets a program of a slow target come from the compile cache (see `cnnc.cache`), unless `after` is to see
    each pass. `options` are the target's own (`arch="sm_90"`; truth values are `on` and `off`). CnncError: E0401 for
    weights that do not fit, E0601 for ops the target lacks, E0602 for a target that is not installed, E0607 for one
    that lacks a library or tool, E0902 for an option it does not have.
    """
    from cnnc import cache as compile_cache
    from cnnc.passes import choose as choose_passes
    from cnnc.passes import optimise as run_passes
    from cnnc.target import inner_sizes
    from cnnc.target import target as find

    _graph(graph)
    chosen, texts = find(target), target_options(target, options)
    names = choose_passes(optimise, passes) if chosen.passes else ()
    given = weights if isinstance(weights, int) else network_of(graph, weights)

    def make() -> Program:
        network = network_of(graph, given) if isinstance(given, int) else given
        return _compiled(chosen, run_passes(network, names, after).network, texts)

    kept = compile_cache.chosen() if cache and after is None else None
    content = given if isinstance(given, int) else given.weights
    key = kept and compile_cache.key(graph, content, chosen, texts, names)
    if kept and key and (found := kept.load(key)):
        found.remade = make
        return found
    program = make()
    program.inner_sizes = inner_sizes(graph)
    if kept and key:
        program.made_from = key
        kept.store(program)
    return program


def _compiled(chosen: Target, network: Network, options: Mapping[str, str]) -> Program:
    graph = network.graph if chosen.fuses else unfused(network.graph)
    try:
        return chosen.compile(graph, network.weights, **options)
    except ModuleNotFoundError:
        status = chosen.status()
        if status.works:
            raise
        raise error("E0607", f"target `{chosen.name}` does not work here: {status.detail}") from None
