"""Asking a hub before anything comes: search, memory from a remote head, the hubs' languages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeqwen.models.digest import digest_of
from tests.integration.test_pull import REPO, offer, refused
from tests.support.hub import Hub
from tests.support.program import edgeqwen
from tests.support.tiny import write_model


@pytest.fixture
def hub(tmp_path: Path, home: Path) -> Iterator[Hub]:
    (tmp_path / "hub" / REPO).mkdir(parents=True)
    with Hub(tmp_path / "hub") as hub:
        model = write_model(hub.folder / REPO / "tiny-q8_0.gguf")
        offer(hub, home, model)
        yield hub


def test_search_names_what_pull_takes(hub: Hub) -> None:
    write_model(hub.folder / REPO / "tiny-q4_0.gguf", seed=1)
    rows = edgeqwen("search", "tiny", "--json").json
    assert rows[0]["ref"] == "tiny:q8_0"
    assert rows[0]["is_in_catalogue"]
    found = {row["ref"]: row for row in rows[1:]}
    assert found.keys() == {f"hf:{REPO}:q8_0", f"hf:{REPO}:q4_0"}
    ref = f"hf:{REPO}:q4_0"
    assert found[ref]["sha256"] == [digest_of(hub.folder / REPO / "tiny-q4_0.gguf").sha256]
    assert edgeqwen("pull", ref).code == 0


def test_search_leaves_other_architectures_out(hub: Hub) -> None:
    hub.search_extras[REPO] = {"gguf": {"architecture": "llama"}}
    assert [row["ref"] for row in edgeqwen("search", "tiny", "--json").json] == ["tiny:q8_0"]
    hub.search_extras[REPO] = {"gguf": {"architecture": "qwen3"}, "downloads": 7}
    assert edgeqwen("search", "tiny", "--json").json[-1]["downloads"] == 7


def test_search_without_a_hub_shows_the_catalogue_and_says_so(hub: Hub) -> None:
    done = edgeqwen("search", "tiny", env={"HF_HUB_OFFLINE": "1"})
    assert "tiny:q8_0" in done.out
    refused(done, 2, "HF_HUB_OFFLINE")
    assert hub.seen == []


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b'[{"id": 3}]', b'[{"id": "../../etc"}]'])
def test_a_strange_answer_to_a_search(hub: Hub, answer: bytes) -> None:
    hub.answers["/api/models"] = answer
    done = edgeqwen("search", "nothing-like-it")
    assert "Traceback" not in done.err
    assert done.code in (0, 5)
    assert "etc" not in done.out


def test_fit_reads_the_head_once_and_only_the_head(hub: Hub) -> None:
    model = hub.folder / REPO / "tiny-q8_0.gguf"
    [row] = edgeqwen("fit", "tiny", "--ctx", "256", "--json").json["rows"]
    assert row["is_exact"]
    assert hub.seen[0].range == f"bytes=0-{model.stat().st_size - 1}"
    n_seen = len(hub.seen)
    assert edgeqwen("fit", "tiny", "--ctx", "256", "--json").json["rows"] == [row]
    assert len(hub.seen) == n_seen
    edgeqwen("pull", "tiny")
    [installed] = edgeqwen("fit", "tiny", "--ctx", "256", "--json").json["rows"]
    assert installed["parts_bytes"] == row["parts_bytes"]


def test_fit_of_a_repository_shows_every_quant(hub: Hub) -> None:
    write_model(hub.folder / REPO / "tiny-q4_0.gguf", seed=1)
    rows = edgeqwen("fit", f"hf:{REPO}", "--ctx", "256", "--json").json["rows"]
    assert {row["ref"] for row in rows} == {f"hf:{REPO}:q8_0", f"hf:{REPO}:q4_0"}
    assert sum(row["is_exact"] for row in rows) == 1


def test_fit_falls_back_on_the_catalogue(hub: Hub) -> None:
    hub.fail("tiny-q8_0.gguf", "status", at=404, times=9)
    done = edgeqwen("fit", "tiny", "--ctx", "256")
    assert done.code == 0
    assert "the catalogue's numbers are used" in done.err
    assert "~" in done.out


def test_what_was_measured_corrects_the_estimate(hub: Hub) -> None:
    edgeqwen("pull", "tiny")
    [before] = edgeqwen("fit", "tiny", "--ctx", "256", "--json").json["rows"]
    answer = edgeqwen("run", "tiny", "hi", "--ctx", "256", "--max-tokens", "2", "--json").json
    [after] = edgeqwen("fit", "tiny", "--ctx", "256", "--json").json["rows"]
    assert after["total_bytes"] == after["measured_bytes"] == answer["stats"]["rss_bytes"]
    assert after["parts_bytes"]["correction"] == after["total_bytes"] - before["total_bytes"]


def test_modelscope_is_asked_in_its_own_language(hub: Hub) -> None:
    edgeqwen("config", "set", "pull.sources", json.dumps(["https://modelscope.cn"]))
    done = edgeqwen("pull", f"hf:{REPO}:q8_0", env={"MODELSCOPE_ENDPOINT": hub.url, "HF_TOKEN": "secret"})
    assert done.code == 0, done
    assert hub.seen[0].path == f"/api/v1/models/{REPO}/repo/files?Revision=master&Recursive=True"
    assert hub.seen[-1].path == f"/models/{REPO}/resolve/master/tiny-q8_0.gguf"
    assert {seen.token for seen in hub.seen} == {None}


def test_the_next_hub_is_asked_when_the_first_is_silent(hub: Hub, home: Path) -> None:
    sources = ["http://127.0.0.1:9", hub.url]
    edgeqwen("config", "set", "pull.sources", json.dumps(sources))
    done = edgeqwen("pull", "hf:Qwen/Tiny-GGUF:q8_0")
    assert done.code == 0, done


def test_a_plain_web_folder_is_a_source(hub: Hub) -> None:
    for name in (REPO, "flat"):
        (hub.folder / name).mkdir(parents=True, exist_ok=True)
    (hub.folder / REPO / "tiny-q8_0.gguf").replace(hub.folder / "flat" / "tiny-q8_0.gguf")
    edgeqwen("config", "set", "pull.sources", json.dumps([f"{hub.url}/plain/flat"]))
    done = edgeqwen("pull", "tiny")
    assert done.code == 0, done


def test_a_socks_proxy_is_not_gone_around(hub: Hub) -> None:
    done = edgeqwen("pull", "tiny", env={"ALL_PROXY": "socks5://127.0.0.1:1080"})
    refused(done, 5, "SOCKS")
    assert hub.seen == []


def test_recommend_says_why(hub: Hub) -> None:
    done = edgeqwen("recommend", "code", "--json").json
    assert done["verdict"] == "fits"
    assert done["reason"].count(". ") == 1
    assert edgeqwen("show", done["ref"]).code == 0
    assert hub.seen == []
    refused_ = edgeqwen("recommend", "cooking")
    assert refused_.code == 2


@pytest.mark.parametrize("token", ["hf_one\nhf_two", "hf_\u4f60"])
def test_a_token_out_of_form_is_refused_and_never_shown(hub: Hub, home: Path, token: str) -> None:
    done = edgeqwen("search", "tiny", env={"HF_TOKEN": token, "HF_ENDPOINT": hub.url})
    refused(done, 2, "hub token")
    assert "hf_" not in done.err + done.out
    assert hub.seen == []


@pytest.mark.parametrize("address", ["hub.local", "http://[::1", "ftp://hub.example"])
def test_an_address_that_is_none(hub: Hub, address: str) -> None:
    refused(edgeqwen("search", "tiny", env={"HF_ENDPOINT": address}), 2, "no web address")


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        ("status", {"Retry_After": "\u00b2"}),
        ("moved", {"Location": "http://[bad/x"}),
        ("moved", {"Location": f"http://{'a' * 64}.example/x"}),
    ],
)
def test_hostile_headers_are_a_failed_download(hub: Hub, kind: str, headers: dict[str, str]) -> None:
    code = 503 if kind == "status" else 302
    hub.fail("tiny-q8_0.gguf", "status", at=code, times=9, **headers)
    done = edgeqwen("fit", "tiny", "--ctx", "256")
    assert (done.code, "Traceback" in done.err, "inside edgeqwen" in done.err) == (0, False, False), done


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"sha": 3}', b"\xff"], ids=range(3))
def test_hostile_listings_are_a_failed_download(hub: Hub, body: bytes) -> None:
    hub.answers[f"/api/models/{REPO}"] = body
    refused(edgeqwen("pull", f"hf:{REPO}:q8_0"), 5)


def test_an_installed_model_without_its_file_comes_again(hub: Hub, home: Path) -> None:
    assert edgeqwen("pull", "tiny").code == 0
    next((home / "data" / "models").glob("tiny/*/*.gguf")).unlink()
    assert edgeqwen("pull", "tiny").code == 0
    assert edgeqwen("verify", "tiny", "--full").code == 0
