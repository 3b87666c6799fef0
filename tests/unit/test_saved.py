"""The KV cache on disk: what is read back is what was saved, and everything else is nothing."""

from __future__ import annotations

import errno
import gc
import os
import random
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeqwen.worker.saved import SavedStates, State, common_prefix

STATE = State(list(range(200)), os.urandom(5000), {50: b"fifty", 100: b"a hundred"})


def saved(folder: Path, key: str = "key", max_bytes: int = 1 << 20) -> SavedStates:
    return SavedStates(folder, key, max_bytes)


def write(folder: Path, *states: State, **settings: object) -> None:
    store = saved(folder, **settings)  # type: ignore[arg-type]
    for state in states:
        store.write(state)
    store.close()


def read(folder: Path, prompt: list[int], key: str = "key") -> State | None:
    store = saved(folder, key)
    path = store.find(lambda tokens, checkpoints: common_prefix(tokens, prompt))
    state = store.read(path) if path else None
    store.close()
    return state


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "kv", STATE)
    assert read(tmp_path / "kv", [*range(150), -1]) == STATE
    [file] = (tmp_path / "kv").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_longest_beginning_is_found_and_shorter_ones_are_replaced(tmp_path: Path) -> None:
    other = State([7, *range(300)], b"other")
    write(tmp_path, STATE, other)
    longer = State([*range(250)], b"longer")
    store = saved(tmp_path)
    store.find(lambda tokens, checkpoints: 0)
    store.write(longer)
    store.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert read(tmp_path, [*range(240)]) == longer
    assert read(tmp_path, [7, *range(9)]) == other


def test_of_two_that_help_alike_the_shorter_is_read(tmp_path: Path) -> None:
    short, long = State([*range(200), 7], b"short"), State([*range(200), *range(900, 1900)], b"long")
    write(tmp_path, long, short)
    assert read(tmp_path, [*range(200), 8]) == short


def test_what_cannot_be_read_now_stays_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, STATE)
    store = saved(tmp_path)
    path = store.find(lambda tokens, checkpoints: len(tokens))
    assert path is not None

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert store.read(path) is None
    assert "cannot be read" in capsys.readouterr().err
    assert store.read(path) == STATE
    store.close()


@pytest.mark.parametrize("position", [-1, 0, len(STATE.tokens) + 1])
def test_checkpoints_stand_inside_their_sequence(tmp_path: Path, position: int) -> None:
    write(tmp_path, State(STATE.tokens, b"state", {position: bytearray(b"checkpoint")}))
    assert read(tmp_path, STATE.tokens) is None


def test_a_slow_disk_gets_the_newest_and_memory_holds_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, written, given_up = threading.Event(), [], []

    def slow(store: SavedStates, state: State) -> None:
        gate.wait(30)
        written.append(len(state.tokens))

    monkeypatch.setattr(SavedStates, "_write", slow)
    store = saved(tmp_path)
    for length in (10, 20, 30, 40):  # one conversation that goes on
        store.write(State([*range(length)], b"x"))
    for other in range(4):  # and others that were left
        store.write(State([-other - 1] * 5, b"x"), lambda other=other: given_up.append(other))
    gate.set()
    store.close()
    assert written in ([10, 5, 5, 5], [40, 5, 5, 5], [10, 5, 5]), written
    assert given_up[:1] == [0] or given_up[:2] == [0, 1], given_up


def test_what_a_slow_disk_did_not_take_leaves_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun = threading.Event(), threading.Event()

    def slow(store: SavedStates, state: State) -> None:
        begun.set()
        gate.wait(30)

    monkeypatch.setattr(SavedStates, "_write", slow)
    store = saved(tmp_path)
    store.write(State([0], b"x"))
    assert begun.wait(30)
    states = [State([number] * 5, b"x") for number in range(1, 9)]
    alive = [weakref.ref(state) for state in states]
    while states:
        store.write(states.pop(0))
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 4
    gate.set()
    store.close()


def test_a_chat_that_grows_throws_out_only_what_it_replaces(tmp_path: Path) -> None:
    other, chat = State([7] * 50, bytes(40_000)), State([*range(60)], bytes(50_000))
    longer = State([*range(80)], bytes(52_000))
    for state in (other, chat, longer):
        write(tmp_path, state, max_bytes=100_000)
    assert read(tmp_path, other.tokens) == other
    assert read(tmp_path, longer.tokens) == longer


def test_what_was_thrown_out_and_written_again_is_found(tmp_path: Path) -> None:
    store = saved(tmp_path, max_bytes=100_000)
    first, second = State([7] * 50, bytes(60_000)), State([8] * 50, bytes(60_000))
    for state in (first, second, first):
        store.write(state)
        store._writer.submit(lambda: None).result()
        path = store.find(lambda tokens, checkpoints, state=state: common_prefix(tokens, state.tokens))
        assert path is not None
        assert store.read(path) == state
    store.close()


def test_another_model_or_setting_finds_nothing(tmp_path: Path) -> None:
    write(tmp_path, STATE)
    assert read(tmp_path, STATE.tokens, key="another") is None


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def zeros(data: bytes, rng: random.Random) -> bytes:
    return bytes(len(data))


def test_a_checkpoint_that_was_moved_is_as_good_as_none(tmp_path: Path) -> None:
    write(tmp_path, State(STATE.tokens, b"state", {198: bytearray(b"checkpoint")}))
    (file,) = tmp_path.glob("*.kv")
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"198":', b'"199":'))  # one bit of its header
    assert file.read_bytes() != data
    assert read(tmp_path, STATE.tokens) is None


@pytest.mark.parametrize("harm", [cut, flip, zeros])
def test_a_damaged_file_is_as_good_as_none(
    tmp_path: Path, harm: Callable[[bytes, random.Random], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(1)
    write(tmp_path, STATE)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    for _ in range(40):
        file.write_bytes(harm(whole, rng))
        found = read(tmp_path, STATE.tokens)
        assert found is None or found == STATE


def test_strange_files_are_told_of_once_and_go_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, STATE)
    write(tmp_path, State([7] * 200, b"other"), key="another")
    with (tmp_path / "junk.kv").open("wb") as file:
        file.truncate(2 << 30)
    assert read(tmp_path, STATE.tokens) == STATE
    told = capsys.readouterr().err
    assert told.count("junk.kv is not used: it is no saved KV cache") == 1
    assert "1 saved KV caches belong to other models" in told
    write(tmp_path, State([9] * 150, b"new"))
    assert not (tmp_path / "junk.kv").exists()
    assert read(tmp_path, STATE.tokens) == STATE


def test_what_another_process_saves_is_found(tmp_path: Path) -> None:
    store = saved(tmp_path)
    nothing = store.find(lambda tokens, checkpoints: len(tokens))
    write(tmp_path, STATE)
    found = store.find(lambda tokens, checkpoints: len(tokens))
    store.close()
    assert nothing is None
    assert found is not None


def test_a_failed_save_is_told_to_whoever_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failed: list[bool] = []
    store = saved(tmp_path / "file" / "kv")
    store.write(STATE, lambda: failed.append(True))
    store.close()
    assert failed == [True]


def test_a_sparse_monster_costs_nothing(tmp_path: Path) -> None:
    with (tmp_path / "x.kv").open("wb") as file:
        file.truncate(2 << 30)
    assert read(tmp_path, STATE.tokens) is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    states = [State([number] * 130, bytes(10_000)) for number in range(5)]
    write(tmp_path, *states)
    files = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    os.utime(files[0])
    write(tmp_path, State([9] * 130, bytes(10_000)), max_bytes=45_000)
    left = [number for number in (*range(5), 9) if read(tmp_path, [number] * 130)]
    assert 0 in left
    assert 9 in left
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 50_000


def test_a_folder_that_cannot_be_is_a_line_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    write(tmp_path / "file" / "kv", STATE)
    assert "could not be saved" in capsys.readouterr().err
