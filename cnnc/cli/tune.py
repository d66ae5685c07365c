"""`cnnc tune`: faster kernels for this processor, found by measuring."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from cnnc.cli.app import INTERRUPTED
from cnnc.cli.console import note, plural, print_json, print_table, working
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.load import load, told_already
from cnnc.cli.options import AS_JSON, Assignments, Command, Passes, Settings, model_options, pass_options

if TYPE_CHECKING:
    from cnnc.tuning import Farm, Found, Outcome

UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType[float]):
    """`90s`, `10m`, `2h`."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh]?)", str(value), re.ASCII)
        if not found:
            self.fail(f"`{value}` is not a time such as 90s, 10m or 2h", param, ctx)
        return float(found[1]) * UNITS[found[2]]


class Address(click.ParamType[tuple[str, int]]):
    """`HOST:PORT`."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        host, _, port = str(value).rpartition(":")
        if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            self.fail(f"`{value}` is not of the form HOST:PORT, such as 10.0.0.5:9190", param, ctx)
        return host, int(port)


@click.command(
    cls=Command,
    examples="""
    cnnc tune resnet50 --budget 10m
    cnnc tune resnet18 mobilenet_v2 --dim N=8 --budget 1h
    cnnc tune net.cnn -X mcpu=znver4 --tracker 10.0.0.5:9190 --key zen4
    """,
)
@click.argument("places", metavar="FILE[:MODEL]...", type=ModelFile(), nargs=-1, required=True)
@click.option("--budget", type=Duration(), default="10m", help="Time for each model: 90s, 10m, 2h [10m].")
@click.option("--trials", type=click.IntRange(1), default=64, help="Ways to try for each kernel, at most [64].")
@click.option("--tracker", type=Address(), help="Measure on the machines of this tracker of TVM's RPC.")
@click.option("--key", help="The key by which the tracker knows the machines.")
@model_options
@click.option("-X", "options", type=Assignments(), multiple=True, help="An option of target cpu: -X KEY=VALUE.")
@pass_options
@AS_JSON
def tune(
    places: tuple[Place, ...], budget: float, trials: int, tracker: tuple[str, int] | None, key: str | None,
    settings: Settings, options: tuple[tuple[str, str], ...], chosen: Passes, as_json: bool,
) -> int:  # fmt: skip
    """Search for faster kernels by measuring.

    The convolutions of a model are compiled in several ways and measured, those that take most of the time first. What
    is faster is kept, and used from then on by everything that compiles for target cpu on such a processor, unless
    it says `-X tuned=off`. Kernels run in a process of their own. A search that is stopped, by Ctrl-C too, goes on the
    next time. A batch that is not bound by --dim is taken for 1.
    """
    from cnnc.tuned import made_store
    from cnnc.tuning import tune as search

    farm = _farm(tracker, key)
    store = made_store()
    graphs = [(place.stem, load(place, settings)) for place in places]
    outcomes: dict[str, Outcome] = {}
    with working("starting", per_second=1) as status, told_already():
        for name, graph in graphs:

            def tell(found: Sequence[Found], left: float, name: str = name) -> None:
                if status:
                    status.update(_progress(name, found, left, trials))

            outcomes[name] = outcome = search(
                graph, budget=budget, trials=trials, optimise=chosen.optimise, passes=chosen.passes, farm=farm,
                options=dict(options), store=store, tell=tell,
            )  # fmt: skip
            if outcome.interrupted:
                break
    if as_json:
        print_json({name: _json(outcome.found) for name, outcome in outcomes.items()})
    else:
        for name, outcome in outcomes.items():
            _print(name, outcome, trials)
    return INTERRUPTED if any(outcome.interrupted for outcome in outcomes.values()) else 0


def _farm(tracker: tuple[str, int] | None, key: str | None) -> Farm | None:
    from cnnc.tuning import Farm

    if (tracker is None) != (key is None):
        raise click.UsageError("--tracker and --key belong together")
    return Farm(*tracker, key) if tracker and key else None


def _progress(name: str, found: Sequence[Found], left: float, most: int) -> str:
    tried = sum(x.entry.tried for x in found if x.entry)
    of = sum(min(most, len(x.task.plans)) for x in found)
    better = sum(x.ratio < 1 for x in found)
    clock = time.strftime("%H:%M:%S", time.gmtime(left))
    return f"tuning {name}: {tried} of {of} ways tried, {better} of {plural(len(found), 'kernel')} faster, {clock} left"


def _print(name: str, outcome: Outcome, most: int) -> None:
    if not outcome.found:
        click.echo(f"{name}: no kernels to choose from: they are for convolutions of images of known size (--dim)")
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    left = ("kernel", "layers")
    for title in (*left, "ways tried", "ms before", "ms after", "ratio"):
        table.add_column(title, no_wrap=True, justify="left" if title in left else "right")
    for each in outcome.found:
        more = f" and {len(each.task.layers) - 1} more" if len(each.task.layers) > 1 else ""
        tried, times = 0, ["", ""]
        if each.entry:
            tried, times = each.entry.tried, [f"{x * 1e3:.3f}" for x in (each.entry.before, each.entry.after)]
        of = f"{tried} of {max(tried, min(most, len(each.task.plans)))}"
        ratio = f"{each.ratio:.2f}" if each.ratio < 1 else ""
        table.add_row(each.task.name, f"{''.join(each.task.layers[:1])}{more}", of, *times, ratio)
    print_table(table)
    click.echo(_summary(name, outcome.found))
    if not all(x.is_done(most) for x in outcome.found):
        note("the search is not finished: the same command goes on with it")


def _summary(name: str, found: Sequence[Found]) -> str:
    known = [(x.entry, len(x.task.layers)) for x in found if x.entry]
    before, after = (sum(getattr(e, side) * n for e, n in known) for side in ("before", "after"))
    better = sum(x.ratio < 1 for x in found)
    share = f", {before * 1e3:.3f} ms of them are {after * 1e3:.3f} ms now" if better else ""
    return f"{name}: {better} of {plural(len(found), 'kernel')} faster{share}"


def _json(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {
            "kernel": x.task.name,
            "layers": list(x.task.layers),
            "ways": len(x.task.plans),
            "tried": x.entry.tried if x.entry else 0,
            "plan": x.entry and x.entry.plan,
            "seconds_before": x.entry and x.entry.before,
            "seconds_after": x.entry and x.entry.after,
        }
        for x in found
    ]
