"""Each check against the machine, build or folder that it warns of."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edgeqwen import doctor
from edgeqwen.chat.conversation import Conversation
from edgeqwen.chat.history import History
from edgeqwen.engine.protocol import Device, Devices
from edgeqwen.errors import WorkerLost
from edgeqwen.machine.cpu import cpu_features
from edgeqwen.machine.health import Check, status_of
from edgeqwen.models.library import Library

CPU = Device(name="CPU", description="a CPU", kind="cpu", total_bytes=8 << 30, free_bytes=4 << 30)
CARD = Device(name="CUDA0", description="a card", kind="gpu", total_bytes=8 << 30, free_bytes=4 << 30)
LOST = WorkerLost("the engine ended", exit_status=1, log_file="x.log", log_tail=())


def build(*features: str, devices: tuple[Device, ...] = (CPU,)) -> Devices:
    return Devices(devices=devices, features=features)


def test_features_are_read_from_the_kernels_file(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\n")
    assert cpu_features(file) == {"fp", "asimd", "asimddp"}
    assert cpu_features(tmp_path / "none") == frozenset()


def test_a_generic_build_is_told_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    check = doctor.check_build(build("AVX", "AVX2"), frozenset({"avx", "avx2", "avx512f", "sse"}))
    assert check.state == "warn"
    assert "AVX512" in check.says
    assert "-DGGML_NATIVE=ON" in check.todo
    assert "llama-cpp-python==0.3.36" in check.todo
    on_a_pi_5 = doctor.check_build(build("NEON"), frozenset({"asimd", "asimddp"}))
    assert "DOTPROD" in on_a_pi_5.says
    assert "1.3 to 1.5 times" in check.todo, "by how much, where it was measured"
    no_avx2 = doctor.check_build(build("AVX"), frozenset({"avx", "avx2", "avx512f"}))
    for other in (on_a_pi_5, no_avx2):
        assert "may be faster" in other.todo, "and no figure where it was not"


def test_a_checkout_builds_with_its_own_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run").touch()
    command = doctor.rebuild_command("-DGGML_CUDA=ON")
    assert "CMAKE_ARGS='-DGGML_NATIVE=ON -DGGML_CUDA=ON'" in command
    assert command.endswith(f"{tmp_path}/scripts/run doctor")
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venv"))
    assert "-m pip install" in doctor.rebuild_command(), "scripts/run builds another environment"


def test_a_build_for_this_cpu_is_well_and_a_dead_engine_is_not() -> None:
    assert doctor.check_build(build("AVX2"), frozenset({"avx2", "sse"})).state == "ok"
    assert doctor.check_build(build(), frozenset()).state == "ok"
    assert doctor.check_build(LOST, frozenset()).state == "fail"


def test_an_idle_card_is_told_and_a_used_one_named() -> None:
    assert "-DGGML_CUDA=ON" in doctor.check_devices(build(), ["NVIDIA H100"]).todo
    assert "-DGGML_VULKAN=ON" in doctor.check_devices(build(), ["card0"]).todo
    assert doctor.check_devices(build(devices=(CPU, CARD)), ["NVIDIA H100"]).says == "a card, 4.3 GB free"
    assert doctor.check_devices(build(), []).state == "ok"


def test_a_build_with_amx_is_told() -> None:
    assert doctor.check_build(build("AVX2", "AMX_INT8"), frozenset({"avx2"})).state == "warn"


def test_more_threads_than_cores_are_told(home: Path) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text("[run]\nthreads = 500\n")
    assert "run.threads is 500" in doctor.check_cpu(Library()).says


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", "[run]\nthreds = 4\n"),
        ("config.toml", "not toml"),
        ("config.toml", "[sampler]\ntemperature = -5\n"),
        ("models.toml", "[models.x]\nname = 1\n"),
        ("presets.toml", "[presets.x]\ntitle = 1\n"),
    ],
)
def test_mistakes_in_settings_are_named_and_the_rest_is_still_checked(
    home: Path, name: str, content: str
) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / name).write_text(content)
    checks = {check.name: check for check in doctor.run_checks(Library(), build())}
    assert checks["settings"].state == "fail"
    assert name in checks["settings"].says or "temperature" in checks["settings"].says
    assert "memory" in checks
    assert "terminal" in checks


def test_a_history_is_counted_and_nothing_is_left_beside_it(home: Path) -> None:
    file = Library().paths.chats
    history = History(file)
    history.create(Conversation(), "a chat")
    open_check = doctor.check_chats(Library())
    history.close()
    before = sorted(file.parent.iterdir())
    assert doctor.check_chats(Library()).says == open_check.says == f"1 in {file}"
    assert sorted(file.parent.iterdir()) == before
    assert file.stat().st_mode & 0o077 == 0, "chats are their owner's alone"


def test_a_check_that_cannot_look_fails_and_the_rest_looks(home: Path) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text('[store]\npath = "~nosuchuser/models"\n')
    checks = {check.name: check.state for check in doctor.run_checks(Library(), build())}
    assert (checks["settings"], checks["disk"], checks["models"]) == ("fail", "fail", "fail")
    assert checks["python"] == "ok"


def test_a_damaged_history_is_told_and_left_alone(home: Path) -> None:
    assert doctor.check_chats(Library()).says == "none yet"
    file = Library().paths.chats
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database at all" * 100)
    assert doctor.check_chats(Library()).state == "fail"
    assert file.read_bytes() == b"no database at all" * 100
    file.unlink()
    sqlite3.connect(file).close()
    assert doctor.check_chats(Library()).state == "fail", "a database without chats is none of ours"


def test_terminals_and_networks_by_their_environment() -> None:
    library = Library()
    assert "asks nobody" in doctor.check_network(library, {"HF_HUB_OFFLINE": "1"}).says
    says = doctor.check_network(library, {"HF_ENDPOINT": "http://me:secret@mirror"}).says
    assert "ask mirror, huggingface.co" in says
    assert "secret" not in says


def test_the_worst_check_is_the_status() -> None:
    ok, warn, fail = (Check("x", state, "") for state in ("ok", "warn", "fail"))  # type: ignore[arg-type]
    assert status_of([ok]) == "healthy"
    assert status_of([ok, warn]) == "degraded"
    assert status_of([warn, fail, ok]) == "unhealthy"
