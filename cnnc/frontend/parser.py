"""Text to syntax tree, by Lark's LALR(1) parser. Total: any bytes give a tree or one clear diagnostic.

The syntax tree is built from Lark's without recursion, so that depth is a number to check and not a stack to overflow.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import lark
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from cnnc.diagnostics import CnncError, Diagnostic, Help, Label, Source, Span
from cnnc.frontend import syntax as s
from cnnc.frontend import tables
from cnnc.frontend.numbers import MAX_INT

MAX_DEPTH = 100
MAX_DIGITS = 1000
MAX_BYTES = 1_000_000
MAX_TOKENS = 30_000
KEYWORDS = ("and", "as", "check", "def", "else", "false", "for", "from", "if", "import", "in", "input", "model", "not",
            "or", "output", "return", "shared", "true")  # fmt: skip
COMMENT = "a comment begins with `#`; `//` divides"
_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def decode(data: bytes, name: str) -> Source:
    """The text of a file, or E0101 for bytes that are not UTF-8 text."""
    if len(data) > MAX_BYTES:
        raise _error("E0503", f"{name} has {len(data):,} bytes; a model file has at most {MAX_BYTES:,}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        archive = data.startswith(b"PK\x03\x04")
        help = "this is an archive: `cnnc run` takes compiled programs" if archive else None
        bad = f"bad byte 0x{data[e.start]:02x} at byte offset {e.start}"
        raise _error("E0101", f"{name} is not UTF-8: {bad}", help) from None
    if text.startswith("\ufeff"):
        raise _error("E0101", f"{name} begins with a byte-order mark (byte offset 0)", "save the file as plain UTF-8")
    if (nul := data.find(b"\0")) >= 0:
        raise _error("E0101", f"{name} contains a NUL byte at byte offset {nul}", "is this a text file?")
    return Source(name, text)


def parse(source: Source) -> s.File:
    """The syntax tree of a file. CnncError: E0102 to E0104 for syntax, E0203, E0501, E0503 and E0504 for limits."""
    items: tuple[s.Item, ...] = _run(source, source.text)
    if not items:
        raise _error("E0102", f"{source.name} declares nothing", "a file has at least a model: `model M { ... }`")
    return s.File(items)


def parse_expression(source: Source) -> s.Expr:
    """The tree of a single expression, as in `--set depths=[2, 2]`."""
    file: tuple[s.Item, ...] = _run(source, "value = " + source.text)
    match file:
        case (s.Const(value=value),):
            return value
        case _:
            raise _error("E0103", f"{source.name}: expected one value, not {source.text!r}")


def _run(source: Source, text: str) -> Any:
    reader = _Reader(source, len(text) - len(source.text), _scan(source))
    try:
        tree = _parser().parse(text)
    except UnexpectedCharacters as e:
        raise reader.unexpected_character(e) from None
    except UnexpectedToken as e:
        raise reader.unexpected_token(e) from None
    return reader.build(tree)


@cache
def _parser() -> lark.Lark:
    """Made from its tables once, in 20 ms."""
    # The private loader is the one that Lark's own standalone parsers call.
    load: Any = lark.Lark._load_from_dict
    parser: lark.Lark = load(tables.DATA, tables.MEMO)
    return parser


def _scan(source: Source) -> list[Span]:
    """The comments; E0501 for brackets nested deeper than MAX_DEPTH, E0503 for more tokens than MAX_TOKENS."""
    comments: list[Span] = []
    depth = 0
    for count, token in enumerate(re.finditer(r'#[^\n]*|"[^"\n]*"|\w+|[^\s\w]', source.text)):
        span = Span(source, token.start(), token.end())
        if count == MAX_TOKENS:
            message = f"{source.name} has more than {MAX_TOKENS:,} words and signs"
            raise _error("E0503", message, "repeat blocks with `* n` or `for`", span)
        if token[0][0] == "#":
            comments.append(span)
        elif token[0] in "[({":
            depth += 1
            if depth > MAX_DEPTH:
                raise _error("E0501", f"brackets nest deeper than {MAX_DEPTH}", "name the parts", span)
        elif token[0] in "])}":
            depth -= 1
    return comments


def _error(code: str, message: str, help: str | None = None, span: Span | None = None) -> CnncError:
    labels = (Label(span, primary=True),) if span else ()
    return CnncError((Diagnostic(code, message, labels, help=Help(help) if help else None),))


class _Reader:
    """Builds the tree: `on_x` makes the node of grammar rule x from its children."""

    def __init__(self, source: Source, shift: int, comments: list[Span]) -> None:
        self.source, self.shift = source, shift
        self.depth: dict[int, int] = {}
        self.docs: dict[int, list[str]] = {}  # the line a doc comment ends on -> its lines
        for comment in comments:
            if (text := comment.text).startswith("##") and not text.startswith("###"):
                self.docs[comment.line] = [*self.docs.pop(comment.line - 1, []), text[2:].strip()]
        self.kept: list[object] = []  # nodes whose depth is noted stay alive, so that ids are not reused

    def build(self, tree: lark.Tree[Any]) -> Any:
        """The node of a parse tree, its subtrees first."""
        made: dict[int, Any] = {}
        for part in tree.iter_subtrees():
            children = [made[id(c)] if isinstance(c, lark.Tree) else c for c in part.children]
            span = None if part.meta.empty else self.span(part.meta.start_pos, part.meta.end_pos)
            made[id(part)] = self.noted(getattr(self, f"on_{part.data}")(span, *children), children)
        return made[id(tree)]

    def noted(self, node: Any, children: list[Any]) -> Any:
        """Note how deep the tree under `node` is; refuse what is too deep to walk."""
        if hasattr(node, "span") and not isinstance(node, s.Name):
            depth = 1 + max((self.depth.get(id(c), 0) for c in _flat(children)), default=0)
            if depth > MAX_DEPTH:
                raise _error("E0501", f"expressions nest deeper than {MAX_DEPTH}", "name the parts", node.span)
            self.depth[id(node)] = depth
            self.kept.append(node)
        return node

    def span(self, start: int, end: int) -> Span:
        return Span(self.source, max(0, start - self.shift), max(0, end - self.shift))

    def token_span(self, token: lark.Token) -> Span:
        start = token.start_pos or 0
        return self.span(start, token.end_pos or start + 1)

    def name(self, token: lark.Token) -> s.Name:
        return s.Name(self.token_span(token), str(token))

    # Doc comments: `## ` lines that end on the line before an item.

    def doc(self, span: Span) -> str:
        return "\n".join(self.docs.get(span.line - 1, []))

    # Errors.

    def unexpected_character(self, e: UnexpectedCharacters) -> CnncError:
        at = self.span(e.pos_in_stream or 0, (e.pos_in_stream or 0) + 1)
        char = at.text
        if char == '"':
            return _error("E0104", "this string does not end on its line", 'close it with `"`', at)
        help = None
        if self.after_slashes(at):
            help = COMMENT
        elif char == "'":
            help = 'strings are written with double quotes: "..."'
        elif char == ";":
            help = "statements need no separator: remove it"
        elif char and not char.isascii() and char.isprintable():
            return _error("E0103", f"`{char}` (U+{ord(char):04X}) cannot stand here: names are ASCII", None, at)
        elif char.isdigit():
            end = at.start
            while end < len(self.source.text) and (self.source.text[end].isalnum() or self.source.text[end] in "_."):
                end += 1
            at = Span(self.source, at.start, end)
            return _error("E0103", f"`{at.text[:60]}` is neither a number nor a name", None, at)
        return _error("E0103", f"unexpected character {char!r}", help, at)

    def unexpected_token(self, e: UnexpectedToken) -> CnncError:
        expected = set(e.accepts or e.expected)
        if e.token.type == "$END":
            end = len(self.source.text.rstrip())
            at = Span(self.source, max(0, end - 1), end)
            message = f"the file ends too early: expected {_expected(expected)}"
            return _error("E0103", message, _unclosed(self.source), at)
        at, text = self.token_span(e.token), str(e.token)
        message = f"unexpected `{text}`: expected {_expected(expected)}"
        help = None
        if text in KEYWORDS and "NAME" in expected:
            message = f"`{text}` is a keyword and cannot be a name"
        elif "ELSE" in expected:
            help = "`if` always has an `else`; `id` passes the value on unchanged"
        elif e.token.type == "EQUAL" and "COLON" in expected:
            help = "in a chain a place is named with `label:`; `=` names a value at the start of a statement"
        elif text == "{" and "RPAR" in expected:
            help = "operands go in braces after the parentheses: `add { a | b }`"
        elif text == ">" and self.source.text[: at.start].rstrip().endswith("-"):
            help = "the arrow is written without a space: `->`"
        elif self.after_slashes(at):
            help = COMMENT
        return _error("E0103", message, help, at)

    def after_slashes(self, at: Span) -> bool:
        """Whether there is `//` before the end of a place, on its line: a comment of another language."""
        return "//" in self.source.text[self.source.text.rfind("\n", 0, at.start) + 1 : at.end]

    # Tokens and names.

    def number(self, token: lark.Token) -> s.Number:
        span, text = self.token_span(token), token.replace("_", "").removesuffix("B")
        digits = text.rstrip("kKMGTi")
        factor = _SUFFIX.get(text[len(digits) :], 0)
        if not factor:
            raise _error("E0103", f"`{token}` is not a number", None, span)
        if len(digits) > MAX_DIGITS:
            raise _error("E0504", f"a number has at most {MAX_DIGITS} digits, this has {len(digits)}", None, span)
        value = float(digits) if any(c in digits for c in ".eE") else int(digits)
        if isinstance(value, float) and not math.isfinite(value):
            raise _error("E0203", f"`{token}` is not a finite number", None, span)
        scaled = value * factor
        if abs(scaled) > MAX_INT:
            raise _error("E0504", f"`{token}` is beyond 2^63", None, span)
        if factor > 1 and isinstance(scaled, float) and scaled.is_integer():
            scaled = int(scaled)
        return s.Number(span, scaled)

    def string(self, token: lark.Token) -> s.String:
        return s.String(self.token_span(token), str(token)[1:-1])

    def on_ref(self, span: Span, token: lark.Token) -> s.Name:
        return self.name(token)

    def on_label(self, span: Span, token: lark.Token) -> s.Name | s.String:
        return self.string(token) if token.type == "STRING" else self.name(token)

    def on_names(self, span: Span, *tokens: lark.Token) -> tuple[s.Name, ...]:
        return tuple(self.name(t) for t in tokens)

    # Expressions.

    def expr(self, child: Any) -> Any:
        """An atom that the grammar leaves as a token."""
        if not isinstance(child, lark.Token):
            return child
        match child.type:
            case "NUMBER":
                return self.number(child)
            case "STRING":
                return self.string(child)
            case "TRUE" | "FALSE":
                return s.Boolean(self.token_span(child), child.type == "TRUE")
            case "IN":
                return s.In(self.token_span(child))
            case _:
                return child

    def on_chain(self, span: Span, *steps: Any) -> s.Chain:
        return s.Chain(span, tuple(map(self.expr, steps)))

    def on_cond(self, span: Span, then: Any, test: Any, other: Any) -> s.Cond:
        return s.Cond(span, self.expr(then), self.expr(test), self.expr(other))

    def on_labelled(self, span: Span, label: s.Name | s.String, body: Any) -> s.Labelled:
        return s.Labelled(span, label, self.expr(body))

    def on_or(self, span: Span, *items: Any) -> s.Logic:
        return s.Logic(span, "or", tuple(map(self.expr, items)))

    def on_and(self, span: Span, *items: Any) -> s.Logic:
        return s.Logic(span, "and", tuple(map(self.expr, items)))

    def on_negate(self, span: Span, item: Any) -> s.Logic:
        return s.Logic(span, "not", (self.expr(item),))

    def on_cmp(self, span: Span, *items: Any) -> s.Compare:
        return s.Compare(span, tuple(map(str, items[1::2])), tuple(map(self.expr, items[::2])))

    def on_sum(self, span: Span, first: Any, *rest: Any) -> s.Expr:
        left: s.Expr = self.expr(first)
        for op, right in zip(rest[::2], rest[1::2], strict=True):
            item = self.expr(right)
            left = self.noted(s.Arith(left.span.to(item.span), str(op), left, item), [left, item])
        return left

    on_term = on_sum

    def on_minus(self, span: Span, sign: lark.Token, item: Any) -> s.Minus:
        return s.Minus(span, self.expr(item))

    def on_list(self, span: Span, *items: Any) -> s.ListOf:
        return s.ListOf(span, tuple(self.expr(x) for x in items if x is not None))

    def on_named(self, span: Span, name: lark.Token, value: Any) -> s.Argument:
        return s.Argument(span, str(name), self.expr(value))

    def on_args(self, span: Span, *items: Any) -> tuple[s.Argument, ...]:
        values = [x if isinstance(x, s.Argument) else self.expr(x) for x in items if x is not None]
        return tuple(x if isinstance(x, s.Argument) else self.noted(s.Argument(x.span, None, x), [x]) for x in values)

    def on_arms(self, span: Span, *items: Any) -> s.Arms:
        return s.Arms(span, tuple(map(self.expr, items)))

    def on_iter(self, span: Span, head: Any, args: Any = None) -> s.Expr:
        return s.Use(span, self.name(head), args) if isinstance(head, lark.Token) else head

    def on_loop(self, span: Span, names: tuple[s.Name, ...], over: s.Expr, body: s.Arms) -> s.Loop:
        return s.Loop(span, names, over, body)

    on_each = on_loop

    def on_use(self, span: Span, name: s.Name, args: Any, operands: Any) -> s.Use:
        return s.Use(span, name, args, operands)

    # Statements.

    def on_dim(self, span: Span, size: Any, default: Any) -> s.InputDim:
        return s.InputDim(span, self.expr(size), None if default is None else self.expr(default))

    def on_input(self, span: Span, names: tuple[s.Name, ...], dtype: lark.Token, *dims: s.InputDim) -> s.InputStmt:
        return s.InputStmt(span, names, self.name(dtype), dims, self.doc(span))

    def on_output(self, span: Span, names: tuple[s.Name, ...]) -> s.OutputStmt:
        return s.OutputStmt(span, names)

    def on_bind(self, span: Span, names: tuple[s.Name, ...], value: Any) -> s.Bind:
        return s.Bind(span, names, self.expr(value))

    def on_shared(self, span: Span, name: s.Name, value: Any) -> s.Share:
        return s.Share(span, name, self.expr(value))

    def on_flow(self, span: Span, head: s.Name, *steps: Any) -> s.Flow:
        first: s.Expr = s.In(head.span) if head.text == "in" else s.Use(head.span, head)
        return s.Flow(span, s.Chain(span, (first, *map(self.expr, steps))))

    def on_return(self, span: Span, value: Any) -> s.Return:
        return s.Return(span, self.expr(value))

    def on_block(self, span: Span, *statements: s.Statement) -> s.Block:
        return s.Block(span, statements)

    # Items.

    def on_param(self, span: Span, name: lark.Token, default: Any) -> s.Parameter:
        return s.Parameter(span, self.name(name), None if default is None else self.expr(default))

    def on_params(self, span: Span, *params: s.Parameter | None) -> tuple[s.Parameter, ...]:
        return tuple(p for p in params if p is not None)

    def on_alias(self, span: Span, name: lark.Token, alias: lark.Token | None) -> s.Alias:
        return s.Alias(span, self.name(name), self.name(alias or name))

    def on_import(self, span: Span, path: lark.Token, *names: s.Alias) -> s.Import:
        return s.Import(span, self.string(path), names)

    def on_const(self, span: Span, name: lark.Token, value: Any) -> s.Const:
        return s.Const(span, self.name(name), self.expr(value))

    def on_def(self, span: Span, name: lark.Token, params: Any, body: Any) -> s.Def:
        return s.Def(span, self.name(name), params or (), self.expr(body), self.doc(span))

    def on_model(self, span: Span, name: lark.Token, params: Any, body: Any) -> s.Model:
        return s.Model(span, self.name(name), params or (), self.expr(body), self.doc(span))

    def on_fact(self, span: Span, name: lark.Token, args: Any, *rest: Any) -> s.Fact:
        return s.Fact(
            span, self.name(name), args or (), tuple(map(str, rest[::2])), tuple(map(self.expr, rest[1::2]))
        )  # fmt: skip

    def on_check(self, span: Span, name: lark.Token, args: Any, *facts: s.Fact) -> s.Check:
        return s.Check(span, self.name(name), args or (), facts)

    def on_start(self, span: Span | None, *items: s.Item) -> tuple[s.Item, ...]:
        return items


def _flat(children: list[Any]) -> list[Any]:
    return [x for c in children for x in (c if isinstance(c, tuple) else (c,))]


_SPELLING = {
    "NAME": "a name", "PATH": "a dotted name", "NUMBER": "a number", "STRING": "a string", "LPAR": "`(`", "RPAR": "`)`",
    "LBRACE": "`{`", "RBRACE": "`}`", "LSQB": "`[`", "RSQB": "`]`", "COMMA": "`,`", "COLON": "`:`", "EQUAL": "`=`",
    "VBAR": "`|`", "CMP": "a comparison", "PLUS": "`+`", "MINUS": "`-`", "MUL": "`*`", "__ANON_0": "`->`",
    "$END": "the end",
}  # fmt: skip


_STARTS = (
    ("MODEL", {"CHECK", "DEF", "FROM", "MODEL", "NAME"}, "an item"),
    ("OUTPUT", {"INPUT", "OUTPUT", "RETURN", "SHARED", "NAME", "PATH"}, "a statement"),
)


def _expected(kinds: set[str]) -> str:
    """The expected tokens in words; where an expression may begin or go on, that is one word."""
    if {"NUMBER", "STRING", "LBRACE"} <= kinds:
        kinds = kinds - {"NUMBER", "STRING", "LBRACE", "LPAR", "LSQB", "MINUS", "NAME", "PATH", "TRUE", "FALSE", "IN",
                         "FOR", "NOT"} | {"an expression"}  # fmt: skip
    if {"PLUS", "MINUS", "MUL"} <= kinds:  # whatever goes on an expression
        kinds = kinds - {"PLUS", "MINUS", "MUL", "CMP", "AND", "OR", "IF", "LPAR", "LBRACE", "FOR", "COLON", "EQUAL"}
        kinds = kinds - {"__ANON_0"} | {"an operator"}
    for first, rest, word in _STARTS:
        if first in kinds:
            kinds = kinds - rest | {word}
    words = sorted(k if k.startswith("a") else _SPELLING.get(k, f"`{k.lower()}`") for k in kinds)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _unclosed(source: Source) -> str | None:
    """The last bracket that nothing closes, for a file that ends too early."""
    stack: list[tuple[str, int]] = []
    for number, line in enumerate(source.text.split("\n"), 1):
        for char in line.split("#")[0]:
            if char in "({[":
                stack.append((char, number))
            elif char in ")}]" and stack:
                stack.pop()
    return f"`{stack[-1][0]}` on line {stack[-1][1]} is not closed" if stack else None
