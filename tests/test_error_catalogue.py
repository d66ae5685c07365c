"""The error catalogue: every code has a page, and every page's example gives its error, as it is printed there.

A page holds, after its text, a failing example (`cnn`, or `python` run in an empty folder), what is printed of it
(`text`; `--update-golden` rewrites it), and mostly a mended `cnn` example.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnnc.diagnostics import CnncError, Diagnostic, render
from cnnc.driver import check_file

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "cnnc" / "errors").glob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# These need a file, a machine or a fault that a page cannot hold; the tests named here provoke them.
ELSEWHERE = {
    "E0101": "test_frontend_files.py", "E0503": "test_frontend_files.py", "E0605": "test_target.py",
    "E0999": "test_cli.py",
}  # fmt: skip


def diagnose(kind: str, example: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Diagnostic, ...]:
    monkeypatch.chdir(folder)
    if kind == "cnn":
        Path("example.cnn").write_text(example)
        return check_file("example.cnn", facts=True).diagnostics
    try:
        exec(compile(example, "example.py", "exec"), {})
    except CnncError as e:
        return e.diagnostics
    return ()


def codes_in_source() -> Iterator[str]:
    for folder in ("cnnc", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            yield from re.findall(r'"([EW]0\d{3})"', path.read_text())


def test_every_code_has_a_page() -> None:
    assert sorted(set(codes_in_source()) - {page.stem for page in PAGES}) == []


def test_every_page_is_of_a_code() -> None:
    assert sorted({page.stem for page in PAGES} - set(codes_in_source())) == []


def test_every_error_has_an_exit_status() -> None:
    found = {Diagnostic(page.stem, "").exit_status for page in PAGES if page.stem.startswith("E")}
    assert found <= {2, 3, 4, 5, 6, 7, 8, 9, 70, 74}


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_page(page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text()
    assert re.match(rf"# {page.stem}: ", text)
    blocks = FENCE.findall(text)
    if not blocks:
        assert page.stem in (ROOT / "tests" / ELSEWHERE[page.stem]).read_text()
        return
    (kind, example), (text_kind, shown), *mended = blocks
    assert text_kind == "text"
    found = diagnose(kind, example, tmp_path, monkeypatch)
    assert [d.code for d in found] == [page.stem]
    printed = render(found[0]) + "\n"
    if request.config.getoption("--update-golden"):
        page.write_text(text.replace(f"```text\n{shown}```", f"```text\n{printed}```", 1))
        return
    assert printed == shown
    for kind, example in mended:
        assert diagnose(kind, example, tmp_path, monkeypatch) == ()
