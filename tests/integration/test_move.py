"""The store moved to another folder: whole, after kill -9, and where it cannot be."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeqwen.models.move import move
from edgeqwen.models.store import Store
from tests.support.program import PROGRAM, edgeqwen, is_one_sentence
from tests.support.tiny import write_model


@pytest.fixture
def store(home: Path, tmp_path: Path) -> Path:
    """Install three models and leave one part."""
    for seed, name in enumerate(("one", "two", "three")):
        assert edgeqwen("import", write_model(tmp_path / f"{name}-q8_0.gguf", seed=seed)).code == 0
    root = home / "data" / "models"
    (root / "partial" / f"{'a' * 64}.part").write_bytes(b"GGUF, half of it")
    return root


def refs() -> list[str]:
    return sorted(row["ref"] for row in edgeqwen("list", "--json").json)


def test_models_and_parts_come_along(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "new place"
    before = refs()
    done = edgeqwen("config", "set", "store.path", target)
    assert (done.code, "moved 3 models" in done.err) == (0, True), done
    assert refs() == before
    assert not store.exists()
    assert (target / "partial" / f"{'a' * 64}.part").read_bytes() == b"GGUF, half of it"
    assert edgeqwen("verify", "--all", "--full").code == 0
    assert edgeqwen("config", "unset", "store.path").code == 0
    assert (refs(), store.exists()) == (before, True)


def test_a_copy_across_disks_goes_on_where_it_was(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders of one disk stand for two disks: links are refused, as between disks."""
    monkeypatch.setattr("edgeqwen.models.move.link", lambda source, target: False)
    source, target = Store(store), Store(tmp_path / "new")
    target.partial.mkdir(parents=True)
    first = source.entries()[0]
    file, path = first.manifest.files[0], first.paths()[0]
    target.part(file.sha256).write_bytes(path.read_bytes()[:1000])
    second = source.entries()[1].manifest.files[0]
    target.part(second.sha256).write_bytes(b"wrong bytes")
    assert move(source, target) == 3
    assert len(target.entries()) == 3
    assert edgeqwen("config", "set", "store.roots", f'["{target.root}"]').code == 0
    assert edgeqwen("verify", "--all", "--full").code == 0


def test_of_two_parts_of_a_file_the_longer_stays(store: Path, tmp_path: Path) -> None:
    """As after a move that was stopped, and a pull that went on in the new place."""
    target = Store(tmp_path / "new")
    target.partial.mkdir(parents=True)
    part = target.part("a" * 64)
    part.write_bytes(b"GGUF, half of it and some more")
    assert move(Store(store), target) == 3
    assert part.read_bytes() == b"GGUF, half of it and some more"


def test_kill_9_loses_no_model(store: Path, tmp_path: Path) -> None:
    before, rng = refs(), random.Random(5)
    for round_ in range(8):
        target = tmp_path / f"place-{round_}"
        command = [*PROGRAM, "config", "set", "store.path", str(target)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.1, 0.5))  # a random moment, not a wait for something
            process.kill()
        assert refs() == before
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done
        assert refs() == before
        assert len(list(target.glob("*/*/manifest.json"))) == 3
    assert edgeqwen("verify", "--all", "--full").code == 0


def test_places_that_cannot_be(store: Path, tmp_path: Path) -> None:
    before = refs()
    file = tmp_path / "file"
    file.touch()
    for place, code in ((store / "inside", 2), (file / "below", 4), (store.parent, 2)):
        done = edgeqwen("config", "set", "store.path", place)
        assert done.code == code, done
        assert is_one_sentence(done.err)
    assert refs() == before
    assert edgeqwen("config", "get", "store.path").out == "(default)\n"


def test_du_counts_what_would_be_freed(store: Path, tmp_path: Path) -> None:
    data = edgeqwen("du", "--json").json
    assert {row["own_bytes"] for row in data["models"]} == {0}  # hard links of what was imported
    assert data["leftover_bytes"] == len(b"GGUF, half of it")
    (tmp_path / "one-q8_0.gguf").unlink()
    rows = {row["ref"]: row for row in edgeqwen("du", "--json").json["models"]}
    assert rows["one:q8_0"]["own_bytes"] == rows["one:q8_0"]["size_bytes"] > 0
    assert sys.platform != "linux" or "(unfinished)" in edgeqwen("du").out


def test_another_name_of_the_same_folder_is_no_move(store: Path, tmp_path: Path, home: Path) -> None:
    before = refs()
    (tmp_path / "link").symlink_to(store)
    for name in (store.parent / ".." / "data" / "models", tmp_path / "link"):
        assert edgeqwen("config", "set", "store.path", name).code == 0
        assert refs() == before
    assert edgeqwen("verify", "--all", "--full").code == 0


def test_what_the_target_only_claims_to_have_comes_along(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    shutil.copytree(store, target)
    for path in target.glob("*/*/*.gguf"):
        path.unlink()
    assert edgeqwen("config", "set", "store.path", target).code == 0
    assert edgeqwen("verify", "--all", "--full").code == 0


def test_another_model_of_the_same_name_stays(store: Path, tmp_path: Path) -> None:
    other = {"EDGEQWEN_HOME": str(tmp_path / "other")}
    edgeqwen("import", write_model(tmp_path / "sub-one-q8_0.gguf", seed=9), env=other)
    source = next((tmp_path / "other" / "data" / "models").glob("*/*/*.gguf"))
    target = tmp_path / "new"
    (target / "one" / "q8_0").mkdir(parents=True)
    manifest = (source.parent / "manifest.json").read_text().replace('"sub-one"', '"one"')
    (target / "one" / "q8_0" / "manifest.json").write_text(manifest)
    shutil.copy(source, target / "one" / "q8_0" / source.name)
    done = edgeqwen("config", "set", "store.path", target)
    assert (done.code, "another one:q8_0" in done.err) == (4, True), done
    assert (target / "one" / "q8_0" / source.name).read_bytes() == source.read_bytes()
    assert len(refs()) == 3


def test_an_unfinished_move_goes_back_as_well(store: Path, tmp_path: Path, home: Path) -> None:
    before = refs()
    target = tmp_path / "new"
    assert edgeqwen("config", "set", "store.path", target).code == 0
    edgeqwen("config", "set", "store.moving_from", f"'{store}'")
    refused = edgeqwen("config", "set", "store.path", tmp_path / "third")
    assert (refused.code, "unfinished" in refused.err) == (2, True)
    assert edgeqwen("config", "set", "store.path", store).code == 0
    assert refs() == before
    assert len(list(store.glob("*/*/manifest.json"))) == 3


def test_foreign_files_in_the_store_survive_a_prune(home: Path, tmp_path: Path) -> None:
    mine = tmp_path / "lm" / "pub" / "repo" / "mine-Q8_0.gguf"
    mine.parent.mkdir(parents=True)
    write_model(mine)
    assert edgeqwen("config", "set", "store.path", tmp_path / "lm").code == 0
    assert edgeqwen("prune", "--yes").code == 0
    assert mine.exists()
