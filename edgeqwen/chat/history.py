"""All chats of one user, in one SQLite file: kept as they are said, found by their words.

Owns the file and its schema. Messages are only ever added; an answer that grows is a draft, which becomes a
message when it ends, or when the file is opened after a crash. Blocking; call it from a thread.
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
from edgeqwen.errors import NotFound, StoreError
from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.text import clean_line

_VERSION = 1
_SCHEMA = """
CREATE TABLE chat (
  id INTEGER PRIMARY KEY, title TEXT NOT NULL, system TEXT NOT NULL, head INTEGER,
  created REAL NOT NULL, updated REAL NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, deleted REAL
);

CREATE INDEX chat_updated ON chat (pinned DESC, updated DESC);

CREATE TABLE message (
  row INTEGER PRIMARY KEY, chat INTEGER NOT NULL REFERENCES chat ON DELETE CASCADE, id INTEGER NOT NULL,
  parent INTEGER, role TEXT NOT NULL, text TEXT NOT NULL, thinking TEXT NOT NULL, complete INTEGER NOT NULL,
  made TEXT, said REAL NOT NULL, UNIQUE (chat, id)
);

CREATE TABLE draft (
  chat INTEGER PRIMARY KEY REFERENCES chat ON DELETE CASCADE, id INTEGER NOT NULL, parent INTEGER,
  text TEXT NOT NULL, thinking TEXT NOT NULL, pid INTEGER NOT NULL
);

CREATE VIRTUAL TABLE words USING fts5(text, content='message', content_rowid='row', tokenize='trigram');

CREATE TRIGGER message_added AFTER INSERT ON message BEGIN
  INSERT INTO words (rowid, text) VALUES (new.row, new.text);
END;

CREATE TRIGGER message_removed AFTER DELETE ON message BEGIN
  INSERT INTO words (words, rowid, text) VALUES ('delete', old.row, old.text);
END;
"""  # statements with empty lines between them
_TITLE = 60  # characters
_LOOK_THROUGH = 64 << 20  # bytes that are looked through in a moment
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
        self.notice: str | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._open()
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

    def _open(self) -> sqlite3.Connection:
        db = self._connect()
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                _make_tables(db)
            elif version == _VERSION:
                db.execute("SELECT count(*) FROM chat, draft, message WHERE message.row < 0").fetchone()
                self._check_pages(db)
            else:
                return self._begin_anew(db, "comes from a newer edgeqwen")
        except sqlite3.OperationalError as error:
            if not any(words in str(error) for words in ("no such", "already exists")):
                db.close()
                raise  # locked, full or not writable: the file itself may be fine
            return self._begin_anew(db, "is not whole")
        except sqlite3.DatabaseError:
            return self._begin_anew(db, "is damaged")
        return db

    def _check_pages(self, db: sqlite3.Connection) -> None:
        """Look through the file, unless that takes long and it was closed well. Raises DatabaseError."""
        is_large = self._file.stat().st_size > _LOOK_THROUGH
        if is_large and not self._file.with_name(f"{self._file.name}-wal").exists():
            return
        [(found,)] = db.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))  # the journals get its mode
        with suppress(OSError):
            self._file.chmod(0o600)
        db = sqlite3.connect(self._file, timeout=10, check_same_thread=False, isolation_level=None)
        db.create_function("fold", 1, str.casefold, deterministic=True)  # SQLite's own lower() knows ASCII
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA foreign_keys = ON")
        except sqlite3.DatabaseError:
            pass  # whoever reads the schema next says what is wrong
        return db

    def _begin_anew(self, db: sqlite3.Connection, why: str) -> sqlite3.Connection:
        """Keep the file aside under another name and begin an empty one."""
        db.close()
        aside = self._file.with_name(f"{self._file.stem}-{int(self._clock())}{self._file.suffix}")
        self._file.rename(aside)
        for suffix in ("-wal", "-shm"):
            journal = self._file.with_name(self._file.name + suffix)
            if journal.exists():
                journal.rename(aside.with_name(aside.name + suffix))
        self.notice = f"the chat history {why}; it is kept as {aside}, and a new one begins"
        fresh = self._connect()
        _make_tables(fresh)
        return fresh

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
            if (text or thinking) and id_ not in conversation.messages:
                message = Message(id_, parent, "assistant", text, thinking, is_complete=False)
                conversation.messages[id_] = message
                conversation.head = id_
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
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise


def _make_tables(db: sqlite3.Connection) -> None:
    """Make the tables, unless another program that started at the same moment has done so meanwhile."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in _SCHEMA.split("\n\n"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")


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
