"""What names mean while a model is elaborated: values, blocks, environments, and the naming of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cnnc.diagnostics import Span
from cnnc.frontend import syntax as s
from cnnc.ir.graph import Frame, Input, Node
from cnnc.ir.op import Op
from cnnc.ir.types import TensorType


class Poison:
    """The value of what failed: whatever is computed from it is poison too, silently, so each mistake is told once."""

    def __repr__(self) -> str:
        return "poison"


POISON: Final = Poison()


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """An evaluated argument."""

    name: str | None
    value: object
    span: Span


@dataclass(frozen=True, slots=True, eq=False)
class OpBlock:
    op: type[Op]

    @property
    def name(self) -> str:
        return self.op.name


@dataclass(frozen=True, slots=True, eq=False)
class DefBlock:
    """A def and the environment it was written in."""

    node: s.Def
    env: Env

    @property
    def name(self) -> str:
        return self.node.name.text


@dataclass(frozen=True, slots=True, eq=False)
class ModelBlock:
    """A model used as a block."""

    node: s.Model
    env: Env

    @property
    def name(self) -> str:
        return self.node.name.text


@dataclass(frozen=True, slots=True, eq=False)
class Builtin:
    """A block or function the language itself provides: `id`, `split`, `range`, `max`, ..."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Called:
    """A template with its arguments: a block that waits for its operands."""

    block: Template
    args: tuple[Given, ...]
    span: Span

    @property
    def name(self) -> str:
        return self.block.name


@dataclass(frozen=True, slots=True, eq=False)
class Closure:
    """A composite block passed as an argument: an expression and the environment it was written in."""

    expr: s.Expr
    env: Env
    name: str = "block"


@dataclass(slots=True, eq=False)
class SharedBlock:
    """A block whose weights live under one path, wherever it is used."""

    name: str
    path: str
    block: Block
    span: Span
    uses: int = 0


Template: TypeAlias = OpBlock | DefBlock | ModelBlock | Builtin
Block: TypeAlias = Template | Called | Closure | SharedBlock
Tensor: TypeAlias = Input | Node
BLOCKS: Final = (OpBlock, DefBlock, ModelBlock, Builtin, Called, Closure, SharedBlock)


@dataclass(slots=True, eq=False)
class Step:
    """A step that has run: its value, and the steps inside it."""

    name: str
    value: object
    kind: str
    span: Span
    inner: Scope | None = None
    shared: SharedBlock | None = None


@dataclass(slots=True, eq=False)
class Scope:
    """The steps of a call or of a labelled group, which name each other's places.

    `path` prefixes the names of nodes and taps, `weights` those of parameters: they differ inside a shared block.
    """

    path: str
    weights: str
    frame: Frame | None
    shared: SharedBlock | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    count: int = 0

    def next_name(self, label: str | None) -> str:
        """The name of the next step: its label, or its position."""
        name = str(self.count) if label is None else label
        self.count += 1
        return name

    def inside(self, name: str, frame: Frame | None, shared: SharedBlock | None = None) -> Scope:
        """The scope of a step of this one."""
        weights = shared.path if shared else join(self.weights, name)
        return Scope(join(self.path, name), weights, frame, shared or self.shared)

    def taps(self) -> Iterator[tuple[str, Step]]:
        """Every step under this scope with its full name."""
        stack = list(reversed(self.steps.values()))
        prefixes = [self.path] * len(stack)
        while stack:
            step, prefix = stack.pop(), prefixes.pop()
            full = join(prefix, step.name)
            yield full, step
            if step.inner:
                inner = list(reversed(step.inner.steps.values()))
                stack += inner
                prefixes += [full] * len(inner)


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@dataclass(slots=True, eq=False)
class Binding:
    value: object
    span: Span
    kind: str  # parameter, binding, label, loop, input, shared; of a file: constant, def, model, import; library


@dataclass(slots=True, eq=False)
class Env:
    """Names of one lexical level; `input` is the value of `in`, which only bodies of defs have."""

    parent: Env | None = None
    names: dict[str, Binding] = field(default_factory=dict)
    input: object = None
    body: bool = False  # labels bind in the nearest body

    def find(self, name: str) -> Binding | None:
        env: Env | None = self
        while env is not None:
            if name in env.names:
                return env.names[name]
            env = env.parent
        return None

    def find_block(self, name: str) -> Binding | None:
        """The nearest binding of that name to a block; values are passed over."""
        env: Env | None = self
        while env is not None:
            found = env.names.get(name)
            if found is not None and isinstance(found.value, BLOCKS):
                return found
            env = env.parent
        return None

    def label_env(self) -> Env:
        env = self
        while not env.body and env.parent is not None:
            env = env.parent
        return env

    def flowing_in(self) -> object:
        """The value of `in`; None where there is none."""
        env: Env | None = self
        while env is not None:
            if env.body:
                return env.input
            env = env.parent
        return None

    def known(self) -> list[str]:
        """Every visible name, nearest first."""
        names: dict[str, None] = {}
        env: Env | None = self
        while env is not None:
            names.update(dict.fromkeys(env.names))
            env = env.parent
        return list(names)


class LazyConst:
    """A constant of a file before its first use."""

    def __init__(self, expr: s.Expr, env: Env) -> None:
        self.expr, self.env = expr, env


def describe(value: object) -> str:
    """What a value is, in a few words, for messages."""
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f'the word "{value}"'
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Input | Node):
        return f"a tensor, {value.type}"
    if isinstance(value, TensorType):
        return str(value)
    if isinstance(value, BLOCKS):
        return f"the block `{value.name}`"
    return "nothing"
