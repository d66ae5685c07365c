"""The typed graph that everything works on, and its forms: Python, text, JSON."""

from cnnc.ir.bind import bind
from cnnc.ir.build import Builder
from cnnc.ir.dim import Dim, Sym
from cnnc.ir.graph import Graph, Input, Node, Origin, Param, Value
from cnnc.ir.json import from_json, to_json
from cnnc.ir.op import Op, OpError, ParamSpec, register, registry
from cnnc.ir.text import from_text, structurally_equal, to_text
from cnnc.ir.types import DType, TensorType
from cnnc.ir.verify import verify

__all__ = [
    "Builder", "DType", "Dim", "Graph", "Input", "Node", "Op", "OpError", "Origin", "Param", "ParamSpec", "Sym",
    "TensorType", "Value", "bind", "from_json", "from_text", "register", "registry", "structurally_equal", "to_json",
    "to_text", "verify",
]  # fmt: skip
