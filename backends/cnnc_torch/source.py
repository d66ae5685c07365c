"""The generated file: imports, what torch lacks, a class for each block, and loading and saving of weights."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Final

from cnnc.ir.graph import Graph, Node, Origin
from cnnc.ir.types import DType, shape_text
from cnnc_torch import helpers, helpers_detection
from cnnc_torch.blocks import Blocks, access
from cnnc_torch.classes import Class, Parameter, classes
from cnnc_torch.forward import Forward
from cnnc_torch.layout import INDENT, additions, construct, listed, mapping, statement
from cnnc_torch.names import Naming
from cnnc_torch.rules_functions import inline_numbers
from cnnc_torch.rules_modules import rules
from cnnc_torch.written import text

_STANDARD: Final = {
    "import math": r"\bmath\.",
    "from collections import OrderedDict": r"\bOrderedDict\(",
    "from collections.abc import Sequence": r"\bSequence\[",
    "from typing import Any": r"\bAny\b",
}
_TORCH: Final = {
    "import torch": r"(?<![.\w])torch\.",
    "import torch.nn.functional as F": r"(?<![.\w])F\.",
    "from torch import Tensor, nn": "",
}
_IMPORTED: Final = frozenset({"Any", "F", "OrderedDict", "Sequence", "Tensor"})

_LOAD: Final = '''
def load(path: str) -> {name}:
    """The network with the weights of a safetensors file, such as `save` writes, ready for inference."""
    from safetensors.torch import load_file

    model = {name}()
    model.load_state_dict(load_file(path), assign=True)
    return model.eval()


def save(model: {name}, path: str) -> None:
    """Write the weights, without the counters of batches that PyTorch keeps beside them."""
    from safetensors.torch import save_file

    state = model.state_dict()
    save_file({{name: x.contiguous() for name, x in state.items() if not name.endswith(".num_batches_tracked")}}, path)
'''


def network_source(graph: Graph) -> tuple[str, str]:
    """The source of the network and the name of its class. E0601 for what cannot be written."""
    rules.check(graph)
    written = {node: rules[node.op](node) for node in graph.nodes}
    inline_numbers(written, graph)
    available = _helpers()
    blocks = Blocks(graph, written, available)
    naming = Naming(graph.name, blocks.root.region, {*available, *_IMPORTED})
    made = classes(blocks, written, naming)
    bodies = ["\n".join(_class(x, graph)) for x in made]
    used = _used("\n".join(bodies), available)
    name = made[-1].name
    whole = "\n\n\n".join([*used, *bodies, _LOAD.format(name=name).strip()])
    return f"{_header(graph)}\n\n{_imports(whole)}\n\n\n{whole}\n", name


def _header(graph: Graph) -> str:
    sources = dict.fromkeys(PurePath(node.origin.span.source.name).name for node in graph.nodes if node.origin)
    made = f"Made by cnnc from {', '.join(map(_plain, sources))}." if sources else "Made by cnnc."
    inputs = [f"{x.name}: {x.type}{'. ' if x.doc else ''}{x.doc}" for x in graph.inputs]
    outputs = [f"{name}: {x.type}" for name, x in graph.outputs.items()]
    title = f"{graph.name}. {graph.doc}".strip() if graph.doc else graph.name
    lines = [title, "", "Inputs:", *(f"    {x}" for x in inputs), "Outputs:", *(f"    {x}" for x in outputs), "", made]
    return '"""' + "\n".join(_plain(line) for line in lines) + '\n"""'


def _imports(whole: str) -> str:
    """The imports that the source needs."""
    standard = [line for line, pattern in _STANDARD.items() if re.search(pattern, whole)]
    torch = [line for line, pattern in _TORCH.items() if re.search(pattern, whole)]
    return "\n".join([*standard, *([""] if standard else []), *torch])


def _class(cls: Class, graph: Graph) -> list[str]:
    block = cls.first
    base = {"attribute": "nn.Module", "key": "nn.ModuleDict", "index": "nn.Sequential"}[block.style]
    outermost = not block.region.path
    lines = [f"class {cls.name}({base}):", f'    """{_plain(_summary(cls))}"""']
    if cls.parts:
        lines += ["", *_init(cls)]
    if block.style != "index":
        lines += ["", *_forward(block.forward, outermost, len(graph.outputs))]
    return lines


def _summary(cls: Class) -> str:
    """What a block takes and gives, with the sizes of the first of its class, and where it was written."""
    region = cls.first.region
    inputs, outputs = (", ".join(shape_text(x.type.shape) for x in xs) for xs in (region.inputs, region.outputs))
    where = f" in `{'.'.join(region.home)}`" if region.path else ""
    lines = Counter(_line(x.origin) for x in region.items if isinstance(x, Node) and x.origin)
    source = f", from {lines.most_common(1)[0][0]}" if lines else ""
    return f"{inputs} -> {outputs}{where}{source}."


def _line(origin: Origin) -> str:
    return f"{PurePath(origin.span.source.name).name}:{origin.span.line}"


def _init(cls: Class) -> list[str]:
    parameters = "".join(f", {_parameter(x)}" for x in cls.parameters)
    lines = statement(f"def __init__(self{parameters}) -> None:", INDENT)
    inner = INDENT * 2
    block = cls.first
    if block.style == "index":
        opening, items, closing = "super().__init__(", [("", x) for x in cls.parts.values()], ")"
    elif block.style == "key":
        opening, items, closing = "super().__init__({", list(mapping(cls.parts)), "})"
    else:
        lines.append(f"{inner}super().__init__()")
        for name, part in cls.parts.items():
            lines += construct(part, f"self{access(name, 'attribute')} = ", "", inner)
            lines += additions(part, f"self{access(name, 'attribute')}", inner)
        return lines
    lines += listed(opening, items, closing, inner)
    for name, part in cls.parts.items():
        lines += additions(part, f"self{access(name, block.style)}", inner)
    return lines


def _parameter(parameter: Parameter) -> str:
    kinds = dict.fromkeys(_annotation(value) for value in parameter.values)
    default = "" if parameter.default is ... else f" = {text(parameter.default)}"
    return f"{parameter.name}: {' | '.join(kinds)}{default}"


def _annotation(value: object) -> str:
    if isinstance(value, tuple):
        return f"tuple[{', '.join(_annotation(x) for x in value)}]"
    return "torch.dtype" if isinstance(value, DType) else type(value).__name__


def _forward(forward: Forward, outermost: bool, outputs: int) -> list[str]:
    parameters = "".join(f", {name}: Tensor" for name in forward.parameters)
    if outermost:
        result = "Tensor" if outputs == 1 else "dict[str, Tensor]"
    else:
        result = "Tensor" if forward.returns == 1 else f"tuple[{', '.join(['Tensor'] * forward.returns)}]"
    lines = statement(f"def forward(self{parameters}) -> {result}:", INDENT)
    for x in forward.statements:
        broken = statement(x.text, INDENT * 2)
        if outermost and x.shape:
            broken[-1] += f"  # {x.shape}"
        lines += broken
    return lines


@cache
def _helpers() -> dict[str, str]:
    """The source of each definition in the modules of helpers, in order."""
    modules = (helpers, helpers_detection)
    found = [x for module in modules for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__]
    return {x.__name__: inspect.getsource(x).rstrip() for x in found}


def _used(body: str, available: Mapping[str, str]) -> list[str]:
    """The sources of the helpers that a text uses, and of those that they use."""
    used: set[str] = set()
    texts = [body]
    while texts:
        called = set(re.findall(r"(?<![.\w])(\w+)\(", texts.pop()))
        texts += [available[name] for name in available if name in called - used]
        used |= called
    return [source for name, source in available.items() if name in used]


def _plain(line: str) -> str:
    """A text of the user's, fit for a docstring."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in line).replace("\\", "/").replace('"', "'")
