"""Running a generated network."""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnc import weights
from cnnc.artifact import network_files, read_network
from cnnc.files import replacing
from cnnc.ir.graph import Graph
from cnnc.ir.types import DType
from cnnc.target import Program, numpy_dtype, ports
from cnnc_torch.source import network_source

if TYPE_CHECKING:
    from cnnc.target import Array, Weights

_NUMBER: Final = count(1)


class TorchProgram(Program):
    """A network as PyTorch code, with its weights."""

    suffix: ClassVar[str] = ".py"

    def __init__(self, graph: Graph, weights: Weights) -> None:
        super().__init__("torch", *ports(graph))
        self.graph, self.weights = graph, weights
        self._source, name = network_source(graph)
        self._class = _define(self._source, name)
        self._module = self._loaded({name: tensor(x) for name, x in weights.items()}).eval()

    def module(self) -> nn.Module:
        """A new module with a copy of the weights, in training mode. Its `state_dict` has cnnc's names."""
        return self._loaded({name: tensor(x).clone() for name, x in self.weights.items()})

    def _loaded(self, state: dict[str, Tensor]) -> nn.Module:
        with _Uninitialised():
            module = self._class()
        module.load_state_dict(state, assign=True)
        return module

    def run(self, inputs: dict[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            result = self._module(*(tensor(inputs[port.name]) for port in self.inputs))
        outputs = result if isinstance(result, dict) else {self.outputs[0].name: result}
        return {port.name: array(outputs[port.name]) for port in self.outputs}

    def source(self) -> str:
        return self._source

    def files(self) -> dict[str, bytes]:
        """The graph and the weights; the code is generated again when the artifact is loaded."""
        return network_files(self.graph, self.weights)

    @staticmethod
    def parse(files: Mapping[str, bytes]) -> TorchProgram:
        """The program whose `files()` these are; CnncErrors as of `read_network`."""
        return TorchProgram(*read_network(files))

    def export(self, path: Path) -> None:
        """Write the source to `path` and the weights beside it, as `<stem>.safetensors`."""
        weights.save(path.with_suffix(".safetensors"), self.weights)
        with replacing(path) as new:
            new.write_text(self._source, encoding="utf-8")


class _Uninitialised(TorchFunctionMode):
    """Modules made inside get no random values, which take long and which the weights replace at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def tensor(x: Array) -> Tensor:
    """The array as a tensor, on the same memory if that can be written; torch does not know NumPy's bfloat16."""
    x = x if x.flags.writeable else x.copy()
    if x.dtype == numpy_dtype(DType.BF16):
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def array(x: Tensor) -> Array:
    """The tensor as an array."""
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(numpy_dtype(DType.BF16))
    return x.numpy()


def _define(source: str, name: str) -> type[nn.Module]:
    """The class `name` of a generated source. Tracebacks show the source."""
    file = f"<cnnc torch {next(_NUMBER)}>"
    module = ModuleType(f"cnnc_torch.generated.{name}")
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), module.__dict__)
    made: type[nn.Module] = module.__dict__[name]
    return made
