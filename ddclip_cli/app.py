"""The `ddclip` executable: its commands by stage, and one handler for every way a run can end."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import typer

from ddclip_cli import console
from ddclip_cli.errors import UserError

# Help panel -> {command: module of ddclip_cli.commands whose function of that name is the command}.
COMMANDS = {
    "Start": {"demo": "demo", "sample": "sample", "recipe": "recipe"},
    "Data": {
        "download": "download",
        "render": "render",
        "pack-h5": "pack_h5",
        "store": "store",
        "encode-targets": "encode_targets",
        "convert-text": "convert_text",
    },
    "Train": {"train": "train"},
    "Evaluate": {
        "eval-lvis": "eval_lvis",
        "eval-mvpnet": "eval_mvpnet",
        "eval-scanobjectnn": "eval_scanobjectnn",
        "eval-text2shape": "eval_text2shape",
        "eval-classify": "eval_classify",
        "encode-classes": "encode_classes",
        "compare": "compare",
    },
    "Search": {"embed": "embed", "index": "index", "retrieve": "retrieve"},
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Multi-view CLIP: 3D objects searched by text and images.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"ddclip {version('ddclip')}")
        raise typer.Exit


@app.callback()
def _every_command(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """[bold]ddclip[/bold]: multi-view CLIP. 3D objects, searched by text and images.

    Start with [cyan]ddclip demo[/cyan]: it makes, trains, evaluates and searches a small library in a few minutes.
    """
    if debug:
        os.environ["DDCLIP_DEBUG"] = "1"


def _help(command: Any) -> str:
    """The docstring with each paragraph on one line, for the terminal to break; the examples are left as they are."""
    paragraphs = inspect.cleandoc(command.__doc__).split("\n\n")
    return "\n\n".join(text if "\b" in text else text.replace("\n", " ") for text in paragraphs)


for panel, commands in COMMANDS.items():
    for name, module_name in commands.items():
        command = import_module(f"ddclip_cli.commands.{module_name}").command
        if isinstance(command, typer.Typer):
            for inner in command.registered_commands:
                inner.help = _help(inner.callback)
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, help=_help(command), rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line; every ending has its exit code: 0, 1 failed, 2 usage or recipe, 130 and 143 by a signal."""
    with _unwinding():
        code = _run()
    sys.exit(code)


def _run() -> int:
    """Run the command line, say what went wrong if anything did, and return the exit code."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # Typer made this of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()
    except KeyboardInterrupt:
        console.log("interrupted")
        code = 130
    except BrokenPipeError:  # `ddclip ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if os.environ.get("DDCLIP_DEBUG"):
            raise
        code, message = _explain(error)
        if console.is_main_process():
            console.log(f"error: {message}")
        elif not getattr(error, "is_shared", False):
            print(f"error: process {os.environ['RANK']}: {message}", file=sys.stderr, flush=True)
    return code or 0


@contextmanager
def _unwinding() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that nothing half-written stays."""
    before, hook = signal.signal(signal.SIGTERM, _terminate), sys.unraisablehook
    sys.unraisablehook = _send_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one, as `timeout` sends, must not cut that short
    sys.exit(128 + number)


def _send_again(ignored: Any) -> None:
    """Python drops what is raised in a weak reference's callback, even for a signal: then send the signal once more."""
    number = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(ignored.exc_type)
    if number is None:
        sys.__unraisablehook__(ignored)
        return
    if number == signal.SIGTERM:
        signal.signal(number, _terminate)
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and sentence of an exception."""
    if isinstance(error, UserError):
        return error.exit_code, str(error)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the command line's parser
        command = getattr(getattr(error, "ctx", None), "command_path", "ddclip")
        return 2, f"{error.format_message().rstrip('.')} (see {command} --help)"
    if type(error).__name__ == "Abort":
        return 130, "interrupted"
    if isinstance(error, OSError) and error.errno is not None:
        sentence = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return 1, f"{sentence}: make room, or choose another --out" if full else sentence
    return 1, f"{type(error).__name__}: {error} (a fault of ddclip; --debug before the command shows where)"
