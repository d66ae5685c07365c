"""Files: bytes that are no text, imports, and which model of a file is meant."""

import os
from pathlib import Path

import pytest

import cnnc
from cnnc.diagnostics import CnncError
from cnnc.driver import check_file, open_module
from cnnc.frontend.model import choose, parse_value

BLOCK = "def block = conv(4, 3, pad=1) -> relu\n"
MODEL = "model M { input x: f32[N, 3, 8, 8] output y y = x -> block }\n"


def refusal(path: Path) -> CnncError:
    with pytest.raises(CnncError) as caught:
        cnnc.load(path)
    return caught.value


def codes(error: CnncError) -> list[str]:
    return [d.code for d in error.diagnostics]


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", "E0102", "declares nothing"),
        (b"# only\n# comments\n", "E0102", "declares nothing"),
        (b"\xef\xbb\xbfmodel", "E0101", "byte-order mark"),
        (b"model M\0", "E0101", "NUL byte at byte offset 7"),
        (b"model \xff", "E0101", "bad byte 0xff at byte offset 6"),
        (b"#" * 4_000_001, "E0503", "4,000,001 bytes"),
        ("mоdel M {}".encode(), "E0103", "U+043E"),  # a Cyrillic o
        (b"\x89PNG\r\n\x1a\n\0\0", "E0101", "not UTF-8"),
    ],
    ids=["empty", "comments", "bom", "nul", "utf8", "large", "homoglyph", "png"],
)
def test_bytes_that_are_no_model(data: bytes, code: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.cnn"
    path.write_bytes(data)
    error = refusal(path)
    assert codes(error) == [code]
    assert said in str(error)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert codes(refusal(tmp_path / "no.cnn")) == ["E0901"]
    assert codes(refusal(tmp_path)) == ["E0901"]
    assert refusal(tmp_path).exit_status == 74


def test_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "m.cnn"
    path.write_bytes((BLOCK + MODEL).replace("\n", "\r\n").encode())
    assert str(cnnc.load(path).outputs["y"].type) == "f32[N, 4, 8, 8]"


def test_imports_and_aliases(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "blocks.cnn").write_text('from "more.cnn" import width\ndef unit = conv(width, 3, pad=1)\n')
    (tmp_path / "lib" / "more.cnn").write_text("width = 6\n")
    path = tmp_path / "m.cnn"
    head = 'from "lib/blocks.cnn" import unit as block\nfrom "lib/more.cnn" import width\n'
    path.write_text(head + MODEL + "check M { shape(y) == [N, width, 8, 8] }\n")
    assert str(cnnc.load(path).outputs["y"].type) == "f32[N, 6, 8, 8]"
    report = check_file(path, facts=True)
    assert not report.diagnostics
    assert [fact.holds for fact in report.facts] == [True]


@pytest.mark.parametrize("written", ["../b.cnn", "/etc/passwd", "lib/../../b.cnn", "C:b.cnn"])
def test_imports_stay_in_the_folder(written: str, tmp_path: Path) -> None:
    path = tmp_path / "m.cnn"
    path.write_text(f'from "{written}" import block\n{MODEL}')
    error = refusal(path)
    assert "E0703" in codes(error)
    assert error.exit_status == 8


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.cnn").write_text(BLOCK)
    inside = tmp_path / "project"
    inside.mkdir()
    os.symlink(tmp_path / "outside.cnn", inside / "b.cnn")
    (inside / "m.cnn").write_text('from "b.cnn" import block\n' + MODEL)
    assert "E0703" in codes(refusal(inside / "m.cnn"))


def test_a_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real.cnn").write_text(BLOCK)
    os.symlink(tmp_path / "real.cnn", tmp_path / "b.cnn")
    (tmp_path / "m.cnn").write_text('from "b.cnn" import block\n' + MODEL)
    assert len(cnnc.load(tmp_path / "m.cnn").nodes) == 2


def test_import_faults(tmp_path: Path) -> None:
    (tmp_path / "b.cnn").write_text(BLOCK)
    path = tmp_path / "m.cnn"
    path.write_text('from "b.cnn" import blok\nfrom "c.cnn" import z\n' + MODEL.replace("block", "relu"))
    error = refusal(path)
    assert codes(error) == ["E0201", "E0901"]
    assert "did you mean `block`?" in str(error)
    assert 'there is no file "c.cnn"' in str(error)


def test_an_error_in_an_imported_file_is_told_there(tmp_path: Path) -> None:
    (tmp_path / "b.cnn").write_text("def block = conv(4,, 3)\n")
    path = tmp_path / "m.cnn"
    path.write_text('from "b.cnn" import block\n' + MODEL)
    error = refusal(path)
    assert "E0103" in codes(error)
    assert str(error.diagnostics[0].primary and error.diagnostics[0].primary.span).endswith("b.cnn:1:20")


def test_import_cycle(tmp_path: Path) -> None:
    (tmp_path / "a.cnn").write_text('from "b.cnn" import y\nx = 1\n')
    (tmp_path / "b.cnn").write_text('from "a.cnn" import x\ny = 2\n')
    error = refusal(tmp_path / "a.cnn")
    assert "E0216" in codes(error)
    assert "a.cnn > b.cnn > a.cnn" in str(error)
    assert error.exit_status == 4


def test_two_items_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "m.cnn"
    path.write_text(BLOCK + BLOCK + MODEL)
    error = refusal(path)
    assert codes(error) == ["E0202"]
    assert [label.span.line for label in error.diagnostics[0].labels] == [2, 1]


def test_the_model_named_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep_net.cnn"
    path.write_text(BLOCK + MODEL + MODEL.replace("model M", "model DeepNet"))
    assert cnnc.load(path).name == "DeepNet"
    assert cnnc.load(path, "M").name == "M"
    other = tmp_path / "other.cnn"
    other.write_text(path.read_text())
    error = refusal(other)
    assert codes(error) == ["E0219"]
    assert "several models: M, DeepNet" in str(error)
    with pytest.raises(CnncError, match="did you mean `DeepNet`"):
        cnnc.load(path, "DeepNt")
    blocks = tmp_path / "blocks.cnn"
    blocks.write_text(BLOCK)
    assert codes(refusal(blocks)) == ["E0219"]


def test_a_text_needs_no_file() -> None:
    assert cnnc.load(BLOCK + MODEL).name == "M"
    with pytest.raises(CnncError, match="E0216"):
        cnnc.load('from "b.cnn" import block\n' + MODEL)


def test_values_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "m.cnn"
    body = "y = x -> concat for k in ks { conv(2, k, pad=half) -> act }"
    path.write_text(f"A = [3, 5]\nmodel M(ks=[1], act=relu) {{ input x: f32[N, 3, 8, 8] output y {body} }}\n")
    module = open_module(path)
    assert parse_value("[2, 4*2, true, half]") == [2, 8, True, "half"]
    assert parse_value("A", module) == [3, 5]
    graph = cnnc.load(path, ks=parse_value("A", module), act=parse_value("tanh", module))
    assert str(graph.outputs["y"].type) == "f32[N, 4, 8, 8]"
    assert graph.nodes[1].op.name == "tanh"
    with pytest.raises(CnncError, match="E0201"):
        parse_value("nothing")
    with pytest.raises(CnncError, match="E0103"):
        parse_value("1 2")
    with pytest.raises(CnncError, match="E0103"):
        parse_value("1\nb = 2")
    with pytest.raises(CnncError, match="E0206"):
        cnnc.load(path, kernels=[1])
    assert choose(module, "M").name.text == "M"


def test_outputs_dims_and_dtype(tmp_path: Path) -> None:
    path = tmp_path / "m.cnn"
    body = "x -> a: conv(4, 3) -> b: (relu -> c: tanh) -> conv(2, 3)"
    path.write_text(f"model M {{ input x: f32[N, 3, H=8, 8] output y y = {body} }}")
    graph = cnnc.load(path, outputs=["a", "b.c"], dims={"H": 12, "N": 2})
    assert {name: str(x.type) for name, x in graph.outputs.items()} == dict.fromkeys(["a", "b.c"], "f32[2, 4, 10, 6]")
    assert list(graph.params) == ["a.weight", "a.bias"]
    assert str(cnnc.load(path, dtype="f16").outputs["y"].type) == "f16[N, 2, 4, 4]"
    for wrong, code in (({"outputs": ["z"]}, "E0201"), ({"dims": {"Q": 3}}, "E0205"), ({"dtype": "f8"}, "E0902")):
        with pytest.raises(CnncError, match=code):
            cnnc.load(path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(CnncError, match="E0310"):
        cnnc.load(path, dims={"H": 2})


def test_what_is_no_path_and_no_text_is_refused() -> None:
    with pytest.raises(CnncError, match="not of type int") as refused:
        cnnc.load(5)  # type: ignore[arg-type]
    assert refused.value.diagnostics[0].code == "E0902"


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="no files for open pipes")
def test_a_model_can_come_from_a_pipe() -> None:
    """As a shell's `cnnc check <(cat net.cnn)` gives it."""
    read, write = os.pipe()
    try:
        os.write(write, b"model M { input x: f32[N, 3, 8, 8] output y y = x -> relu }")
        os.close(write)
        assert [node.op.name for node in cnnc.load(f"/dev/fd/{read}").nodes] == ["relu"]
    finally:
        os.close(read)
