"""`cnnc explain`: the error catalogue, and the reference of the ops."""

from __future__ import annotations

import sys
from importlib.resources import files

import click
from click.shell_completion import CompletionItem

from cnnc.cli.console import coloured, print_json
from cnnc.cli.files import ModelFile, Place
from cnnc.cli.fusion import explain_fusion
from cnnc.cli.options import AS_JSON, NO_SETTINGS, Command, Settings, model_options
from cnnc.diagnostics import error


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from cnnc.frontend.reference import entries

    names = [*_pages(), *entries()]
    return [CompletionItem(name) for name in names if name.lower().startswith(incomplete.lower())]


@click.command(
    cls=Command,
    examples="""
    cnnc explain E0312
    cnnc explain conv
    cnnc explain
    cnnc explain fusion resnet50                  what each pass did, line by line
    cnnc explain fusion net.cnn layer1.0.conv1    the same for one layer or block
    """,
)
@click.argument("name", required=False, shell_complete=_complete)
@click.argument("place", metavar="[FILE[:MODEL]]", required=False, type=ModelFile())
@click.argument("label", required=False)
@model_options
@AS_JSON
def explain(
    name: str | None, place: Place | None, label: str | None, settings: Settings, as_json: bool
) -> None:
    """Explain an error, an op, or what the optimiser does.

    NAME is the code of an error, an op, or a def of the standard library; without it, all are listed. `fusion` goes
    through a FILE and says what each pass did at each line, and where it was not applied and why.
    """
    if name == "fusion":
        if place is None:
            raise click.UsageError("`explain fusion` goes through a FILE: `cnnc explain fusion resnet50`")
        explain_fusion(place, settings, label, as_json)
        return
    if place is not None or settings != NO_SETTINGS:
        raise click.UsageError("only `explain fusion` takes a FILE, and options of models")
    pages = _pages()
    if name is not None and name.upper() in pages:
        code = name.upper()
        _show(code, _title(pages[code]), pages[code].rstrip(), as_json, markdown=True)
        return
    from cnnc.frontend.call import suggest
    from cnnc.frontend.reference import entries

    ops = entries()
    if name is not None and name in ops:
        _show(name, ops[name].title, ops[name].text, as_json)
    elif name is not None:
        hint = suggest(name, [*pages, *ops]) or "`cnnc explain` lists all codes and ops"
        raise error("E0902", f"there is no error and no op `{name}`", help=hint)
    else:
        titles = {code: _title(text) for code, text in pages.items()} | {op: x.title for op, x in ops.items()}
        if as_json:
            print_json(titles)
        else:
            width = max(map(len, titles))
            click.echo("\n".join(f"{each:<{width}}  {title}" for each, title in titles.items()))


def _show(name: str, title: str, text: str, as_json: bool, *, markdown: bool = False) -> None:
    if as_json:
        print_json({"name": name, "title": title, "text": text})
    elif markdown and sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console(no_color=not coloured(sys.stdout)).print(Markdown(text))
    else:
        click.echo(text)


def _pages() -> dict[str, str]:
    """The pages of the catalogue by their codes, in order."""
    found = {x.name.removesuffix(".md"): x for x in files("cnnc.errors").iterdir() if x.name.endswith(".md")}
    return {code: found[code].read_text("utf-8") for code in sorted(found)}


def _title(text: str) -> str:
    """The heading of a page, without the code it begins with."""
    return text.partition("\n")[0].partition(": ")[2]
