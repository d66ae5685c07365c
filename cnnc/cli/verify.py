"""`cnnc verify`: do the targets and the optimiser compute what the model says?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnc.cli.console import findings, note, plural, print_json, print_table, report, working
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.load import case_of, load
from cnnc.cli.options import (
    AS_JSON,
    NO_SETTINGS,
    NO_WEIGHTS,
    Command,
    Names,
    Settings,
    WeightSource,
    model_options,
    weight_options,
)
from cnnc.diagnostics import CnncError

if TYPE_CHECKING:
    from cnnc.diagnostics import Diagnostic
    from cnnc.verification import Fault, Outcome

MISMATCH = 9


@click.command(
    cls=Command,
    examples="""
    cnnc verify net.cnn                                all targets that work here
    cnnc verify resnet50 --targets cpu --dim H=64,W=64
    cnnc verify net.cnn --weights net.safetensors --dtype f16
    cnnc verify net-fold_batch_norm.repro              replay a mismatch
    """,
)
@click.argument("place", metavar="FILE[:MODEL]|REPRODUCER", type=ModelFile())
@click.option("--targets", type=Names(), help="Targets to verify [all that work here].")
@weight_options
@model_options
@AS_JSON
def verify(place: Place, targets: list[str] | None, source: WeightSource, settings: Settings, as_json: bool) -> int:
    """Compare every target with the float64 reference.

    Each target is run at -O0, -O2 and -O3, and one of them with each pass alone and without each, on random inputs. The
    reference is the model as written. An error beyond rounding is traced to the first wrong node; what is needed to
    run that again is written to a folder, FILE-CULPRIT.repro. Inputs have a batch of 2 unless --dim says otherwise.
    """
    from cnnc.verification import Reproducer, Verification
    from cnnc.verification import settings as settings_of

    replaying, names = Path(place.path).is_dir(), targets or []
    if replaying:
        if targets or source != NO_WEIGHTS or settings != NO_SETTINGS:
            raise click.UsageError("a reproducer says all that is needed; the options are for a FILE")
        reproducer = Reproducer.read(Path(place.path))
        note(f"replaying: {reproducer.fault}")
        case, plan = reproducer.case, [reproducer.setting]
    else:
        names = names or _working()
        settings_of(names)  # a wrong name is told at once
        case, plan = case_of(load(place, settings), source), []
    with working("computing the reference in float64"):
        verification = Verification(case)
        plan = plan or settings_of(names, lambda x: verification.check(x).unsupported is None)
    outcomes: list[Outcome] = []
    faults: list[Fault] = []
    broken: dict[str, Diagnostic] = {}
    for i, setting in enumerate(plan):
        with working(f"{i + 1}/{len(plan)}: {setting}"):
            outcome = verification.check(setting)
        if outcome.unsupported and targets:
            raise outcome.unsupported
        outcomes.append(outcome)
        blamed = {fault.culprit for fault in faults} | broken.keys()
        if not outcome.ok and blamed.isdisjoint({setting.target, *setting.passes}):
            with working(f"{setting}: looking for the first wrong node"):
                if outcome.broken:
                    culprit, found = verification.breakdown(outcome)
                    broken[culprit] = found
                else:
                    faults.append(verification.locate(outcome))
    diagnostics = [fault.diagnostic(Path(place.path) if replaying else _write(place, fault)) for fault in faults]
    diagnostics += broken.values()
    if as_json:
        print_json({**findings(diagnostics), "settings": [_json(x) for x in outcomes]})
    else:
        _print(outcomes)
        report(diagnostics)
    return MISMATCH if diagnostics else 0


def _working() -> list[str]:
    """The targets that work on this machine, first the one that is quickest to compile for."""
    from cnnc.target import targets

    return sorted((name for name, cls in targets().items() if cls().status().works), key=lambda name: name != "numpy")


def _write(place: Place, fault: Fault) -> Path | None:
    """The folder that the reproducer was written to; None, and why is reported, if it cannot be."""
    folder = Path(f"{place.stem}-{fault.culprit}.repro")
    try:
        fault.write(folder)
    except CnncError as e:
        report(e.diagnostics)
        return None
    return folder


def _print(outcomes: Sequence[Outcome]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for title in ("target", "optimiser", "max error", "bound", "verdict"):
        table.add_column(title, justify="right" if title in ("max error", "bound") else "left")
    for outcome in outcomes:
        worst = outcome.worst
        numbers = (f"{worst.error:.1e}", f"{worst.bound:.1e}") if worst else ("", "")
        table.add_row(outcome.setting.target, outcome.setting.optimiser, *numbers, _verdict(outcome))
    print_table(table)
    wrong, unsupported = sum(not x.ok for x in outcomes), sum(x.unsupported is not None for x in outcomes)
    vague = sum(x.ok and any(agreement.shows_nothing for agreement in x.agreements) for x in outcomes)
    right = len(outcomes) - wrong - unsupported - vague
    counts = f"{right} right, {wrong} wrong, {unsupported} not supported" + (f", {vague} show nothing" if vague else "")
    click.echo(f"{plural(len(outcomes), 'comparison')}: {counts}")


def _verdict(outcome: Outcome) -> str:
    if outcome.unsupported:
        return f"not supported: {outcome.unsupported.diagnostics[0].message}"
    if outcome.broken:
        return f"BROKEN: {outcome.broken.message}"
    worst = outcome.worst
    if worst and worst.mismatch:
        return f"MISMATCH: output `{worst.output}` {worst.mismatch}"
    if vague := next((x for x in outcome.agreements if x.shows_nothing), None):
        return f"shows nothing: rounding may change all of output `{vague.output}`"
    return "rounding" if worst and worst.error else "exact"


def _json(outcome: Outcome) -> dict[str, Any]:
    outputs = {
        x.output: {"error": x.error if math.isfinite(x.error) else None, "bound": x.bound, "ok": not x.mismatch}
        for x in outcome.agreements
    }
    return {
        "target": outcome.setting.target,
        "passes": list(outcome.setting.passes),
        "verdict": _verdict(outcome),
        "ok": outcome.ok,
        "outputs": outputs,
    }
