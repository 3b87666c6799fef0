"""`edgeqwen doctor` and `edgeqwen ps`, as people and scripts run them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.asking import script
from tests.support.program import PROGRAM, edgeqwen


def test_doctor_looks_at_everything_and_says_how_it_is() -> None:
    done = edgeqwen("doctor", "--json")
    found = done.json
    names = [check["name"] for check in found["checks"]]
    assert {"python", "llama.cpp", "devices", "memory", "disk", "models", "chats", "terminal"} <= set(names)
    assert found["status"] in ("healthy", "degraded")
    assert done.code == 0
    in_words = edgeqwen("doctor")
    assert "llama.cpp" in in_words.out
    assert in_words.err.rstrip().endswith(found["status"])


def test_doctor_fails_where_a_file_is_cut_off(home: Path, models: Path) -> None:
    edgeqwen("import", models / "qwen3.gguf")
    [file] = (home / "data" / "models").glob("*/*/*.gguf")
    cut = file.read_bytes()[:-5]
    file.unlink()
    file.write_bytes(cut)
    done = edgeqwen("doctor", "--json")
    [check] = [check for check in done.json["checks"] if check["name"] == "models"]
    assert (done.code, check["state"]) == (7, "fail")
    assert file.name in check["says"]
    assert "verify" in check["todo"]


def test_ps_shows_who_has_what_loaded_and_how_fast_it_is(tmp_path: Path) -> None:
    assert edgeqwen("ps", "--json").json["engines"] == []
    model = script(tmp_path, pieces=["one ", "two ", "three"], delay_s=0.01)
    command = [*PROGRAM, "run", str(model), "--chat", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as chat:
        assert chat.stdin
        assert chat.stdout
        for _ in range(2):
            chat.stdin.write("hi\n")
            chat.stdin.flush()
            chat.stdout.readline()
        found = edgeqwen("ps", "--json").json
        [engine] = found["engines"]
        assert (engine["pid"], engine["model"]) == (chat.pid, model.name)
        assert engine["memory"]["rss"] > 1_000_000
        assert engine["average"]["n"] == 2
        assert 0 <= engine["up_s"] < 120
        assert engine["average"]["completion_tokens"] == 6
        assert engine["average"]["decode_tps"] < 100
        assert found["machine"]["memory_available"] > 0
        assert found["status"] in ("healthy", "degraded")
        assert edgeqwen("ps", "--json", "--last", "1").json["engines"][0]["average"]["n"] == 1
        assert "script.json" in edgeqwen("ps").out
        chat.stdin.close()
        chat.wait(20)
    assert edgeqwen("ps", "--json").json["engines"] == []
