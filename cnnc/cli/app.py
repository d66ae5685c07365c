"""The command group: help, version, and how every failure ends (a diagnostic and an exit status, no traceback)."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from cnnc.cli.console import report
from cnnc.diagnostics import CnncError, Diagnostic, Help, internal

HELP: Final = """Compile convolutional networks written in the cnnc language.

A FILE is a .cnn file, `-` for standard input, or the name of a model that comes with cnnc; FILE:MODEL picks one of
several models in it.

\b
Examples:
  cnnc check net.cnn                               find errors
  cnnc summary resnet50                            layers, shapes, parameters, work
  cnnc compile resnet50 --target cpu -o r50.cnnp   make a program
  cnnc run r50.cnnp --input image=cat.png --top 5  run it
"""
EPILOG: Final = """Exit status: 0 ok, 2 usage, 3 syntax, 4 names, shapes or a failed check, 5 bad model or weight file,
6 a limit, 7 not supported by the target, 8 refused for security, 9 verification mismatch, 70 internal error, 74 input
or output, 130 interrupted, 141 closed pipe."""

INTERRUPTED: Final = 130
CLOSED_PIPE: Final = 141


class App(click.Group):
    """The `cnnc` command. `main` always leaves by SystemExit."""

    def __init__(self, commands: Sequence[click.Command]) -> None:
        super().__init__(
            "cnnc",
            commands=commands,
            help=HELP,
            epilog=EPILOG,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
            no_args_is_help=True,
        )
        click.version_option(package_name="cnnc", message="%(prog)s %(version)s")(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order they were given, by how often they are used

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = "cnnc", complete_var: str | None = None,
        standalone_mode: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        """Run the command line and exit."""
        args = sys.argv[1:] if args is None else list(args)
        _open_streams()
        run = super().main
        status = _guarded(
            # Errors come here as exceptions, and what a command returns is its exit status.
            lambda: run(args, prog_name, complete_var, standalone_mode=False, **extra),
            # Read off the words themselves: where they do not parse, no option has a value yet.
            as_json="--json" in args and not self._has_json_files(args),
            debug="--debug" in args,
        )
        sys.exit(status)

    def _has_json_files(self, args: Sequence[str]) -> bool:
        """Whether the `--json` of the command takes a file to write, and does not say how to print."""
        command = self.commands.get(args[0])
        options = [x for x in command.params if isinstance(x, click.Option)] if command else []
        return any("--json" in x.opts and not x.is_flag for x in options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            status = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has left (`cnnc ir net.cnn | head`). What is buffered must not fail again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED_PIPE
        return status


def _open_streams() -> None:
    """A stream that the shell closed (`cnnc models >&-`) is None in Python; what is written to it is lost."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends


def _guarded(run: Callable[[], int | None], *, as_json: bool, debug: bool) -> int:
    """The exit status of `run`; what it raises is reported."""
    try:
        return run() or 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)  # the help, which is no message to put `error` before
        return e.exit_code
    except CnncError as e:
        found, status = e.diagnostics, e.exit_status
    except click.ClickException as e:
        found = (_usage(e),)
        status = found[0].exit_status
    except OSError as e:
        found = (Diagnostic("E0901", _io_message(e)),)
        status = found[0].exit_status
    except MemoryError as e:
        if debug:
            traceback.print_exc()
        found = (Diagnostic("E0502", f"there is not enough memory: {str(e) or 'none is left'}"),)
        status = found[0].exit_status
    except Exception as e:
        if debug:
            traceback.print_exc()
        found = (internal(e),)
        status = found[0].exit_status
    report(found, as_json=as_json)
    return status


def _usage(e: click.ClickException) -> Diagnostic:
    context = getattr(e, "ctx", None)
    if context is None:
        return Diagnostic("E0902", e.format_message())
    usage = " ".join(context.get_usage().removeprefix("Usage: ").split())
    more = Help(f"`{context.command_path} --help` says more")
    return Diagnostic("E0902", e.format_message(), notes=(f"usage is `{usage}`",), help=more)


def _io_message(e: OSError) -> str:
    files = [os.fsdecode(name) for name in (e.filename, e.filename2) if isinstance(name, str | bytes)]
    reason = (e.strerror or type(e).__name__).lower()
    return f"`{'` to `'.join(files)}`: {reason}" if files else reason
