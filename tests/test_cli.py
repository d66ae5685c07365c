"""The command line as a user meets it: what it prints where, and how it exits."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from io import StringIO
from pathlib import Path

import pytest

from cnnc.cli import main
from cnnc.cli.console import coloured, count_line, count_text, size_text
from cnnc.diagnostics import Diagnostic, Severity
from conftest import Cli, Golden

NET = """
## Two layers.
model Net(classes=3) {
  input image: f32[N, 3, H=8, W=8]
  output scores
  scores = image -> stem: conv(4, 3, pad=1) -> body: (relu -> conv(8, 3)) -> gap -> flatten -> fc: linear(classes)
}
check Net { params == 435   shape(scores) == [N, 3] }
"""


@pytest.fixture(autouse=True)
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own that has net.cnn."""
    monkeypatch.chdir(tmp_path)
    Path("net.cnn").write_text(NET)


# check


def test_check_of_a_right_file(cli: Cli) -> None:
    result = cli("check", "net.cnn")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "net.cnn: Net: ok, 435 parameters\n", "")


def test_check_reports_the_errors_of_all_files_and_counts_them(cli: Cli, golden: Golden) -> None:
    Path("names.cnn").write_text("model A { input x: f32[N, 3] output y y = x -> reluu -> linear(2, bais=false) }\n")
    Path("shapes.cnn").write_text("model B { input x: f32[N, 3, 4, 4] output y y = x -> conv(8, 5) }\n")
    result = cli("check", "names.cnn", "net.cnn", "shapes.cnn")
    assert result.exit_code == 4
    assert result.stdout == "net.cnn: Net: ok, 435 parameters\n"
    assert result.stderr.splitlines()[-1].endswith("errors")
    golden("cli/check_errors.txt", result.stderr)


def test_check_as_json(cli: Cli) -> None:
    Path("bad.cnn").write_text("model A { input x: f32[N, 3] output y y = x -> reluu }\n")
    result = cli("check", "bad.cnn", "net.cnn", "--json")
    assert result.exit_code == 4
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert (found["ok"], found["errors"], found["warnings"]) == (False, 1, 0)
    assert found["models"] == [{"file": "net.cnn", "model": "Net", "doc": "Two layers.", "params": 435}]
    (diagnostic,) = found["diagnostics"]
    assert diagnostic["labels"][0]["file"] == "bad.cnn"
    assert (diagnostic["labels"][0]["line"], diagnostic["labels"][0]["column"]) == (1, 48)


def test_syntax_errors_exit_with_3(cli: Cli) -> None:
    assert cli("check", "-", input="model {").exit_code == 3
    assert cli("check", "-", input=b"\xff").exit_code == 3
    assert cli("check", "-", input="").exit_code == 3


def test_check_reads_standard_input(cli: Cli) -> None:
    result = cli("check", "-", input=NET)
    assert (result.exit_code, result.stdout) == (0, "-: Net: ok, 435 parameters\n")


def test_warnings_are_counted_and_do_not_fail(cli: Cli) -> None:
    Path("odd.cnn").write_text(NET.replace("output scores", "output scores\n  unused = image -> relu"))
    result = cli("check", "odd.cnn")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0].startswith("warning[")
    assert result.stderr.splitlines()[-1] == "1 warning"


def test_check_needs_a_file(cli: Cli) -> None:
    assert cli("check").exit_code == 2


@pytest.mark.parametrize("command", [["check"], ["test"], ["summary"], ["ir"], ["compile", "-t", "numpy"], ["run"]])
def test_missing_files_and_folders_are_io_errors(cli: Cli, command: list[str]) -> None:
    for place in ("none.cnn", "."):
        result = cli(*command, place)
        assert result.exit_code == 74
        assert result.stderr.startswith("error[E0901]")


def test_names_of_shipped_models_stand_for_their_files(cli: Cli) -> None:
    assert cli("check", "resnet18").exit_code == 0
    assert "did you mean the model `resnet18`?" in cli("check", "resnet81").stderr


def test_a_file_wins_over_a_shipped_model(cli: Cli) -> None:
    Path("resnet18").write_text(NET)
    assert cli("check", "resnet18").stdout == "resnet18: Net: ok, 435 parameters\n"


# test


def test_test_prints_a_line_for_each_fact(cli: Cli) -> None:
    result = cli("test", "net.cnn")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["pass", "pass", "2"]
    assert result.stdout.endswith("2 facts, 2 passed, 0 failed\n")


def test_a_fact_that_fails_exits_with_4_and_says_what_is(cli: Cli) -> None:
    Path("net.cnn").write_text(NET.replace("435", "436"))
    result = cli("test", "net.cnn")
    assert result.exit_code == 4
    assert result.stdout.splitlines()[0] == "FAIL net.cnn:8:13 Net: params == 436: it is 435"
    facts = json.loads(cli("test", "net.cnn", "--json").stdout)
    assert (facts["passed"], facts["failed"]) == (1, 1)
    assert facts["facts"][0] == {
        "at": "net.cnn:8:13", "model": "Net", "fact": "params == 436", "ok": False, "actual": "435",
    }  # fmt: skip


def test_test_of_one_model_leaves_the_facts_of_others(cli: Cli) -> None:
    Path("two.cnn").write_text(NET + NET.replace("Net", "Other").replace("435", "1"))
    assert cli("test", "two.cnn:Net").exit_code == 0
    assert cli("test", "two.cnn:Other").exit_code == 4
    Path("faulty.cnn").write_text(NET + "model Bad {\n  input x: f32[N, 3, 8, 8]\n  output y\n  y = x -> reluu\n}\n")
    assert cli("test", "faulty.cnn:Net").exit_code == 0
    assert cli("test", "faulty.cnn").exit_code == 4


def test_one_of_several_models_can_come_from_standard_input(cli: Cli) -> None:
    two = NET + NET.replace("Net", "Other").replace("435", "1")
    result = cli("check", "-", input=two)
    assert cli("ir", "-", input=two).stderr.strip().endswith('(text, "Net")`, or of standard input `-- -:Net`')
    assert 'graph "Other"' in cli("ir", "--", "-:Other", input=two).stdout
    assert result.exit_code == 0


def test_test_of_a_broken_file_reports_it(cli: Cli) -> None:
    assert cli("test", "-", input="model {").exit_code == 3


# summary, ir


def test_summary(cli: Cli, golden: Golden) -> None:
    golden("cli/summary.txt", cli("summary", "net.cnn").stdout)


def test_summary_folds_blocks_below_a_depth(cli: Cli) -> None:
    layers = cli("summary", "net.cnn").stdout
    folded = cli("summary", "net.cnn", "--depth", 1).stdout
    assert "    conv(8, 3)" not in folded.split("fc")[0]
    assert len(folded.splitlines()) == len(layers.splitlines()) - 2


def test_summary_as_json(cli: Cli) -> None:
    found = json.loads(cli("summary", "net.cnn", "--dim", "N=2", "--json").stdout)
    assert found["inputs"] == {"image": "f32[2, 3, 8, 8]"}
    assert found["totals"]["params"] == 435
    assert found["totals"]["macs"] == 2 * (64 * 4 * 27 + 36 * 8 * 36 + 24)
    assert [layer["name"] for layer in found["layers"]] == ["stem", "body", "2", "3", "fc"]
    assert [layer["name"] for layer in found["layers"][1]["layers"]] == ["0", "1"]
    assert found["layers"][0]["receptive_field"] == [3, 3]


def test_dims_parameters_outputs_and_dtype_configure_a_model(cli: Cli) -> None:
    changed = ("--dim", "N=2,H=16", "--set", "classes=2*5", "--outputs", "scores,stem", "--dtype", "f16")
    text = cli("ir", "net.cnn", *changed).stdout
    assert "%image: f16[2, 3, 16, 8]" in text
    assert "f16[2, 10]" in text
    assert "stem = %stem" in text


def test_ir_prints_what_reads_back(cli: Cli) -> None:
    from cnnc.ir.json import from_json
    from cnnc.ir.text import from_text, structurally_equal

    text, data = cli("ir", "net.cnn").stdout, json.loads(cli("ir", "net.cnn", "--json").stdout)
    assert structurally_equal(from_text(text), from_json(data))


@pytest.mark.parametrize(
    "option",
    [
        ("--dim", "N"), ("--dim", "N=0"), ("--dim", "N=-1"), ("--dim", "N=1.5"), ("--dim", "N=1,N=2"), ("--dim", "=3"),
        ("--dim", "N=99999999999"), ("--set", "classes"), ("--set", "=3"), ("--set", "classes="), ("--outputs", "a,,b"),
        ("--dtype", "f64"), ("--depth", "0"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_malformed_options_are_usage_errors(cli: Cli, option: tuple[str, str]) -> None:
    result = cli("summary", "net.cnn", *option)
    assert result.exit_code == 2
    assert result.stderr.startswith("error[E0902]")


@pytest.mark.parametrize(
    ("option", "status"),
    [(("--set", "classes=["), 3), (("--set", "clases=3"), 4), (("--outputs", "nothing"), 4), (("--dim", "Q=3"), 4)],
)
def test_options_that_do_not_fit_the_model_are_its_errors(cli: Cli, option: tuple[str, str], status: int) -> None:
    assert cli("summary", "net.cnn", *option).exit_code == status


def test_a_model_is_picked_by_name(cli: Cli) -> None:
    Path("two.cnn").write_text(NET + NET.replace("Net", "Other"))
    assert cli("summary", "two.cnn:Other").stdout.startswith("Other\n")
    assert cli("summary", "two.cnn").exit_code == 4


# models, targets, doctor, explain, completion


def test_models_lists_what_comes_along(cli: Cli) -> None:
    rows = json.loads(cli("models", "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert by_name["resnet50"]["params"] == 25_557_032
    assert all(row["doc"] for row in rows)
    text = cli("models").stdout
    assert len(text.splitlines()) == len(rows)


def test_targets(cli: Cli) -> None:
    rows = json.loads(cli("targets", "--json").stdout)
    assert [row["name"] for row in rows] == ["cpu", "cuda", "numpy", "onnx", "torch"]
    text = cli("targets").stdout
    assert all(row["doc"] in text for row in rows)


def test_doctor_says_what_works(cli: Cli) -> None:
    found = json.loads(cli("doctor", "--json").stdout)
    assert found["targets"]["numpy"]["works"] is True
    assert found["packages"]["numpy"]
    text = cli("doctor").stdout
    assert "numpy          yes" in text


def test_doctor_survives_a_broken_target(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_package:Target", "cnnc.targets")
    monkeypatch.setattr("cnnc.target.installed", lambda: {"broken": broken})
    reason = "cannot be loaded: ModuleNotFoundError: No module named 'no_such_package'"
    assert json.loads(cli("doctor", "--json").stdout)["targets"]["broken"] == {"works": False, "detail": reason}
    assert cli("targets").stdout == f"broken   {reason}\n"


def test_explain_lists_and_shows_pages(cli: Cli) -> None:
    codes = json.loads(cli("explain", "--json").stdout)
    assert "E0312" in codes
    listed = cli("explain").stdout.splitlines()
    assert len(listed) == len(codes)
    assert cli("explain", "e0312").stdout.startswith("#")
    page = json.loads(cli("explain", "E0312", "--json").stdout)
    assert page["title"] == codes["E0312"]
    assert not any(code in title for code, title in codes.items() if code[1:].isdigit())


def test_explain_knows_the_ops_and_the_library(cli: Cli) -> None:
    titles = json.loads(cli("explain", "--json").stdout)
    entry = json.loads(cli("explain", "conv", "--json").stdout)
    assert entry["title"] == titles["conv"] == "2-D convolution (cross-correlation), grouped and dilated"
    assert cli("explain", "conv").stdout == entry["text"] + "\n"
    assert "def relu6 = clip(0, 6)" in cli("explain", "relu6").stdout


def test_explain_of_an_unknown_code(cli: Cli) -> None:
    result = cli("explain", "E0313X")
    assert result.exit_code == 2
    assert "did you mean `E0313`?" in result.stderr
    assert "did you mean `conv`?" in cli("explain", "Conv2d").stderr
    assert "lists all codes and ops" in cli("explain", "nonsense").stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(cli: Cli, shell: str) -> None:
    assert "_CNNC_COMPLETE" in cli("completion", shell).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cnnc su", "summary"),
        ("cnnc summary resnet5", "resnet50"),
        ("cnnc compile -t n", "numpy"),
        ("cnnc explain e031", "E0312"),
        ("cnnc explain layer", "layer_norm"),
    ],
)
def test_completion_completes(cli: Cli, words: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CNNC_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert f"plain,{expected}" in cli().stdout


# every command


@pytest.mark.parametrize("name", list(main.commands))
def test_every_command_has_examples_and_a_short_help(cli: Cli, name: str) -> None:
    result = cli(name, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    {'eval' if name == 'completion' else 'cnnc ' + name}" in result.stdout
    assert not main.commands[name].get_short_help_str(limit=60).endswith("...")


def test_help_and_version(cli: Cli) -> None:
    assert cli("--help").stdout == cli("-h").stdout
    assert cli("--version").stdout == "cnnc 0.1.0\n"
    bare = cli()
    assert (bare.exit_code, bare.stderr.splitlines()[0]) == (2, "Usage: cnnc [OPTIONS] COMMAND [ARGS]...")
    assert "Examples" in bare.stderr


@pytest.mark.parametrize("args", [["sumary"], ["check", "--jsn"], ["explain", "a", "b"], ["completion", "tcsh"]])
def test_usage_errors(cli: Cli, args: list[str]) -> None:
    result = cli(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("error[E0902]")
    assert "usage is `cnnc" in result.stderr


def test_usage_errors_as_json(cli: Cli) -> None:
    result = cli("check", "--json", "--jsn")
    assert json.loads(result.stdout)["diagnostics"][0]["code"] == "E0902"
    assert result.stderr == ""


# failures of cnnc itself and of the machine


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type:
    """Makes `cnnc check` raise what it is given."""

    class Failing:
        @staticmethod
        def set(failure: BaseException) -> None:
            def check_file(*_: object, **__: object) -> None:
                raise failure

            monkeypatch.setattr("cnnc.driver.check_file", check_file)

    return Failing


def test_an_internal_error_shows_no_trace_and_none_of_its_text(cli: Cli, failing: type) -> None:
    failing.set(RuntimeError("[12:00:00] /src/tir/thing.cc:42: InternalError"))
    result = cli("check", "net.cnn")
    assert result.exit_code == 70
    assert result.stderr.startswith("error[E0999]: internal error: RuntimeError at cnnc/cli/check.py:")
    assert "Traceback" not in result.stderr
    assert "thing.cc" not in result.stderr
    assert json.loads(cli("check", "net.cnn", "--json").stdout)["diagnostics"][0]["code"] == "E0999"


def test_debug_shows_the_trace(cli: Cli, failing: type) -> None:
    failing.set(RuntimeError("thing.cc"))
    result = cli("check", "net.cnn", "--debug")
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "thing.cc" in result.stderr


def test_io_errors_name_the_file(cli: Cli, failing: type) -> None:
    failing.set(PermissionError(13, "Permission denied", "/secret"))
    result = cli("check", "net.cnn")
    assert (result.exit_code, result.stderr) == (74, "error[E0901]: `/secret`: permission denied\n\n")


def test_interruption_exits_with_130(cli: Cli, failing: type) -> None:
    failing.set(KeyboardInterrupt())
    result = cli("check", "net.cnn")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


# what is printed how


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured(Terminal())
    assert not coloured(StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not coloured(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured(Terminal())


def test_counts_for_people() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 102_440_608)] == ["0 B", "999 B", "1.0 kB", "102.4 MB"]
    assert size_text(2_500_000_000) == "2.5 GB"
    assert [count_text(n) for n in (7, 9408, 118_013_952, 4_089_184_256)] == ["7", "9.41 k", "118.01 M", "4.09 G"]
    error, warning = Diagnostic("E0201", ""), Diagnostic("W0201", "", severity=Severity.WARNING)
    assert count_line([error]) == "1 error"
    assert count_line([warning, error, error]) == "2 errors, 1 warning"
