"""Settings: typed, commented by their owner, never left half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeqwen import config
from edgeqwen.errors import InvalidConfig
from edgeqwen.paths import user_paths


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    assert config.load(tmp_path / "config.toml") == config.Config()


def test_values_are_set_and_comments_stay(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# mine\n[run]\nctx = 4096 # small\n")
    config.set_value(path, "run.threads", "3")
    config.set_value(path, "store.roots", '["/media/usb"]')
    assert config.load(path).run == config.RunConfig(ctx=4096, threads=3)
    assert config.load(path).store.roots == ("/media/usb",)
    assert "# mine" in path.read_text()
    assert "# small" in path.read_text()
    config.set_value(path, "run.ctx", None)
    assert config.load(path).run.ctx is None


def test_a_wrong_value_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config.set_value(path, "run.ctx", "4096")
    before = path.read_text()
    with pytest.raises(InvalidConfig) as caught:
        config.set_value(path, "run.ctx", "many")
    assert caught.value.key == "run.ctx"
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_what_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[sampler]\ntemperature = {text}\n")
    with pytest.raises(InvalidConfig, match=r"sampler\.temperature"):
        config.load(path)


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[run]\ncontext = 1\n", "run.context", "ctx"),
        ("[runn]\n", "runn", "run"),
        ("[run]\nthreds = 1", "run.threds", "threads"),
    ],
)
def test_unknown_keys_get_the_nearest_one(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        config.load(path)
    assert (caught.value.key, caught.value.nearest) == (key, nearest)
    assert str(path) in str(caught.value)


def test_a_damaged_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[run\n")
    with pytest.raises(InvalidConfig):
        config.set_value(path, "run.ctx", "4096")
    assert path.read_text() == "[run\n"


def test_one_variable_moves_everything(home: Path) -> None:
    paths = user_paths()
    for folder in (paths.data, paths.config, paths.cache, paths.state):
        assert folder.is_relative_to(home)


def test_without_it_the_platform_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEQWEN_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert "edgeqwen" in str(user_paths().data)
