"""What a failure means on the command line: an exit code, the sentence, and a hint at the next step.

The codes: 0 done, 1 a fault of ours, 2 bad input, 3 not found, 4 store or integrity, 5 download, 6 engine,
7 `doctor` has found something that fails, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeqwen import errors
from edgeqwen.cli import output
from edgeqwen.text import size_text

EXIT_CODES: dict[type[errors.EdgeQwenError], int] = {
    errors.EdgeQwenError: 1,
    errors.InvalidInput: 2,
    errors.NotFound: 3,
    errors.StoreError: 4,
    errors.DownloadError: 5,
    errors.EngineError: 6,
}
INTERRUPTED = 130


def exit_code(error: errors.EdgeQwenError) -> int:
    """Return the exit code of the nearest class that has one."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)


def hint(error: errors.EdgeQwenError) -> str | None:
    """Return the next step, or None where the sentence says it all."""
    return next((_HINTS[cls](error) for cls in type(error).__mro__ if cls in _HINTS), None)


def as_data(error: errors.EdgeQwenError) -> dict[str, Any]:
    """Return the error for `--json`."""
    return {"code": error.code, "message": error.message, "hint": hint(error), **error.data()}


def tell(error: errors.EdgeQwenError) -> None:
    """Say on stderr what went wrong and what to do."""
    output.note(f"error: {error.message}")
    if isinstance(error, errors.WorkerLost) and error.exit_status != -9:
        for text in error.log_tail:
            output.aside(f"  log: {text}")
    advice = hint(error)
    if advice:
        output.note(f"\nhint: {advice}")


def report(error: errors.EdgeQwenError, *, as_json: bool) -> int:
    """Tell of an error, on stdout as well when JSON was asked for, and return the exit code."""
    tell(error)
    if as_json:
        output.document({"error": as_data(error)})
    return exit_code(error)


def _not_installed(error: Any) -> str:  # noqa: ANN401 - each hint knows its own error
    if error.download_bytes is None:
        return "`edgeqwen list` shows what is installed; `edgeqwen pull` and `import` bring models in"
    return f"`edgeqwen pull {error.ref}` downloads it ({size_text(error.download_bytes)})"


def _store(error: Any) -> str | None:  # noqa: ANN401
    return {
        "disk_full": "free some space, or set EDGEQWEN_HOME to a folder on another disk",
        "no_permission": "use a folder you may write to: EDGEQWEN_HOME says which",
        "wrong_digest": "`edgeqwen verify --all --repair` mends what a hub has; else import a good copy",
        "missing_file": "`edgeqwen verify --all` lists what is damaged",
        "untrusted": "`edgeqwen trust add KEY` trusts whoever signed it; `--allow-unsigned` goes without",
        "bad_manifest": "remove the folder, or import the model again",
    }.get(error.cause)


def _load_failed(error: Any) -> str | None:  # noqa: ANN401
    if error.reason:
        return None
    return "`edgeqwen verify --all` checks the files; a smaller `--ctx` needs less memory"


def _worker_lost(error: Any) -> str:  # noqa: ANN401
    if error.exit_status == -9:
        return "if memory ran out, try a smaller context (`--ctx 2048`) or a smaller quant"
    return f"run it again; if it happens again, the engine's log is {error.log_file}"


_HINTS: dict[type[errors.EdgeQwenError], Callable[[Any], str | None]] = {
    errors.UnknownModel: lambda _: "`edgeqwen list --all` shows every model that is known",
    errors.NotInstalled: _not_installed,
    errors.ContextOverflow: lambda error: (
        f"shorten the text, or give it more room with `--ctx {_room(error.needed)}`"
    ),
    errors.StoreError: _store,
    errors.LoadFailed: _load_failed,
    errors.WorkerLost: _worker_lost,
}


def _room(needed: int) -> int:
    """Return a context that holds the prompt and a good answer, in steps of 1,024."""
    return -(-(needed + 1024) // 1024) * 1024
