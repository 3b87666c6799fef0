"""The conversation line by line: reads messages and slash commands, shows replies.

The plain front end for slow links, screen readers and pipes. Knows nothing of workers.
"""

from __future__ import annotations

import contextlib
import sys
from typing import cast, get_args

from edgeqwen.chat.conversation import Conversation
from edgeqwen.cli import failures, output
from edgeqwen.cli.talk import Talk
from edgeqwen.engine.protocol import Overflow
from edgeqwen.errors import InvalidInput, WorkerLost

_QUOTES = '"""'
_HELP = f"""\
/help            this list
/clear           start a new conversation
/system [TEXT]   set the system prompt, or take it away
/think           let the model think first, where it can
/nothink         do not
/full POLICY     when the context is full: stop, drop-oldest, drop-thinking or keep-ends
/quit            leave (also Ctrl-D)
{_QUOTES}              begin and end a message of several lines
Ctrl-C           stop the answer; once more to leave"""
_COMMANDS = ("/help", "/clear", "/system", "/think", "/nothink", "/full", "/quit", "/exit", "/bye")


class LineChat:
    """One conversation over stdin and stdout."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._asks = sys.stdin.isatty()
        self._failure_code = 0

    def hold(self) -> int:
        """Go on until the person leaves or stdin ends; return the exit code."""
        if self._asks:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() its line editing
            output.note(f"{self._talk.name} is ready; /help lists the commands, Ctrl-D leaves")
        while True:
            try:
                message, is_quoted = self._read_message()
            except KeyboardInterrupt:
                message, is_quoted = self._after_interrupt(), False
                if message is None:
                    return failures.INTERRUPTED
                if not message:
                    continue
            if message is None:
                return self._failure_code
            if not self._take(message, is_quoted=is_quoted):
                return self._failure_code

    def _take(self, message: str, *, is_quoted: bool) -> bool:
        """Follow a command, or hold a turn; return whether to go on. With JSON each line has its document."""
        if (
            not is_quoted
            and message.startswith("/")
            and (not self._talk.as_json or message.split()[0] in _COMMANDS)
        ):
            goes_on = self._obey(message)
            if self._talk.as_json:
                output.document({"command": message})
            return goes_on
        if message.strip():
            return self._turn(message)
        if self._talk.as_json:
            output.document({"error": failures.as_data(InvalidInput("the message is empty"))})
        return True

    def _turn(self, message: str) -> bool:
        """Hold one turn; return whether to go on."""
        failure = self._talk.turn(message)
        if failure is None:
            if self._asks and not self._talk.as_json:
                output.aside(self._talk.summary())
            return True
        failures.tell(failure)
        self._failure_code = failures.exit_code(failure)
        if self._asks:
            self._talk.restart_if_lost(failure)
            self._failure_code = 0
            return True
        return not isinstance(failure, WorkerLost)

    def _obey(self, line: str) -> bool:
        """Follow a slash command; return whether to go on."""
        command, _, rest = line.strip().partition(" ")
        session = self._talk.session
        if command in ("/quit", "/exit", "/bye"):
            return False
        if command == "/help":
            output.note(_HELP)
        elif command == "/clear":
            session.conversation = Conversation(session.conversation.system)
            output.note("a new conversation begins")
        elif command == "/system":
            text = "" if rest.strip() == "off" else rest.strip()
            session.conversation.system = text
            output.note("the system prompt is set" if text else "there is no system prompt now")
        elif command == "/full" and rest.strip() in get_args(Overflow):
            session.overflow = cast(Overflow, rest.strip())
            output.note(f"when the context is full: {session.overflow}")
        elif command == "/full":
            output.note(
                f"when the context is full: {session.overflow}; others: {', '.join(get_args(Overflow))}"
            )
        elif command in ("/think", "/nothink"):
            self._talk.think(command == "/think")
        else:
            output.note(f"unknown command: {command}; /help lists them, a space before it makes it a message")
        return True

    def _read_message(self) -> tuple[str | None, bool]:
        """Return the next message or command, None at the end of input, and whether it was quoted.

        Raises KeyboardInterrupt.
        """
        line = self._read_line("> ")
        if line is None or not line.strip().startswith(_QUOTES):
            return line, False
        lines = [line.strip().removeprefix(_QUOTES)]
        while not lines[-1].rstrip().endswith(_QUOTES):
            line = self._read_line(". ")
            if line is None:
                break
            lines.append(line)
        return "\n".join(lines).strip().removesuffix(_QUOTES), True

    def _read_line(self, prompt: str) -> str | None:
        if self._asks and sys.stdout.isatty():
            try:
                return input(prompt)
            except EOFError:
                output.note("")
                return None
        if self._asks:
            output.aside(prompt, end="")
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None

    def _after_interrupt(self) -> str | None:
        """Return what is typed after a Ctrl-C: None to leave, empty to go on, or the next message."""
        if not self._asks:
            return None
        output.note("\nCtrl-C once more leaves; Enter goes on")
        try:
            return self._read_line("")
        except KeyboardInterrupt:
            return None
