"""Planting a fault into a function of cnnc, to see that it is found.

The text of the function is changed and its code object replaced, so every table that holds the function has the fault.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any


@contextmanager
def planted(function: Any, old: str, new: str) -> Iterator[None]:
    """`function` with `old`, which stands in it once, replaced by `new`."""
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {function.__qualname__}"
    tree = ast.parse(source.replace(old, new))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []  # they register the function, which is done
    flags = __future__.annotations.compiler_flag
    whole = compile(tree, f"<{function.__qualname__}, with a fault>", "exec", flags, dont_inherit=True)
    (code,) = (x for x in whole.co_consts if isinstance(x, CodeType))
    before = function.__code__
    assert code.co_freevars == before.co_freevars == ()
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = before
