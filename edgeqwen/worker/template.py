"""Renders a conversation into a prompt with the model's own chat template, which is untrusted code.

Owns the sandbox, its limits, and the form messages must have; the only user of jinja2. Knows no tokens: it
says which parts of the prompt are template (control tokens allowed) and which are others' text (never).
"""

from __future__ import annotations

import json
import re
import secrets
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeqwen.engine.protocol import ChatMessage
from edgeqwen.errors import EngineError, InvalidInput
from edgeqwen.text import clean_line

# What Qwen models were trained on; used when a file brings no template.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TIME_LIMIT_S = 2.0
_MEMORY_LIMIT = 256 << 20
_MAX_PROMPT = 16 << 20  # characters


class Segment(NamedTuple):
    """A stretch of the prompt."""

    text: str
    special: bool
    """Spellings of control tokens in it are control tokens."""


class Template:
    """One compiled chat template."""

    def __init__(self, source: str | None, control_texts: Sequence[str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        by_length = sorted(filter(None, control_texts), key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, by_length))) if by_length else None
        with _limits(), _as_our_errors():
            self._template = environment.from_string(CHATML if source is None else source)

    def render(
        self, messages: Sequence[ChatMessage], think: bool | None, tools: Sequence[dict[str, Any]]
    ) -> list[Segment]:
        """Return the prompt up to where the answer begins. Raises InvalidInput or EngineError."""
        shield = _Shield(self._controls)
        try:
            # Roles are the protocol's own words, which templates compare with.
            said = [{**shield.hide(message), "role": message["role"]} for message in normalise(messages)]
            offered = shield.hide(list(tools)) or None
        except RecursionError as error:
            raise InvalidInput("a tool or the call of one is nested too deeply") from error
        values: dict[str, Any] = {"messages": said, "tools": offered, "add_generation_prompt": True}
        if think is not None:
            values["enable_thinking"] = think
        with _limits(), _as_our_errors():
            prompt = self._template.render(values)
        if len(prompt) > _MAX_PROMPT:
            raise InvalidInput(
                f"the prompt has {len(prompt):,} characters; at most {_MAX_PROMPT:,} are accepted"
            )
        return shield.split(prompt)


def normalise(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages in the form that every official Qwen template renders rightly.

    Parts are joined, null is empty, arguments are objects, the system text comes first. Raises InvalidInput.
    """
    plain = [_plain(message) for message in messages]
    system = [message["content"] for message in plain if message["role"] == "system"]
    rest = [message for message in plain if message["role"] != "system"]
    if not any(message["role"] == "user" for message in rest):
        raise InvalidInput("a conversation needs at least one user message")
    head = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return head + rest


def _plain(message: ChatMessage) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": _content(message.content)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_calls:
        plain["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return plain


def _content(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        for part in content:
            if part.get("type", "text") != "text":
                raise InvalidInput(
                    f"this engine reads text, not {clean_line(str(part.get('type')), 40)} parts"
                )
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict):
        raise InvalidInput("the function of a tool call is not an object")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidInput("the arguments of a tool call are not valid JSON") from error
    if not isinstance(arguments, dict):
        raise InvalidInput("the arguments of a tool call are not an object")
    return {"type": "function", "function": {**function, "arguments": arguments}}


class _Shield:
    """Carries spellings of control tokens in other people's text through the template unharmed.

    Each is replaced by a mark with a random name that no text can know, and put back after rendering as a
    segment of its own that is tokenized as plain text.
    """

    def __init__(self, controls: re.Pattern[str] | None) -> None:
        self._controls = controls
        self._name = secrets.token_hex(8)
        self._hidden: list[str] = []

    def hide(self, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(value, str):
            return self._controls.sub(self._mark, value) if self._controls else value
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        return value

    def _mark(self, match: re.Match[str]) -> str:
        self._hidden.append(match[0])
        return f"\ue000{self._name}.{len(self._hidden) - 1}\ue001"

    def split(self, prompt: str) -> list[Segment]:
        parts = re.split(f"\ue000{self._name}\\.(\\d+)\ue001", prompt)
        segments = []
        for index, part in enumerate(parts):
            if index % 2:
                segments.append(Segment(self._hidden[int(part)], special=False))
            elif part:
                segments.append(Segment(part, special=True))
        return segments


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:  # noqa: ANN401
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now(UTC).astimezone().strftime(form)


class _TookTooLong(BaseException):
    """The alarm rang while a template ran. No Exception: jinja2 swallows those while it compiles."""


@contextmanager
def _as_our_errors() -> Iterator[None]:
    try:
        yield
    except _TookTooLong as error:
        raise EngineError(
            f"the chat template ran for more than {_TIME_LIMIT_S:g} s and was stopped"
        ) from error
    except MemoryError as error:
        raise EngineError("the chat template asked for more memory than it may have") from error
    except RecursionError as error:
        raise EngineError("the chat template is nested too deeply") from error
    except jinja2.TemplateSyntaxError as error:
        raise EngineError(f"the model's chat template is broken: {clean_line(str(error))}") from error
    except Exception as error:  # its code is anybody's, and may raise anything
        raise EngineError(
            f"the model's chat template refused this conversation: {clean_line(str(error))}"
        ) from error


@contextmanager
def _limits() -> Iterator[None]:
    """Bound the time and memory of what runs inside, where the system can (POSIX, main thread)."""
    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not timed:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = _address_space()
    before = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, _TIME_LIMIT_S)
    try:
        if used is not None:
            limit = used + _MEMORY_LIMIT
            resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
        yield
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # or it rings in here, and the limit stays for good
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _ring(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _TookTooLong


def _address_space() -> int | None:
    """Return the bytes of address space in use, or None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    import resource

    return pages * resource.getpagesize()
