"""What a person does in the chat, key by key, over the real worker."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
from textual.events import Paste
from textual.widgets import Button, Input, OptionList, Static

from edgeqwen.tui.commands import COMMANDS
from edgeqwen.tui.screens.chooser import Chooser
from edgeqwen.tui.screens.dialogs import Confirm, Form
from edgeqwen.tui.screens.monitor import MonitorScreen
from edgeqwen.tui.widgets.message import GrowingView, MessageView, ThinkingView
from edgeqwen.tui.widgets.monitor import MonitorView
from tests.tui.conftest import Open
from tests.tui.waiting import app_of, ask, messages, say, shown, toasts, until

SLOW = {"pieces": ["word "] * 400, "delay_s": 0.02}
TABLE = {"pieces": ["# Hi\n\n", "- **a**\n", "- b\n\n", "```py\nx = 1\n```\n"]}


async def test_a_question_gets_its_answer_and_what_it_took(open_app: Open) -> None:
    async with open_app(**TABLE) as pilot:
        await ask(pilot, "hello")
        assert messages(pilot) == ["hello", "# Hi\n\n- **a**\n- b\n\n```py\nx = 1\n```\n"]
        text = shown(pilot)
        assert "• a" in text
        assert "tokens" in text
        assert "first after" in text
        assert "cached" in text


async def test_keys_that_come_fast_are_all_in_the_message(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        await pilot.press(*"fast", "space", *"typing", "ctrl+j", *"two", "enter")
        await until(pilot, lambda: messages(pilot)[-1:] == ["ok"], "it is answered")
        assert messages(pilot)[0] == "fast typing\ntwo"


async def test_escape_stops_and_keeps_the_text(open_app: Open) -> None:
    async with open_app(**SLOW) as pilot:
        app = app_of(pilot)
        await say(pilot, "count")
        await until(pilot, lambda: app.chat.query(GrowingView) and "word" in shown(pilot), "it answers")
        await pilot.press("escape")
        await until(pilot, lambda: not app.chat.is_answering, "it stopped")
        last = app.chat.desk.conversation.branch()[-1]
        assert last.text.startswith("word")
        assert not last.is_complete
        await until(pilot, lambda: "stopped" in shown(pilot), "it says so")


async def test_thinking_is_folded_and_opens(open_app: Open) -> None:
    async with open_app(pieces=["<think>", "hm ", "hm", "</think>", "yes"]) as pilot:
        await ask(pilot, "x")
        view = app_of(pilot).chat.query_one(ThinkingView)
        assert "hm" not in str(view.visual)
        app_of(pilot).chat.query(MessageView).last().focus()
        await pilot.press("t")
        assert "hm hm" in str(view.visual)


async def test_answer_now_ends_the_thinking(open_app: Open) -> None:
    async with open_app(
        pieces=["hm "] * 300, delay_s=0.02, template="{{messages[-1].content}}<think>\n"
    ) as pilot:
        app = app_of(pilot)
        await say(pilot, "x")
        await until(pilot, lambda: "thinking" in shown(pilot), "it thinks")
        await pilot.press("ctrl+y")
        await until(
            pilot, lambda: app.chat.desk.session.reply and app.chat.desk.session.reply.text, "it answers"
        )
        await pilot.press("escape")
        await until(pilot, lambda: not app.chat.is_answering, "it stopped")


async def test_other_answers_stay_beside_each_other(open_app: Open) -> None:
    async with open_app(pieces=["one"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "q")
        await pilot.press("ctrl+g")
        await until(pilot, lambda: len(app.chat.desk.conversation.messages) == 3, "it answers again")
        await until(pilot, lambda: "(2/2)" in shown(pilot), "it shows which")
        app.chat.query(MessageView).last().focus()
        await pilot.press("left")
        await until(pilot, lambda: "(1/2)" in shown(pilot), "the other one is shown")
        assert app.chat.desk.conversation.head == 2


async def test_a_question_is_edited_into_a_branch(open_app: Open) -> None:
    async with open_app(pieces=["?"], replies=[{"match": "second", "pieces": ["two"]}]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "first")
        app.chat.query(MessageView).first().focus()
        await pilot.press("e")
        assert app.chat.prompt.text == "first"
        await ask(pilot, "second")
        assert messages(pilot) == ["second", "two"]
        assert "(2/2)" in shown(pilot)
        await say(pilot, "/edit")
        await until(pilot, lambda: app.chat.prompt.text == "second", "it is there to edit")
        await pilot.press("escape")
        assert app.chat.prompt.text == ""


async def test_a_draft_outlives_the_editing_of_another_message(open_app: Open) -> None:
    async with open_app(pieces=["?"]) as pilot:
        prompt = app_of(pilot).chat.prompt
        await ask(pilot, "first")
        prompt.put("a long thought")
        app_of(pilot).chat.query(MessageView).first().focus()
        await pilot.press("e")
        assert prompt.text == "first"
        await pilot.press("escape")
        assert prompt.text == "a long thought"
        prompt.focus()
        await pilot.press("ctrl+c")
        assert prompt.text == ""
        await pilot.press("up")
        assert prompt.text == "a long thought"
        app_of(pilot).chat.query(MessageView).first().focus()
        await pilot.press("e")
        await ask(pilot, "second")
        assert prompt.text == "a long thought", "it comes back when the edited message is sent"


async def test_given_up_drafts_and_pastes_elsewhere_are_kept(open_app: Open) -> None:
    async with open_app(pieces=["?"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "first")
        app.chat.prompt.put("a long thought")
        await pilot.press("ctrl+c", "ctrl+n", "up")
        await until(pilot, lambda: app.chat.prompt.text == "a long thought", "Up brings it back")
        app.chat.prompt.put("")
        await ask(pilot, "second")
        app.chat.query(MessageView).first().focus()
        await pilot.pause()
        app.post_message(Paste("from elsewhere"))
        await until(pilot, lambda: app.chat.prompt.text == "from elsewhere", "it is in the prompt")


async def test_of_two_retries_with_a_model_the_later_one_counts(open_app: Open, tmp_path: Path) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "first")
        for _ in range(2):
            app.chat._run_command("retry", app.chat.gauge.model)
        await until(pilot, lambda: messages(pilot) == ["first", "ok"], "it is answered")
        assert app.return_code in (None, 0)


async def test_text_and_code_are_copied_and_saved(open_app: Open, home: Path, tmp_path: Path) -> None:
    async with open_app(**TABLE) as pilot:
        app = app_of(pilot)
        await ask(pilot, "hello")
        clip = home / "data" / "clip.txt"
        await say(pilot, "/code")
        await until(pilot, lambda: clip.exists() and clip.read_text() == "x = 1\n", "the code is copied")
        app.chat.query(MessageView).last().focus()
        await pilot.press("y")
        await until(pilot, lambda: clip.read_text().startswith("# Hi"), "the message is copied")
        assert app.clipboard.startswith("# Hi")
        target = tmp_path / "out.md"
        for _time in range(2):
            app.chat.prompt.focus()
            await say(pilot, f"/save {target}")
            await until(pilot, lambda: target.exists() and toasts(pilot), "it is written")
        await until(pilot, lambda: any("is there already" in text for text in toasts(pilot)), "not twice")
        for name in ("chat.md", "chat.json"):
            await say(pilot, f"/export {tmp_path / name}")
            await until(pilot, (tmp_path / name).exists, "it is written")
        assert "# hello" in (tmp_path / "chat.md").read_text()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (target, tmp_path / "chat.json")}
        assert modes == {0o600}, "nobody else reads them"


async def test_chats_are_found_renamed_deleted_and_brought_back(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "about bridges")
        await pilot.press("ctrl+n")
        await ask(pilot, "about tea")
        await say(pilot, "/rename Tea time")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: isinstance(app.screen, Chooser) and app.screen.key, "the list is there")
        await pilot.press(*"bridges")
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 2, "it is found")
        await pilot.press("ctrl+d")
        await until(pilot, lambda: len(app.chat.desk.history.chats()) == 1, "it is deleted")
        await pilot.press("ctrl+z")
        await until(pilot, lambda: len(app.chat.desk.history.chats()) == 2, "it is back")
        await until(pilot, lambda: app.screen.key, "it is in the list")
        await pilot.press("enter")
        await until(pilot, lambda: messages(pilot) == ["about bridges", "ok"], "it is open")
        assert {chat.title for chat in app.chat.desk.history.chats()} == {"about bridges", "Tea time"}
        await pilot.press("up")
        assert app.chat.prompt.text == "about bridges"


async def test_a_chat_is_there_in_the_next_run(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        await ask(pilot, "remember me")
        number = app_of(pilot).chat.desk.chat
    async with open_app(pieces=["ok"], chat=number) as pilot:
        assert messages(pilot) == ["remember me", "ok"]


async def test_presets_fill_their_blanks(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await pilot.press("ctrl+f")
        await until(pilot, lambda: isinstance(app.screen, Chooser) and app.screen.key, "the list is there")
        await pilot.press(*"coding")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Form), "it asks for the language")
        app.screen.query(Input).first().value = "Rust"
        await pilot.press("enter", "enter")
        await until(pilot, lambda: "Rust" in app.chat.desk.conversation.system, "it is set")
        assert app.chat.desk.session.sampler.temperature == 0.3
        await ask(pilot, "hi")
        assert app.chat.desk.history.load(app.chat.desk.chat or 0).system.startswith("You write Rust")


async def test_settings_are_written_followed_and_reset(open_app: Open, home: Path) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await pilot.press("f2")
        await until(pilot, lambda: isinstance(app.screen, Chooser) and app.screen.key, "the list is there")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Form), "it asks")
        app.screen.query_one(Input).value = "0.25"
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.desk.session.sampler.temperature == 0.25, "it is followed")
        assert "temperature = 0.25" in (home / "config" / "config.toml").read_text()
        await pilot.press("delete")
        await until(pilot, lambda: app.chat.desk.session.sampler.temperature == 0.7, "it is reset")
        await pilot.press(*"theme", "enter")
        await until(pilot, lambda: app.theme == "textual-light", "light comes after dark")
        await pilot.press("enter")
        await until(pilot, lambda: app.theme == "ansi-dark", "and then the terminal's colours")


async def test_the_monitor_shows_what_was_measured(open_app: Open) -> None:
    async with open_app(size=(120, 40), pieces=["a "] * 20, delay_s=0.01) as pilot:
        app = app_of(pilot)
        await ask(pilot, "x")
        await until(pilot, lambda: app.gauge.sample, "the machine was looked at")
        side = app.chat.query_one("#side-monitor", MonitorView)
        await until(pilot, lambda: "CPU 0" in str(side._numbers.visual), "it is drawn")
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen), "it is over the screen")
        text = str(app.screen.query_one(MonitorView)._numbers.visual)
        assert "available" in text
        assert "TTFT" in text
        health = app.screen.query_one("#health", Static)
        await until(pilot, lambda: "health: " in str(health.visual), "doctor has looked")
        assert "python" in str(health.visual)
        assert "llama.cpp" in str(health.visual)
        await pilot.press("f3")
        await until(pilot, lambda: app.screen is app.chat, "it is gone")


async def test_slash_commands_answer_and_unknown_ones_say_so(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        for text, words in [
            ("/system off", "there is no system prompt now"),
            ("/system Be kind", "the system prompt is set"),
            ("/think of", "choose one of: on, off, auto"),
            ("/full drop-oldest", "drop-oldest"),
            ("/full nonsense", "choose one of"),
            ("/budget 64", "64"),
            ("/budget x", "not a number"),
            ("/budget " + "9" * 5000, "not a number"),
            ("/think off", "thinking is"),
            ("/nosuch", "unknown command"),
            ("/copy", "no answer yet"),
            ("/retry", "no question"),
            ("/rename x", "once something was said"),
        ]:
            await say(pilot, text)
            await until(pilot, lambda words=words: any(words in toast for toast in toasts(pilot)), words)
        assert (app.chat.desk.conversation.system, app.chat.desk.overflow) == ("Be kind", "drop-oldest")
        assert app.chat.desk.session.thinking_budget == 64
        await say(pilot, "/new tell me a joke")
        await until(pilot, lambda: "/new takes no text" in "".join(toasts(pilot)), "it is refused")
        assert app.chat.prompt.text == "/new tell me a joke"
        app.chat.prompt.put("")
        await pilot.press("f1")
        await until(pilot, lambda: all(f"/{name}" in shown(pilot) for name in COMMANDS), "help names all")


async def test_large_pastes_and_files_go_along(open_app: Open, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("the secret is 7")
    (tmp_path / "bin").write_bytes(b"\0\1\2")
    async with open_app(pieces=["?"], replies=[{"match": "secret is 7", "pieces": ["seven"]}]) as pilot:
        app = app_of(pilot)
        await ask(pilot, f"read @{tmp_path / 'note.txt'}")
        assert messages(pilot)[-1] == "seven"
        await say(pilot, f"read @{tmp_path / 'bin'}")
        await until(pilot, lambda: any("binary" in text for text in toasts(pilot)), "it is refused")
        assert app.chat.prompt.text.startswith("read @")
        app.chat.prompt.put("")
        from textual.events import Paste

        await app.chat.prompt._on_paste(Paste("z" * 200_000 + "\x1b[31m"))
        assert len(app.chat.prompt.text) < 100
        assert len(app.chat.prompt.with_attachments(app.chat.prompt.text)) == 200_004


async def test_a_killed_worker_keeps_the_text_and_is_started_again(open_app: Open) -> None:
    async with open_app(**SLOW) as pilot:
        app = app_of(pilot)
        await say(pilot, "count")
        await until(pilot, lambda: app.chat.query(GrowingView) and "word" in shown(pilot), "it answers")
        pid = app.chat.desk.host.client.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(pilot, lambda: "was killed" in shown(pilot), "it says so")
        assert app.chat.desk.conversation.branch()[-1].text.startswith("word")
        await until(pilot, lambda: app.gauge.model, "it is loaded again")
        assert app.chat.desk.host.client.pid != pid


async def test_a_model_that_cannot_be_loaded_is_a_sentence(open_app: Open, tmp_path: Path) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await say(pilot, "/models nosuchmodel")
        await until(pilot, lambda: "unknown model" in shown(pilot), "it says so")
        (tmp_path / "bad.gguf").write_bytes(b"nothing")
        await say(pilot, f"/models {tmp_path / 'bad.gguf'}")
        await until(pilot, lambda: "bad.gguf" in shown(pilot), "it says so")
        await until(pilot, lambda: not app.gauge.activity, "nothing loads")


async def test_the_terminal_may_shrink_and_grow(open_app: Open) -> None:
    async with open_app(pieces=["a fine answer"]) as pilot:
        await ask(pilot, "q")
        for size in ((20, 5), (40, 20), (5, 2), (80, 24), (160, 50)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await ask(pilot, "still there?")
        assert messages(pilot)[-1] == "a fine answer"


async def test_without_a_model_the_welcome_says_what_to_do(open_app: Open) -> None:
    async with open_app() as pilot:
        app = app_of(pilot)
        await until(pilot, lambda: "no model on this machine" in shown(pilot), "it welcomes")
        assert "Recommended here" in shown(pilot)
        await say(pilot, "hello?")
        await until(pilot, lambda: any("no model is loaded" in text for text in toasts(pilot)), "it says so")
        assert app.chat.prompt.text == "hello?"
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, Chooser) and app.screen.key, "the models are shown")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "it asks before it downloads")
        await pilot.press("n", "escape")
        app.chat.query_one("#recommended", Button).press()
        await until(pilot, lambda: isinstance(app.screen, Confirm), "it asks before it downloads")
        await pilot.press("n")
        app.chat.query_one("#demo", Button).press()
        await until(pilot, lambda: app.gauge.model == "demo:q8_0", "the demo is loaded")
        await ask(pilot, "What is edgeqwen?")
        assert "edgeqwen" in messages(pilot)[-1]


async def test_quitting_while_it_answers_asks_first(open_app: Open) -> None:
    async with open_app(**SLOW) as pilot:
        app = app_of(pilot)
        await say(pilot, "count")
        await until(pilot, lambda: app.chat.is_answering, "it answers")
        await pilot.press("ctrl+q")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "it asks")
        await pilot.press("n")
        await until(pilot, lambda: app.screen is app.chat, "it stays")
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not app.chat.is_answering, "Ctrl+C stops the answer")


async def test_a_damaged_history_is_kept_aside_and_told(open_app: Open, home: Path) -> None:
    (home / "data").mkdir(parents=True)
    (home / "data" / "chats.db").write_bytes(b"no database" * 500)
    async with open_app(pieces=["ok"]) as pilot:
        assert any("kept as" in text for text in toasts(pilot))
        await ask(pilot, "still works")


async def test_a_full_disk_is_told_once_and_the_chat_stays(open_app: Open) -> None:
    async with open_app(pieces=["answer " * 50]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "q")
        db = app.chat.desk.history._db
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        await ask(pilot, "x" * 6_000)
        await until(pilot, lambda: any("disk is full" in text for text in toasts(pilot)), "it says so")
        assert len(messages(pilot)) == 4
        db.execute("PRAGMA max_page_count = 1000000")
        await ask(pilot, "again")
        await until(pilot, lambda: any("saved again" in text for text in toasts(pilot)), "it is saved")
        assert len(app.chat.desk.history.load(app.chat.desk.chat or 0).messages) == 6


async def test_one_giant_list_does_not_stop_the_program(open_app: Open) -> None:
    async with open_app(pieces=["".join(f"- item {n} of many\n" for n in range(5000))]) as pilot:
        await ask(pilot, "list")
        assert len(messages(pilot)[-1]) > 90_000


@pytest.mark.parametrize("size", [(40, 20), (80, 24), (120, 40)])
async def test_the_hostile_text_of_a_model_is_text(open_app: Open, size: tuple[int, int]) -> None:
    evil = "\x1b]52;c;aGk=\x07[red]x[/] [@click=app.quit]y[/] [/foo] \x9b31m"
    async with open_app(size=size, pieces=["<think>", evil, "</think>", evil]) as pilot:
        await ask(pilot, evil)
        text = shown(pilot)
        assert "[red]x[/]" in text
        assert not {"\x1b", "\x9b", "\x07"} & set(text)
