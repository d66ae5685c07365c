"""Compile grammar/cnn.lark to tables.py: `python -m cnnc.frontend.make_tables`.

Building LALR tables takes half a second, loading them as Python data takes a hundredth. A test holds that the committed
tables are those of the committed grammar.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

OPTIONS = {"parser": "lalr", "lexer": "basic", "propagate_positions": True, "maybe_placeholders": True}


def tables(grammar: str) -> str:
    """The Python source of tables.py for a grammar."""
    data, memo = Lark(grammar, **OPTIONS).memo_serialize([TerminalDef, Rule])
    return (
        '"""Generated from grammar/cnn.lark by `python -m cnnc.frontend.make_tables`; not edited by hand."""\n\n'
        f"from typing import Any\n\nGRAMMAR = {sha256(grammar.encode()).hexdigest()!r}\n"
        f"DATA: Any = {data!r}\n"
        f"MEMO: Any = {memo!r}\n"
    )


def grammar_text() -> str:
    return (files("cnnc.grammar") / "cnn.lark").read_text(encoding="utf-8")


if __name__ == "__main__":
    Path(__file__).with_name("tables.py").write_text(tables(grammar_text()), encoding="utf-8")
