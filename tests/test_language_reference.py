"""Every example of the language reference is what the page says it is."""

import re
from pathlib import Path

import pytest

from cnnc.contracts import run_check
from cnnc.diagnostics import render
from cnnc.driver import check_file, open_module

PAGE = Path(__file__).parents[1] / "grammar" / "README.md"
EXAMPLES = re.findall(r"^```cnn(?: (E\d{4}))?\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 20
    assert any(code for code, _ in EXAMPLES)


@pytest.mark.parametrize(("code", "text"), EXAMPLES, ids=[f"{i}-{x[0] or 'ok'}" for i, x in enumerate(EXAMPLES)])
def test_example(code: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "example.cnn"
    file.write_text(text)
    report = check_file(file)
    found = [d.code for d in report.diagnostics]
    if code:
        assert found == [code]
        return
    assert not report.diagnostics, "\n".join(map(render, report.diagnostics))
    module = open_module(file)
    for check in module.checks:
        facts, faults = run_check(module, check)
        assert not faults
        for fact in facts:
            assert fact.holds, f"{fact.text}: measured {fact.actual}"


def test_a_wrong_fact_is_seen(tmp_path: Path) -> None:
    text = next(text for code, text in EXAMPLES if not code and "params == 61_706" in text)
    file = tmp_path / "example.cnn"
    file.write_text(text.replace("61_706", "61_707"))
    module = open_module(file)
    assert [fact.holds for fact in run_check(module, module.checks[0])[0]] == [False, True]
    file.write_text(text.replace("params ==", "parms =="))
    module = open_module(file)
    facts, faults = run_check(module, module.checks[0])
    assert [fact.holds for fact in facts] == [True]  # the other one is measured all the same
    assert [fault.code for fault in faults] == ["E0220"]


def test_a_fact_of_what_has_no_layers_is_refused(tmp_path: Path) -> None:
    """A value has none of its own, however much leads to it: 0 would hold against any bound."""
    file = tmp_path / "net.cnn"
    file.write_text(
        "model M { input x: f32[N, 3, 9, 9] output y  y = x -> conv(8, 3) -> relu }\n"
        "check M { params(y) < 10  macs(y) == 0  units(y) == 392  params(to=y) == 224  units == 392 }"
    )
    module = open_module(file)
    facts, faults = run_check(module, module.checks[0])
    assert [fact.holds for fact in facts] == [True, True]
    assert [fault.code for fault in faults] == ["E0220"] * 3
