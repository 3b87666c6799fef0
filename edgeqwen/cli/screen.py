"""`edgeqwen chat`, and bare `edgeqwen`: the full-screen chat, or the plain one where a screen cannot be.

Sets what textual reads when it is imported, and imports it last.
"""

from __future__ import annotations

import os
import sys

import click

from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import complete_ref
from edgeqwen.errors import InvalidInput


@click.command()
@click.argument("ref", shell_complete=complete_ref, required=False)
@click.option("--plain", is_flag=True, help="Line by line, without a full screen.")
@click.option("--open", "chat", type=int, metavar="ID", help="Open this chat of the history.")
@click.option("--low-bandwidth", is_flag=True, help="Draw rarely and in few colours, for slow lines.")
@click.option("--no-mouse", is_flag=True, help="Leave the mouse to the terminal.")
@click.pass_obj
def chat(
    invocation: Invocation,
    ref: str | None,
    plain: bool,
    chat: int | None,
    low_bandwidth: bool,
    no_mouse: bool,
) -> int:
    """Open the chat, full screen.

    REF is the model to begin with; without it, the one that was used last. Where the terminal cannot show a
    full screen (TERM=dumb, a pipe), or with --plain, the chat is line by line.
    """
    if plain or not can_draw():
        return _plain_chat(invocation, ref)
    return run_screen(invocation, ref, chat, low_bandwidth=low_bandwidth, mouse=not no_mouse)


def can_draw() -> bool:
    """Say whether there is a terminal on both sides that knows more than lines."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def run_screen(
    invocation: Invocation,
    ref: str | None = None,
    chat: int | None = None,
    *,
    low_bandwidth: bool = False,
    mouse: bool = True,
) -> int:
    """Run the full-screen chat and return the exit code. Raises InvalidConfig."""
    settings = invocation.config.tui
    low_bandwidth = low_bandwidth or settings.low_bandwidth
    _prepare(kitty=settings.kitty_keys, low_bandwidth=low_bandwidth)
    from edgeqwen.tui.language import set_language

    set_language(settings.language)
    from edgeqwen.tui.app import EdgeApp, Start

    app = EdgeApp(invocation, Start(ref, chat, low_bandwidth))
    app.run(mouse=mouse and settings.mouse and not low_bandwidth)
    return app.return_code or 0


def _prepare(*, kitty: bool | None, low_bandwidth: bool) -> None:
    """Set the variables that textual reads once, at its import."""
    if kitty is False or (kitty is None and _loses_input_methods()):
        os.environ.setdefault("TEXTUAL_DISABLE_KITTY_KEY", "1")
    if low_bandwidth or "SSH_CONNECTION" in os.environ:
        os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    if low_bandwidth:
        os.environ.setdefault("TEXTUAL_FPS", "5")
        os.environ.setdefault("TEXTUAL_COLOR_SYSTEM", "standard")


def _loses_input_methods() -> bool:
    """Say whether this terminal swallows what an input method commits while the kitty protocol is on."""
    environment = os.environ
    is_iterm = "iTerm" in environment.get("TERM_PROGRAM", "") or "iTerm" in environment.get("LC_TERMINAL", "")
    names = (environment.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    language = next(filter(None, names), "")
    is_cjk = language.startswith(("zh", "ja", "ko"))
    return (is_iterm and "TMUX" not in environment) or environment.get("TERM_PROGRAM") == "vscode" or is_cjk


def _plain_chat(invocation: Invocation, ref: str | None) -> int:
    from edgeqwen.cli.chat import LineChat
    from edgeqwen.cli.talk import Talk, TalkOptions

    ref = ref or invocation.usual_model()
    if ref is None:
        message = "no model is installed yet; `edgeqwen recommend` names one, `edgeqwen chat demo` needs none"
        raise InvalidInput(message)
    with Talk(invocation, ref, TalkOptions()) as talk:
        return LineChat(talk).hold()
