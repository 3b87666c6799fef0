"""`edgeqwen run`: one answer, pipes, conversations, interrupts and deaths."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.support.asking import script
from tests.support.program import PROGRAM, Done, Terminal, edgeqwen, is_one_sentence
from tests.support.tiny import write_model

STATS = {
    "queued_s", "load_s", "ttft_s", "prompt_tokens", "cached_tokens", "prefill_s", "prefill_tps",
    "completion_tokens", "decode_s", "decode_tps", "rss_bytes",
}  # fmt: skip


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    return script(tmp_path, pieces=["Hel", "lo", " there"])


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return script(tmp_path, pieces=[f"word{n} " for n in range(500)], delay_s=0.03)


@pytest.fixture
def thinker(tmp_path: Path) -> Path:
    return script(tmp_path, pieces=["<think>", "\nhm", "\n</think>", "\n\n", "yes"])


def started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start the program with its output on pipes, to be interrupted."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, bufsize=0
    )


def refused(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done
    assert is_one_sentence(done.err), done.err
    for word in words:
        assert word in done.err


def test_one_answer_goes_to_stdout_alone(hello: Path) -> None:
    done = edgeqwen("run", hello, "hi")
    assert (done.code, done.out) == (0, "Hello there\n")
    assert "error" not in done.err


def test_json_has_the_promised_shape(hello: Path) -> None:
    data = edgeqwen("run", hello, "hi", "--json").json
    assert list(data) == ["model", "text", "thinking", "stop_reason", "stats"]
    assert set(data["stats"]) == STATS
    assert (data["text"], data["stop_reason"]) == ("Hello there", "eos")


def test_a_pipe_is_added_to_the_prompt(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        replies=[
            {"match": "sum up\n\nthe text", "pieces": ["both"]},
            {"match": "the text", "pieces": ["pipe"]},
        ],
    )
    assert edgeqwen("run", path, "sum", "up", stdin="the text\n").out == "both\n"
    assert edgeqwen("run", path, stdin="the text\n").out == "pipe\n"
    refused(edgeqwen("run", path), 2, "the prompt is empty")
    refused(edgeqwen("run", path, "  "), 2, "the prompt is empty")


def test_bytes_that_are_no_text_do_no_harm(hello: Path) -> None:
    assert edgeqwen("run", hello, "hi", stdin=b"\xff\xfe\x00\x1b[31m").out == "Hello there\n"


def test_thinking_is_kept_apart(thinker: Path) -> None:
    done = edgeqwen("run", thinker, "x")
    assert done.out == "yes\n"
    assert "hm" not in done.err, "thinking is shown on terminals alone"
    data = edgeqwen("run", thinker, "x", "--json").json
    assert (data["text"], data["thinking"]) == ("yes", "hm")


def test_sampler_options_reach_the_engine(models: Path) -> None:
    model = models / "qwen3.gguf"
    arguments = ("run", model, "hi", "--json", "--max-tokens", "8", "--temp", "0")
    first = edgeqwen(*arguments).json
    assert (first["stop_reason"], first["stats"]["completion_tokens"]) == ("length", 8)
    edgeqwen("config", "set", "sampler.max_tokens", "5")
    configured = edgeqwen("run", model, "hi", "--json", "--temp", "0").json
    assert configured["stats"]["completion_tokens"] == 5
    assert edgeqwen(*arguments).json["stats"]["completion_tokens"] == 8, "the command line goes first"
    refused(edgeqwen("config", "set", "sampler.top_p", "7"), 2, "must lie between")
    stopped = edgeqwen(*arguments, "--stop", first["text"][3:5]).json
    assert stopped["stop_reason"] == "stop"
    assert first["text"].startswith(stopped["text"])
    seeded = [
        edgeqwen("run", model, "hi", "--json", "--seed", "5", "--max-tokens", "8").json["text"] for _ in "ab"
    ]
    assert seeded[0] == seeded[1]


@pytest.mark.parametrize("wrong", [("--temp", "nan"), ("--temp", "-1"), ("--top-p", "7")])
def test_nonsense_is_refused_before_a_load(hello: Path, home: Path, wrong: tuple[str, str]) -> None:
    refused(edgeqwen("run", hello, "hi", *wrong), 2, "must lie between")
    assert not (home / "state").exists()


def test_a_prompt_longer_than_the_context_names_both_numbers(hello: Path) -> None:
    done = edgeqwen("run", hello, "x" * 3000, "--ctx", "2048", "--json")
    refused(done, 2, "2,048", "--ctx")
    error = done.json["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["available"] == 2048
    assert f"{error['needed'] - 1:,}" in done.err


def test_the_end_of_the_context_is_told(models: Path) -> None:
    done = edgeqwen("run", models / "qwen3.gguf", "hi", "--ctx", "64", "--temp", "0")
    assert done.code == 0
    assert "the context of 64 tokens is full" in done.err


def test_a_conversation_over_a_pipe(hello: Path) -> None:
    lines = "first\n\n/help\n/system be brief\nsecond\n/tmp is what?\n/clear\nthird\n/quit\nnever\n"
    done = edgeqwen("run", hello, "--chat", "--json", stdin=lines)
    assert done.code == 0
    documents = [json.loads(line) for line in done.out.splitlines()]
    assert len(documents) == lines.count("\n") - 1, "one for each line"
    assert documents[1]["error"]["message"] == "the message is empty"
    assert [one["command"] for one in documents if "command" in one][-1] == "/quit"
    turns = [one for one in documents if "text" in one]
    assert [turn["text"] for turn in turns] == ["Hello there"] * 4
    assert turns[1]["stats"]["prompt_tokens"] > turns[0]["stats"]["prompt_tokens"]
    assert turns[3]["stats"]["cached_tokens"] > 0
    assert "unknown command: /nonsense" in edgeqwen("run", hello, "--chat", stdin="/nonsense\n").err


def test_the_second_turn_is_cached(models: Path) -> None:
    done = edgeqwen(
        "run", models / "qwen3.gguf", "--chat", "--json", "--temp", "0", "--max-tokens", "8", stdin="a\nb\n"
    )
    first, second = (json.loads(line)["stats"] for line in done.out.splitlines())
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= first["prompt_tokens"]


def test_a_message_of_several_lines(tmp_path: Path) -> None:
    path = script(tmp_path, replies=[{"match": "one\ntwo\nthree", "pieces": ["all"]}])
    assert edgeqwen("run", path, "--chat", stdin='"""one\ntwo\nthree"""\n').out == "all\n"


def test_a_failed_turn_leaves_the_conversation_going(hello: Path) -> None:
    done = edgeqwen("run", hello, "--chat", "--ctx", "128", stdin=f"{'x' * 500}\nshort\n")
    assert done.out == "Hello there\n"
    assert "the context holds 128" in done.err
    assert done.code == 2


def test_a_worker_that_dies_leaves_its_text(tmp_path: Path) -> None:
    path = script(tmp_path, pieces=["some ", "words ", "and "], fault=3, delay_s=0.05)
    done = edgeqwen("run", path, "hi")
    assert done.code == 6
    assert done.out.startswith("some words")
    assert done.out.endswith("\n")
    assert is_one_sentence(done.err)
    assert "signal 9" in done.err
    data = edgeqwen("run", path, "hi", "--json").json
    assert data["text"].startswith("some")
    assert data["error"]["code"] == "worker_lost"
    assert data["stop_reason"] is None


def test_kill_9_in_mid_answer(slow: Path) -> None:
    with started("run", slow, "hi") as run:
        first = run.stdout.read(5)
        (worker,) = psutil.Process(run.pid).children()
        worker.kill()
        out, err = first + run.stdout.read(), run.stderr.read().decode()
        assert run.wait(20) == 6
    assert out.startswith(b"word0")
    assert is_one_sentence(err)
    assert not psutil.pid_exists(worker.pid)


def test_load_failures(tmp_path: Path) -> None:
    refused(edgeqwen("run", script(tmp_path, fault="load"), "hi"), 6, "refuses to load")
    broken = write_model(tmp_path / "m.gguf", template="{% if %}")
    refused(edgeqwen("run", broken, "hi"), 6, "template is broken")


def test_ctrl_c_keeps_the_answer(slow: Path) -> None:
    with started("run", slow, "hi") as run:
        first = run.stdout.read(5)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=20)
    assert run.returncode == 130
    assert (first + out).startswith(b"word0 ")
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


def test_a_closed_pipe_is_no_crash(tmp_path: Path) -> None:
    path = script(tmp_path, pieces=["word "] * 2000, delay_s=0.001)
    with started("run", path, "hi") as run:
        run.stdout.read(4)
        run.stdout.close()
        err = run.stderr.read().decode()
        assert run.wait(20) == 130
    assert "Traceback" not in err
    assert "closed before everything was written" in err


@pytest.mark.parametrize(("redirect", "code"), [("<&-", 0), (">&-", 0), ("2>&-", 0), (">/dev/full", 4)])
def test_streams_that_are_closed_or_full(hello: Path, redirect: str, code: int) -> None:
    command = shlex.join([*PROGRAM, "run", str(hello), "hi"])
    done = subprocess.run(
        ["bash", "-c", f"{command} {redirect}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert "went wrong inside" not in done.stderr
    if code:
        assert is_one_sentence(done.stderr)


def test_no_colour_codes_into_pipes(thinker: Path) -> None:
    done = edgeqwen("run", thinker, "x", env={"FORCE_COLOR": "1"})
    assert "\x1b" not in done.out + done.err


def test_control_characters_of_a_model_stay_away(tmp_path: Path) -> None:
    path = script(tmp_path, pieces=["a\x1b[2J", "\x1b]52;c;x\x07", "b\u202e"])
    assert edgeqwen("run", path, "x").out == "a[2J]52;c;xb\n"


class TestOnATerminal:
    """What a person sees."""

    def test_a_conversation(self, hello: Path) -> None:
        with Terminal("run", hello) as terminal:
            terminal.wait_for("is ready; /help lists the commands")
            terminal.wait_for("> ")
            terminal.type("hi\n")
            terminal.wait_for("Hello there")
            terminal.wait_for(r"3 tokens .* prompt \d+")
            terminal.wait_for("> ")
            terminal.type("/help\n")
            terminal.wait_for("/clear")
            terminal.wait_for("> ")
            terminal.type("\x04")
            assert terminal.end() == 0

    def test_ctrl_c_stops_the_answer_and_twice_leaves(self, slow: Path) -> None:
        with Terminal("run", slow) as terminal:
            terminal.wait_for("> ")
            terminal.type("hi\n")
            terminal.wait_for("word3 ")
            terminal.type("\x03")
            terminal.wait_for("> ")
            assert "word499" not in terminal.seen
            terminal.interrupt("Ctrl-C once more leaves")
            terminal.type("\n")
            terminal.wait_for("> ")
            terminal.interrupt("once more")
            with pytest.raises(EOFError):
                terminal.interrupt("nothing more")
            assert terminal.end() == 130

    def test_a_lost_engine_is_started_again(self, tmp_path: Path) -> None:
        path = script(tmp_path, pieces=["a ", "b "], fault=2, delay_s=0.04)
        with Terminal("run", path) as terminal:
            terminal.wait_for("> ")
            terminal.type("hi\n")
            terminal.wait_for("error: the engine process was killed")
            terminal.wait_for("starting the engine again")
            terminal.wait_for("> ")
            terminal.type("/quit\n")
            assert terminal.end() == 0

    def test_thinking_is_dim_and_no_color_is_heeded(self, thinker: Path) -> None:
        for env, dim in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
            with Terminal("run", thinker, "x", env=env) as terminal:
                terminal.end()
                assert ("\x1b[2m" in terminal.seen) == dim
                assert "hm" in terminal.seen
                assert re.search(r"yes\r\n", terminal.seen)


@pytest.mark.model
def test_the_real_model_answers(real_model: Path) -> None:
    assert edgeqwen("import", real_model).out == "qwen2.5-coder-0.5b:q4_k_m\n"
    question = "Write a Python expression that reverses the string s. Only the expression."
    data = edgeqwen("run", "qwen2.5-coder-0.5b", question, "--json", "--seed", "1").json
    assert "s[::-1]" in data["text"]
    assert data["stop_reason"] == "eos"


@pytest.mark.model
def test_a_real_conversation_is_cached(real_model: Path) -> None:
    done = edgeqwen(
        "run", real_model, "--chat", "--json", "--temp", "0", "--max-tokens", "20", stdin="Say hi.\nAgain.\n"
    )
    first, second = (json.loads(line)["stats"] for line in done.out.splitlines())
    assert second["cached_tokens"] > first["prompt_tokens"]


@pytest.mark.model
def test_a_real_prompt_can_be_too_long(real_model: Path) -> None:
    done = edgeqwen("run", real_model, "word " * 3000, "--ctx", "2048")
    refused(done, 2, "the context holds 2,048")
    assert re.search(r"the prompt has 3,\d{3} tokens", done.err)


def test_what_is_quoted_is_no_command(home: Path) -> None:
    done = edgeqwen("run", "demo", "--chat", "--json", stdin='"""\n/clear\n"""\n/clear\n')
    first, second = (json.loads(line) for line in done.out.splitlines())
    assert ("text" in first, second) == (True, {"command": "/clear"})


def test_a_stderr_that_takes_nothing_costs_no_answer(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "run", "demo", "hi", "--ctx", "2048"],
            stdout=subprocess.PIPE, stderr=full, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.strip()


def test_json_keeps_every_letter_whatever_the_encoding(home: Path) -> None:
    done = edgeqwen("run", "demo", "Szia", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert json.loads(done.out)["text"] == edgeqwen("run", "demo", "Szia", "--json").json["text"]
