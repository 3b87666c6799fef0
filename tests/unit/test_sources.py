"""Where bytes are looked for, and who gets the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeqwen.errors import InvalidConfig, InvalidInput
from edgeqwen.models.hub import list_quants
from edgeqwen.models.sources import Origin, user_sources

ORIGIN = Origin("Qwen/X-GGUF", "0" * 40, "x-q8_0.gguf", "ab" * 32, 5)
HUB, SCOPE = "https://huggingface.co", "https://modelscope.cn"


def test_addresses_are_those_of_each_hub() -> None:
    hub, scope = user_sources([HUB, SCOPE + "/"]).addresses(ORIGIN)
    assert hub.url == f"{HUB}/Qwen/X-GGUF/resolve/{'0' * 40}/x-q8_0.gguf"
    assert scope.url == f"{SCOPE}/models/Qwen/X-GGUF/resolve/master/x-q8_0.gguf"


def test_an_endpoint_of_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/base/")
    assert user_sources([HUB]).hubs == ("https://hub.example/base", HUB)


def tokens(*configured: str) -> list[str | None]:
    sources = user_sources(configured)
    return [sources.address(hub, "x").token for hub in sources.hubs]


def test_the_token_goes_to_its_own_hub_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert tokens("https://mirror.example", HUB, SCOPE) == [None, "secret", None]
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    assert tokens("https://mirror.example", HUB) == ["secret", None, None]


def test_the_token_never_goes_over_an_open_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert tokens() == [None]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8000")
    assert tokens() == ["secret"]


def test_the_token_is_found_where_the_hub_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert tokens(HUB) == [None]
    (tmp_path / "token").write_text("from-file\n")
    assert tokens(HUB) == ["from-file"]


def test_offline_leaves_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sources = user_sources([HUB, str(tmp_path)])
    assert (sources.hubs, sources.folders) == ((), (tmp_path,))


def test_a_plain_mirror_may_be_laid_out_in_three_ways() -> None:
    urls = [address.url for address in user_sources(["https://mirror.example/qwen"]).addresses(ORIGIN)]
    assert [url.removeprefix("https://mirror.example/qwen/") for url in urls] == [
        f"Qwen/X-GGUF/resolve/{'0' * 40}/x-q8_0.gguf", "x-q8_0.gguf", "ab" * 32,
    ]  # fmt: skip


def test_other_kinds_of_source_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="neither a web address nor a folder"):
        user_sources(["ftp://hub.example"])


def test_a_hub_ref_needs_a_hub(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no hub"):
        list_quants("Qwen/X", user_sources([str(tmp_path)]))


def test_files_of_the_right_size_are_candidates(tmp_path: Path) -> None:
    (tmp_path / "x-q8_0.gguf").write_bytes(b"12345")
    (tmp_path / f"{'ab' * 32}.gguf").write_bytes(b"1234")
    assert list(user_sources([str(tmp_path)]).local_files(ORIGIN)) == [tmp_path / "x-q8_0.gguf"]
