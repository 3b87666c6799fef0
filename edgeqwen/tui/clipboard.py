"""Puts text on the clipboard: the system's own tool, the terminal (OSC 52), and always a file as well.

Says which way it went, because no way tells whether it worked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_TOOLS: tuple[tuple[str, Sequence[str]], ...] = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("", ("pbcopy",)),
    ("", ("clip.exe",)),
)
_MAX_OSC = 100_000  # bytes; terminals drop longer ones


def copy(text: str, file: Path, to_terminal: Callable[[str], None]) -> list[str]:
    """Copy a text and return where it went, in words. Blocking, a few milliseconds."""
    ways = []
    if not os.environ.get("SSH_CONNECTION") and (tool := _run_tool(text)):
        ways.append(tool)
    if len(text.encode()) <= _MAX_OSC:
        to_terminal(text)
        ways.append("OSC 52")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(text, encoding="utf-8", errors="replace")
        ways.append(str(file))
    return ways


def _run_tool(text: str) -> str | None:
    for variable, command in _TOOLS:
        if (not variable or os.environ.get(variable)) and (program := shutil.which(command[0])):
            with suppress(OSError, subprocess.SubprocessError):
                done = subprocess.run(
                    [program, *command[1:]], input=text.encode(), timeout=2, check=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                if done.returncode == 0:
                    return command[0]
    return None
