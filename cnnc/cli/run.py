"""`cnnc run`: a program, or a model compiled on the spot, on real input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.compile import TargetName, build, check_writable
from cnnc.cli.console import print_json
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.inputs import arrays
from cnnc.cli.options import (
    AS_JSON,
    CACHE,
    NO_SETTINGS,
    NO_WEIGHTS,
    Assignments,
    Command,
    Settings,
    WeightSource,
    model_options,
    weight_options,
)
from cnnc.diagnostics import error

if TYPE_CHECKING:
    from cnnc.target import Array


@click.command(
    cls=Command,
    examples="""
    cnnc run r50.cnnp --input image=cat.png --top 5 --labels imagenet.txt
    cnnc run net.cnn --weights net.safetensors --input image=batch.npy -o out.npz
    cnnc run resnet50 --input image=random
    """,
)
@click.argument("place", metavar="PROGRAM|FILE[:MODEL]", type=ModelFile())
@click.option("-i", "--input", "inputs", type=Assignments(), multiple=True,
              help="A picture, a .npy or .npz file, `random` or `zeros`; more pictures make a batch.")  # fmt: skip
@click.option("--top", type=click.IntRange(1), help="Show the K classes with the highest scores [5 with --labels].")
@click.option("--labels", type=click.Path(path_type=Path), help="Names of the classes, a line each.")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Write the outputs to an .npz file.")
@click.option("--trust", is_flag=True, help="Load the native code of a program; do so only if you know its maker.")
@click.option("-t", "--target", type=TargetName(), help="What to compile a FILE for [numpy].")
@weight_options
@model_options
@CACHE
@AS_JSON
def run(
    place: Place, inputs: tuple[tuple[str, str], ...], top: int | None, labels: Path | None, out: Path | None,
    trust: bool, target: str | None, source: WeightSource, settings: Settings, cache: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run a compiled program, or a model from its FILE.

    Pictures are resized and cropped to the input; their values are 0 to 1 unless the input's doc comment says
    otherwise. The options that configure a model are for a FILE; for a program, --dim only sizes `random` and `zeros`.
    """
    import cnnc

    check_writable(out)
    if out is not None and out.suffix not in (".npz", ".safetensors"):
        raise click.UsageError(f"outputs are written as .npz or .safetensors, not to `{out}`")
    names = labels.read_text("utf-8", "replace").splitlines() if labels else None
    if names is not None and top is None:
        top = 5
    if _is_program(place):
        if target or source != NO_WEIGHTS or replace(settings, dims={}) != NO_SETTINGS:
            raise click.UsageError("a program is compiled already; the options that configure a model are for a FILE")
        program = cnnc.load_program(place.path, trust=trust)
        known = sorted({name for port in program.inputs for name in port.type.symbols})
        if wrong := [name for name in settings.dims if name not in known]:
            listed = ", ".join(f"`{name}`" for name in known) or "none that is open"
            raise error("E0205", f"the inputs of the program have no dimension `{wrong[0]}`: they have {listed}")
    else:
        program = build(place, settings, source, target or "numpy", cache=cache)
    outputs = program(**arrays(program.inputs, inputs, settings.dims))
    if top and not any(_is_scores(array) for array in outputs.values()):
        raise error("E0902", "--top and --labels need an output of shape [N, classes]")
    if out is not None:
        from cnnc import weights as weight_files

        weight_files.save(out, outputs)
    if as_json:
        print_json({name: _json(array, top, names) for name, array in outputs.items()})
        return
    for name, array in outputs.items():
        click.echo(f"{name}: {array.dtype}{list(array.shape)}")
        for line in _lines(array, top, names):
            click.echo(f"  {line}")


def _is_program(place: Place) -> bool:
    return Path(place.path).suffix != ".cnn" and Path(place.path).is_file()


def _is_scores(array: Array) -> bool:
    """Whether the array can be a row of class scores for each picture."""
    return array.ndim == 2


def _lines(array: Array, top: int | None, labels: Sequence[str] | None) -> Iterator[str]:
    """The best classes of each row, or the range of the values."""
    if not top or not _is_scores(array):
        yield ", ".join(f"{name} {value:.6g}" for name, value in _range(array).items())
        return
    for i, row in enumerate(array):
        for best in _best(row, top, labels):
            which = f"[{i}] " if len(array) > 1 else ""
            yield f"{which}{best['probability']:7.2%}  {best['label']}  ({best['score']:.6g})"


def _best(scores: Array, top: int, labels: Sequence[str] | None) -> list[dict[str, Any]]:
    """The classes with the highest scores. Scores that do not sum to 1 are taken as logits of the probability."""
    import numpy as np

    scores = scores.astype(np.float64)
    is_distribution = bool((scores >= 0).all()) and abs(scores.sum() - 1) < 1e-3
    powers = np.exp(scores - scores.max())
    probabilities = scores if is_distribution else powers / powers.sum()
    names = labels or ()
    return [
        {
            "class": int(i),
            "label": names[i] if i < len(names) else f"class {i}",
            "score": float(scores[i]),
            "probability": float(probabilities[i]),
        }
        for i in np.argsort(-scores, kind="stable")[:top]
    ]


def _range(array: Array) -> dict[str, float]:
    import numpy as np

    values = array.astype(np.float64)
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def _json(array: Array, top: int | None, labels: Sequence[str] | None) -> dict[str, Any]:
    described = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if top and _is_scores(array):
        return {**described, "top": [[_finite(best) for best in _best(row, top, labels)] for row in array]}
    return {**described, **_finite(_range(array))}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
