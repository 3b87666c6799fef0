"""Everything that can be done in the chat, once: its slash command, its key, its line in the palette.

A command is a function over the chat screen; what it needs of the conversation it asks the desk for.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, cast, get_args

from textual.app import App, SuspendNotSupported
from textual.binding import Binding
from textual.worker import Worker, WorkerCancelled, WorkerFailed

from edgeqwen.chat.conversation import Message
from edgeqwen.chat.desk import Desk
from edgeqwen.chat.exchange import to_json, to_markdown
from edgeqwen.chat.presets import Preset, load_presets
from edgeqwen.engine.protocol import Overflow
from edgeqwen.errors import InvalidInput, StoreError, WorkerLost
from edgeqwen.machine.memory import available_bytes
from edgeqwen.models.library import Library
from edgeqwen.models.queue import PullQueue
from edgeqwen.paths import expand
from edgeqwen.tui.clipboard import copy
from edgeqwen.tui.language import N_, _
from edgeqwen.tui.markdown import code_blocks
from edgeqwen.tui.screens.dialogs import Confirm
from edgeqwen.tui.widgets.prompt import Prompt
from edgeqwen.tui.widgets.transcript import Transcript


class ChatFace(Protocol):
    """What commands see of the chat screen."""

    library: Library
    queue: PullQueue

    @property
    def app(self) -> App[object]: ...
    @property
    def desk(self) -> Desk: ...
    @property
    def transcript(self) -> Transcript: ...
    def tell(self, text: str) -> None: ...
    def load(self, ref: str) -> Worker[bool]: ...
    def regenerate(self, message: int | None) -> object: ...
    @property
    def is_answering(self) -> bool: ...
    def edit(self, message: Message) -> None: ...
    @property
    def prompt(self) -> Prompt: ...
    def follow_settings(self, key: str) -> None: ...
    def show_monitor(self) -> None: ...
    async def redraw(self) -> None: ...
    async def leave(self) -> None: ...


Run = Callable[[ChatFace, str], Awaitable[None]]


@dataclass(frozen=True)
class Command:
    """One thing to do."""

    name: str
    """Behind the slash, in the settings' `tui.keys`, and in the palette."""
    title: str
    keys: str
    takes: str
    run: Run


COMMANDS: dict[str, Command] = {}


def _command(name: str, title: str, keys: str = "", takes: str = "") -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        COMMANDS[name] = Command(name, title, keys, takes, run)
        return run

    return register


def bindings() -> list[Binding]:
    """Return the keys of all commands; `tui.keys` can change them by the commands' names."""
    shown = {"models", "history", "new", "monitor", "help"}
    return [
        Binding(
            command.keys or f"no-key-of-{name}",  # which `tui.keys` may replace by one
            f"command('{name}')",
            _(command.title).partition(":")[0],
            show=name in shown,
            id=name,
            priority=True,
        )
        for name, command in COMMANDS.items()
    ]


def shared_keys(own: dict[str, str]) -> list[str]:
    """Return the keys that more than one command has, with what `tui.keys` says."""
    keys = (own.get(one.name, one.keys).split(",") for one in COMMANDS.values())
    given = Counter(key for one in keys for key in {key.strip() for key in one} - {""})
    return [key for key, n_commands in given.items() if n_commands > 1]


@_command("help", "Help: all commands and keys", "f1")
async def _show_help(screen: ChatFace, _rest: str) -> None:
    width = max(len(f"/{one.name} {one.takes}") for one in COMMANDS.values())
    own = screen.library.config.tui.keys
    rows = []
    for one in COMMANDS.values():
        key = own.get(one.name, one.keys).partition(",")[0]
        rows.append(f"{f'/{one.name} {one.takes}'.ljust(width)}  {key.ljust(8)}  {_(one.title)}")
    await screen.transcript.notice("\n".join([*rows, "", _(MESSAGE_KEYS)]), kind="help")


MESSAGE_KEYS = N_(
    "Ctrl+Up and Ctrl+Down go to a message. There: y copy, c copy code, e edit, g answer again, t thinking, "
    "left and right other answers, s save, d delete. @file puts a file's text into a message."
)


@_command("models", "Models: switch, download, remove", "ctrl+o,f4", "[REF]")
async def _models(screen: ChatFace, rest: str) -> None:
    from edgeqwen.tui.screens.models import ModelsScreen

    current = screen.desk.session.model
    chooser = ModelsScreen(screen.library, screen.queue, available_bytes(), current)
    ref: str | None = rest or await screen.app.push_screen_wait(chooser)
    if ref:
        screen.load(ref)


@_command("history", "Chats: find, open, rename", "ctrl+r")
async def _history(screen: ChatFace, _rest: str) -> None:
    from edgeqwen.tui.screens.history import HistoryScreen

    chat = await screen.app.push_screen_wait(HistoryScreen(screen.desk.history, screen.desk.chat))
    if chat is not None:
        await screen.desk.open(chat)
        await screen.redraw()


@_command("new", "New chat", "ctrl+n")
async def _new(screen: ChatFace, _rest: str) -> None:
    screen.desk.new()
    await screen.redraw()


@_command("preset", "Begin a chat with a preset", "ctrl+f")
async def _preset(screen: ChatFace, _rest: str) -> None:
    from edgeqwen.tui.screens.presets import PresetScreen

    presets = load_presets(screen.library.paths.presets)
    chosen: tuple[Preset, str] | None = await screen.app.push_screen_wait(PresetScreen(presets))
    if chosen:
        screen.desk.new(chosen[1])
        screen.desk.think = chosen[0].think
        screen.desk.sampler = {**screen.desk.sampler, **chosen[0].sampler}
        screen.desk.apply_settings()
        await screen.redraw()
        await screen.transcript.notice(f"{chosen[0].title}\n{chosen[1]}")


@_command("system", "Set the system prompt of this chat", takes="TEXT|off")
async def _system(screen: ChatFace, rest: str) -> None:
    text = "" if rest == "off" else rest
    await screen.desk.set_system(text)
    screen.tell(_("the system prompt is set") if text else _("there is no system prompt now"))


@_command("settings", "Settings", "f2")
async def _settings(screen: ChatFace, _rest: str) -> None:
    from edgeqwen.tui.screens.settings import SettingsScreen

    loaded = screen.desk.host.loaded
    card = loaded.card(thinks=screen.desk.session.think is True) if loaded else {}
    await screen.app.push_screen_wait(SettingsScreen(screen.library, card, screen.follow_settings))


@_command("monitor", "Monitor: rates, memory, CPU", "f3")
async def _monitor(screen: ChatFace, _rest: str) -> None:
    screen.show_monitor()


@_command("stop", "Stop the answer")
async def _stop(screen: ChatFace, _rest: str) -> None:
    with suppress(WorkerLost):  # the answer's own end says so
        await screen.desk.stop()


@_command("answer", "Answer now: end the thinking", "ctrl+y")
async def _answer_now(screen: ChatFace, _rest: str) -> None:
    await screen.desk.session.answer_now()


@_command("thoughts", "Open or fold what the model thinks", "f5")
async def _thoughts(screen: ChatFace, _rest: str) -> None:
    if growing := screen.transcript.growing:
        growing.toggle_thinking()
    elif views := screen.transcript.views:
        views[-1].action_toggle_thinking()


@_command("think", "Thinking on or off", "ctrl+t", "[on|off|auto]")
async def _think(screen: ChatFace, rest: str) -> None:
    states = {"on": True, "off": False, "auto": None}
    if rest and rest not in states:
        raise InvalidInput(_("choose one of: {names}").format(names=", ".join(states)))
    desk = screen.desk
    desk.think = states.get(rest, desk.session.think is not True)
    desk.apply_settings()
    words = {True: _("thinking is on"), False: _("thinking is off"), None: _("thinking as the model does it")}
    screen.tell(words[desk.session.think])


@_command("budget", "End the thinking after so many tokens", takes="[N|off]")
async def _budget(screen: ChatFace, rest: str) -> None:
    session = screen.desk.session
    if rest:
        session.thinking_budget = None if rest == "off" else _number(rest)
    budget = session.thinking_budget
    screen.tell(_("thinking budget: {n}").format(n=_("none") if budget is None else budget))


@_command("full", "What to do when the context is full", takes="[POLICY]")
async def _full(screen: ChatFace, rest: str) -> None:
    if rest and rest not in get_args(Overflow):
        raise InvalidInput(_("choose one of: {names}").format(names=", ".join(get_args(Overflow))))
    if rest:
        screen.desk.session.overflow = cast(Overflow, rest)
    screen.tell(_("when the context is full: {policy}").format(policy=screen.desk.overflow))


@_command("retry", "Answer the last question again", "ctrl+g", "[REF]")
async def _retry(screen: ChatFace, rest: str) -> None:
    with suppress(WorkerCancelled, WorkerFailed):  # another load has taken its place
        if not rest or await screen.load(rest).wait():
            screen.regenerate(None)


@_command("edit", "Edit the last question")
async def _edit(screen: ChatFace, _rest: str) -> None:
    questions = [message for message in screen.desk.conversation.branch() if message.role == "user"]
    if not questions:
        raise InvalidInput(_("there is no question yet"))
    screen.edit(questions[-1])


@_command("copy", "Copy the last answer")
async def _copy_answer(screen: ChatFace, _rest: str) -> None:
    await copy_text(screen, _last_answer(screen).text)


@_command("code", "Copy a code block of the last answer", takes="[N]")
async def _copy_code(screen: ChatFace, rest: str) -> None:
    await copy_code_of(screen, _last_answer(screen), _number(rest) if rest else 0)


@_command("save", "Save the last answer to a file", takes="[FILE]")
async def _save(screen: ChatFace, rest: str) -> None:
    await save_text(screen, _last_answer(screen).text, rest)


@_command("export", "Write this chat as Markdown, or JSON to a .json file", takes="[FILE]")
async def _export(screen: ChatFace, rest: str) -> None:
    desk = screen.desk
    if desk.chat is None:
        raise InvalidInput(_("nothing was said yet"))
    title = desk.history.title(desk.chat)
    path = expand(rest) if rest else screen.library.paths.exports / f"chat-{desk.chat}-{_stamp()}.md"
    is_json = path.suffix == ".json"
    text = to_json(title, desk.conversation).decode() if is_json else to_markdown(title, desk.conversation)
    await save_text(screen, text, str(path))


@_command("rename", "Give this chat a title", takes="TITLE")
async def _rename(screen: ChatFace, rest: str) -> None:
    if screen.desk.chat is None or not rest:
        raise InvalidInput(_("give a title after /rename, once something was said"))
    screen.desk.history.rename(screen.desk.chat, rest)
    screen.tell(_("the chat is called “{title}” now").format(title=rest))


@_command("older", "Show all messages of this chat")
async def _older(screen: ChatFace, _rest: str) -> None:
    if screen.is_answering:
        raise InvalidInput(_("an answer is coming; Esc stops it"))
    await screen.transcript.show(screen.desk.conversation, everything=True)


@_command("editor", "Write the message in $EDITOR", "ctrl+e")
async def _editor(screen: ChatFace, _rest: str) -> None:
    program = (os.environ.get("VISUAL") or os.environ.get("EDITOR") or "").strip() or "vi"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "message.md"
        file.write_text(screen.prompt.text, encoding="utf-8")
        try:
            if shutil.which(program.split()[0]) is None:
                raise FileNotFoundError  # while there is a screen to say so
            with screen.app.suspend(), suppress(OSError):
                subprocess.run([*program.split(), str(file)], check=False)  # noqa: ASYNC221 - it has the terminal
            screen.prompt.put(file.read_text(encoding="utf-8", errors="replace").rstrip("\n"))
        except (OSError, SuspendNotSupported):
            screen.tell(_("{program} cannot be started here").format(program=program))


@_command("quit", "Quit", "ctrl+q")
async def _leave(screen: ChatFace, _rest: str) -> None:
    if not isinstance(screen.app.screen, Confirm):  # else it is asked already
        await screen.leave()


async def do_with(screen: ChatFace, message: Message, what: str) -> None:
    """Do what a key on a message asks for. Raises EdgeQwenError."""
    if what == "copy":
        await copy_text(screen, message.text)
    elif what == "copy-code":
        await copy_code_of(screen, message)
    elif what == "save":
        await save_text(screen, message.text, "")
    elif what == "edit":
        screen.edit(message)
    elif what == "regenerate":
        screen.regenerate(message.id)
    elif what == "delete":
        question = _("Take this message and what follows it out of the chat?")
        if await screen.app.push_screen_wait(Confirm(question)):
            await screen.desk.delete_from(message.id)
            await screen.redraw()
    elif what in ("previous", "next"):
        target = await screen.desk.switch_branch(message.id, 1 if what == "next" else -1)
        await screen.redraw()
        screen.transcript.focus_on(target.id)
    else:
        screen.transcript.focus_next(1 if what == "focus-next" else -1)


async def copy_text(screen: ChatFace, text: str) -> None:
    """Put a text on the clipboard and say how."""
    ways = await asyncio.to_thread(copy, text, screen.library.paths.clip, screen.app.copy_to_clipboard)
    screen.tell(_("copied: {ways}").format(ways=", ".join(ways)))


async def copy_code_of(screen: ChatFace, message: Message, number: int = 0) -> None:
    """Copy the last code block of a message, or block `number` from 1."""
    found = code_blocks(message.text)
    if not found or number > len(found):
        raise InvalidInput(_("there are {n} code blocks").format(n=len(found)))
    await copy_text(screen, found[number - 1] if number > 0 else found[-1])


async def save_text(screen: ChatFace, text: str, name: str) -> None:
    """Write a text to a new file and say where. Raises StoreError; no file is overwritten."""
    path = expand(name) if name else screen.library.paths.exports / f"answer-{_stamp()}.md"
    await asyncio.to_thread(_write_new, path, text)
    screen.tell(_("written to {path}").format(path=path))


def _stamp() -> str:
    return datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")


def _write_new(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # chats are nobody else's
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except FileExistsError as error:
        raise StoreError(f"{path} is there already; give another name", str(path), "name_taken") from error
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}", str(path), "io") from error


def _last_answer(screen: ChatFace) -> Message:
    answers = [message for message in screen.desk.conversation.branch() if message.role == "assistant"]
    if not answers:
        raise InvalidInput(_("there is no answer yet"))
    return answers[-1]


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidInput(_("{text} is not a number").format(text=text))
    return int(text)
