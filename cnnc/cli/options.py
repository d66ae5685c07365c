"""What commands have in common: `--json`, `--debug`, examples in the help, and how a model is named and configured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

CACHE = click.option("--no-cache", "cache", flag_value=False, default=True, help="Compile anew, and keep nothing.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")


class Command(click.Command):
    """A command with examples in its help, and `--debug`. What its function returns is the exit status; None is 0."""

    def __init__(self, name: str, examples: str, **attributes: Any) -> None:
        lines = "".join(f"  {line.strip()}\n" for line in examples.strip().splitlines())
        super().__init__(name, epilog=f"\b\nExamples:\n{lines}", **attributes)
        # Its value is read by App.main, which must know it even where the command line does not parse.
        debug = click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the trace of an internal error.")
        self.params.append(debug)


class Assignments(click.ParamType[tuple[str, str]]):
    """`NAME=VALUE` as a pair of strings."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key.strip() and equals and text.strip()):
            self.fail(f"`{value}` is not of the form NAME=VALUE", param, ctx)
        return key.strip(), text.strip()


class Sizes(click.ParamType[dict[str, int]]):
    """`N=1,H=224`: sizes by the name of their symbolic dim."""

    name = "DIM=SIZE,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for part in str(value).split(","):
            name, _, size = (x.strip() for x in part.partition("="))
            if not (name.isidentifier() and size.isascii() and size.isdecimal() and 0 < len(size) < 11 and int(size)):
                self.fail(f"`{part}` is not of the form NAME=SIZE with a size of at least 1, such as N=1", param, ctx)
            if name in sizes:
                self.fail(f"`{name}` is given twice", param, ctx)
            sizes[name] = int(size)
        return sizes


class Names(click.ParamType[list[str]]):
    """`a,b`: names between commas."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = [name.strip() for name in str(value).split(",")]
        if not all(names):
            self.fail(f"`{value}` is not a list of names, such as a,b", param, ctx)
        return names


@dataclass(frozen=True)
class Settings:
    """How a model is to be made: sizes of its dims, values of its parameters, its outputs, its element type."""

    dims: dict[str, int]
    args: dict[str, str]
    outputs: list[str] | None
    dtype: str | None


@dataclass(frozen=True)
class WeightSource:
    """Where the weights of a model come from: a file, or a seed for its initialisers."""

    weights: Path | None
    seed: int | None
    strict: bool


@dataclass(frozen=True)
class Passes:
    """Which passes run."""

    optimise: int
    passes: str


DEFAULT_PASSES = Passes(2, "")
NO_SETTINGS = Settings({}, {}, None, None)
NO_WEIGHTS = WeightSource(None, None, strict=False)


def _merged(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> dict[str, Any]:
    """One dict of what an option was given several times: dicts, or pairs of name and value."""
    return {name: value for each in values for name, value in (each.items() if isinstance(each, dict) else [each])}


def _gathered(cls: type, keyword: str, *options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """A decorator that adds `options`, one for each field of `cls`; the function gets a `cls` as `keyword`."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def gathering(**values: Any) -> Any:
            own = {field.name: values.pop(field.name) for field in fields(cls)}
            return function(**{keyword: cls(**own)}, **values)

        for option in reversed(options):
            option(gathering)
        return gathering  # type: ignore[return-value]

    return decorate


_PARAMETER = "A parameter: classes=10; --set again for another."

model_options = _gathered(
    Settings,
    "settings",
    click.option("--dim", "dims", type=Sizes(), multiple=True, callback=_merged, help="Bind symbolic dims: N=1,H=224."),
    click.option("--set", "args", type=Assignments(), multiple=True, callback=_merged, help=_PARAMETER),
    click.option("--outputs", type=Names(), help="Outputs wanted, or labels to tap; the rest is pruned."),
    click.option("--dtype", type=click.Choice(["f32", "f16", "bf16"]), help="Element type of the whole model."),
)
weight_options = _gathered(
    WeightSource,
    "source",
    click.option("--weights", type=click.Path(path_type=Path), help="A .safetensors, .npz or .pth file."),
    click.option("--seed", type=click.IntRange(0), help="Random weights from this seed [0]."),
    click.option("--strict", is_flag=True, help="Refuse weights with NaN or infinite values."),
)
pass_options = _gathered(
    Passes,
    "chosen",
    click.option("-O", "--optimise", type=click.IntRange(0, 3), default=2, help="How much to optimise: 0 to 3 [2]."),
    click.option("--passes", default="", metavar="[+|-]PASS,...", help="Passes to add or leave out: -fold_batch_norm."),
)
