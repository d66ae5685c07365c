"""docs/adding_an_op.md: its code blocks, in order, are one file that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "adding_an_op.md"
ON_CUDA = """
from cuda_emulator import runnable
program = runnable(cnnc.compile(graph, target="cuda", weights=weights), checked=True)
np.testing.assert_allclose(program(x=x)["y"], expected, rtol=1e-5, atol=1e-6)
"""
"""What the page leaves out, as its reader need not have a GPU, or nvcc; here the kernels run on the CPU instead."""


@pytest.mark.slow
def test_the_code_blocks_run(tmp_path):
    """In a process of its own: the op it registers is not one of ours. Its rule for `cuda` is tried as well."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 10
    file = tmp_path / "mish.py"
    file.write_text("\n\n".join([*blocks, ON_CUDA]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)], env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_files_it_names_exist():
    named = set(re.findall(r"`((?:cnnc|backends|tests)/[\w/]+(?:\.py)?)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 8
    missing = {name for name in named if not (PAGE.parents[1] / name).exists()}
    assert missing == set()
