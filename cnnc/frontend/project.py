"""Files: reading them, following their imports, and the environment each one makes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Final

from cnnc.diagnostics import CnncError, Diagnostic, Help, Label, Source, Span, error
from cnnc.frontend import syntax as s
from cnnc.frontend.call import suggest
from cnnc.frontend.numbers import FUNCTIONS
from cnnc.frontend.parser import decode, parse
from cnnc.frontend.scope import Binding, Builtin, DefBlock, Env, LazyConst, ModelBlock, OpBlock
from cnnc.ir.op import registry
from cnnc.ir.types import DType

WORDS = ("half", "same_upper", "same_lower", "valid", *DType)
"""Words that are values: padding modes and element types."""
TEXT: Final = "<text>"
"""What a module is named that came from no file."""


@dataclass
class Module:
    """A parsed file and what its names mean."""

    source: Source
    env: Env
    models: dict[str, s.Model] = field(default_factory=dict)
    checks: list[s.Check] = field(default_factory=list)
    tree: s.File | None = None


@cache
def library() -> Env:
    """The outermost environment: every op, the functions of the language, its words, and the standard library."""
    source = Source("library.cnn", (files("cnnc.frontend") / "library.cnn").read_text(encoding="utf-8"))
    nowhere = Span(source, 0, 0)
    env = Env()
    for name, op in registry().items():
        if op.internal:
            continue
        env.names[name] = Binding(OpBlock(op), nowhere, "library")
    for name in ("id", "split", *FUNCTIONS):
        env.names[name] = Binding(Builtin(name), nowhere, "library")
    for word in WORDS:
        env.names[str(word)] = Binding(str(word), nowhere, "library")
    for item in parse(source).items:
        assert isinstance(item, s.Def)
        env.names[item.name.text] = Binding(DefBlock(item, env), item.name.span, "library")
    return env


class Project:
    """A file and what it imports, from below one folder, or from nowhere for a text."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.modules: dict[Path, Module] = {}
        self.loading: list[Path] = []
        self.diagnostics: list[Diagnostic] = []

    @staticmethod
    def open(path: Path) -> tuple[Project, Module]:
        """The project whose top file is `path`. CnncError for anything wrong with it or its imports."""
        project = Project(Path(os.path.realpath(path.parent)))
        real = Path(os.path.realpath(path))
        module = project.file(real if real.exists() else path, str(path))  # a pipe, /dev/fd/63, has no other name
        project.finish()
        return project, module

    @staticmethod
    def of_text(text: str, name: str = TEXT) -> tuple[Project, Module]:
        project = Project(None)
        module = project.module(decode(text.encode("utf-8", "surrogatepass"), name), None)
        project.finish()
        return project, module

    def finish(self) -> None:
        if self.diagnostics:
            raise CnncError(tuple(self.diagnostics))

    def file(self, path: Path, shown: str) -> Module:
        if path not in self.modules:
            try:
                data = path.read_bytes()
            except OSError as e:
                raise error("E0901", f"cannot read {shown}: {e.strerror or e}") from None
            self.loading.append(path)
            self.modules[path] = self.module(decode(data, shown), path)
            self.loading.pop()
        return self.modules[path]

    def module(self, source: Source, path: Path | None) -> Module:
        tree = parse(source)
        module = Module(source, Env(library()), tree=tree)
        for item in tree.items:
            match item:
                case s.Import():
                    self.follow(item, module, path)
                case s.Const(name=name, value=value):
                    self.define(module, name, LazyConst(value, module.env), "constant")
                case s.Def(name=name):
                    self.define(module, name, DefBlock(item, module.env), "def")
                case s.Model(name=name):
                    self.define(module, name, ModelBlock(item, module.env), "model")
                    module.models.setdefault(name.text, item)
                case s.Check():
                    module.checks.append(item)
        return module

    def define(self, module: Module, name: s.Name, value: object, kind: str) -> None:
        before = module.env.names.get(name.text)
        if before is not None:
            labels = (Label(name.span, primary=True), Label(before.span, f"the {before.kind} `{name.text}`"))
            self.diagnostics.append(Diagnostic("E0202", f"`{name.text}` is defined twice", labels))
            return
        module.env.names[name.text] = Binding(value, name.span, kind)

    def follow(self, item: s.Import, module: Module, importer: Path | None) -> None:
        """Bind the names of an import."""
        path = self.locate(item.path, importer)
        if path is None:
            return
        if path in self.loading:
            names = " > ".join(p.name for p in [*self.loading[self.loading.index(path) :], path])
            self._problem("E0216", f"files import each other: {names}", item.path.span)
            return
        try:
            other = self.file(path, _beside(module.source.name, item.path.value))
        except CnncError as e:
            if path.is_file():
                self.diagnostics += e.diagnostics
            else:
                near = sorted(p.name for p in path.parent.glob("*.cnn")) if path.parent.is_dir() else []
                message = f'there is no file "{item.path.value}"'
                self._problem("E0901", message, item.path.span, suggest(path.name, near))
            return
        for alias in item.names:
            found = other.env.names.get(alias.name.text)
            if found is None:
                message = f'"{item.path.value}" defines no `{alias.name.text}`'
                self._problem("E0201", message, alias.name.span, suggest(alias.name.text, list(other.env.names)))
            else:
                self.define(module, alias.alias, found.value, "import")

    def locate(self, written: s.String, importer: Path | None) -> Path | None:
        """The file an import names; E0703 for anything outside the project's folder."""
        name = PurePosixPath(written.value)
        if self.root is None or importer is None:
            self._problem("E0216", "a text that is not a file imports nothing", written.span, "save it as a file")
            return None
        if name.is_absolute() or ".." in name.parts or ":" in written.value:
            self._problem("E0703", f'"{written.value}" is outside the folder of the project', written.span)
            return None
        path = Path(os.path.realpath(importer.parent / name))
        if not path.is_relative_to(self.root):
            self._problem("E0703", f'"{written.value}" leads out of the folder of the project', written.span)
            return None
        return path

    def _problem(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        labels = (Label(span, primary=True),)
        self.diagnostics.append(Diagnostic(code, message, labels, help=Help(help) if help else None))


def _beside(importer: str, written: str) -> str:
    """How the path of an imported file is shown: relative as its importer's is."""
    return str(Path(importer).parent / written)
