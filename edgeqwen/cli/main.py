"""The `edgeqwen` command: finds the verb, runs it, and turns every failure into a sentence and an exit code.

Imports a verb's module only when that verb is used. Does no work of its own.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import NamedTuple, NoReturn

import click

from edgeqwen.cli import failures, output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.errors import EdgeQwenError, StoreError


class _Verb(NamedTuple):
    place: str
    """Module under edgeqwen.cli and the command in it."""
    summary: str
    """What --help says; a test holds it equal to the command's own."""


VERBS = {
    "chat": _Verb("screen:chat", "Open the chat, full screen."),
    "run": _Verb("run:run", "Talk to a model, or get one answer."),
    "list": _Verb("models:list_models", "List the models that are installed."),
    "show": _Verb("models:show", "Show what is known of a model."),
    "pull": _Verb("pull:pull", "Download a model, or take it from where it is already."),
    "import": _Verb("models:import_model", "Take a GGUF file from this machine into the store."),
    "verify": _Verb("models:verify_models", "Check installed files and name the damaged ones."),
    "rm": _Verb("models:rm", "Remove installed models."),
    "fit": _Verb("fit:fit", "Say what fits into this machine's memory."),
    "recommend": _Verb("fit:recommend", "Pick the model and quant that suit this machine."),
    "search": _Verb("search:search", "Find Qwen models, in the catalogue and on the hub."),
    "bundle": _Verb("bundle:bundle", "Carry models to a machine without a network."),
    "trust": _Verb("bundle:trust", "Say whose bundles are taken."),
    "du": _Verb("space:du", "Say what the models take on disk."),
    "prune": _Verb("space:prune", "Remove what unfinished downloads and imports have left."),
    "bench": _Verb("bench:bench", "Measure how fast a model is on this machine."),
    "doctor": _Verb("health:doctor", "Look for what is wrong, and say what to do."),
    "ps": _Verb("health:ps", "Show the models that are loaded, by whom, and how fast they answer."),
    "devices": _Verb("devices:devices", "List what llama.cpp can compute on here."),
    "kv": _Verb("kv:kv", "See and clear the saved KV caches of conversations."),
    "config": _Verb("config:config", "Read and change settings."),
}


class _Verbs(click.Group):
    """A group that knows its verbs without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module, _, command = VERBS[name].place.partition(":")
        found = getattr(importlib.import_module(f"edgeqwen.cli.{module}"), command)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from importlib.metadata import version

        output.line(f"edgeqwen {version('edgeqwen')}")
        ctx.exit()


_BEGIN = "Begin with `edgeqwen pull qwen3-0.6b`, then `edgeqwen run qwen3-0.6b`."


@click.group(cls=_Verbs, invoke_without_command=True, epilog=_BEGIN)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.help_option("-h", "--help", help="Show this help.")
@click.pass_context
def cli(ctx: click.Context) -> int:
    """Talk to a Qwen model on your own machine, offline."""
    if ctx.invoked_subcommand is None:
        if sys.stdin.isatty() and sys.stdout.isatty():
            return _open_chat(ctx)
        output.line(ctx.get_help())
    return 0


def _open_chat(ctx: click.Context) -> int:
    from edgeqwen.cli import screen

    return int(ctx.invoke(screen.chat))


def main() -> NoReturn:
    """Run the program and exit with its code."""
    output.prepare()
    try:
        code = _run()
    except output.OutputFailed as error:
        code = _output_failed(error)
    sys.exit(code)


def _run() -> int:
    invocation = Invocation()
    try:
        return cli.main(prog_name="edgeqwen", obj=invocation, standalone_mode=False) or 0
    except EdgeQwenError as error:
        return failures.report(error, as_json=invocation.as_json)
    except click.ClickException as error:
        return _usage(error)
    except (KeyboardInterrupt, click.Abort):
        output.note("\ninterrupted")
        return failures.INTERRUPTED
    except output.OutputFailed:
        raise
    except Exception as error:  # noqa: BLE001 - the last door: a log for us, a sentence for the person
        return _our_fault(error, invocation)


def _usage(error: click.ClickException) -> int:
    message = error.format_message().rstrip(".")
    ctx = getattr(error, "ctx", None)
    hint = f"`{ctx.command_path} --help` shows how it is used" if ctx is not None else None
    output.note(f"error: {message}")
    if hint:
        output.note(f"\nhint: {hint}")
    _document_failure("invalid_input", message, hint)
    return 2


def _document_failure(code: str, message: str, hint: str | None) -> None:
    """Put a failure on stdout where JSON is asked for; of a wrong command line nothing else is known."""
    if "--json" in sys.argv:
        output.document({"error": {"code": code, "message": message, "hint": hint}})


def _output_failed(error: output.OutputFailed) -> int:
    """Say so on stderr; nothing more can go to stdout, not even what Python would flush at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error.__cause__, BrokenPipeError):
        output.note("error: the output was closed before everything was written")
        return failures.INTERRUPTED
    output.note(f"error: the output cannot be written: {error}")
    return failures.EXIT_CODES[StoreError]


def _our_fault(error: Exception, invocation: Invocation) -> int:
    log = invocation.paths.logs / "error.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
        where = f"; details are in {log}"
    except OSError:
        where = ""
    message = f"something went wrong inside edgeqwen: {type(error).__name__}: {error}{where}"
    output.note(f"error: {message}")
    _document_failure("internal", message, None)
    return 1
