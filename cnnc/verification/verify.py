"""Running a case in many settings, and tracing what is wrong to its cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cnnc import driver
from cnnc.diagnostics import CnncError, Diagnostic, Help, internal
from cnnc.ir.graph import Graph, Node
from cnnc.target import target
from cnnc.verification.agreement import Agreement, Expected
from cnnc.verification.case import Case
from cnnc.verification.fault import Fault
from cnnc.verification.reduce import around
from cnnc.verification.setting import Setting

INTERNAL = "E0999"
UNSUPPORTED = 7
"""The exit status of errors by which a target says that it cannot do this."""


@dataclass(frozen=True)
class Outcome:
    """What came of a setting: how each output compares, or why the target cannot do it, or that cnnc broke down."""

    setting: Setting
    agreements: tuple[Agreement, ...]
    unsupported: CnncError | None = None
    broken: Diagnostic | None = None

    @property
    def worst(self) -> Agreement | None:
        """The output furthest beyond its bound, or nearest to it; None if there is nothing to compare."""
        return max(self.agreements, key=lambda x: (bool(x.mismatch), x.error - x.bound), default=None)

    @property
    def ok(self) -> bool:
        return self.broken is None and not any(x.mismatch for x in self.agreements)


class Verification:
    """The comparisons of one case, against one evaluation of its reference."""

    def __init__(self, case: Case) -> None:
        """CnncError E0802 if an output of the reference has the same value everywhere; those of the target `numpy`
        for a graph that it cannot evaluate."""
        self.case = case
        self._refusals: dict[str, CnncError] = {}
        self._expected = Expected(case)
        self._expected.check_varied()

    def check(self, setting: Setting) -> Outcome:
        """Compile and run the case in a setting, and compare. CnncErrors other than of an unsupported target, and than
        E0999, are raised."""
        if setting.target in self._refusals:
            return Outcome(setting, (), self._refusals[setting.target])
        try:
            return Outcome(setting, _compare(self.case, setting, self._expected))
        except CnncError as e:
            if e.diagnostics[0].code == INTERNAL:
                return Outcome(setting, (), broken=e.diagnostics[0])
            if e.exit_status != UNSUPPORTED:
                raise
            if e.diagnostics[0].code != "E0601":  # an op without a rule: passes may replace it
                self._refusals[setting.target] = e
            return Outcome(setting, (), e)
        except Exception as e:  # a fault of cnnc in one setting: the others are to be seen too
            return Outcome(setting, (), broken=internal(e))

    def breakdown(self, outcome: Outcome) -> tuple[str, Diagnostic]:
        """The pass or the target that a setting breaks down with, and what to tell of an outcome that is `broken`."""
        assert outcome.broken is not None
        setting = self._shortest(outcome.setting)
        culprit = setting.passes[-1] if setting.passes else setting.target
        what = f"pass `{culprit}`" if setting.passes else f"target `{culprit}`"
        notes = (f"{what} breaks down, compiled for {outcome.setting}", *outcome.broken.notes)
        how = f"-t {setting.target} -O0" + (f" --passes {','.join(setting.passes)}" if setting.passes else "")
        help = Help(f"`cnnc compile MODEL {how} --debug` shows the trace of what breaks down while compiling")
        return culprit, replace(outcome.broken, notes=notes, help=help)

    def locate(self, outcome: Outcome) -> Fault:
        """What is at fault in an outcome that is not ok: the pass or the target, and the first wrong node."""
        setting = self._shortest(outcome.setting)
        # A pass whose result is right on the target of the reference only brought a fault of this one to light.
        sound = self.check(replace(setting, target="numpy"))
        by_pass = bool(setting.passes) and (not sound.ok or sound.unsupported is not None)
        agreement = next(x for x in self.check(setting).agreements if x.mismatch)
        last = self.case.graph.outputs[agreement.output]
        found: dict[Node, Agreement] = {}

        def wrong(node: Node) -> bool:
            if node not in found:
                (found[node],) = _compare(self.case.pruned(node), setting)
            return bool(found[node].mismatch)

        if not isinstance(last, Node) or not wrong(last):  # it takes the whole graph to show it
            return Fault(setting, by_pass, self.case, None, agreement)
        node = first_wrong(self.case.graph, last, wrong)
        for depth in (1, 2, 4, 8):  # the fewest steps before the node that show it, of these
            small = around(self.case, node, depth)
            (agreement,) = _compare(small, setting)
            if agreement.mismatch:
                return Fault(setting, by_pass, small, node, agreement)
        return Fault(setting, by_pass, self.case.pruned(node), node, found[node])

    def _shortest(self, setting: Setting) -> Setting:
        """The setting with only as many of its passes as it takes to go wrong."""
        prefixes = (replace(setting, passes=setting.passes[:n]) for n in range(len(setting.passes)))
        return next((x for x in prefixes if not self.check(x).ok), setting)


def first_wrong(graph: Graph, last: Node, wrong: Callable[[Node], bool]) -> Node:
    """A wrong node whose operands are right, at or before `last`, which is wrong.

    The binary search assumes that what follows a wrong node is wrong too. Where that does not hold, as on another
    branch, it may end at a node with a wrong operand, and goes on from there.
    """
    while True:
        nodes = graph.with_outputs({last.name: last}).nodes
        right, bad = -1, len(nodes) - 1
        while bad - right > 1:
            middle = (right + bad) // 2
            right, bad = (right, middle) if wrong(nodes[middle]) else (middle, bad)
        operand = next((x for x in nodes[bad].inputs if isinstance(x, Node) and wrong(x)), None)
        if operand is None:
            return nodes[bad]
        last = operand


def _compare(case: Case, setting: Setting, expected: Expected | None = None) -> tuple[Agreement, ...]:
    program = driver.compile(
        case.graph, setting.target, case.weights, optimise=0, passes=",".join(setting.passes), cache=False
    )
    winograd = target(setting.target).winograd
    return (expected or Expected(case)).compare(program(**case.inputs), winograd=winograd)
