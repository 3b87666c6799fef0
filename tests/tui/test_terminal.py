"""The whole program in a real terminal: typed at, resized, killed, reopened; and what bytes reach it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.asking import script
from tests.support.program import edgeqwen
from tests.support.screen import ScreenTerminal

EVIL = "\x1b]52;c;aGFja2Vk\x07 \x1b]0;title\x07 \x9b31m \x1b[2J end"


def worker_of(pid: int) -> psutil.Process:
    [worker] = [one for one in psutil.Process(pid).children() if "edgeqwen.worker" in one.cmdline()]
    return worker


def test_a_question_is_typed_answered_and_there_the_next_time(tmp_path: Path) -> None:
    model = script(tmp_path, pieces=["The ", "answer ", "is ", "42."])
    with ScreenTerminal("chat", model) as terminal:
        terminal.wait_for(r"script\.json ·")
        terminal.type("What is it?\r")
        terminal.wait_for(r"The answer is 42\.")
        terminal.wait_for(r"first after")
        terminal.type("\x11")
        assert terminal.end() == 0
    assert b"\x1b[?1049l" in terminal.raw, "the terminal is put back"
    with ScreenTerminal("chat", model) as terminal:
        terminal.wait_for(r"script\.json ·")
        terminal.type("\x12")
        terminal.wait_for("What is it")
        terminal.type("\r")
        terminal.wait_for(r"The answer is 42\.")


def test_it_lives_through_tiny_windows_and_a_killed_worker(tmp_path: Path) -> None:
    model = script(tmp_path, pieces=["word "] * 500, delay_s=0.02)
    with ScreenTerminal("chat", model) as terminal:
        terminal.wait_for(r"script\.json ·")
        terminal.type("go on\r")
        terminal.wait_for("word word word")
        terminal.resize(20, 5)
        terminal.read(0.5)
        terminal.resize(100, 30)
        terminal.wait_for("word word word")
        worker_of(terminal.pid).send_signal(signal.SIGKILL)
        terminal.wait_for("was killed")
        terminal.wait_for("word")
        terminal.wait_for(r"script\.json ·")


def test_a_killed_program_has_kept_the_half_answer(tmp_path: Path) -> None:
    model = script(tmp_path, pieces=["word "] * 500, delay_s=0.02)
    with ScreenTerminal("chat", model) as terminal:
        terminal.wait_for(r"script\.json ·")
        terminal.type("go on\r")
        terminal.wait_for("ctx 1%")  # some seconds; at most the last one is lost
        worker = worker_of(terminal.pid)
        os.kill(terminal.pid, signal.SIGKILL)
        worker.wait(20)
    with ScreenTerminal("chat", "--open", "1", model) as terminal:
        terminal.wait_for("word word")
        terminal.wait_for("stopped|Answer")


def test_a_missing_editor_leaves_screen_and_draft(tmp_path: Path) -> None:
    with ScreenTerminal("chat", script(tmp_path), env={"EDITOR": "no-such-editor"}) as terminal:
        terminal.wait_for(r"script\.json ·")
        terminal.type("a long thought")
        terminal.wait_for("a long thought")
        terminal.type("\x05")
        terminal.wait_for("no-such-editor cannot be started here")
        terminal.type(" and more")
        terminal.wait_for("a long thought and more")


def test_told_to_end_it_gives_the_terminal_back(tmp_path: Path) -> None:
    with ScreenTerminal("chat", script(tmp_path)) as terminal:
        terminal.wait_for(r"script\.json ·")
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.end() == 143
    assert b"\x1b[?1049l" in terminal.raw


@pytest.mark.parametrize("where", ["answer", "name"])
def test_no_escape_sequence_of_others_reaches_the_terminal(tmp_path: Path, where: str) -> None:
    folder = tmp_path / ("evil\x1b]0;x\x07\x9b31m" if where == "name" else "good")
    expected = "printable" if where == "name" else r"script\.json ·"  # such a name is refused
    folder.mkdir()
    model = script(folder, pieces=["<think>", EVIL, "</think>", EVIL])
    with ScreenTerminal("chat", model) as terminal:
        terminal.wait_for(expected)
        terminal.type("x\r")
        terminal.wait_for("first after" if where == "answer" else "no model is loaded")
        terminal.type("\x11")
        terminal.end()
    raw = bytes(terminal.raw)
    assert b"end" in raw or where == "name"
    assert b"\x1b]52" not in raw
    assert b"\x1b]0;" not in raw
    assert "\x9b" not in raw.decode()
    ours = re.compile(rb"\x1b(\]22;[a-z]*\x07|\[[\d;:?<>=$ ]*[@-~]|[()][0B]|[78=>DMc])")
    assert b"\x1b" not in ours.sub(b"", raw), ours.sub(b"", raw)[:200]


def test_a_dumb_terminal_and_a_pipe_get_lines(tmp_path: Path) -> None:
    model = script(tmp_path, pieces=["plain"])
    with ScreenTerminal("chat", model, env={"TERM": "dumb"}) as terminal:
        terminal.wait_for("is ready")
        terminal.type("hi\r")
        terminal.wait_for("plain")
        assert b"\x1b[?1049h" not in terminal.raw
    assert edgeqwen("chat", model, stdin="hi\n").out == "plain\n"
    done = edgeqwen("chat", stdin="hi\n")
    assert (done.code, "no model is installed" in done.err) == (2, True)


def test_low_bandwidth_and_no_color_draw_less(tmp_path: Path) -> None:
    model = script(tmp_path, pieces=["word "] * 60, delay_s=0.02)
    sizes = []
    for arguments, env in (((), {}), (("--low-bandwidth",), {"NO_COLOR": "1"})):
        with ScreenTerminal("chat", *arguments, model, env=env) as terminal:
            terminal.wait_for(r"script\.json ·")
            terminal.read(0.5)
            before = len(terminal.raw)
            terminal.type("x\r")
            terminal.wait_for("first after")
            sizes.append(len(terminal.raw) - before)
    assert sizes[1] < sizes[0]


@pytest.mark.model
def test_the_real_model_answers_on_the_screen(real_model: Path) -> None:
    with ScreenTerminal("chat", real_model) as terminal:
        terminal.wait_for(r"gguf ·", 60)
        terminal.type("What is 2 + 2? Answer with the number only.\r")
        terminal.wait_for("4", 60)
        terminal.wait_for(r"tok/s|tokens", 60)
