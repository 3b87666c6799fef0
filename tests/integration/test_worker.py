"""Workers that die, hang or lose their parent, and what the front end sees of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from edgeqwen.chat.session import Session
from edgeqwen.chat.thinking import Delta
from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.frames import FrameReader, decode_event, encode
from edgeqwen.engine.protocol import Failed, Generate, Load, LoadParams, Prefill, TextDelta
from edgeqwen.errors import ContextOverflow, EngineBusy, EngineError, InvalidInput, LoadFailed, WorkerLost
from tests.support.asking import ask, script, user
from tests.support.tiny import write_model

FULL_DEVICE = Path("/dev/full")  # as a full disk


def scripted(path: Path, **params: int) -> LoadParams:
    return LoadParams(paths=(str(path),), engine="scripted", **{"n_ctx": 4096, **params})


async def hear(session: Session, text: str) -> str:
    """Ask and return all that is shown."""
    async with aclosing(session.ask(text)) as pieces:
        return "".join([piece.text async for piece in pieces if isinstance(piece, Delta)])


def until(happens: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition that another process brings about."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        os.sched_yield()


async def test_a_killed_worker_ends_every_request_with_its_log(tmp_path: Path) -> None:
    path = script(tmp_path, pieces=["a"] * 4000, delay_s=0.005)
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(path))
        running = [asyncio.create_task(ask(client, "x", max_tokens=None)) for _ in range(3)]
        request = Generate(id=client.next_id(), messages=user("x"))
        async with aclosing(client.generate(request)) as events:
            await asyncio.sleep(0)
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(WorkerLost) as caught:
                async for _ in events:
                    pass
        for task in running:
            with pytest.raises(WorkerLost):
                await task
        assert caught.value.exit_status == -9
        assert caught.value.log_file
        assert "signal 9" in str(caught.value)
        with pytest.raises(WorkerLost):
            await ask(client, "x")


async def test_a_session_keeps_what_was_said_before_the_worker_died(tmp_path: Path) -> None:
    path = script(
        tmp_path, pieces=["<think>", "hm", "</think>", "one ", "two ", "three"], fault=5, delay_s=0.05
    )
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(path))
        session = Session(client)
        with pytest.raises(WorkerLost):
            await hear(session, "count")
    last = session.conversation.branch()[-1]
    assert (last.thinking, last.is_complete) == ("hm", False)
    assert last.text.startswith("one")


async def test_a_turn_that_never_began_is_taken_back(tmp_path: Path) -> None:
    path = script(tmp_path, pieces=["ok"])
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(path, n_ctx=64))
        session = Session(client)
        with pytest.raises(ContextOverflow):
            await hear(session, "x" * 100)
        assert session.conversation.branch() == []
        assert await hear(session, "short") == "ok"
        assert [message.role for message in session.conversation.branch()] == ["user", "assistant"]


async def test_a_turn_cancelled_before_its_first_word_is_taken_back(tmp_path: Path) -> None:
    path = script(tmp_path, pieces=["ok"], delay_s=0.05)
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(path, n_batch=8))
        session = Session(client)
        async with aclosing(session.ask("x" * 200)) as pieces:
            async for piece in pieces:
                assert isinstance(piece, Prefill)
                await session.cancel()
        assert session.conversation.branch() == []


async def test_another_worker_can_be_started(tmp_path: Path) -> None:
    path = script(tmp_path, pieces=["a"], fault=0)
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(path))
        with pytest.raises(WorkerLost):
            await ask(client, "x")
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(script(tmp_path, pieces=["fine"])))
        assert (await ask(client, "x")).text == "fine"


async def test_an_aborting_library_is_told_by_its_signal(tmp_path: Path) -> None:
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(script(tmp_path, pieces=["a"] * 500, delay_s=0.01)))
        task = asyncio.create_task(ask(client, "x", max_tokens=None))
        await asyncio.sleep(0)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGABRT)
        with pytest.raises(WorkerLost, match="crashed \\(SIGABRT\\)"):
            await task


@pytest.mark.parametrize("when", ["idle", "answering"])
def test_a_worker_whose_parent_is_gone_ends_itself(tmp_path: Path, when: str) -> None:
    path = script(tmp_path, pieces=["a"] * 4000, delay_s=0.01)
    code = f"""
import asyncio, sys
from pathlib import Path
from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import *
async def main():
    client = WorkerClient(Path({str(tmp_path / "logs")!r}))
    await client.load(LoadParams(paths=({str(path)!r},), engine="scripted"))
    print(client.pid, flush=True)
    if {when == "answering"}:
        request = Generate(id=1, messages=(ChatMessage(role="user", content="x"),))
        async for event in client.generate(request):
            if isinstance(event, TextDelta):
                print("said", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        if when == "answering":
            assert parent.stdout.readline() == "said\n"
        assert psutil.pid_exists(worker)
        parent.kill()
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)


async def test_nonsense_on_the_pipe_ends_the_worker_in_order(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edgeqwen.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, log = await process.communicate(b"\xff\xff\xff\xffGET / HTTP/1.1\r\n")
    assert process.returncode == 0
    assert out == b""
    assert b"announced a frame" in log


async def test_a_frame_with_a_wrong_value_costs_one_request_and_not_the_worker(tmp_path: Path) -> None:
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(script(tmp_path, pieces=["fine"])))
        bad = Generate(id=client.next_id(), messages=user("x"), overflow="gone")  # type: ignore[arg-type]
        async with aclosing(client.generate(bad)) as events:
            with pytest.raises(InvalidInput, match="cannot be asked"):
                await anext(events)
        assert (await ask(client, "x")).text == "fine"


async def test_the_worker_takes_no_module_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("open('taken', 'w')\nraise ImportError")
    monkeypatch.chdir(tmp_path)
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(script(tmp_path, pieces=["fine"])))
        assert (await ask(client, "x")).text == "fine"
    assert not (tmp_path / "taken").exists()


async def test_one_conversation_has_one_turn_at_a_time(tmp_path: Path) -> None:
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(script(tmp_path, pieces=["a"] * 20, delay_s=0.01)))
        session = Session(client)
        first = asyncio.create_task(hear(session, "one"))
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy):
            await hear(session, "two")
        assert await first == "a" * 20
        assert [message.text for message in session.conversation.branch()] == ["one", "a" * 20]


async def test_a_worker_is_asked_for_things_in_the_wrong_order(tmp_path: Path) -> None:
    path = script(tmp_path, pieces=["a"])
    async with WorkerClient(tmp_path / "logs") as client:
        await client.start()
        with pytest.raises(EngineError, match="no model is loaded"):
            await ask(client, "x")
        await client.load(scripted(path))
        with pytest.raises(EngineError, match="holds a model already"):
            await client.load(scripted(path))
        assert (await ask(client, "x")).text == "a"


async def test_loads_that_fail_say_why(tmp_path: Path, models: Path) -> None:
    cases = {
        "refuses": scripted(script(tmp_path, fault="load")),
        "cannot be used": scripted(tmp_path / "gone.script.json"),
        "could not load gone.gguf": LoadParams(paths=(str(tmp_path / "gone.gguf"),)),
        "wrong type": LoadParams(
            paths=(str(write_model(tmp_path / "a.gguf", metadata={"qwen3.block_count": "2"})),)
        ),
    }
    for words, params in cases.items():
        async with WorkerClient(tmp_path / "logs") as client:
            with pytest.raises(LoadFailed, match=words) as caught:
                await client.load(params)
            assert "\n" not in str(caught.value)
            # Where llama.cpp refuses, the hint is what can be done about files.
            assert (caught.value.reason == "") == params.paths[0].endswith(".gguf")


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="needs /dev/full")
def test_a_full_disk_below_the_log_ends_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.gguf", metadata={"qwen3.block_count": "2"})
    with FULL_DEVICE.open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "edgeqwen.worker"],
            input=encode(Load(params=LoadParams(paths=(str(model),)))),
            stdout=subprocess.PIPE,
            stderr=log,
            check=False,
        )
    failed = [
        event for body in FrameReader().feed(done.stdout) if isinstance(event := decode_event(body), Failed)
    ]
    assert ["wrong type" in event.message for event in failed] == [True]
    assert done.returncode == 0


async def test_loading_tells_how_far_it_is(tmp_path: Path, models: Path) -> None:
    told: list[float] = []
    async with WorkerClient(tmp_path / "logs") as client:
        ready = await client.load(LoadParams(paths=(str(models / "qwen3.gguf"),), n_ctx=300), told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert (ready.n_ctx, ready.architecture, ready.has_template) == (300, "qwen3", True)
    assert ready.load_s > 0


async def test_old_logs_go_away(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    path = script(tmp_path)
    for _ in range(12):
        async with WorkerClient(logs) as client:
            await client.load(scripted(path))
    assert len(list(logs.glob("worker-*.log"))) == 10


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's own")
def test_the_worker_cannot_open_a_connection() -> None:
    code = """
import socket
from edgeqwen.worker.confine import confine
assert confine()
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_VSOCK, socket.AF_NETLINK):
    try:
        socket.socket(family)
    except PermissionError:
        continue
    raise SystemExit("a socket was opened")
socket.socketpair()

import ctypes, errno, mmap, platform
call = ctypes.CDLL(None, use_errno=True).syscall
assert (call(425, 1, 0), ctypes.get_errno()) == (-1, errno.EACCES), "io_uring"
if platform.machine() == "x86_64":
    assert (call(0x40000029, 2, 1, 0), ctypes.get_errno()) == (-1, errno.EACCES), "x32"
    # push rbx; socket(AF_INET, SOCK_STREAM, 0) by the 32-bit gate; pop rbx; ret
    code = bytes.fromhex("53 b867010000 bb02000000 b901000000 31d2 cd80 5b c3")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    assert run() < 0, "i386"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_hostile_template_costs_one_answer_and_no_worker(tmp_path: Path) -> None:
    source = "{% if 'boom' in messages[0].content %}{{ 1 // 0 }}{% endif %}{{ messages[0].content }}"
    path = write_model(tmp_path / "m.gguf", template=source)
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(LoadParams(paths=(str(path),), n_ctx=256))
        with pytest.raises(EngineError, match="template refused"):
            await ask(client, "boom")
        assert (await ask(client, "hello", max_tokens=3)).finished.stats.completion_tokens == 3


async def test_a_broken_template_fails_the_load(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", template="{% for %}")
    async with WorkerClient(tmp_path / "logs") as client:
        with pytest.raises(EngineError, match="template is broken"):
            await client.load(LoadParams(paths=(str(path),), n_ctx=256))
        whole = write_model(tmp_path / "whole.gguf")
        await client.load(LoadParams(paths=(str(whole),), n_ctx=256))
        assert (await ask(client, "hi", max_tokens=2)).finished


async def test_shards_answer_as_the_whole_does(tmp_path: Path, models: Path) -> None:
    first = write_model(tmp_path / "cut.gguf", split_tensors=8)
    shards = tuple(str(path) for path in sorted(first.parent.glob("cut-*.gguf")))
    said = []
    for paths in (shards, (str(models / "qwen3.gguf"),)):
        async with WorkerClient(tmp_path / "logs") as client:
            await client.load(LoadParams(paths=paths, n_ctx=256))
            said.append((await ask(client, "Hello")).text)
    assert said[0] == said[1]


async def test_deltas_are_gathered(tmp_path: Path) -> None:
    """A frame per token would wake the front end for each: the first comes at once, the rest in bundles."""
    path = script(tmp_path, pieces=["a"] * 2000)
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(scripted(path))
        answer = await ask(client, "x", max_tokens=None)
    deltas = [event for event in answer.events if isinstance(event, TextDelta)]
    assert deltas[0].text == "a"
    assert sum(len(delta.text) for delta in deltas) == 2000
    assert len(deltas) < 500
