"""What goes wrong under a chat, and what people do in a hurry: the program stays, and so does the text."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, Static

from edgeqwen.chat.history import History
from edgeqwen.errors import StoreError
from edgeqwen.models.library import Library
from edgeqwen.tui.screens.chooser import Chooser, Row, _prompt
from edgeqwen.tui.screens.dialogs import Confirm
from edgeqwen.tui.widgets.message import MessageView, ThinkingView
from edgeqwen.tui.widgets.monitor import MonitorView
from tests.support.asking import script
from tests.tui.conftest import Open
from tests.tui.waiting import app_of, ask, messages, say, shown, toasts, until

SLOW = {"pieces": ["word "] * 400, "delay_s": 0.02}


async def test_keys_can_be_others(open_app: Open, home: Path) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text('[tui.keys]\nnew = "ctrl+k"\n')
    async with open_app(pieces=["ok"]) as pilot:
        await ask(pilot, "x")
        await pilot.press("ctrl+n")
        assert messages(pilot)
        await pilot.press("ctrl+k")
        await until(pilot, lambda: not messages(pilot), "a new chat has begun")
        await pilot.press("f1")
        await until(pilot, lambda: re.search(r"/new +ctrl\+k ", shown(pilot)), "help knows it")


async def test_a_key_that_two_commands_have_is_told(open_app: Open, home: Path) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text('[tui.keys]\nnew = "ctrl+r"\n')  # as the history's
    async with open_app(pieces=["ok"]) as pilot:
        await until(pilot, lambda: any("the key ctrl+r" in text for text in toasts(pilot)), "it is told")


async def test_another_model_answers_again_beside_the_first(open_app: Open, tmp_path: Path) -> None:
    other = another(tmp_path, pieces=["from the other"])
    async with open_app(pieces=["from the first"]) as pilot:
        await ask(pilot, "x")
        await say(pilot, f"/retry {other}")
        await until(pilot, lambda: messages(pilot)[-1:] == ["from the other"], "the other one answers")
        app_of(pilot).chat.query(MessageView).last().focus()
        await pilot.press("left")
        await until(pilot, lambda: messages(pilot)[-1:] == ["from the first"], "the first is beside it")


def another(tmp_path: Path, **content: object) -> Path:
    """Return the script of a second model."""
    folder = tmp_path / "other"
    folder.mkdir()
    return script(folder, **content)


def remove_script(folder: Path) -> None:
    next(folder.glob("*.script.json")).unlink()


async def test_a_model_removed_under_a_chat_is_a_sentence_once_it_is_needed(
    open_app: Open, tmp_path: Path
) -> None:
    async with open_app(**SLOW) as pilot:
        app = app_of(pilot)
        await say(pilot, "x")
        await until(pilot, lambda: "word" in shown(pilot), "it answers")
        remove_script(tmp_path)
        pid = app.chat.desk.host.client.pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        await until(pilot, lambda: "no such file" in shown(pilot), "it says so")
        assert "Ctrl+O" in shown(pilot)
        assert messages(pilot)[-1].startswith("word"), "the text stays"


async def test_a_chat_that_came_back_from_disk_says_so(open_app: Open, models: Path) -> None:
    text = "The old bridge over the river leads from one half of the city to the other. " * 4
    for chat in (None, 1):
        async with open_app(chat=chat, ref=str(models / "qwen3.gguf")) as pilot:
            app_of(pilot).chat.desk.sampler = {"temperature": 0, "max_tokens": 4}
            app_of(pilot).chat.desk.apply_settings()
            await ask(pilot, text if chat is None else "And?")
            assert ("came back from disk" in shown(pilot)) == (chat is not None)


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 300, "a\0b"])
async def test_words_that_only_look_like_files_stay_words(open_app: Open, name: str) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        await ask(pilot, f"look at @{name}")
        assert messages(pilot)[-1] == "ok"


async def test_a_file_is_put_in_once_however_often_the_message_is_edited(
    open_app: Open, tmp_path: Path
) -> None:
    (tmp_path / "n.txt").write_text("the notes")
    async with open_app(pieces=["ok"]) as pilot:
        await ask(pilot, f"read @{tmp_path}/n.txt")
        before = messages(pilot)[0]
        await say(pilot, "/edit")
        await until(pilot, lambda: app_of(pilot).chat.prompt.text == before, "it can be edited")
        await pilot.press("enter")
        await until(pilot, lambda: "(2/2)" in shown(pilot), "it is asked beside the first")
        assert messages(pilot)[0].count("the notes") == 1


async def test_another_model_may_be_chosen_while_a_question_waits(open_app: Open, tmp_path: Path) -> None:
    other = another(tmp_path, pieces=["from the other"], load_s=0.5)
    async with open_app(pieces=["from the first"]) as pilot:
        app = app_of(pilot)
        app.chat.load(str(other))
        await say(pilot, "x")
        await pilot.pause(0.05)
        app.chat.load(str(other))
        await until(pilot, lambda: messages(pilot)[-1:] == ["from the other"], "it is answered")
        assert messages(pilot)[0] == "x"


async def test_the_monitor_opens_while_a_model_loads(open_app: Open, tmp_path: Path) -> None:
    other = another(tmp_path, pieces=["x"], load_s=0.5)
    async with open_app(pieces=["ok"], size=(80, 24)) as pilot:
        app = app_of(pilot)
        app.chat.load(str(other))
        app.chat.show_monitor()
        await app._tick()  # as when a second is full before the screen has its widgets
        await until(pilot, lambda: list(app.screen.query("#health")), "it is over the screen")
        health = app.screen.query_one("#health", Static)
        await until(pilot, lambda: "health: " in str(health.visual), "doctor has looked")
        await until(pilot, lambda: app.gauge.model == other.name, "the model is loaded")
        view = app.screen.query_one(MonitorView)
        await pilot.press("pagedown")
        await until(pilot, lambda: view.scroll_y > 0, "keys scroll it")


@pytest.mark.parametrize("key", ["f3", "escape"], ids=["monitor", "chat"])
async def test_quitting_while_the_machine_is_looked_at_is_no_fault(open_app: Open, key: str) -> None:
    async with open_app(pieces=["ok"], size=(120, 40)) as pilot:
        app = app_of(pilot)
        await pilot.press(key)
        await until(pilot, lambda: app.gauge.sample, "the machine was looked at")
    await app._tick()  # as when a look ends after the screens have gone


async def test_one_turn_at_a_time_whatever_is_pressed(open_app: Open) -> None:
    async with open_app(**SLOW) as pilot:
        app = app_of(pilot)
        await say(pilot, "first")
        await say(pilot, "second")
        assert app.chat.prompt.text == "second"
        await until(pilot, lambda: "word" in shown(pilot), "it answers")
        for command in ("new", "older", "retry"):
            app.chat.action_command(command)
        await until(pilot, lambda: sum("an answer is coming" in one for one in toasts(pilot)) >= 3, "refused")
        await pilot.press("escape")
        await until(pilot, lambda: not app.chat.is_answering, "it stopped")
        assert messages(pilot)[0] == "first"
        assert messages(pilot)[1].startswith("word")


async def delete_the_chat(pilot: Pilot[None]) -> None:
    app = app_of(pilot)
    await pilot.press("ctrl+r")
    await until(pilot, lambda: isinstance(app.screen, Chooser) and app.screen.key, "it is listed")
    await pilot.press("ctrl+d")
    await until(pilot, lambda: not app.chat.desk.history.chats(), "it is deleted")
    await pilot.press("escape")


async def test_a_deleted_chat_comes_back_when_it_goes_on_and_by_undo(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "about bridges")
        await delete_the_chat(pilot)
        await ask(pilot, "more")
        assert len(app.chat.desk.history.chats()) == 1, "what is said is kept"
        await delete_the_chat(pilot)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: isinstance(app.screen, Chooser), "the list is there again")
        await pilot.press("ctrl+z")
        await until(pilot, lambda: app.chat.desk.history.chats(), "it is back")


async def test_a_history_that_refuses_is_told(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "about bridges")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: isinstance(app.screen, Chooser) and app.screen.key, "it is listed")
        app.chat.desk.history._db.execute("PRAGMA query_only = ON")
        for key in ("ctrl+d", "ctrl+t", "ctrl+z"):
            await pilot.press(key)
        await until(pilot, lambda: sum("chats.db" in one for one in toasts(pilot)) >= 3, "each is told")
        assert not any("deleted" in one for one in toasts(pilot)), "what did not happen is not said"
        assert app.is_running


async def test_a_chat_that_is_not_there_is_a_sentence(open_app: Open) -> None:
    async with open_app(chat=999, pieces=["ok"]) as pilot:
        assert any("no chat 999" in one for one in toasts(pilot))
        await ask(pilot, "x")
        assert messages(pilot) == ["x", "ok"]


async def test_a_message_is_taken_out_only_when_that_is_meant(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "x")
        for answer, left in (("n", ["x", "ok"]), ("y", ["x"])):
            app.chat.query(MessageView).last().focus()
            await pilot.press("d")
            await until(pilot, lambda: isinstance(app.screen, Confirm), "it asks")
            await pilot.press(answer)
            await until(pilot, lambda left=left: app.screen is app.chat and messages(pilot) == left, "done")


async def test_nonsense_in_the_settings_is_refused_there(open_app: Open, home: Path) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await pilot.press("f2")
        await until(pilot, lambda: isinstance(app.screen, Chooser), "the settings are open")
        app.screen.query_one(Input).value = "sampler.temperature"
        await pilot.pause(0.1)
        await pilot.press("enter", *"-5", "enter")
        await until(pilot, lambda: any("temperature" in one for one in toasts(pilot)), "it is refused")
        assert not (home / "config" / "config.toml").exists(), "nothing was written"


async def test_what_was_set_for_a_chat_outlives_other_settings_and_not_the_chat(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "x")
        app.chat.desk.sampler = {"temperature": 0.3}
        await say(pilot, "/full drop-oldest")
        await until(pilot, lambda: app.chat.desk.overflow == "drop-oldest", "it is set")
        app.chat.follow_settings("tui.theme")
        assert app.chat.desk.sampler == {"temperature": 0.3}
        assert app.chat.desk.overflow == "drop-oldest"
        await say(pilot, "/system be brief")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not messages(pilot), "a new chat")
        desk = app.chat.desk
        assert (desk.sampler, desk.overflow, desk.conversation.system) == ({}, "stop", "")


async def test_a_failed_switch_keeps_the_model_that_is_there(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "x")
        before = app.gauge.model
        await say(pilot, "/retry qwen3-8c")
        await until(pilot, lambda: "unknown model" in shown(pilot), "it says so")
        assert app.gauge.model == before
        assert messages(pilot) == ["x", "ok"], "the old one does not answer instead"


async def test_pasted_control_codes_reach_no_line_of_input(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: isinstance(app.screen, Chooser), "the chats are open")
        field = app.screen.query_one(Input)
        field.post_message(events.Paste("\x1b]52;c;x\x07a\x9b31m"))
        await until(pilot, lambda: field.value, "it is pasted")
        assert field.value == "]52;c;xa31m"


async def test_paths_and_unknown_commands_are_not_lost(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        await ask(pilot, "/etc/passwd what is it?")
        assert messages(pilot)[0] == "/etc/passwd what is it?"
        await say(pilot, "/nosuch thing")
        await until(pilot, lambda: any("unknown command" in one for one in toasts(pilot)), "it is told")
        assert app_of(pilot).chat.prompt.text == "/nosuch thing"


async def test_an_earlier_question_is_answered_again_from_there(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "first")
        await ask(pilot, "second")
        app.chat.query(MessageView).first().focus()
        await pilot.press("g")
        await until(pilot, lambda: messages(pilot) == ["first", "ok"], "from there")


async def test_text_that_comes_out_of_sight_is_hinted_at(open_app: Open) -> None:
    async with open_app(size=(60, 16), pieces=["word\n\n"] * 200, delay_s=0.02) as pilot:
        app = app_of(pilot)
        hint = app.chat.query_one("#new-text", Static)
        await say(pilot, "x")
        await until(pilot, lambda: app.chat.transcript.max_scroll_y > 20, "it is long")
        assert not hint.display
        await pilot.press("pageup", "pageup")
        await until(pilot, lambda: hint.display, "it is hinted at")
        await pilot.press("ctrl+end")
        await until(pilot, lambda: not hint.display, "it is followed again")
        await pilot.press("escape")
        await until(pilot, lambda: not app.chat.is_answering, "it stopped")


def test_two_programs_in_one_chat_lose_nothing(tmp_path: Path) -> None:
    one, two = History(tmp_path / "chats.db"), History(tmp_path / "chats.db")
    from edgeqwen.chat.conversation import Conversation

    conversation = Conversation()
    conversation.add("user", "hello")
    chat = one.create(conversation, "hello")
    other = two.load(chat)
    conversation.add("assistant", "from the first")
    other.add("assistant", "from the other one")
    assert one.save(chat, conversation) == chat
    elsewhere = two.save(chat, other)
    assert elsewhere != chat
    assert one.load(chat).branch()[-1].text == "from the first"
    assert one.load(elsewhere).branch()[-1].text == "from the other one"
    one.close()
    two.close()
    with pytest.raises(StoreError):
        History(tmp_path / "chats.db" / "impossible")


async def test_a_question_that_waits_for_its_model_is_kept_when_the_program_ends(
    open_app: Open, tmp_path: Path
) -> None:
    other = another(tmp_path, pieces=["x"], load_s=30.0)
    async with open_app(pieces=["ok"]) as pilot:
        app = app_of(pilot)
        app.chat.load(str(other))
        await say(pilot, "is it kept?")
        await until(pilot, lambda: app.chat._waiting, "it waits")
        app.exit()
    history = History(Library().paths.chats)
    assert [chat.title for chat in history.search("", 9)] == ["is it kept?"]
    history.close()


async def test_thinking_that_is_folded_under_a_selection_is_no_end(open_app: Open) -> None:
    lines = "\n".join(f"thought number {n}" for n in range(5))
    async with open_app(pieces=[f"<think>{lines}</think>", "so"]) as pilot:
        await ask(pilot, "x")
        await pilot.press("f5")
        thinking = app_of(pilot).screen.query_one(ThinkingView)
        await until(pilot, lambda: thinking.size.height > 4, "it is open")
        await pilot.mouse_down(thinking, offset=(1, 0))
        await pilot.hover(thinking, offset=(9, 3))
        await pilot.mouse_up(thinking, offset=(9, 3))
        assert thinking.size.height > 4, "a drag is no click"
        await pilot.press("f5", "ctrl+c")
        await until(pilot, lambda: thinking.size.height == 1, "it is folded, and the program goes on")


async def test_a_catalogue_that_is_not_valid_is_a_sentence_where_models_are_chosen(
    open_app: Open, home: Path
) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / "models.toml").write_text("[models")
    async with open_app() as pilot:
        await pilot.press("ctrl+o")
        await until(pilot, lambda: any("not valid TOML" in one for one in toasts(pilot)), "it says so")
        assert isinstance(app_of(pilot).screen, Chooser)


async def test_a_long_chat_is_not_drawn_anew_at_each_question(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeqwen.tui.widgets.transcript._MOUNTED", 4)
    async with open_app(pieces=["ok"]) as pilot:
        for number in range(4):
            await ask(pilot, f"question {number}")
        await say(pilot, "/new")
        await until(pilot, lambda: not messages(pilot), "a new chat has begun")
        await app_of(pilot).chat.desk.open(1)
        await app_of(pilot).chat.redraw()
        before = list(app_of(pilot).chat.query(MessageView))
        assert len(before) == 4
        await ask(pilot, "one more")
        assert list(app_of(pilot).chat.query(MessageView))[:4] == before


async def test_a_deleted_row_gives_its_place_to_the_next(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        for number in range(4):
            await ask(pilot, f"chat {number}")
            app_of(pilot).chat.action_command("new")
            await until(pilot, lambda: not messages(pilot), "a new chat has begun")
        await pilot.press("ctrl+r")
        chooser = app_of(pilot).screen
        assert isinstance(chooser, Chooser)
        await until(pilot, lambda: chooser.key == "4", "the newest is on top")
        await pilot.press("down", "ctrl+d")
        await until(pilot, lambda: chooser.key == "2", "what comes after it is next")


async def test_a_backslash_stays_where_enter_breaks_the_line_anyway(open_app: Open, home: Path) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text("[tui]\nenter_sends = false\n")
    async with open_app(pieces=["ok"]) as pilot:
        prompt = app_of(pilot).chat.prompt
        prompt.put("ls \\")
        await pilot.press("enter", "x")
        assert prompt.text == "ls \\\nx"


async def test_an_arrow_on_the_only_answer_changes_nothing(open_app: Open) -> None:
    async with open_app(pieces=["ok"]) as pilot:
        chat = app_of(pilot).chat
        await ask(pilot, "first")
        await ask(pilot, "second")
        chat.edit(chat.desk.conversation.branch()[2])
        await ask(pilot, "second, edited")
        chat.query(MessageView).first(MessageView).focus()
        await pilot.press("down", "down", "left")
        await until(pilot, lambda: messages(pilot)[2] == "second", "the older one is chosen")
        chat.query(MessageView).first(MessageView).focus()
        await pilot.press("right")
        await pilot.pause()
        assert messages(pilot)[2] == "second"


def test_a_long_title_leaves_the_note_its_place_and_a_long_note_the_text() -> None:
    titled = _prompt(Row("1", "x" * 80, "3 · 13:21"), 60).plain
    assert titled.endswith("…  3 · 13:21")
    named = _prompt(Row("1", "qwen3-4b-thinking-2507:q4_k_m", "2.5 GB to download, " * 3), 60).plain
    assert named.startswith("qwen3-4b-thinking-2507:q4_k_m  2.5 GB")
    assert len(titled) == len(named) == 60
