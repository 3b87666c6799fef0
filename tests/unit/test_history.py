"""Chats in SQLite: what was said comes back, is found, and survives crashes, damage and full disks."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeqwen.chat.conversation import Conversation, Made
from edgeqwen.chat.exchange import import_chats, to_json, to_markdown
from edgeqwen.chat.history import History
from edgeqwen.engine.protocol import Stats
from edgeqwen.errors import InvalidInput, NotFound, StoreError

STATS = Stats(
    queued_s=0.0, ttft_s=0.1, prompt_tokens=9, cached_tokens=2, prefill_tokens=7, prefill_s=0.1,
    completion_tokens=5, thinking_tokens=1, decode_s=0.4, rss_bytes=1000,
)  # fmt: skip
MADE = Made("qwen3-4b", STATS, "eos", 7)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    opened = History(tmp_path / "chats.db")
    yield opened
    opened.close()


def talk(*texts: str) -> Conversation:
    conversation = Conversation("be brief")
    for index, text in enumerate(texts):
        role = "assistant" if index % 2 else "user"
        conversation.add(role, text, thinking="hm" * (index % 2), made=MADE if index % 2 else None)  # type: ignore[arg-type]
    return conversation


def test_a_tree_of_messages_comes_back_as_it_was(history: History) -> None:
    said = talk("q", "a", "q2", "a2")
    said.go_back_to(1)
    said.add("assistant", "another a", is_complete=False)
    chat = history.create(said, "q")
    assert history.load(chat) == said
    assert [message.text for message in history.load(chat).branch()] == ["q", "another a"]
    said.switch_to(2)
    history.save(chat, said)
    assert [message.text for message in history.load(chat).branch()] == ["q", "a", "q2", "a2"]


def test_chats_are_found_by_any_words_of_any_length(history: History) -> None:
    history.create(talk("How do bridges carry loads?", "By compression"), "bridges")
    history.create(talk("用一句话解释量化方法", "好的"), "量化")
    history.create(talk("a 50% off [sale]", 'it\'s "quoted" OR not'), "odd")

    def found(text: str) -> list[str]:
        return [chat.title for chat in history.search(text)]

    assert found("compress bridge") == []  # not in one message
    assert found("BRIDGES carry") == ["bridges"]
    assert found("量化") == ["量化"]
    assert found("量化方法") == ["量化"]
    assert found('"quoted" OR') == ["odd"]
    assert found("50% [sale") == ["odd"]
    assert found("*") == []
    assert len(found("")) == 3


def test_titles_pins_deletions_and_their_undoing(history: History) -> None:
    first, second = history.create(talk("one"), "  one\x1b[31m\nmore"), history.create(talk("two"), "two")
    assert [chat.title for chat in history.chats()] == ["two", "one[31m"]
    history.pin(first, is_pinned=True)
    history.rename(second, "2")
    assert [chat.title for chat in history.chats()] == ["one[31m", "2"]
    history.delete(first)
    assert [chat.id for chat in history.chats()] == [second]
    assert history.search("one") == []
    assert history.restore() == first
    assert len(history.chats()) == 2
    with pytest.raises(NotFound):
        history.rename(99, "x")
    with pytest.raises(NotFound):
        history.load(99)


def test_deleted_chats_go_for_good_after_a_week(tmp_path: Path) -> None:
    now = [1000.0]
    history = History(tmp_path / "chats.db", lambda: now[0])
    chat = history.create(talk("x"), "x")
    history.delete(chat)
    now[0] += 8 * 24 * 3600
    history.close()
    again = History(tmp_path / "chats.db")
    with pytest.raises(NotFound):
        again.load(chat)
    again.close()


def test_an_answer_that_a_crash_cut_off_is_a_message_afterwards(tmp_path: Path) -> None:
    history = History(tmp_path / "chats.db")
    said = talk("tell me")
    chat = history.create(said, "tell me")
    history.save_draft(chat, said, "Once upon", "hm")
    history.save_draft(chat, said, "Once upon a time", "hm")
    history._db.close()  # no orderly end
    again = History(tmp_path / "chats.db")
    last = again.load(chat).branch()[-1]
    assert (last.text, last.thinking, last.is_complete) == ("Once upon a time", "hm", False)
    again.close()


def test_a_finished_answer_replaces_its_draft(history: History) -> None:
    said = talk("tell me")
    chat = history.create(said, "tell me")
    history.save_draft(chat, said, "Once", "")
    said.add("assistant", "Once upon a time")
    history.save(chat, said)
    assert [message.text for message in history.load(chat).branch()] == ["tell me", "Once upon a time"]


@pytest.mark.parametrize("harm", ["garbage", "cut", "newer", "foreign"])
def test_a_file_that_cannot_be_read_is_kept_aside(tmp_path: Path, harm: str) -> None:
    file = tmp_path / "chats.db"
    history = History(file)
    history.create(talk("precious"), "precious")
    history.close()
    if harm == "garbage":
        file.write_bytes(b"\x00garbage" * 1000)
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:1500])
    else:
        db = sqlite3.connect(file)
        db.executescript("PRAGMA user_version = 99" if harm == "newer" else "DROP TABLE chat")
        db.close()
    before = file.read_bytes()
    again = History(file)
    assert again.notice
    assert again.chats() == []
    again.create(talk("new"), "new")
    again.close()
    aside = [path for path in tmp_path.glob("chats-*.db")]
    assert [path.read_bytes() for path in aside] == [before]
    assert str(aside[0]) in again.notice


def test_a_full_disk_is_a_sentence_and_what_was_there_stays(history: History) -> None:
    said = talk("small")
    chat = history.create(said, "small")
    pages = history._db.execute("PRAGMA page_count").fetchone()[0]
    history._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    said.add("assistant", "x" * 200_000)
    with pytest.raises(StoreError, match="full") as caught:
        history.save(chat, said)
    assert caught.value.cause == "disk_full"
    assert [message.text for message in history.load(chat).branch()] == ["small"]
    history._db.execute("PRAGMA max_page_count = 1000000")
    history.save(chat, said)
    assert history.load(chat) == said


def test_a_folder_that_cannot_be_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        History(tmp_path / "file" / "chats.db")


def test_words_that_casefolding_makes_longer_are_found(history: History) -> None:
    history.create(talk("Die Straße ist groß, in İstanbul"), "a walk")
    for text in ("Straße", "straße groß", "İstanbul", "ist gro"):
        assert [chat.title for chat in history.search(text)] == ["a walk"], text


def test_a_chat_deleted_from_its_first_message_on_stays_empty(history: History, tmp_path: Path) -> None:
    said = talk("q", "a")
    chat = history.create(said, "q")
    said.head = None
    history.save(chat, said)
    assert history.load(chat).branch() == []
    file = tmp_path / "chat.json"
    file.write_bytes(to_json("t", history.load(chat)))
    import_chats(file, history)
    assert all(history.load(one.id).branch() == [] for one in history.chats())


def test_two_programs_write_one_history(tmp_path: Path) -> None:
    one, two = History(tmp_path / "chats.db"), History(tmp_path / "chats.db")
    one.create(talk("from one"), "one")
    two.create(talk("from two"), "two")
    assert len(one.chats()) == len(two.chats()) == 2
    one.close()
    two.close()


def test_two_windows_on_one_chat_lose_no_word(tmp_path: Path) -> None:
    one, two = History(tmp_path / "chats.db"), History(tmp_path / "chats.db")
    chat = one.create(talk("tell me", "something"), "tell me")
    here, there = one.load(chat), two.load(chat)
    here.add("user", "yes")
    there.add("user", "why")  # as long as the other
    assert one.save(chat, here) == chat
    elsewhere = two.save(chat, there)
    assert elsewhere != chat
    assert [one.load(id_).branch()[-1].text for id_ in (chat, elsewhere)] == ["yes", "why"]
    one.close()
    two.close()


def test_a_draft_in_an_old_chat_stays_its_writers(tmp_path: Path) -> None:
    now = [time.time() - 1e6]
    writer = History(tmp_path / "chats.db", lambda: now[0])
    said = talk("tell me")
    chat = writer.create(said, "tell me")
    now[0] = time.time()
    writer.save_draft(chat, said, "Once", "")
    writer._db.execute("UPDATE draft SET pid = ?", (os.getppid(),))  # one that runs
    other = History(tmp_path / "chats.db")
    assert [message.text for message in other.load(chat).branch()] == ["tell me"]
    other.close()
    writer.close()


def test_two_first_starts_at_once_share_one_file(tmp_path: Path) -> None:
    start = threading.Barrier(2)

    def begin(file: Path) -> str | None:
        start.wait()
        history = History(file)
        history.create(talk("hi"), "hi")
        history.close()
        return history.notice

    with ThreadPoolExecutor(2) as pool:
        for round_ in range(20):
            file = tmp_path / f"{round_}.db"
            assert list(pool.map(begin, [file, file])) == [None, None]
            history = History(file)
            assert len(history.chats()) == 2
            history.close()


def test_two_starts_on_a_file_that_cannot_be_used_keep_it_once(tmp_path: Path) -> None:
    start = threading.Barrier(2)

    def begin(file: Path) -> str | None:
        start.wait()
        history = History(file)
        history.close()
        return history.notice

    with ThreadPoolExecutor(2) as pool:
        for round_ in range(10):
            file = tmp_path / f"{round_}.db"
            history = History(file)
            history.create(talk("old"), "old")
            history._db.execute("PRAGMA user_version = 2")
            history.close()
            notices = list(pool.map(begin, [file, file]))
            assert sum(notice is not None for notice in notices) == 1
            [aside] = tmp_path.glob(f"{round_}-*.db")
            with sqlite3.connect(aside) as db:
                assert db.execute("SELECT text FROM message").fetchall() == [("old",)]


def test_a_damaged_index_costs_one_save_and_no_word(history: History) -> None:
    chat = history.create(talk("the first words"), "t")
    history._db.execute("UPDATE words_data SET block = x'00'")
    said = history.load(chat)
    said.add("assistant", "and the others")
    for is_second in (False, True):
        try:
            history.save(chat, said)
        except StoreError:
            assert not is_second
    assert [one.id for one in history.search("others")] == [chat]
    assert [one.id for one in history.search("first")] == [chat]


def test_a_draft_whose_place_was_taken_stays_beside(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    one, two = History(file), History(file)
    chat = one.create(talk("tell me"), "t")
    here, there = one.load(chat), two.load(chat)
    one.save_draft(chat, here, "A LONG HALF ANSWER", "")
    one._db.execute("UPDATE draft SET pid = 0")  # one that died
    there.add("assistant", "short")
    two.save(chat, there)
    last = History(file)
    found = last.load(chat)
    assert found.branch()[-1].text == "short"
    siblings = found.siblings(found.branch()[-1].id)
    assert {message.text for message in siblings} == {"short", "A LONG HALF ANSWER"}
    for history in (one, two, last):
        history.close()
    History(file).close()
    assert len(found.messages) == 3


def test_json_carries_a_chat_to_another_history(history: History, tmp_path: Path) -> None:
    said = talk("q", "a")
    said.go_back_to(1)
    said.add("assistant", "b")
    file = tmp_path / "chat.json"
    file.write_bytes(to_json("a title", said))
    assert import_chats(file, history) == 1
    [chat] = history.chats()
    assert chat.title == "a title"
    assert history.load(chat.id) == said


def test_names_of_models_in_a_file_lose_their_control_characters(history: History, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_bytes(to_json("t", talk("q", "a")).replace(b'"qwen3-4b"', b'"\\u001b]0;x\\u0007evil"'))
    assert import_chats(file, history) == 1
    answer = history.load(1).branch()[-1]
    assert answer.made
    assert answer.made.model == "]0;xevil"


def test_markdown_shows_the_branch_in_use() -> None:
    text = to_markdown("Title", talk("q", "a"))
    assert text.startswith("# Title\n\n> be brief\n\n## You\n\nq\n\n## qwen3-4b\n\n<details>")
    assert text.endswith("a\n")


def test_chatgpt_exports_come_in_with_their_branches(history: History, tmp_path: Path) -> None:
    def node(parent: str | None, role: str, text: str, *children: str) -> dict[str, object]:
        message = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}
        return {"parent": parent, "message": message, "children": list(children)}

    mapping = {
        "root": {"parent": None, "message": None, "children": ["sys"]},
        "sys": node("root", "system", "", "q"),
        "q": node("sys", "user", "hello\x1b[2J", "a1", "a2"),
        "a1": node("q", "assistant", "one"),
        "a2": node("q", "assistant", "two"),
    }
    export = [{"title": "T", "mapping": mapping, "current_node": "a1"}, {"title": "empty"}, 3]
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps(export))
    assert import_chats(file, history) == 1
    said = history.load(history.chats()[0].id)
    assert [message.text for message in said.branch()] == ["hello[2J", "one"]
    assert [message.text for message in said.siblings(said.branch()[-1].id)] == ["one", "two"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[" * 100_000,
        b"{}",
        b"[]",
        b"3",
        b'{"form":"edgeqwen-chat-1"}',
        b'{"form":"edgeqwen-chat-1","title":"x","messages":[{"id":1,"parent":7,"role":"user","text":"x"}]}',
        b'{"form":"edgeqwen-chat-1","title":"x","messages":[{"id":9223372036854775807,"role":"user","text":"x"}]}',
        b'{"mapping":{"a":{"parent":"a","children":["a"]}}}',
        b'[{"mapping":{"a":{"parent":[]}}}]',
    ],
    ids=range(11),
)
def test_other_files_are_refused(history: History, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(InvalidInput):
        import_chats(file, history)
    assert history.chats() == []
