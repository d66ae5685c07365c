"""`cnnc explain`: the error catalogue."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib.resources import files

import click

from cnnc.cli.console import coloured, print_json
from cnnc.cli.options import AS_JSON, Command
from cnnc.diagnostics import error


@click.command(cls=Command, examples="cnnc explain E0312\ncnnc explain")
@click.argument("code", required=False)
@AS_JSON
def explain(code: str | None, as_json: bool) -> None:
    """Say what an error means and how to mend it.

    Without CODE, list all errors.
    """
    pages = _pages()
    if code is None:
        titles = {name: _title(text) for name, text in pages.items()}
        if as_json:
            print_json(titles)
        else:
            click.echo("\n".join(f"{name}  {title}" for name, title in titles.items()))
        return
    name = code.upper()
    if name not in pages:
        near = get_close_matches(name, pages, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "`cnnc explain` lists all codes"
        raise error("E0902", f"there is no error `{code}`", help=hint)
    if as_json:
        print_json({"code": name, "title": _title(pages[name]), "text": pages[name]})
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console(no_color=not coloured(sys.stdout)).print(Markdown(pages[name]))
    else:
        click.echo(pages[name].rstrip())


def _pages() -> dict[str, str]:
    found = {x.name.removesuffix(".md"): x for x in files("cnnc.errors").iterdir() if x.name.endswith(".md")}
    return {code: found[code].read_text("utf-8") for code in sorted(found)}


def _title(text: str) -> str:
    """The heading of a page, without the code it may repeat."""
    heading = text.partition("\n")[0].lstrip("# ")
    code, colon, rest = heading.partition(":")
    return rest.strip() if colon and code.startswith("E") and code[1:].isdigit() else heading
