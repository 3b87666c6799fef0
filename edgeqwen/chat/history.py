"""All chats of one user, in one SQLite file: kept as they are said, found by their words.

Owns what is in the file; database.py opens it. Messages are only ever added; an answer that grows is a draft,
which becomes a message when it ends, or when the file is opened after a crash. Blocking; for a thread.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil

from edgeqwen.chat.conversation import Conversation, Made, Message, head_in
from edgeqwen.chat.database import mend_index, open_database
from edgeqwen.errors import NotFound, StoreError
from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.text import clean_line

_TITLE = 60  # characters
_UNDO_S = 7 * 24 * 3600.0  # deleted chats can be brought back for so long
_ENCODER, _DECODER = msgspec.json.Encoder(), msgspec.json.Decoder(Made)


@dataclass(frozen=True)
class Chat:
    """One chat in a list."""

    id: int
    title: str
    updated: float
    """Seconds since 1970."""
    is_pinned: bool
    n_messages: int


class History:
    """An open history; `notice` says what was wrong with the file, if anything was."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file, or begin one. One that cannot be read is kept aside. Raises StoreError."""
        self._file, self._clock = file, clock
        self._lock = threading.RLock()
        try:
            self._db, self.notice = open_database(file, int(clock()))
        except (OSError, sqlite3.Error) as error:
            raise _failure(error, file) from error
        self._end_drafts()

    def close(self) -> None:
        """Close the file; chats deleted more than a week ago go for good."""
        with suppress(StoreError), self._changing() as db:
            db.execute("DELETE FROM chat WHERE deleted < ?", (self._clock() - _UNDO_S,))
        self._db.close()

    def create(self, conversation: Conversation, title: str) -> int:
        """Begin a chat with what was said so far and return its id."""
        now = self._clock()
        with self._changing() as db:
            row = db.execute(
                "INSERT INTO chat (title, system, created, updated) VALUES (?, ?, ?, ?)",
                (title_of(title), conversation.system, now, now),
            )
            assert row.lastrowid is not None
            self._add(db, row.lastrowid, conversation, list(conversation.messages.values()))
            return row.lastrowid

    def save(self, chat: int, conversation: Conversation) -> int:
        """Save what of a conversation is not there yet, and which branch is in use; returns the chat's id.

        That is another one where a second program has said something else in this chat meanwhile: then this
        conversation goes on as a chat of its own. A deleted chat that goes on is no longer deleted.
        """
        with self._changing() as db:
            kept = {
                id_: (parent, role, text)
                for id_, parent, role, text in db.execute(
                    "SELECT id, parent, role, text FROM message WHERE chat = ?", (chat,)
                )
            }
            said = sorted(conversation.messages.items())
            clashes = any(
                id_ in kept and kept[id_] != (one.parent, one.role, _storable(one.text)) for id_, one in said
            )
            if not clashes:
                self._add(db, chat, conversation, [one for id_, one in said if id_ not in kept])
                return chat
        return self.create(conversation, self.title(chat))

    def _add(self, db: sqlite3.Connection, chat: int, said: Conversation, news: list[Message]) -> None:
        now = self._clock()
        db.executemany(
            "INSERT INTO message (chat, id, parent, role, text, thinking, complete, made, said)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [_message_row(chat, message, now) for message in news],
        )
        db.execute("DELETE FROM draft WHERE chat = ? AND pid = ?", (chat, os.getpid()))
        db.execute(
            "UPDATE chat SET head = ?, system = ? WHERE id = ?",
            (said.head, said.system, chat),
        )
        if news:
            db.execute("UPDATE chat SET updated = ?, deleted = NULL WHERE id = ?", (now, chat))

    def save_draft(self, chat: int, conversation: Conversation, text: str, thinking: str) -> None:
        """Save an answer as far as it has come; it follows the conversation's head."""
        pid = os.getpid()
        with self._changing() as db:
            # Also the time by which another program judges whether this one still writes.
            db.execute("UPDATE chat SET updated = ? WHERE id = ?", (self._clock(), chat))
            db.execute(
                "INSERT OR REPLACE INTO draft (chat, id, parent, text, thinking, pid)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (chat, conversation.next_id, conversation.head, _storable(text), _storable(thinking), pid),
            )

    def load(self, chat: int) -> Conversation:
        """Return a chat's conversation. Raises NotFound, StoreError."""
        with self._reading() as db:
            found = db.execute("SELECT system, head FROM chat WHERE id = ?", (chat,)).fetchone()
            if found is None:
                raise NotFound(f"there is no chat {chat}")
            rows = db.execute(
                "SELECT id, parent, role, text, thinking, complete, made FROM message WHERE chat = ?"
                " ORDER BY id",
                (chat,),
            ).fetchall()
        messages: dict[int, Message] = {}
        for row in rows:
            message = _message(row)
            is_rooted = message.parent is None or message.parent in messages
            messages[message.id] = message if is_rooted else replace(message, parent=None)
        return Conversation(found[0], messages, head_in(messages, found[1]))

    def chats(self, limit: int = 1000) -> list[Chat]:
        """Return the chats, pinned ones first, then the newest."""
        return self._chats("chat.deleted IS NULL", (), limit)

    def search(self, text: str, limit: int = 100) -> list[Chat]:
        """Return the chats in which every word of `text` occurs in one message, or in the title.

        The index knows runs of three characters; shorter words, as most Chinese ones are, are looked for in
        what it leaves, or in everything.
        """
        words = [(word, word.casefold()) for word in text.split()]
        if not words:
            return self.chats(limit)
        # The index has a way of its own with cases, and keeps as it is what casefolding makes longer, as ß.
        long = [word for word, folded in words if len(word) >= 3 and len(folded) == len(word)]
        conditions, values = [], []
        if long:
            conditions.append("message.row IN (SELECT rowid FROM words WHERE words MATCH ?)")
            values.append(" ".join('"' + word.replace('"', '""') + '"' for word in long))
        for word, folded in words:
            if word not in long:
                conditions.append("instr(fold(message.text), ?) > 0")
                values.append(folded)
        inside = f"chat.id IN (SELECT chat FROM message WHERE {' AND '.join(conditions)})"
        titled = " AND ".join("instr(fold(chat.title), ?) > 0" for _ in words)
        condition = f"chat.deleted IS NULL AND ({inside} OR ({titled}))"
        return self._chats(condition, (*values, *(folded for _, folded in words)), limit)

    def rename(self, chat: int, title: str) -> None:
        """Give a chat another title. Raises NotFound, StoreError, as the next three do."""
        self._set(chat, "title", title_of(title))

    def pin(self, chat: int, *, is_pinned: bool) -> None:
        """Put a chat at the top of the list, or back among the others."""
        self._set(chat, "pinned", int(is_pinned))

    def delete(self, chat: int) -> None:
        """Hide a chat; within a week `restore` brings it back."""
        self._set(chat, "deleted", self._clock())

    def restore(self) -> int | None:
        """Bring back the chat that was deleted last, and return its id; None when there is none."""
        with self._changing() as db:
            found = db.execute(
                "SELECT id FROM chat WHERE deleted IS NOT NULL ORDER BY deleted DESC, id DESC LIMIT 1"
            ).fetchone()
            if found is None:
                return None
            db.execute("UPDATE chat SET deleted = NULL WHERE id = ?", found)
            return int(found[0])

    def title(self, chat: int) -> str:
        """Return a chat's title. Raises NotFound."""
        with self._reading() as db:
            found = db.execute("SELECT title FROM chat WHERE id = ?", (chat,)).fetchone()
        if found is None:
            raise NotFound(f"there is no chat {chat}")
        return str(found[0])

    def _set(self, chat: int, column: str, value: object) -> None:
        with self._changing() as db:
            if db.execute(f"UPDATE chat SET {column} = ? WHERE id = ?", (value, chat)).rowcount == 0:
                raise NotFound(f"there is no chat {chat}")

    def _chats(self, condition: str, values: Sequence[object], limit: int) -> list[Chat]:
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, title, updated, pinned, (SELECT count(*) FROM message WHERE chat = chat.id)"
                f" FROM chat WHERE {condition} ORDER BY pinned DESC, updated DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
        return [Chat(id_, title, updated, bool(pinned), n) for id_, title, updated, pinned, n in rows]

    def _end_drafts(self) -> None:
        """Make messages of the answers that a crash has cut off."""
        with self._reading() as db:
            drafts = db.execute(
                "SELECT chat, draft.id, parent, text, thinking, pid, updated"
                " FROM draft JOIN chat ON chat = chat.id"
            ).fetchall()
        for chat, id_, parent, text, thinking, pid, updated in drafts:
            if _is_writing(pid, updated):
                continue
            conversation = self.load(chat)
            held = conversation.messages.get(id_)  # another program may have said something else there
            is_kept = held is not None and (held.parent, held.text, held.thinking) == (parent, text, thinking)
            if (text or thinking) and not is_kept:
                number = conversation.next_id if held else id_
                conversation.messages[number] = Message(number, parent, "assistant", text, thinking, False)
                conversation.head = conversation.head if held else number
            self.save(chat, conversation)
            with self._changing() as db:
                db.execute("DELETE FROM draft WHERE chat = ? AND id = ?", (chat, id_))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise _failure(error, self._file) from error

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Make one transaction of what happens inside. Raises StoreError."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                mend_index(db, error)  # so that the next save succeeds
                raise


def _is_writing(pid: int, since: float) -> bool:
    """Say whether a draft's program still runs; a process that is younger than the draft is another one."""
    if pid == os.getpid():
        return False
    try:
        return psutil.Process(pid).create_time() <= since + 1
    except psutil.Error:
        return False


def title_of(text: str) -> str:
    """Return the first line of a text as a title."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return clean_line(first, _TITLE) or "…"


def _storable(text: str) -> str:
    """Return text that SQLite can keep: lone surrogates have no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _message_row(chat: int, message: Message, now: float) -> tuple[object, ...]:
    made = _ENCODER.encode(message.made).decode() if message.made else None
    return (
        chat, message.id, message.parent, message.role, _storable(message.text),
        _storable(message.thinking), message.is_complete, made, now,
    )  # fmt: skip


def _message(row: Sequence[Any]) -> Message:
    id_, parent, role, text, thinking, complete, made = row
    try:
        how = _DECODER.decode(made) if made else None
    except NOT_JSON:
        how = None  # counters of an older version; the words are what matters
    return Message(id_, parent, role, text, thinking, bool(complete), how)


def _failure(error: Exception, file: Path) -> StoreError:
    text = str(error)
    if "full" in text or getattr(error, "errno", None) == 28:
        return StoreError(f"the disk is full, so the chat cannot be saved in {file}", str(file), "disk_full")
    cause = "no_permission" if "readonly" in text or isinstance(error, PermissionError) else "io"
    return StoreError(f"the chat history {file} cannot be used: {clean_line(text)}", str(file), cause)
