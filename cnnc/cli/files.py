"""How the command line names a model: `net.cnn`, `net.cnn:Tiny`, `-` for standard input, `resnet50` of our own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cnnc.diagnostics import error


@dataclass(frozen=True)
class Place:
    """A file of models, and the one meant; None is the file's default."""

    path: str
    model: str | None = None

    def source(self) -> str | Path:
        """What `cnnc.load` takes: the file, or the text of standard input. CnncError E0901 if there is no such file."""
        if self.path == "-":
            from cnnc.frontend.parser import decode

            return decode(sys.stdin.buffer.read(), "<stdin>").text + "\n"  # a line break tells a text from a path
        if (path := Path(self.path)).exists():
            return path
        known = shipped()
        if self.path in known:
            return known[self.path]
        near = get_close_matches(self.path, known, n=1)
        hint = f"did you mean the model `{near[0]}`?" if near else "`cnnc models` lists the models that come with cnnc"
        raise error("E0901", f"there is no file `{self.path}`", help=hint)

    @property
    def stem(self) -> str:
        """A short name for what is made of it."""
        return self.model or ("model" if self.path == "-" else Path(self.path).stem)


class ModelFile(click.ParamType[Place]):
    """`FILE[:MODEL]`."""

    name = "FILE[:MODEL]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        path, colon, model = str(value).rpartition(":")
        return Place(path, model) if colon and path and model.isidentifier() else Place(str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        # The file comes first: bash forgets what stands before it, and offers files where no name matches.
        names = [name for name in shipped() if incomplete and name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *map(CompletionItem, names)]


def shipped() -> dict[str, Path]:
    """The files of the models that come with cnnc, by name."""
    folder = Path(str(files("cnnc.models")))
    return {path.stem: path for path in sorted(folder.glob("*.cnn"))}
