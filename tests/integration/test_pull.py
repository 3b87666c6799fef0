"""Pulling whole models: resumed after kill -9, found elsewhere, repaired, by several processes at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from edgeqwen.models.digest import CHUNK, digest_of
from edgeqwen.models.facts import read_facts
from edgeqwen.models.pull import Plan, PullWatch, pull
from edgeqwen.models.sources import Origin, Sources
from edgeqwen.models.store import Store
from tests.support.hub import REVISION, Hub
from tests.support.program import PROGRAM, Done, edgeqwen, is_one_sentence
from tests.support.tiny import write_model

REPO = "Qwen/Tiny-GGUF"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub" / REPO).mkdir(parents=True)
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def model(hub: Hub, home: Path) -> Path:
    """Put one model on the hub and into the user's catalogue; nothing else is a source."""
    path = write_model(hub.folder / REPO / "tiny-q8_0.gguf")
    offer(hub, home, path)
    return path


def offer(hub: Hub, home: Path, *files: Path, licence: str = "apache-2.0") -> None:
    """Write a catalogue entry `tiny` for files of the hub, and settings with the hub as the only source."""
    listed = [
        {"name": file.name, "size": file.stat().st_size, "sha256": digest_of(file).sha256} for file in files
    ]
    rows = ", ".join(
        f'{{name = "{f["name"]}", size = {f["size"]}, sha256 = "{f["sha256"]}"}}' for f in listed
    )
    (home / "config").mkdir(parents=True, exist_ok=True)
    (home / "config" / "models.toml").write_text(f"""
[models.tiny]
name = "Tiny"
family = "qwen3"
parameters_b = 0.0001
licence = "{licence}"
architecture = "qwen3"
context = 512
capabilities = ["chat"]
thinking = "none"
repo = "{REPO}"
revision = "{REVISION}"
default_quant = "q8_0"
shape = {{n_layers = 2, n_embd = 8, n_ff = 8, n_head = 2, n_head_kv = 1, key_length = 8, value_length = 8}}
variants = [{{quant = "q8_0", files = [{rows}]}}]
""")
    (home / "config" / "config.toml").write_text(f'[pull]\nsources = ["{hub.url}"]\n')


def installed(home: Path) -> Path:
    return home / "data" / "models" / "tiny" / "q8_0"


def refused(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done
    assert is_one_sentence(done.err.partition("error: ")[1] + done.err.partition("error: ")[2]), done.err
    for word in words:
        assert word in done.err


def test_a_pull_installs_and_runs(hub: Hub, model: Path, home: Path) -> None:
    done = edgeqwen("pull", "tiny")
    assert (done.code, done.out) == (0, "tiny:q8_0\n")
    assert (installed(home) / model.name).read_bytes() == model.read_bytes()
    assert not list((home / "data" / "models" / "partial").iterdir())
    assert edgeqwen("run", "tiny", "hi", "--max-tokens", "3", "--temp", "0").code == 0
    again = edgeqwen("pull", "Tiny:Q8_0")
    assert "installed already" in again.err
    assert len(hub.seen) == 1


def test_events_as_json(model: Path) -> None:
    done = edgeqwen("pull", "tiny", "--json")
    events: list[dict[str, Any]] = [json.loads(line) for line in done.out.splitlines()]
    assert events[0]["event"] == "plan"
    assert events[0]["size_bytes"] == model.stat().st_size
    assert events[-1]["event"] == "installed"
    assert events[-1]["ref"] == "tiny:q8_0"
    assert {event["event"] for event in events} >= {"plan", "progress", "installed"}


def test_a_dry_run_moves_nothing(hub: Hub, model: Path, home: Path) -> None:
    done = edgeqwen("pull", "tiny", "--dry-run")
    assert done.code == 0
    assert "Apache License" in done.err
    assert hub.seen == []
    assert not installed(home).exists()


def test_a_licence_without_commerce_wants_a_yes(hub: Hub, model: Path, home: Path) -> None:
    offer(hub, home, model, licence="qwen-research")
    refused(edgeqwen("pull", "tiny"), 2, "--yes")
    assert hub.seen == []
    assert edgeqwen("pull", "tiny", "--yes").code == 0


def test_shards_are_one_pull(hub: Hub, home: Path, model: Path) -> None:
    write_model(hub.folder / REPO / "cut-q8_0.gguf", split_tensors=8)
    shards = sorted((hub.folder / REPO).glob("cut-*"))
    offer(hub, home, *shards)
    hub.fail(shards[1].name, "truncate", at=1000)
    assert edgeqwen("pull", "tiny").code == 0
    assert sorted(path.name for path in installed(home).glob("*.gguf")) == [shard.name for shard in shards]


def test_unknown_things(model: Path) -> None:
    refused(edgeqwen("pull", "tinny"), 3, "did you mean tiny")
    refused(edgeqwen("pull", "tiny:q4_0"), 3, "does not come as q4_0; there is q8_0")
    refused(edgeqwen("pull", "x.gguf"), 2, "is a path")
    assert "edgeqwen pull tiny" in edgeqwen("run", "tiny", "hi").err


@pytest.mark.parametrize(("kind", "at", "words"), [("status", 404, "no such file"), ("html", 0, "HTML page")])
def test_what_cannot_be_had_is_exit_5(
    hub: Hub, model: Path, home: Path, kind: str, at: int, words: str
) -> None:
    hub.fail(model.name, kind, at=at)
    refused(edgeqwen("pull", "tiny"), 5, words)
    assert not installed(home).exists()


def test_right_bytes_that_are_no_model_are_refused(hub: Hub, model: Path, home: Path) -> None:
    hub.put(REPO, "llama.gguf", b"")
    llama = write_model(hub.folder / REPO / "llama.gguf", metadata={"general.architecture": "llama"})
    offer(hub, home, llama)
    refused(edgeqwen("pull", "tiny"), 2, "llama.gguf cannot be used: its architecture is llama")
    assert not installed(home).exists()


def test_a_folder_is_a_source(hub: Hub, model: Path, home: Path, tmp_path: Path) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    (usb / model.name).write_bytes(model.read_bytes())
    edgeqwen("config", "set", "pull.sources", json.dumps([str(usb)]))
    assert edgeqwen("pull", "tiny").code == 0
    assert hub.seen == []


def test_what_ollama_has_is_linked(hub: Hub, model: Path, home: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "ollama" / "blobs"
    blobs.mkdir(parents=True)
    blob = blobs / f"sha256-{digest_of(model).sha256}"
    blob.write_bytes(model.read_bytes())
    done = edgeqwen("pull", "tiny", env={"OLLAMA_MODELS": str(tmp_path / "ollama")})
    assert str(blob) in done.err
    assert (installed(home) / model.name).samefile(blob)
    assert blob.stat().st_mode & 0o200, "it is Ollama's, which may write to it"
    assert json.loads((installed(home) / "manifest.json").read_text())["came_by"] == "hard link"
    assert hub.seen == []


def test_what_is_here_needs_no_room(hub: Hub, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "usb"
    folder.mkdir()
    shutil.copy(model, folder / model.name)
    store = Store(tmp_path / "data" / "models")
    origin = Origin(REPO, REVISION, model.name, digest_of(model).sha256, model.stat().st_size)
    plan = Plan("tiny", "q8_0", (origin,), None, read_facts(model))
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 60 << 20))
    sources = Sources((), (folder,))
    assert pull(plan, store, sources, PullWatch()).ref == "tiny:q8_0"


def test_a_false_blob_is_not_believed(hub: Hub, model: Path, home: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "ollama" / "blobs"
    blobs.mkdir(parents=True)
    blob = blobs / f"sha256-{digest_of(model).sha256}"
    blob.write_bytes(model.read_bytes()[:-1] + b"!")
    assert edgeqwen("pull", "tiny", env={"OLLAMA_MODELS": str(tmp_path / "ollama")}).code == 0
    assert edgeqwen("verify", "tiny").code == 0
    assert len(hub.seen) == 1


def test_kill_9_at_fifty_random_moments(hub: Hub, home: Path) -> None:
    """Each round dies somewhere; what it got is used by the next one, and in the end the model is right."""
    path = write_model(hub.folder / REPO / "tiny-q8_0.gguf")
    with path.open("ab") as file:
        file.write(random.Random(5).randbytes(30_000_000))  # more at the end than the header says is no fault
    offer(hub, home, path)
    chance = random.Random(11)
    wanted = path.read_bytes()
    for _ in range(50):
        process = subprocess.Popen([*PROGRAM, "pull", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=chance.uniform(0.1, 0.45))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        final = installed(home) / path.name
        if (installed(home) / "manifest.json").exists():
            assert final.read_bytes() == wanted
            edgeqwen("rm", "tiny", "--yes")
    assert edgeqwen("pull", "tiny").code == 0
    assert edgeqwen("verify", "tiny").code == 0


def test_two_pulls_at_once_download_once(hub: Hub, home: Path) -> None:
    path = write_model(hub.folder / REPO / "tiny-q8_0.gguf")
    with path.open("ab") as file:
        file.write(bytes(20_000_000))
    offer(hub, home, path)
    running = [subprocess.Popen([*PROGRAM, "pull", "tiny"], stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[0] for process in running] == [b"tiny:q8_0\n"] * 3
    assert hub.sent == path.stat().st_size


def test_a_flipped_byte_costs_one_chunk(hub: Hub, home: Path) -> None:
    path = write_model(hub.folder / REPO / "tiny-q8_0.gguf")
    with path.open("ab") as file:
        file.write(random.Random(2).randbytes(3 * CHUNK))
    offer(hub, home, path)
    assert edgeqwen("pull", "tiny").code == 0
    victim = installed(home) / path.name
    data = bytearray(victim.read_bytes())
    data[CHUNK + 5] ^= 1
    victim.unlink()
    victim.write_bytes(data)
    before = hub.sent
    assert edgeqwen("verify", "tiny").code == 4
    done = edgeqwen("verify", "tiny", "--repair", "--json")
    assert done.code == 0
    assert done.json["repaired"][0]["downloaded_bytes"] == CHUNK
    assert hub.sent - before == CHUNK
    assert edgeqwen("verify", "tiny").code == 0
    assert not list((home / "data" / "models" / "partial").iterdir())


@pytest.mark.parametrize("harm", ["short", "gone"])
def test_a_short_or_missing_file_is_repaired(hub: Hub, model: Path, home: Path, harm: str) -> None:
    assert edgeqwen("pull", "tiny").code == 0
    victim = installed(home) / model.name
    data = victim.read_bytes()
    victim.unlink()
    if harm == "short":
        victim.write_bytes(data[:100_000])
    assert edgeqwen("verify", "tiny", "--repair").code == 0
    assert victim.read_bytes() == model.read_bytes()


def test_a_repair_that_fails_leaves_the_file(hub: Hub, model: Path, home: Path) -> None:
    assert edgeqwen("pull", "tiny").code == 0
    victim = installed(home) / model.name
    harmed = victim.read_bytes()[:-1] + b"!"
    victim.unlink()
    victim.write_bytes(harmed)
    hub.fail(model.name, "status", at=404, times=9)
    refused(edgeqwen("verify", "tiny", "--repair"), 5, "no such file")
    assert victim.read_bytes() == harmed


def test_a_stranger_cannot_be_repaired(tmp_path: Path, home: Path) -> None:
    edgeqwen("import", write_model(tmp_path / "mine-q8_0.gguf"), "--move")
    victim = next((home / "data").rglob("*.gguf"))
    victim.write_bytes(b"x")
    refused(edgeqwen("verify", "mine", "--repair"), 4, "nowhere to get its bytes from")


def test_a_stopped_pull_says_how_to_go_on(hub: Hub, home: Path) -> None:
    path = write_model(hub.folder / REPO / "tiny-q8_0.gguf")
    offer(hub, home, path)
    hub.fail(path.name, "status", at=503, times=99, Retry_After="60")
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-m", "edgeqwen", "pull", "tiny"], stdout=pipe, stderr=pipe)
    deadline = time.monotonic() + 20
    while not hub.seen:
        assert time.monotonic() < deadline
    assert process.stderr
    first = process.stderr.readline() + process.stderr.readline()
    assert b"trying again in 60 s" in first
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"`edgeqwen pull tiny:q8_0` goes on from here" in err
    assert b"Traceback" not in err
    assert out == b""


def test_any_qwen_of_a_hub(hub: Hub, model: Path, home: Path) -> None:
    repo = hub.folder / "Somebody" / "Nice-Qwen-GGUF"
    repo.mkdir(parents=True)
    for quant, seed in (("Q4_K_M", 3), ("Q8_0", 4)):
        write_model(repo / f"nice-qwen-{quant}.gguf", seed=seed)
    hub.put("Somebody/Nice-Qwen-GGUF", "mmproj-F16.gguf", b"GGUF")
    hub.put("Somebody/Nice-Qwen-GGUF", "..evil-Q2_K.gguf", b"GGUF")
    done = edgeqwen("pull", "hf:Somebody/Nice-Qwen-GGUF:Q8_0")
    assert (done.code, done.out) == (0, "nice-qwen:q8_0\n")
    assert "taken on trust" in done.err
    assert edgeqwen("pull", "hf:Somebody/Nice-Qwen-GGUF").out == "nice-qwen:q4_k_m\n"
    refused(edgeqwen("pull", "hf:Somebody/Nice-Qwen-GGUF:Q2_K"), 2, "comes as q4_k_m, q8_0")
    victim = home / "data" / "models" / "nice-qwen" / "q8_0" / "nice-qwen-Q8_0.gguf"
    victim.unlink()
    assert edgeqwen("verify", "nice-qwen:q8_0", "--repair").code == 0


def test_a_hub_repository_of_a_known_file_is_recognised(model: Path) -> None:
    done = edgeqwen("pull", f"hf:{REPO}:q8_0")
    assert done.out == "tiny:q8_0\n"
    assert "trust" not in done.err


def test_another_architecture_is_refused_by_its_head(hub: Hub, model: Path) -> None:
    (hub.folder / "a" / "llama").mkdir(parents=True)
    path = write_model(hub.folder / "a/llama/llama-Q8_0.gguf", metadata={"general.architecture": "llama"})
    with path.open("ab") as file:
        file.write(bytes(20_000_000))
    refused(edgeqwen("pull", "hf:a/llama:Q8_0"), 2, "architecture is llama")
    assert hub.sent < 9_000_000


def test_a_hub_without_that_repository(hub: Hub, model: Path) -> None:
    refused(edgeqwen("pull", "hf:no/such"), 5, "no such")
    (hub.folder / "a" / "empty").mkdir(parents=True)
    refused(edgeqwen("pull", "hf:a/empty"), 3, "no GGUF models")


def test_leftovers_are_listed_and_pruned(hub: Hub, model: Path, home: Path) -> None:
    hub.fail(model.name, "status", at=404, times=9)
    store = home / "data" / "models"
    (store / "partial").mkdir(parents=True)
    (store / "partial" / f"{'a' * 64}.part").write_bytes(b"GGUF")
    (store / "half" / "q8_0").mkdir(parents=True)
    (store / "half" / "q8_0" / "half.gguf").write_bytes(b"GGUF")
    rows = edgeqwen("list", "--partial", "--json").json
    assert sorted((row["kind"], row["size_bytes"]) for row in rows) == [("part", 4), ("unfinished", 4)]
    refused(edgeqwen("prune"), 2, "--yes")
    assert edgeqwen("prune", "--yes", "--json").json == {"files": 1, "freed_bytes": 4}
    rows = edgeqwen("list", "--partial", "--json").json
    assert [row["kind"] for row in rows] == ["unfinished"], "it may be somebody else's"


def test_what_is_worked_on_is_not_pruned(hub: Hub, model: Path, home: Path) -> None:
    partial = home / "data" / "models" / "partial"
    partial.mkdir(parents=True)
    (partial / f"{'a' * 64}.part").write_bytes(b"GGUF")
    with FileLock(partial / "tiny-q8_0.lock"):
        assert edgeqwen("list", "--partial", "--json").json == []
    assert len(edgeqwen("list", "--partial", "--json").json) >= 1


def test_a_clock_set_back_changes_nothing(hub: Hub, model: Path, home: Path) -> None:
    """Times decide nothing but whether a hash can be spared; one from the future is a time like another."""
    assert edgeqwen("pull", "tiny").code == 0
    file = installed(home) / model.name
    os.utime(file, (4e9, 4e9))
    assert edgeqwen("run", "tiny", "hi", "--max-tokens", "2").code == 0
    assert edgeqwen("verify", "tiny").code == 0
    os.utime(file, (0, 0))
    assert edgeqwen("verify", "tiny", "--json").json["hashed"] == 1


def test_a_full_disk_at_any_step_of_a_pull(hub: Hub, model: Path, home: Path) -> None:
    """File size limits stand for the full disk: every file of a pull is written under one."""
    size = model.stat().st_size
    for limit in (0, 1, 100, size // 2, size - 1):
        script = f"ulimit -f {max(limit // 1024, 0)}; exec {' '.join(PROGRAM)} pull tiny"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 4, done
        assert "Traceback" not in done.stderr
        assert not (installed(home) / "manifest.json").exists()
    assert edgeqwen("pull", "tiny").code == 0
    assert edgeqwen("verify", "tiny", "--full").code == 0


def test_a_store_that_cannot_be_written_says_so(hub: Hub, model: Path, home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "models").touch()  # a file where the folder should be: also root cannot write there
    refused(edgeqwen("pull", "tiny"), 4, "cannot write")
