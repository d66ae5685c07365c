"""Initial weights, weight files in and out, whether they fit a graph, and every way a file can be wrong."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn

import cnnc
from cnnc import ops, weights
from cnnc.diagnostics import CnncError, Diagnostic, Severity
from cnnc.ir import Builder, DType, Graph, Node, Op, TensorType, Value, bind
from cnnc.weights.files import MAX_HEADER, MAX_TENSORS, opened
from cnnc.weights.initial import fans


def net(*layers: Op, shape: tuple[int | str, ...] = ("N", 4, 8, 8)) -> Graph:
    builder = Builder("Net")
    x: Value = builder.input("x", shape)
    for op in layers:
        x = builder.add(op, x)
    return builder.graph(y=x)


SMALL = net(ops.Conv(6, 3), ops.BatchNorm())


def refused(call: Callable[[], object], code: str, *parts: str) -> Diagnostic:
    """The one diagnostic, of this code, whose message and notes hold these parts."""
    with pytest.raises(CnncError) as e:
        call()
    (diagnostic,) = e.value.diagnostics
    text = "\n".join([diagnostic.message, *diagnostic.notes])
    assert diagnostic.code == code, text
    for part in parts:
        assert part in text
    return diagnostic


# How weights start


def test_initial_weights_depend_on_seed_and_name_alone():
    first = weights.init(SMALL, 3)
    assert list(first) == list(SMALL.params)
    again = weights.init(net(ops.Conv(6, 3), ops.BatchNorm(), ops.Conv(6, 3)), 3)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["conv1.weight"], weights.init(SMALL, 4)["conv1.weight"])
    assert not np.array_equal(again["conv1.weight"][:4, :4], again["conv2.weight"][:4, :4])


def test_initial_statistics_and_biases():
    found = weights.init(SMALL)
    values = {name: float(found[name][0]) for name in found if name != "conv1.weight"}
    assert values == {
        "conv1.bias": 0, "bn1.weight": 1, "bn1.bias": 0, "bn1.running_mean": 0, "bn1.running_var": 1,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DType)
def test_initial_weights_have_the_element_type_of_the_graph(dtype):
    found = weights.init(bind(SMALL, {}, dtype))
    assert {x.dtype.name for x in found.values()} == {{"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]}


@pytest.mark.parametrize(
    ("op", "x", "fan_in", "fan_out"),
    [
        (ops.Conv(8, (3, 5)), (1, 6, 9, 9), 6 * 15, 8 * 15),
        (ops.Conv(8, 3, groups=2), (1, 6, 9, 9), 3 * 9, 4 * 9),
        (ops.Deconv(8, 4, stride=2), (1, 6, 9, 9), 6 * 16 / 4, 8 * 16),
        (ops.Deconv(8, 3, groups=2), (1, 6, 9, 9), 3 * 9, 4 * 9),
        (ops.Local(8, 3), (1, 6, 9, 9), 6 * 9, 8 * 9),
        (ops.Linear(8), (1, 6), 6, 8),
    ],
)
def test_fans_count_terms(op, x, fan_in, fan_out):
    shape = op.params(TensorType(x))["weight"].shape
    assert fans(op, shape) == (fan_in, fan_out)


def initial(op: Op, shape: tuple[int | str, ...] = ("N", 64, 9, 9)) -> np.ndarray[Any, Any]:
    (name,) = [name for name in net(op, shape=shape).params if name.endswith("weight")]
    return weights.init(net(op, shape=shape))[name]


@pytest.mark.parametrize(
    ("init", "std", "most"),
    [
        ("he_normal", sqrt(2 / 576), 1),
        ("glorot_uniform", sqrt(2 / (576 + 1152)), sqrt(6 / (576 + 1152))),
        ("normal(0.3)", 0.3, 3),
    ],
)
def test_the_spread_of_random_weights(init, std, most):
    found = initial(ops.Conv(128, 3, init=init))
    assert abs(found.mean()) < 0.02 * std
    assert found.std() == pytest.approx(std, rel=0.02)
    assert np.abs(found).max() <= most


@pytest.mark.parametrize("channels", [32, 800])
def test_orthogonal_weights(channels):
    found = initial(ops.Conv(channels, 3, init="orthogonal")).reshape(channels, -1).astype(np.float64)
    gram = found @ found.T if channels < 576 else found.T @ found
    assert np.allclose(gram, np.eye(len(gram)), atol=1e-6)


@pytest.mark.parametrize(("groups", "kernel", "stride"), [(1, 4, 2), (3, 4, 2), (1, 3, 2), (1, 6, 3)])
def test_bilinear_weights_upsample(groups, kernel, stride):
    pad = (kernel - stride) // 2
    op = ops.Deconv(3, kernel, stride=stride, pad=pad, groups=groups, bias=False, init="bilinear")
    weight = torch.from_numpy(initial(op, ("N", 3, 9, 9)))
    ramp = torch.arange(10.0).expand(1, 3, 10, 10)
    y = nn.functional.conv_transpose2d(ramp, weight, stride=stride, padding=pad, groups=groups)
    inside = y[0, 2, y.shape[2] // 2, stride * 2 : stride * 8]
    assert torch.allclose(inside.diff(), torch.full((6 * stride - 1,), 1 / stride), atol=1e-5)


def test_bilinear_weights_of_fewer_channels():
    weight = initial(ops.Deconv(2, 3, init="bilinear"), ("N", 3, 9, 9))
    assert weight.any(axis=(2, 3)).tolist() == [[True, False], [False, True], [False, False]]


def test_shared_parameters_start_once():
    builder = Builder("Shared")
    x = builder.input("x", ("N", 4))
    first = builder.add(ops.Linear(4), x)
    graph = builder.graph(y=Node(first.op, (first,), first.params, "second"))
    assert list(weights.init(graph)) == ["linear1.weight", "linear1.bias"]


def test_bilinear_is_for_kernels():
    refused(lambda: initial(ops.Linear(3, init="bilinear"), ("N", 4)), "E0230", "a parameter [3, 4] of `linear`")


# Files


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("dtype", DType)
def test_saved_weights_load_equal(tmp_path, suffix, dtype):
    graph = bind(SMALL, {}, dtype)
    given = weights.init(graph)
    weights.save(tmp_path / f"w{suffix}", given)
    found = weights.load(tmp_path / f"w{suffix}", graph)
    assert list(found) == list(given)
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert os.listdir(tmp_path) == [f"w{suffix}"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("old_format", [False, True])
def test_checkpoints_of_torch_load(tmp_path, dtype, old_format):
    module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    names = {"0": "conv1", "1": "bn1"}
    state = {f"{names[k[0]]}{k[1:]}": v.to(dtype) if v.ndim else v for k, v in module.state_dict().items()}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not old_format)
    found = weights.load(tmp_path / "w.pth", SMALL)
    assert all(np.array_equal(found[name], state[name].float().numpy()) for name in found)
    assert "bn1.num_batches_tracked" not in found


def test_a_checkpoint_without_torch(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "w.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(lambda: weights.load(tmp_path / "w.pth", SMALL), "E0604", "needs PyTorch")


def test_files_of_other_kinds(tmp_path):
    refused(lambda: weights.load(tmp_path / "w.bin", SMALL), "E0404", "is not a weight file")
    refused(lambda: weights.save(tmp_path / "w.pth", {}), "E0902", "cannot write weights")
    refused(lambda: weights.load(tmp_path / "w.npz", SMALL), "E0901", "there is no such file")
    (tmp_path / "d.npz").mkdir()
    refused(lambda: weights.load(tmp_path / "d.npz", SMALL), "E0901", "not a regular file")
    os.mkfifo(tmp_path / "pipe.npz")
    refused(lambda: weights.load(tmp_path / "pipe.npz", SMALL), "E0901", "not a regular file")


@pytest.mark.parametrize("name", ["w.npz", "w.pth"])
def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", denied)
    monkeypatch.setattr(torch, "load", denied)
    refused(lambda: weights.load(tmp_path / name, SMALL), "E0901", "Permission denied")


def test_saving_where_it_cannot_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        from safetensors import SafetensorError

        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    refused(lambda: weights.save(path, weights.init(SMALL)), "E0901", "No space left")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["w.safetensors"]


# The fit


def test_everything_wrong_is_listed_at_once():
    given = weights.init(SMALL)
    given["conv1.wieght"] = given.pop("conv1.weight")
    given["bn1.bias"] = given["bn1.bias"][:2]
    given["bn1.weight"] = given["bn1.weight"].astype(np.float64)
    given["more"] = np.zeros((1, 2), np.int8)
    given["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    diagnostic = refused(
        lambda: weights.check(given, SMALL, "the weights of `w.npz`"), "E0401",
        "the weights of `w.npz` do not fit `Net`: 1 missing, 2 unexpected, 1 of another shape, 1 of another",
        "`conv1.weight`, f32[6, 4, 3, 3], is missing",
        "`conv1.wieght`, f32[6, 4, 3, 3], is unexpected",
        "`more`, int8[1, 2], is unexpected",
        "`bn1.bias` has shape [2], not [6]",
        "`bn1.weight` is float64, not f32",
    )  # fmt: skip
    assert diagnostic.help is not None
    assert diagnostic.help.text == "`conv1.wieght` may be what the graph calls `conv1.weight`"


def test_a_tensor_is_taken_for_one_parameter_alone():
    given = weights.init(SMALL, 0)
    given["bn1.gamma"], given["bn1.beta"] = given.pop("bn1.weight"), given.pop("bn1.bias")
    with pytest.raises(CnncError) as caught:
        weights.check(given, SMALL, "the weights")
    assert caught.value.diagnostics[0].help.text == "`bn1.beta` may be what the graph calls `bn1.bias`"


def test_missing_without_a_likely_name():
    given = weights.init(SMALL)
    del given["bn1.running_mean"]
    given["zzz"] = np.zeros(6, np.float32)
    assert refused(lambda: weights.check(given, SMALL), "E0401").help is None


def test_many_wrong_names_take_no_time():
    many = net(*(ops.Conv(4, 1) for _ in range(300)))
    given = {f"layer{i}.conv{i}.weights": np.zeros((4, 4, 1, 1), np.float32) for i in range(5000)}
    diagnostic = refused(lambda: weights.check(given, many), "E0401", "600 missing, 5,000 unexpected")
    assert len(diagnostic.notes) == 5600


@pytest.mark.parametrize(
    ("have", "want", "fits"),
    [
        ("float32", "f16", True), ("float32", "bf16", True), ("float16", "f32", True), ("bfloat16", "f32", True),
        ("float16", "bf16", False), ("bfloat16", "f16", False), ("float64", "f32", False), ("int32", "f32", False),
    ],
)  # fmt: skip
def test_element_types_that_are_converted(have, want, fits):
    graph = bind(net(ops.Linear(3, bias=False), shape=("N", 4)), {}, DType(want))
    given = {"linear1.weight": np.full((3, 4), 1 / 3).astype(have if have != "bfloat16" else ml_dtypes.bfloat16)}
    if fits:
        found = weights.check(given, graph)["linear1.weight"]
        assert np.array_equal(found, given["linear1.weight"].astype(found.dtype))
        assert found.dtype == weights.init(graph)["linear1.weight"].dtype
    else:
        refused(lambda: weights.check(given, graph), "E0401", "1 of another element type")


@pytest.mark.parametrize(("value", "want"), [(np.nan, "f32"), (-np.inf, "f32"), (1e30, "f16")])
def test_values_that_are_not_finite(value, want):
    graph = bind(net(ops.Linear(3, bias=False), shape=("N", 4)), {}, DType(want))
    given = {"linear1.weight": np.zeros((3, 4), np.float32)}
    given["linear1.weight"][1, :2] = value
    found: list[Diagnostic] = []
    weights.check(given, graph, warn=found.append)
    (warning,) = found
    assert (warning.code, warning.severity) == ("E0407", Severity.WARNING)
    assert warning.notes == ("`linear1.weight`: 2 of 12",)
    refused(lambda: weights.check(given, graph, strict=True), "E0407", "NaN or infinite values in 1 parameters")
    with pytest.warns(UserWarning, match="E0407"):
        weights.check(given, graph)


def test_finite_weights_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.check(weights.init(SMALL), SMALL)


# Malformed and hostile files


def load(path: Path) -> Callable[[], object]:
    return lambda: weights.load(path, SMALL)


def tensor(start: int, end: int, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end], **changes}


@pytest.mark.parametrize(
    ("header", "data", "part"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "invalid offset"),
        ({"a": tensor(0, 8)}, 9, "not fully covered"),
        ({"a": tensor(0, 8)}, 7, "not fully covered"),
        ({"a": tensor(4, 8)}, 8, "invalid offset"),
        ({"a": tensor(0, 8, shape=[2**40, 2**40])}, 8, "overflow"),
        ({"a": tensor(0, 8, shape=[-2])}, 8, "invalid"),
        ({"a": tensor(0, 8, dtype="F31")}, 8, "unknown variant"),
        ([], 0, "invalid"),
        ('{"a": 1, "a": 1}', 0, "`a` is in it twice"),
        ('{"a": {"dtype": "F32", "dtype": "F32"}}', 0, "`dtype` is in it twice"),
        ('{"a": 1, "\\u0061": 1}', 0, "`a` is in it twice"),
        ("[" * 100_000, 0, "is not valid JSON"),
        ("{" * 10, 0, "is not valid JSON"),
        ("9" * 5000, 0, "is not valid JSON"),
        (b"\xff\xfe", 0, "is not valid JSON"),
    ],
    ids=str,
)
def test_malformed_safetensors(tmp_path, header, data, part):
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    refused(load(path), "E0402", part)


@pytest.mark.parametrize("data", [b"", b"abc", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_safetensors_with_less_than_they_claim(tmp_path, data):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    refused(load(path), "E0402")


def test_safetensors_over_the_limits(tmp_path):
    path = tmp_path / "w.safetensors"
    length = MAX_HEADER + 1
    path.write_bytes(struct.pack("<Q", length) + b" " * length)
    refused(load(path), "E0530", "the header of")
    save_file({f"t{i}": np.zeros(0, np.float32) for i in range(MAX_TENSORS + 1)}, path)
    refused(load(path), "E0530", "has 10,001 tensors")
    size = 2**31 * 4
    header = json.dumps({"a": tensor(0, size)}).encode()
    with path.open("wb") as file:  # a sparse file: the bytes it claims are there
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    refused(load(path), "E0530", "`a` claims 2,147,483,648 elements")


def npy(shape: object, descr: object = "<f4", data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + data


def write_npz(path: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile warns of duplicates
        for name, data in members:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ([("a.npy", b"")], "w.npz"),
        ([("a.npy", b"\x93NUMPX\x01\x00")], "magic"),
        ([("a.npy", npy((2,), data=bytes(7)))], "`a` is said to be f32[2], but has 7 bytes, not 8"),
        ([("a.npy", npy((2,), data=bytes(9)))], "but has 9 bytes, not 8"),
        ([("a.npy", npy((10**6,)))], "but has 0 bytes, not 4,000,000"),
        ([("a.npy", npy((-2,)))], "`a` has shape [-2]"),
        ([("a.npy", npy((2,), data=bytes(8), version=(2, 0)))], "npy format 2.0, not 1.0"),
        ([("a.npy", npy((2,), descr="<q9"))], "header of an array is malformed"),
        ([("a.npy", npy("(" * 3000))], "w.npz"),
        ([("a.npy", npy("-" * 9000 + "1"))], "w.npz"),
        ([("a.npy", npy((2,), descr=[("x" * 11_000, "<f4")]))], "w.npz"),
        ([("a.txt", b"hello")], "member `a.txt` is no array"),
        ([("a.npy", npy(())), ("a.npy", npy(()))], "w.npz"),
        ([("a.npy", npy((), data=bytes(4))), ("a.npy", npy((), data=bytes(4)))], "member `a.npy` is there twice"),
    ],
    ids=range(14),
)
def test_malformed_npz(tmp_path, members, part):
    refused(load(write_npz(tmp_path / "w.npz", *members)), "E0402", part)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"garbage" * 100])
def test_what_is_no_npz(tmp_path, data):
    (tmp_path / "w.npz").write_bytes(data)
    refused(load(tmp_path / "w.npz"), "E0402")


def test_an_npz_that_would_run_code(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.array([object()], dtype=object))
    diagnostic = refused(load(path), "E0701", "`a` holds Python objects")
    assert "allow_pickle" not in str(diagnostic)


def test_an_npz_that_claims_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("cnnc.weights.files.MAX_INFLATED", 2**20)
    path = tmp_path / "w.npz"
    refused(load(write_npz(path, ("a.npy", npy((10**6, 10**6))))), "E0530", "`a` claims 1,000,000,000,000 elements")
    bomb = npy((2**20,)) + bytes(2**22)
    refused(load(write_npz(path, ("a.npy", bomb), compression=zipfile.ZIP_DEFLATED)), "E0530", "would expand from")
    refused(load(write_npz(path, *((f"{i}.npy", b"") for i in range(MAX_TENSORS + 1)))), "E0530", "10,001 tensors")


def test_npz_of_other_orders_and_compressions(tmp_path):
    given = weights.init(SMALL)
    given["conv1.weight"] = np.asfortranarray(given["conv1.weight"]).astype(">f4")
    np.savez_compressed(tmp_path / "w.npz", allow_pickle=False, **given)
    found = weights.load(tmp_path / "w.npz", SMALL)["conv1.weight"]
    assert np.array_equal(found, weights.init(SMALL)["conv1.weight"])
    assert found.dtype.isnative
    assert found.flags.c_contiguous


class Evil:
    """What a hostile checkpoint unpickles to: a call."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("pwned",)


def test_a_checkpoint_that_would_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "w.pth")
    refused(load(Path("w.pth")), "E0702", "wants `posix.mkdir`")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        Path("w.pt").write_bytes(pickle.dumps(Evil(), protocol))
        refused(load(Path("w.pt")), "E0702", "wants `posix.mkdir`" if protocol < 4 else "wants all of Python's pickle")
    Path("w.pt").write_bytes(b"(S'pwned'\nios\nmkdir\n.")
    refused(load(Path("w.pt")), "E0702", "wants all of Python's pickle")
    assert not Path("pwned").exists()


def test_malformed_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr("cnnc.weights.files.MAX_INFLATED", 2**20)
    path = tmp_path / "w.pth"
    for data in (b"", b"garbage", b"\x80\x02N.", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."):
        path.write_bytes(data)
        refused(load(path), "E0402")
    for state in ([torch.zeros(1)], {"model": {"a": torch.zeros(1)}}, torch.zeros(1), 3):
        torch.save(state, path)
        refused(load(path), "E0402", "not a state_dict")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**22))
    path.write_bytes(buffer.getvalue())
    refused(load(path), "E0530", "would expand")


def test_tensors_of_checkpoints_that_are_none_of_ours(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2, 2).to_sparse(), "b": torch.zeros(3, dtype=torch.int8)}, path)
    refused(load(path), "E0401", "`a`, sparse float32[2, 2], is unexpected", "`b`, int8[3], is unexpected")
    torch.save({"a": torch.zeros(1).expand(2**32)}, path)
    refused(load(path), "E0530", "4,294,967,296 elements")


def good_file(suffix: str) -> bytes:
    buffer = io.BytesIO()
    given = {name: torch.from_numpy(x) for name, x in weights.init(SMALL).items()}
    if suffix == ".pth":
        torch.save(given, buffer)
    elif suffix == ".npz":
        np.savez(buffer, allow_pickle=False, **{name: x.numpy() for name, x in given.items()})
    else:
        from safetensors.torch import save

        buffer.write(save(given))
    return buffer.getvalue()


GOOD = {suffix: good_file(suffix) for suffix in (".safetensors", ".npz", ".pth")}


@pytest.mark.parametrize("suffix", GOOD)
@given(data=st.data())
def test_any_bytes_give_weights_or_one_diagnostic(tmp_path_factory, suffix, data):
    """Bytes changed, cut out or cut off: what comes is the tensors of the graph, or an error of cnnc."""
    good = GOOD[suffix]
    at = data.draw(st.one_of(st.integers(0, len(good)), st.integers(0, 1200)))
    end = at + data.draw(st.sampled_from([0, 1, 4, len(good)]))
    bad = good[:at] + data.draw(st.binary(max_size=4)) + good[end:]
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(bad)
    try:
        found = weights.load(path, SMALL, warn=lambda _: None)
        assert {name: x.shape for name, x in found.items()} == {k: p.type.shape for k, p in SMALL.params.items()}
    except CnncError as e:
        codes = {d.code for d in e.diagnostics}
    else:
        codes = set()
    assert codes <= {"E0401", "E0402", "E0530", "E0701", "E0702"}


def test_only_tensors_that_fit_are_read(tmp_path):
    """A wrong shape is refused on what the file says of it; the bytes (here damaged) are not looked at."""
    path = write_npz(tmp_path / "w.npz", ("a.npy", npy((4096,), data=bytes(4 * 4096))))
    path.write_bytes(path.read_bytes().replace(bytes(4 * 4096), b"damaged!" * 2048))
    refused(load(path), "E0401")
    with opened(path) as tensors:
        assert str(tensors["a"]) == "f32[4096]"

    def read() -> None:
        with opened(path) as tensors:
            tensors["a"].read()

    refused(read, "E0402", "Bad CRC-32")


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_bytes_read_back_equal(dtype: str) -> None:
    graph = cnnc.load("model M { input x: f32[N, 3, 8, 8] output y y = x -> conv(4, 3) }", dtype=dtype)
    arrays = weights.init(graph, 1)
    again = weights.from_bytes(weights.to_bytes(arrays), "w")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_bytes_of_another_kind_are_refused() -> None:
    with pytest.raises(CnncError, match="E0402"):
        weights.from_bytes(b"\xff" * 64, "w")
    with pytest.raises(CnncError, match="E0402"):
        weights.from_bytes(weights.to_bytes({"w": np.zeros(3, np.int64)}), "w")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_have_the_mode_of_any_new_file(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    weights.save(tmp_path / f"w{suffix}", {"w": np.zeros(3, np.float32)})
    assert (tmp_path / f"w{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode
