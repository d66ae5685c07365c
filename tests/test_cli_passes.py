"""The optimiser as a user of the command line meets it: levels, passes, the graph after each, and what was fused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnnc.ir.text import from_text
from cnnc.passes import LEVELS, PASSES
from conftest import Cli

NET = """
model Net {
  input image: f32[N, 3, 8, 8]
  output y
  image -> one: conv(4, 3) -> bn1: bn -> act: relu
  y = concat { act -> two: conv(4, 1) -> r: relu | two } -> dropout
}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.cnn").write_text(NET)


def test_passes_lists_them_in_order(cli: Cli) -> None:
    lines = cli("passes").stdout.splitlines()
    levels = [(f"-O{x.level}" if x.level in LEVELS else "", x.name) for x in PASSES.values()]
    assert [(line[:5].strip(), line[5:].split()[0]) for line in lines] == levels
    assert [x["name"] for x in json.loads(cli("passes", "--json").stdout)] == list(PASSES)
    assert cli("passes", "fold_batch_norm").stdout.strip() == PASSES["fold_batch_norm"].doc.strip()
    missing = cli("passes", "fold_batchnorm")
    assert missing.exit_code == 2
    assert "did you mean `fold_batch_norm`" in missing.stderr


@pytest.mark.parametrize(
    ("options", "ops"),
    [
        ([], ["conv", "bn", "relu", "conv", "relu", "concat", "dropout"]),
        (["--after", "remove_identity"], ["conv", "bn", "relu", "conv", "relu", "concat"]),
        (["--after", "fold_batch_norm"], ["conv", "relu", "conv", "relu", "concat"]),
        (["--after", "all"], ["fused", "conv", "relu", "concat"]),
        (["--after", "all", "-O1"], ["fused", "conv", "relu", "concat"]),
        (["--after", "all", "-O0"], ["conv", "bn", "relu", "conv", "relu", "concat", "dropout"]),
        (
            ["--after", "all", "-O0", "--passes", "fold_batch_norm"],
            ["conv", "relu", "conv", "relu", "concat", "dropout"],
        ),
        (["--after", "all", "-O3", "--passes=-fuse_epilogue"], ["conv", "relu", "conv", "relu", "concat"]),
    ],
    ids=str,
)  # fmt: skip
def test_ir_after_passes(cli: Cli, options: list[str], ops: list[str]) -> None:
    result = cli("ir", "net.cnn", *options, "--seed", "0")
    assert [node.op.name for node in from_text(result.stdout).nodes] == ops


def test_ir_after_what_does_not_run(cli: Cli) -> None:
    for options, text in (
        (["--after", "nothing"], "there is no pass `nothing`"),
        (["--after", "fold_batch_norm", "-O1"], "`fold_batch_norm` does not run"),
    ):
        result = cli("ir", "net.cnn", *options)
        assert result.exit_code == 2
        assert text in result.stderr


def test_dump_ir_writes_the_graph_after_each_pass(cli: Cli) -> None:
    assert cli("compile", "net.cnn", "-t", "numpy", "-O3", "--dump-ir", "steps", "--seed", "0").exit_code == 0
    files = sorted(Path("steps").iterdir())
    assert [x.name for x in files] == [f"{i:02}_{name}.ir" for i, name in enumerate(LEVELS[3], start=1)]
    assert len(from_text(files[-1].read_text()).nodes) < len(from_text(files[0].read_text()).nodes)
    Path("steps/01_notes.ir").write_text("of somebody else")
    assert cli("compile", "net.cnn", "-t", "numpy", "-O1", "--dump-ir", "steps", "--seed", "0").exit_code == 0
    assert len(list(Path("steps").iterdir())) == len(LEVELS[1]) + 1


def test_explain_fusion(cli: Cli) -> None:
    text = cli("explain", "fusion", "net.cnn").stdout
    assert text == (
        "net.cnn:5: image -> one: conv(4, 3) -> bn1: bn -> act: relu\n"
        "    bn1: fold_batch_norm: now `one`, conv(4, 3)\n"
        "    act: fuse_epilogue: now `one`, fused(conv(4, 3), relu)\n"
        "net.cnn:6: y = concat { act -> two: conv(4, 1) -> r: relu | two } -> dropout\n"
        "    r: fuse_epilogue: not applied: the result of `two` is read elsewhere too\n"
        "    6: remove_identity: now `5`, concat\n"
        "7 nodes before, 4 after\n"
    )
    assert cli("explain", "fusion", "net.cnn", "r").stdout.count("\n") == 2
    assert cli("explain", "fusion", "net.cnn", "one").stdout == "".join(text.splitlines(keepends=True)[:3])
    assert cli("explain", "fusion", "net.cnn", "two").stdout == "".join(text.splitlines(keepends=True)[3:5])
    Path("plain.cnn").write_text("model M { input x: f32[N, 3, 8, 8]  output y  y = x -> c: conv(4, 3) }")
    assert cli("explain", "fusion", "plain.cnn", "c").stdout == "no pass found anything to do at `c`\n"
    notes = json.loads(cli("explain", "fusion", "net.cnn", "--json").stdout)
    assert [(x["node"], x["pass"], x["applied"]) for x in notes if x["at"].startswith("net.cnn:6:")] == [
        ("6", "remove_identity", True), ("r", "fuse_epilogue", False),
    ]  # fmt: skip


def test_what_runs_no_pass_has_nothing_to_dump(cli: Cli) -> None:
    result = cli("compile", "net.cnn", "-t", "torch", "--dump-ir", "steps")
    assert result.exit_code == 2
    assert "takes the graph as it was written" in result.stderr
    assert not Path("steps").exists()


def test_explain_fusion_takes_the_options_of_models(cli: Cli) -> None:
    Path("wide.cnn").write_text(NET.replace("Net {", "Net(c) {").replace("conv(4, 3)", "conv(c, 3)"))
    assert cli("explain", "fusion", "wide.cnn").exit_code == 4
    assert "now `one`, conv(7, 3)" in cli("explain", "fusion", "wide.cnn", "--set", "c=7").stdout
    assert cli("explain", "conv", "--set", "c=7").exit_code == 2


def test_explain_fusion_of_nothing(cli: Cli) -> None:
    for words in (["fusion"], ["fusion", "net.cnn", "none"], ["conv", "net.cnn"]):
        assert cli("explain", *words).exit_code == 2
