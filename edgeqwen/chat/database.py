"""Opens the SQLite file of the history: makes its tables, and keeps aside a file that cannot be used.

Owns the file and its schema; knows nothing of conversations.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from itertools import count
from pathlib import Path

from edgeqwen.models.locks import locked

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
_LOOK_THROUGH = 64 << 20  # bytes that are looked through in a moment


def open_database(file: Path, now: int) -> tuple[sqlite3.Connection, str | None]:
    """Return an open file and what was wrong with the one that was there, if anything was.

    One that cannot be read is kept aside under a name with `now`. Raises OSError and sqlite3.Error.
    """
    # One program at a time: a second would find the same fault, and keep the first one's new file aside.
    with locked(file.parent, file.stem):
        db = _connect(file)
        try:
            why = _fault(db, file)
        except BaseException:
            db.close()
            raise
        if why is None:
            return db, None
        db.close()
        aside = _keep_aside(file, now)
        fresh = _connect(file)
        _make_tables(fresh)
        return fresh, f"the chat history {why}; it is kept as {aside}, and a new one begins"


def mend_index(db: sqlite3.Connection, error: BaseException) -> None:
    """Make the search index anew from the messages, if a change failed as it does where that is damaged.

    Nothing else looks into it. What SQLite calls operational is the disk, a lock or a statement.
    """
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        with suppress(sqlite3.Error):
            db.execute("INSERT INTO words (words) VALUES ('rebuild')")


def _fault(db: sqlite3.Connection, file: Path) -> str | None:
    """Say why a file cannot be used; an empty one gets its tables. Raises OperationalError."""
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            _make_tables(db)
        elif version == _VERSION:
            db.execute("SELECT count(*) FROM chat, draft, message WHERE message.row < 0").fetchone()
            _check_pages(db, file)
        else:
            return "comes from a newer edgeqwen"
    except sqlite3.OperationalError as error:
        if not any(words in str(error) for words in ("no such", "already exists")):
            raise  # locked, full or not writable: the file itself may be fine
        return "is not whole"
    except sqlite3.DatabaseError:
        return "is damaged"
    return None


def _check_pages(db: sqlite3.Connection, file: Path) -> None:
    """Look through the file, unless that takes long and it was closed well. Raises DatabaseError."""
    is_large = file.stat().st_size > _LOOK_THROUGH
    if is_large and not file.with_name(f"{file.name}-wal").exists():
        return
    [(found,)] = db.execute("PRAGMA quick_check(1)").fetchall()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _connect(file: Path) -> sqlite3.Connection:
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))  # the journals get its mode
    with suppress(OSError):
        file.chmod(0o600)
    db = sqlite3.connect(file, timeout=10, check_same_thread=False, isolation_level=None)
    db.create_function("fold", 1, str.casefold, deterministic=True)  # SQLite's own lower() knows ASCII
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA foreign_keys = ON")
    except sqlite3.DatabaseError:
        pass  # whoever reads the schema next says what is wrong
    return db


def _keep_aside(file: Path, now: int) -> Path:
    """Rename a file and its journals to a name that nothing has yet, and return it."""
    names = (file.with_name(f"{file.stem}-{number}{file.suffix}") for number in count(now))
    aside = next(name for name in names if not name.exists())
    file.rename(aside)
    for suffix in ("-wal", "-shm"):
        journal = file.with_name(file.name + suffix)
        if journal.exists():
            journal.rename(aside.with_name(aside.name + suffix))
    return aside


def _make_tables(db: sqlite3.Connection) -> None:
    with db:
        db.execute("BEGIN IMMEDIATE")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in _SCHEMA.split("\n\n"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
