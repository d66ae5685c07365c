"""`cnnc completion`: the script that teaches a shell to complete cnnc's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cnnc.cli.options import Command


@click.command(
    cls=Command,
    examples="""
    eval "$(cnnc completion bash)"          in ~/.bashrc
    eval "$(cnnc completion zsh)"           in ~/.zshrc
    cnnc completion fish > ~/.config/fish/completions/cnnc.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    cls = get_completion_class(shell)
    assert cls is not None, shell
    click.echo(cls(ctx.find_root().command, {}, "cnnc", "_CNNC_COMPLETE").source())
