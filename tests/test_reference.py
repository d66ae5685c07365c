"""The reference of the ops: complete, true to the definitions, and committed as docs/ops.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cnnc.frontend.project import library
from cnnc.frontend.reference import WIDTH, entries
from cnnc.frontend.scope import DefBlock, OpBlock
from cnnc.ir.op import attributes, registry

ROOT = Path(__file__).parents[1]


def test_the_committed_page_is_fresh() -> None:
    command = [sys.executable, "-m", "cnnc.frontend.reference"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    assert (ROOT / "docs" / "ops.md").read_bytes() == page, "python -m cnnc.frontend.reference > docs/ops.md"


def test_every_block_and_every_argument_has_its_line() -> None:
    found = entries()
    blocks = {name for name, x in library().names.items() if isinstance(x.value, OpBlock | DefBlock)}
    assert blocks | {"id", "split"} <= found.keys()
    for name, op in ((name, op) for name, op in registry().items() if not op.internal):
        lines = found[name].text.splitlines()
        for field in attributes(op):
            assert any(line.startswith(f"{field.metadata['name']} ") for line in lines), (name, field.name)
    assert max(len(line) for entry in found.values() for line in entry.text.splitlines()) <= WIDTH


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("conv", 'conv(c, k, s=1, pad=0, dilation=1, groups=1, bias=true, init="he_normal")'),
        ("maxpool", "maxpool(k, [s], pad=0, ceil=false, dilation=1)"),
        ("reshape", "reshape(dims, ...)"),
        ("relu", "relu"),
        ("add", "add { xs | ... }"),
        ("crop", "crop(offset) { x | like }"),
        ("constant", "constant(values, shape=[], dtype=f32)"),
        ("squeeze_excite", "squeeze_excite(m, act=relu, gate=sigmoid)"),
        ("split", "split(n, axis=1)"),
    ],
)
def test_the_call_is_written_as_in_the_language(name: str, call: str) -> None:
    assert entries()[name].text.splitlines()[0] == call


def test_an_entry_says_what_an_op_takes() -> None:
    text = entries()["crop"].text
    assert "Takes 2 operands (x, like)." in text
    assert "offset  an integer of at least 0, or two of them for rows and columns" in text
    assert "`s` is the kernel's size" in entries()["maxpool"].text  # said by a base class
