"""A fault that verification found, and the folder that replays it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cnnc import weights as weight_files
from cnnc.diagnostics import CnncError, Diagnostic, Help, Label, error
from cnnc.files import check_readable, io_error, replacing
from cnnc.ir.graph import Node
from cnnc.ir.json import from_json, to_json
from cnnc.target import as_array, bind_dims
from cnnc.verification.agreement import Agreement
from cnnc.verification.case import Case
from cnnc.verification.setting import Setting
from cnnc.weights.files import opened

FORMAT: Final = 1
RUN, GRAPH, WEIGHTS, INPUTS = "run.json", "graph.json", "weights.safetensors", "inputs.safetensors"
"""The files of a reproducer: what to run, and the case."""


@dataclass(frozen=True)
class Fault:
    """A setting that goes wrong, and a case that shows it.

    `by_pass` says that the last pass of the setting changes the value, else its target computes it wrongly. `node` is
    the first wrong node, the only output of the case; None if the fault shows in the whole graph alone.
    """

    setting: Setting
    by_pass: bool
    case: Case
    node: Node | None
    agreement: Agreement

    @property
    def culprit(self) -> str:
        """The name of the pass or the target."""
        return self.setting.passes[-1] if self.by_pass else self.setting.target

    @property
    def message(self) -> str:
        who = f"pass `{self.culprit}` changes the" if self.by_pass else f"target `{self.culprit}` computes another"
        node = self.node
        return f"{who} value of " + (f"`{node.name}` ({node.op.name})" if node else f"output `{self.agreement.output}`")

    def diagnostic(self, reproducer: Path | None = None) -> Diagnostic:
        """E0801 at the line of the node; `reproducer` is where the fault can be replayed."""
        origin = self.node.origin if self.node else None
        found = self.agreement
        what = str(found.worst) if found.worst else ""
        notes = [what] if what and not origin else []
        if math.isfinite(found.error):
            notes += [f"the largest error is {found.error:.1e} of the largest value, the bound {found.bound:.1e}"]
        else:
            notes += [f"the result {found.mismatch}"]
        notes += [f"compiled for {self.setting}"]
        return Diagnostic(
            "E0801", self.message,
            (Label(origin.span, what, primary=True),) if origin else (),
            origin.frame.path() if origin and origin.frame else (),
            help=Help(f"replay it with `cnnc verify {reproducer}`") if reproducer else None, notes=tuple(notes),
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write the reproducer. CnncError E0901 where the system does not let it."""
        try:
            folder.mkdir(exist_ok=True)
        except OSError as e:
            raise io_error("write", folder, e) from e
        origin = self.node.origin if self.node else None
        run = {
            "format": FORMAT, "target": self.setting.target, "passes": list(self.setting.passes), "fault": self.message,
            "at": str(origin.span) if origin else None,
        }  # fmt: skip
        for name, data in ((RUN, run), (GRAPH, to_json(self.case.graph))):
            with replacing(folder / name) as temporary:
                temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        weight_files.save(folder / WEIGHTS, self.case.weights)
        weight_files.save(folder / INPUTS, self.case.inputs)


@dataclass(frozen=True)
class Reproducer:
    """What a reproducer holds: the case, the setting, and the fault it was written for."""

    case: Case
    setting: Setting
    fault: str

    @staticmethod
    def read(folder: Path) -> Reproducer:
        """CnncError E0408 for a folder that is no reproducer, and those of weight files and graphs."""
        run = _json(folder / RUN)
        passes = run.get("passes")
        if run.get("format") != FORMAT or not isinstance(run.get("target"), str) or not _all_text(passes):
            raise _malformed(folder, f"`{RUN}` does not say what to run")
        graph = from_json(_json(folder / GRAPH))
        with opened(folder / INPUTS) as stored:
            if missing := [x.name for x in graph.inputs if x.name not in stored]:
                raise _malformed(folder, f"`{INPUTS}` has no `{missing[0]}`")
            inputs = {x.name: as_array(stored[x.name].read(), x) for x in graph.inputs}
        bind_dims(graph.inputs, inputs)
        case = Case(graph, weight_files.load(folder / WEIGHTS, graph), inputs)
        at = f", written at {run['at']}" if run.get("at") else ""
        return Reproducer(case, Setting(run["target"], tuple(passes or ())), f"{run.get('fault')}{at}")


def _json(path: Path) -> dict[str, Any]:
    check_readable(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise _malformed(path.parent, f"`{path.name}` is malformed")
    return data


def _all_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _malformed(folder: Path, reason: str) -> CnncError:
    return error("E0408", f"`{folder}` is not a reproducer of `cnnc verify`: {reason}")
