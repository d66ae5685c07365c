"""What bad text gets: one clear diagnostic and the exit status of its family.

Each case has its message as a golden, in goldens/bad_inputs/.
"""

from pathlib import Path

import pytest

from cnnc.diagnostics import CnncError, render
from cnnc.driver import check_file
from cnnc.frontend import session
from conftest import Golden
from networks import MODELS


def model(body: str, head: str = "") -> str:
    return f"{head}model M {{\n  input x: f32[N, 3, 32, 32]\n  output y\n  {body}\n}}\n"


CASES = {
    # Text.
    "empty": ("", 3),
    "comments_only": ("# nothing\n## nothing\n", 3),
    "unclosed_brace": ("model M {\n  input x: f32[N, 3, 8, 8]\n  output y\n  y = x -> conv(4, 3\n}\n", 3),
    "file_ends_early": ("model M {\n  input x: f32[N, 3, 8, 8]\n", 3),
    "arrow_with_a_space": (model("y = x - > relu"), 3),
    "slashes_for_a_comment": ("// two layers\n" + model("y = x -> relu"), 3),
    "slashes_after_code": (model("y = x -> relu  // don't ask"), 3),
    "two_arrows": (model("y = x -> -> relu"), 3),
    "single_quotes": (model("y = x -> conv(4, 3, init='orthogonal')"), 3),
    "unclosed_string": (model('y = x -> conv(4, 3, init="orthogonal)'), 3),
    "semicolon": (model("y = x -> relu;"), 3),
    "if_without_else": (model("y = x -> (relu if 1 == 1)"), 3),
    "equals_for_a_label": (model("y = x -> c1 = conv(4, 3)"), 3),
    "keyword_as_name": ("def input = relu\n" + model("y = x -> relu"), 3),
    "operands_in_parentheses": (model("y = add(x | x)"), 3),
    "braces_before_parentheses": (model("y = x -> concat({ relu | tanh })"), 4),
    "python_import": (model("y = __import__('os').system('true')"), 3),
    "import_call": (model('y = x -> __import__("os")'), 4),
    "homoglyph": (model("y = x -> rеlu"), 3),
    "number_with_letters": (model("y = x -> conv(4x, 3)"), 3),
    "two_suffixes": (model("y = x -> conv(1kk, 3)"), 3),
    "control_character": (model("y = x -> re\x07lu"), 3),
    # Limits.
    "deep_brackets": ("v = " + "(" * 600 + "1" + ")" * 600 + "\n" + model("y = x -> relu"), 6),
    "deep_minus": ("v = " + "-" * 600 + "1\n" + model("y = x -> relu"), 6),
    "deep_if": ("v = " + "1 if true else " * 600 + "1\n" + model("y = x -> relu"), 6),
    "deep_sum": ("v = 1" + " + 1" * 600 + "\n" + model("y = x -> conv(v, 3)"), 6),
    "ten_billion_nodes": (model("y = x -> ((relu * 10_000) * 10_000) * 100"), 6),
    "doubling_defs": (
        model("y = x -> d40", "def d0 = relu\n" + "".join(f"def d{i + 1} = d{i} -> d{i}\n" for i in range(40))), 6,
    ),
    "doubling_functions": (
        model("y = x -> conv(f40(1), 1)", "def f0(n) = n + 0\n" + "".join(
            f"def f{i + 1}(n) = f{i}(n) + f{i}(n)\n" for i in range(40)
        )), 6,
    ),
    "doubling_lists": (
        model("y = x -> reshape(v40)", "v0 = [1]\n" + "".join(f"v{i + 1} = [v{i}, v{i}]\n" for i in range(40))), 6,
    ),
    "doubling_models": (
        "model B0 { input x: f32[N, 3, H, W] output y y = x -> relu }\n" + "".join(
            f"model B{i + 1} {{ input x: f32[N, 3, H, W] output y y = x -> B{i} -> B{i} }}\n" for i in range(40)
        ), 6,
    ),
    "doubling_what_is_unknown": (
        model("y = x -> d40", "def d0 = cnov\n" + "".join(f"def d{i + 1} = d{i} -> d{i}\n" for i in range(40))), 4,
    ),
    "growing_dims": (model("y = x -> (maxpool(3, s=2, ceil=true) -> upsample(3)) * 60").replace("32, 32", "H, W"), 6),
    "split_into_millions": (model("y = add { x -> split(2_000_000) }").replace("3, 32, 32", "2_000_000"), 6),
    "growing_argument": (model("y = x -> r(60, relu)", "def r(n, a) = r(n - 1, a -> a) if n > 0 else a\n"), 6),
    "deep_calls_of_deep_braces": (
        model("y = x -> d60", "def d0 = relu\n" + "".join(
            f"def d{i + 1} = {'add { ' * 20} d{i} {'| id }' * 20}\n" for i in range(60)
        )), 6,
    ),
    "long_text": (model("y = x" + " -> relu" * 50_000), 6),
    "no_nodes_many_steps": (model("y = x -> ((id * 10_000) * 10_000) * 10_000"), 6),
    "repeat_a_billion": (model("y = x -> relu * 1_000_000_000"), 6),
    "five_thousand_digits": (model(f"y = x -> conv({'9' * 5000}, 3)"), 6),
    "concat_doubled_40_times": (model("y = x -> for i in range(40) { concat { id | id } }"), 6),
    "huge_input": (model("y = x -> relu").replace("32, 32", "4_294_967_296, 4_294_967_296"), 6),
    "huge_product": (model("y = x -> relu").replace("32, 32", "65_536, 65_536"), 6),
    "long_range": (model("y = x -> for i in range(1_000_000) { relu }"), 6),
    # Names and values.
    "recursion": (model("y = x -> a", "def a = relu -> b\ndef b = a -> tanh\n"), 4),
    "repeat_minus_one": (model("y = x -> relu * -1"), 4),
    "repeat_zero": (model("y = x -> relu * 0"), 4),
    "infinite_attribute": (model("y = x -> clip(0, 1e999)"), 4),
    "nan_attribute": (model("y = x -> clip(0, nan)"), 4),
    "unknown_op": (model("y = x -> cnov(4, 3)"), 4),
    "unknown_argument": (model("y = x -> conv(4, 3, padding=1)"), 4),
    "bare_same": (model("y = x -> conv(4, 3, pad=same)"), 4),
    "duplicate_name": (model("y = x -> block", "def block = relu\ndef block = tanh\n"), 4),
    "undefined_value": (model("y = add { x | skip }"), 4),
    "unused_value": (model("z = x -> relu  y = x -> tanh"), 0),
    "several_errors": (
        model("y = x -> conv(4, 33) -> relu\n  a = x -> cnov(1, 1)\n  _b = a -> relu\n  _c = add { x | 1 < 2 }"), 4,
    ),
    # Shapes.
    "kernel_too_large": (model("y = x -> maxpool(2) * 4 -> conv(8, 3)"), 4),
    "groups_zero": (model("y = x -> conv(4, 3, groups=0)"), 4),
    "groups_do_not_divide_input": (model("y = x -> conv(4, 3, groups=2)"), 4),
    "groups_do_not_divide_output": (model("y = x -> conv(4, 3, groups=3)"), 4),
    "channels_differ": (
        model("y = x -> stem: conv(16, 3, pad=1) -> bn -> res(32)", "def res(c) = add { conv(c, 3, pad=1) | id }\n"),
        4,
    ),
    "sizes_differ": (model("y = add { x -> conv(3, 3) | x }"), 4),
    "stride_zero": (model("y = x -> conv(4, 3, s=0)"), 4),
    "dilation_negative": (model("y = x -> conv(4, 3, dilation=-1)"), 4),
    "kernel_zero": (model("y = x -> conv(4, 0)"), 4),
    "shuffle_zero": (model("y = x -> pixel_shuffle(0)"), 4),
    "pool_pad_too_large": (model("y = x -> maxpool(2, pad=2)"), 4),
    "half_of_an_even_kernel": (model("y = x -> conv(4, 4, pad=half)"), 4),
    "concat_mismatch": (model("y = concat { x | x -> avgpool(2) }"), 4),
    "reshape_mismatch": (model("y = x -> reshape(7, -1)"), 4),
    "reshape_two_unknown": (model("y = x -> reshape(-1, -1)"), 4),
    "missing_flatten": (model("y = x -> conv(4, 3) -> linear(10)"), 4),
    "image_after_flatten": (model("y = x -> flatten -> conv(4, 3)"), 4),
    "symbolic_steering": (model("y = x -> f", "def f = relu if in.n == 1 else tanh\n"), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, status = CASES[name]
    monkeypatch.chdir(tmp_path)
    Path("bad.cnn").write_text(text)
    report = check_file("bad.cnn")
    assert (report.error.exit_status if report.error else 0) == status
    assert report.diagnostics
    golden(f"bad_inputs/{name}.txt", "\n".join(map(render, report.diagnostics)))


def test_a_chain_of_seven_thousand_layers_fits() -> None:
    assert not check_file(model("y = x -> layer * 7_000", "def layer = relu\n")).diagnostics


def test_a_hundred_errors_are_enough() -> None:
    report = check_file(model("y = x -> " + " -> ".join(f"unknown{i}" for i in range(150))))
    assert [d.code for d in report.diagnostics] == ["E0201"] * session.MAX_ERRORS


def test_real_networks_are_far_from_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_STEPS", session.MAX_STEPS // 8)
    for path in MODELS.glob("*.cnn"):
        assert check_file(path).error is None, path


def test_any_prefix_of_a_model_is_a_model_or_an_error() -> None:
    """Cut anywhere: never an internal failure."""
    body = "y = x -> for i in range(2) { a: conv(4, 3, pad=half) -> bn } -> add { id | relu * 2 } if 1 < 2 else id"
    text = model(body)
    for end in range(1, len(text)):
        report = check_file(text[:end] + "\n")
        assert report.diagnostics or report.models or report.error is None
        for d in report.diagnostics:
            assert isinstance(CnncError((d,)).exit_status, int)
            assert d.code != "E0999"
