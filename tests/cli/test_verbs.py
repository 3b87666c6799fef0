"""import, list, show, verify, rm, config: what they print where, and how they end."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from edgeqwen.cli import output
from edgeqwen.machine.bench import History, Run
from tests.support.program import Done, edgeqwen, is_one_sentence
from tests.support.tiny import write_model

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_model(tmp_path / "Mine-Q8_0.gguf")


@pytest.fixture
def installed(file: Path) -> Path:
    assert edgeqwen("import", file).code == 0
    return file


def refused(done: Done, code: int, *words: str) -> None:
    """Check for one clear sentence, the right code and an empty stdout."""
    assert done.code == code, done
    assert done.out == ""
    assert is_one_sentence(done.err), done.err
    for word in words:
        assert word in done.err


def test_the_page_of_commands_is_the_programs_own_help() -> None:
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    try:
        import write_help  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    page = (REPOSITORY / "docs" / "commands.md").read_text()
    assert page == write_help.text(), "run `python scripts/write_help.py`"
    settings = (REPOSITORY / "docs" / "settings.md").read_text()
    assert settings == write_help.settings_text(), "run `python scripts/write_help.py`"


def test_help_and_version() -> None:
    for arguments in ((), ("--help",), ("-h",)):
        done = edgeqwen(*arguments)
        assert (done.code, done.err) == (0, "")
        assert "Talk to a Qwen model" in done.out
    assert edgeqwen("--version").out.startswith("edgeqwen 0.")


def test_import_prints_the_ref_and_tells_the_rest(file: Path) -> None:
    done = edgeqwen("import", file)
    assert (done.code, done.out) == (0, "mine:q8_0\n")
    assert "installed under its own name by hard link" in done.err
    again = edgeqwen("import", file, "--json")
    assert again.json["is_new"] is False
    assert again.json["ref"] == "mine:q8_0"
    assert "installed already" in edgeqwen("import", file).err


def test_import_as_json(file: Path, home: Path) -> None:
    data = edgeqwen("import", file, "--json").json
    assert data["is_new"] is True
    assert data["is_recognised"] is False
    (entry,) = data["files"]
    assert Path(entry["path"]) == home / "data" / "models" / "mine" / "q8_0" / "Mine-Q8_0.gguf"
    assert len(entry["sha256"]) == 64


def test_move(file: Path) -> None:
    assert edgeqwen("import", "--move", file).code == 0
    assert not file.exists()
    assert edgeqwen("verify", "mine").code == 0


def test_bad_files_are_refused(tmp_path: Path, home: Path) -> None:
    whole = write_model(tmp_path / "whole.gguf").read_bytes()
    cases = {
        "empty.gguf": (b"", "the file is empty"),
        "page.gguf": (b"<!DOCTYPE html><html>", "HTML page"),
        "pointer.gguf": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "cut.gguf": (whole[:-1000], f"{len(whole) - 1000:,} of {len(whole):,} bytes"),
        "notes.gguf": (b"dear diary", "not a GGUF file"),
    }
    for name, (data, words) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        refused(edgeqwen("import", path), 2, name, words)
        refused(edgeqwen("run", path, "hi"), 2, name, words)
    llama = write_model(tmp_path / "llama.gguf", metadata={"general.architecture": "llama"})
    refused(edgeqwen("import", llama), 2, "architecture is llama")
    refused(edgeqwen("import", tmp_path / "gone.gguf"), 2, "no such file")
    refused(edgeqwen("import", tmp_path), 2, "is a folder")
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(edgeqwen("import", tmp_path / "pipe.gguf"), 2, "no regular file")
    write_model(tmp_path / "cut.gguf", split_tensors=8).unlink()
    refused(edgeqwen("import", tmp_path / "cut-00002-of-00003.gguf"), 2, "one of 3 shards")
    assert not (home / "data").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that even root cannot write to")
def test_no_permission_to_write(file: Path) -> None:
    done = edgeqwen("import", file, env={"EDGEQWEN_HOME": "/sys/edgeqwen"})
    refused(done, 4, "/sys/edgeqwen")


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits differ elsewhere")
def test_a_full_disk(file: Path, home: Path) -> None:
    """/dev/full refuses every byte; here it stands in for the place the manifest goes to."""
    home.mkdir()
    (home / "data").symlink_to("/dev/full")
    refused(edgeqwen("import", file), 4, "cannot write")


def test_list(installed: Path) -> None:
    done = edgeqwen("list")
    header, row = done.out.splitlines()
    assert header.split() == ["REF", "SIZE", "CONTEXT", "LICENCE", "WHERE"]
    assert row.startswith("mine:q8_0")
    assert [entry["ref"] for entry in edgeqwen("list", "--json").json] == ["mine:q8_0"]
    everything = edgeqwen("list", "--all", "--json").json
    assert {entry["is_installed"] for entry in everything} == {True, False}
    assert len(everything) > 20


def test_an_empty_list_says_what_to_do() -> None:
    done = edgeqwen("list")
    assert (done.code, done.out) == (0, "")
    assert "edgeqwen import" in done.err
    assert edgeqwen("list", "--json").json == []


def test_a_broken_manifest_is_told_of(installed: Path, home: Path) -> None:
    manifest = next(home.rglob("manifest.json"))
    manifest.write_text("{")
    assert str(manifest) in edgeqwen("list").err
    assert edgeqwen("verify", "--all").code == 4


def test_show(installed: Path) -> None:
    out = edgeqwen("show", "mine").out
    assert re.search(r"weights 2\d\d kB, and 512 B per token", out)
    assert "not a known one" in out
    data = edgeqwen("show", installed, "--json").json
    assert data["kv_bytes_per_token"] == 512
    assert data["is_installed"] is False
    catalogue = edgeqwen("show", "qwen2.5-3b", "--json").json
    assert catalogue["licence"]["commercial_use"] is False
    assert "not installed" in edgeqwen("show", "qwen2.5-3b").out


def test_names_in_a_file_cannot_touch_the_terminal(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", metadata={"general.license": "\x1b]0;x\x07free\n\u202e"})
    for arguments in (("import", path), ("show", path), ("list",)):
        done = edgeqwen(*arguments)
        assert "\x1b" not in done.out + done.err
        assert "\u202e" not in done.out + done.err


def test_verify_names_the_damaged_file(installed: Path, home: Path) -> None:
    assert edgeqwen("verify", "mine").out.endswith("(unchanged)\n")
    assert edgeqwen("verify", "mine", "--full").out.startswith("ok")
    assert edgeqwen("verify", "mine", "--full", "--json").json["hashed"] == 1
    path = home / "data" / "models" / "mine" / "q8_0" / "Mine-Q8_0.gguf"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"!")
    done = edgeqwen("verify", "--all")
    assert done.code == 4
    assert str(path) in done.err
    assert "damaged" in done.out
    as_json = edgeqwen("verify", "mine", "--json")
    assert as_json.code == 4
    assert as_json.json["problems"][0]["path"] == str(path)
    refused(edgeqwen("verify"), 2, "`--all`")


def test_a_changed_file_is_not_run(installed: Path, home: Path) -> None:
    assert edgeqwen("run", "mine", "hi", "--max-tokens", "2").code == 0
    path = home / "data" / "models" / "mine" / "q8_0" / "Mine-Q8_0.gguf"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)  # the size is as before
    refused(edgeqwen("run", "mine", "hi"), 4, "Mine-Q8_0.gguf", "has changed since it was installed")
    data[-200] ^= 1
    path.write_bytes(data)
    assert edgeqwen("run", "mine", "hi", "--max-tokens", "2").code == 0
    assert str(path) in (home / "state" / "stamps.json").read_text()


def test_lost_or_damaged_stamps_cost_a_hash_and_nothing_else(installed: Path, home: Path) -> None:
    (home / "state" / "stamps.json").write_text("nonsense")
    assert edgeqwen("run", "mine", "hi", "--max-tokens", "2").code == 0


def test_rm_asks_first(installed: Path, home: Path) -> None:
    refused(edgeqwen("rm", "mine"), 2, "`--yes`")
    done = edgeqwen("rm", "mine", "--yes", "--json")
    assert done.json == [{"ref": "mine:q8_0", "freed_bytes": 0}]
    assert installed.exists()
    assert not list(home.rglob("*.gguf"))
    refused(edgeqwen("rm", "mine", "--yes"), 3, "unknown model")


def test_unknown_names_get_the_nearest() -> None:
    for verb in (("run",), ("show",), ("verify",), ("rm", "-y")):
        done = edgeqwen(*verb, "qwen3-4bb", stdin="hi")
        refused(done, 3, "unknown model: qwen3-4bb", "did you mean qwen3-4b")
    refused(edgeqwen("run", "qwen3-4b", "hi"), 3, "qwen3-4b is not installed", "edgeqwen pull qwen3-4b")
    refused(edgeqwen("rm", "hf:Qwen/Qwen3-4B-GGUF", "-y"), 3, "not installed")
    refused(edgeqwen("rm", "x.gguf", "-y"), 2, "is a path")


def test_errors_are_json_too() -> None:
    done = edgeqwen("show", "qwen3-4bb", "--json")
    assert done.code == 3
    error = done.json["error"]
    assert error["code"] == "model_not_found"
    assert "qwen3-4b" in error["suggestions"]
    assert error["message"] in done.err


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("list", "--no"), ("import",), ("run",), ("config", "get")]
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    refused(edgeqwen(*arguments), 2, "--help")


def test_fit(installed: Path) -> None:
    data = edgeqwen("fit", "mine", "--json").json
    assert [row["n_ctx"] for row in data["rows"]] == [512]
    assert data["rows"][0]["is_exact"] is True
    assert data["rows"][0]["verdict"] == "fits"
    everything = edgeqwen("fit", "--json").json
    assert len(everything["rows"]) > 15
    assert not any(row["is_exact"] for row in everything["rows"])
    quants = {row["ref"] for row in edgeqwen("fit", "qwen3-4b", "--kv", "q8_0", "--json").json["rows"]}
    assert "qwen3-4b:q8_0" in quants
    assert "VERDICT" in edgeqwen("fit", "qwen3-4b:q4_k_m", "--ctx", "4096").out
    refused(edgeqwen("fit", "qwen3-4bb"), 3, "did you mean qwen3-4b")


def test_config_round_trip(home: Path) -> None:
    assert edgeqwen("config", "set", "run.ctx", "4096").code == 0
    assert edgeqwen("config", "get", "run.ctx").out == "4096\n"
    assert "(none)" in edgeqwen("config", "set", "pull.sources", "[]").err, "nobody, not the default"
    assert edgeqwen("config", "list", "--json").json["run.ctx"] == 4096
    assert edgeqwen("config", "unset", "run.ctx").code == 0
    assert edgeqwen("config", "get", "run.ctx", "--json").json is None
    assert edgeqwen("config", "path", "--json").json["config"] == str(home / "config" / "config.toml")


def test_config_mistakes(home: Path) -> None:
    refused(edgeqwen("config", "set", "run.context", "1"), 2, "did you mean run.ctx?")
    refused(edgeqwen("config", "set", "run.ctx", "big"), 2, "run.ctx", "expected int")
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text("[run]\nthreds = 2\n")
    refused(edgeqwen("list"), 2, "config.toml", "run.threds", "did you mean threads?")
    (home / "config" / "config.toml").unlink()
    (home / "config" / "models.toml").write_text('[models."qwen3-4b"]\nlicense = "x"\n')
    refused(edgeqwen("list"), 2, "models.toml", "license", "did you mean licence?")


def test_a_root_of_someone_else_is_searched(installed: Path, home: Path, tmp_path: Path) -> None:
    shutil.move(home / "data" / "models", tmp_path / "usb")
    assert edgeqwen("config", "set", "store.roots", json.dumps([str(tmp_path / "usb")])).code == 0
    assert str(tmp_path / "usb") in edgeqwen("list").out
    refused(edgeqwen("rm", "mine", "--yes"), 4, "only reads")


def test_bench_measures_and_compares_with_the_last_time(tmp_path: Path) -> None:
    edgeqwen("import", write_model(tmp_path / "Mine-Q8_0.gguf"))
    first = edgeqwen("bench", "--rounds", "1", "--json").json
    assert first["before"] is None
    assert {"prefill, 128 tokens", "first token, from disk", "memory"} <= first["figures"].keys()
    assert all(figure["value"] > 0 for figure in first["figures"].values())
    second = edgeqwen("bench", "mine", "--rounds", "1", "--plot")
    assert second.code == 0
    assert first["date"] in second.err
    assert "█" in second.out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("ver", "plain,verify"), ("run qwen3-0", "plain,qwen3-0.6b"), ("show ./x", "file,./x")],
)
def test_a_shell_is_told_how_words_go_on(typed: str, expected: str) -> None:
    env = {"_EDGEQWEN_COMPLETE": "bash_complete", "COMP_WORDS": f"edgeqwen {typed}"}
    done = edgeqwen(env={**env, "COMP_CWORD": str(len(typed.split()))})
    assert expected in done.out.splitlines()


@pytest.mark.parametrize(
    "arguments", [("list", "--bogus"), ("run",), ("run", "demo", "hi", "--ctx", "5"), ("recommend", "foo")]
)
def test_a_wrong_command_line_is_a_document_too(arguments: tuple[str, ...]) -> None:
    done = edgeqwen(*arguments, "--json")
    assert done.code == 2
    assert done.json["error"]["message"] in done.err


def test_a_key_that_is_no_key_is_named_and_doctor_still_looks(home: Path) -> None:
    (home / "config").mkdir(parents=True, exist_ok=True)
    (home / "config" / "config.toml").write_text("[tui.keys]\nnew = 5\n")
    done = edgeqwen("list")
    assert (done.code, is_one_sentence(done.err), 'tui.keys."new"' in done.err) == (2, True, True), done.err
    checks = {one["name"]: one for one in edgeqwen("doctor", "--json").json["checks"]}
    assert 'tui.keys."new"' in checks["settings"]["says"]


def test_an_address_that_is_none_fails_one_check_alone() -> None:
    done = edgeqwen("doctor", "--json", env={"HF_ENDPOINT": "http://["})
    checks = {one["name"]: one["state"] for one in done.json["checks"]}
    assert (checks["network"], checks["python"]) == ("fail", "ok")


def test_progress_never_wraps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "has_terminal", lambda: True)
    monkeypatch.setattr(output, "_columns", lambda: 40)
    with output.Status() as status:
        status.show("pulling hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:q4_k_m: 12 % of 1.1 GB, 95 s left")
        [_, drawn] = capsys.readouterr().err.split("\r")
    assert len(drawn) == 39
    assert drawn.endswith("12 % of 1.1 GB, 95 s left")


def test_settings_behind_a_link_stay_there(home: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("[run]\n")
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").symlink_to(real)
    assert edgeqwen("config", "set", "run.ctx", "4096").code == 0
    assert (home / "config" / "config.toml").is_symlink()
    assert "4096" in real.read_text()


def test_keys_that_are_damaged_are_named_with_their_file(home: Path, tmp_path: Path) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / "trusted_keys").write_text("# mine\njunk\n")
    done = edgeqwen("trust", "list")
    assert (done.code, "trusted_keys, line 2" in done.err) == (2, True)


def test_a_bench_history_keeps_what_it_cannot_read(tmp_path: Path) -> None:
    history = History(tmp_path / "bench.jsonl")
    run = Run("m", "now", "v", "here", 2, "f16", {"a": 1.0}, {"a": "s"})
    history.add(run)
    with (tmp_path / "bench.jsonl").open("ab") as file:
        file.write(b'{"model": "x"}\n\xff\n')
    history.add(run)
    assert len((tmp_path / "bench.jsonl").read_bytes().splitlines()) == 4
    assert history.last(run) == run
