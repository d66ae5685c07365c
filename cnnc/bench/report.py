"""What a comparison came to: a table, a line that sums it up, JSON, a plot."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cnnc.bench.measure import Comparison, Quartiles, Settings, Timed
from cnnc.bench.systems import CNNC
from cnnc.diagnostics import error
from cnnc.files import replacing

if TYPE_CHECKING:
    from rich.table import Table

PLOTS: Final = (".png", ".svg")
CPUINFO: Final = Path("/proc/cpuinfo")


def table(found: Sequence[Comparison]) -> Table:
    """A row for each system of each comparison, the fastest first."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, padding=0)
    for title in ("model", "batch", "system", "time", "cnnc / it", "quartiles", "memory"):
        made.add_column(title, justify="left" if title in ("model", "system") else "right")
    for each in found:
        names = (each.title, str(each.batch))
        for timed in sorted((each.own, *each.peers), key=lambda x: float(np.median(x.seconds))):
            ratio = ("", "")
            if timed is not each.own:
                of = each.ratio(timed)
                ratio = (f"{of.median:.2f}", f"{of.lower:.2f} to {of.upper:.2f}")
            memory = f"{timed.peak_bytes / 1e6:.0f} MB" if timed.peak_bytes else ""
            made.add_row(*names, timed.system, duration(float(np.median(timed.seconds))), *ratio, memory)
            names = ("", "")
        made.add_section()
    return made


def duration(seconds: float) -> str:
    """Milliseconds to three digits."""
    digits = max(0, 2 - math.floor(math.log10(seconds * 1e3)))
    return f"{seconds * 1e3:.{digits}f} ms"


def conclusion(found: Sequence[Comparison]) -> str:
    """How cnnc does beside the fastest peer of each comparison, and where it is behind; '' without peers."""
    ratios = [(each, each.ratio(each.fastest).median) for each in found if each.fastest]
    if not ratios:
        return ""
    speed = statistics.geometric_mean(1 / ratio for _, ratio in ratios)
    text = f"cnnc has {speed:.2f} times the speed of the fastest other system (geometric mean of {len(ratios)})"
    behind = [f"{x.title} at batch {x.batch} ({ratio:.2f})" for x, ratio in ratios if ratio > 1]
    return f"{text}; behind on {', '.join(behind)}" if behind else text


def left_out(found: Sequence[Comparison]) -> list[str]:
    """A line for each system that was left out and why, with the comparisons where it was not in all."""
    where: dict[tuple[str, str], list[str]] = {}
    for each in found:
        for pair in each.left_out.items():
            where.setdefault(pair, []).append(f"{each.title} at batch {each.batch}")
    return [
        f"left out: {system}{'' if len(places) == len(found) else ' for ' + ', '.join(places)}: {reason}"
        for (system, reason), places in where.items()
    ]


def to_json(found: Sequence[Comparison], settings: Settings) -> dict[str, Any]:
    """All that was measured, and on what. Times are in seconds."""
    return {
        "cnnc": version("cnnc"),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": asdict(settings),
        "comparisons": [
            {
                "model": each.model,
                "batch": each.batch,
                "dtype": each.dtype.value,
                "systems": [_system(each.own, None), *(_system(peer, each.ratio(peer)) for peer in each.peers)],
                "left_out": dict(each.left_out),
            }
            for each in found
        ],
    }


def _system(timed: Timed, ratio: Quartiles | None) -> dict[str, Any]:
    of = asdict(timed)
    return {**of, "median": float(np.median(timed.seconds)), "cnnc_over_it": ratio and asdict(ratio)}


def machine() -> dict[str, Any]:
    """What is measured on."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def write_json(path: Path, found: Sequence[Comparison], settings: Settings) -> None:
    """CnncError E0901 where the system does not let it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(to_json(found, settings), indent=1) + "\n", encoding="utf-8")


def check_plot(path: Path) -> None:
    """Before the work: CnncError E0902 for a name that is of no plot, E0609 without matplotlib."""
    if path.suffix not in PLOTS:
        raise error("E0902", f"a plot is a .png or .svg file, not `{path}`")
    try:
        version("matplotlib")
    except ModuleNotFoundError:
        help = "install it: pip install 'cnnc[bench]'"
        raise error("E0609", "plots need matplotlib, which is not installed", help=help) from None


def plot(path: Path, found: Sequence[Comparison], settings: Settings) -> None:
    """Draw the time of cnnc over that of each peer, with quartiles: below 1 cnnc is ahead.

    CnncError E0901 where the system does not let it.
    """
    from matplotlib.figure import Figure

    systems = list(dict.fromkeys(peer.system for each in found for peer in each.peers))
    figure = Figure(figsize=(2 + 0.9 * max(4, len(found)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1, color="black", linewidth=0.8)
    for i, system in enumerate(systems):
        points = [(x, each.ratio(p)) for x, each in enumerate(found) for p in each.peers if p.system == system]
        at = [x + 0.6 * ((i + 0.5) / len(systems) - 0.5) for x, _ in points]
        middle = [of.median for _, of in points]
        spread = [[of.median - of.lower for _, of in points], [of.upper - of.median for _, of in points]]
        axes.errorbar(at, middle, spread, fmt="o", capsize=3, markersize=5, label=system)
    axes.set_xticks(range(len(found)), [f"{each.title}\nbatch {each.batch}" for each in found])
    axes.set_yscale("log")  # half and twice the time are equally far from 1
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.set_ylabel(f"time of {CNNC} / time of the other")
    title = f"target {settings.target}, threads: {settings.threads}, rounds: {settings.rounds}, median and quartiles"
    axes.set_title(title)
    if systems:
        axes.legend(loc="best")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
