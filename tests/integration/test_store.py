"""Importing, finding, verifying and removing model files, on a real disk."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from edgeqwen.errors import InvalidGGUF, InvalidInput, NotInstalled, StoreError, UnknownModel
from edgeqwen.models.adopt import adopt, shards_of
from edgeqwen.models.catalogue import Catalogue, CatalogueFile, load_catalogue
from edgeqwen.models.digest import digest_of
from edgeqwen.models.locate import locate, read_located
from edgeqwen.models.locks import locked
from edgeqwen.models.ref import parse_ref
from edgeqwen.models.store import MANIFEST, Store, verify
from edgeqwen.paths import shipped_catalogue
from tests.support.tiny import write_model


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return load_catalogue(shipped_catalogue(), tmp_path / "none")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data" / "models")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_model(tmp_path / "My Qwen3-Tiny-Instruct-F16.gguf")


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for a store on another volume."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)


def with_file(catalogue: Catalogue, ref: str, *files: Path) -> Catalogue:
    """Return a catalogue whose model has these very files as its only variant."""
    model = catalogue.models[ref]
    known = tuple(
        CatalogueFile(f"{ref}-{n}.gguf", f.stat().st_size, digest_of(f).sha256) for n, f in enumerate(files)
    )
    variant = replace(model.variants[0], quant=model.default_quant, files=known)
    models = {**catalogue.models, ref: replace(model, variants=(variant,))}
    return replace(catalogue, models=models)


def everything_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def importing(file: Path, store: Store, before: str = "") -> str:
    """Return a program that imports a file, to be run as another process."""
    return f"""
from pathlib import Path
from edgeqwen.models.adopt import adopt
from edgeqwen.models.catalogue import load_catalogue
from edgeqwen.models.store import Store
from edgeqwen.paths import shipped_catalogue
{before}
catalogue = load_catalogue(shipped_catalogue(), Path("none"))
print(adopt(Path({str(file)!r}), Store(Path({str(store.root)!r})), catalogue).is_new)
"""


def test_a_stranger_keeps_its_own_name(file: Path, store: Store, catalogue: Catalogue) -> None:
    adopted = adopt(file, store, catalogue)
    entry = adopted.entry
    assert adopted.is_new
    assert entry.ref == "my-qwen3-tiny:f16"
    assert everything_under(store.root) == [
        "my-qwen3-tiny/f16/My-Qwen3-Tiny-Instruct-F16.gguf",
        "my-qwen3-tiny/f16/manifest.json",
    ]
    assert entry.manifest.came_by == "hard link"
    assert entry.paths()[0].samefile(file)
    assert store.entries() == [entry]


def test_a_file_of_the_catalogue_gets_its_names(file: Path, store: Store, catalogue: Catalogue) -> None:
    entry = adopt(file, store, with_file(catalogue, "qwen3-0.6b", file)).entry
    assert entry.manifest.catalogue_ref == "qwen3-0.6b"
    assert entry.ref == f"qwen3-0.6b:{catalogue.models['qwen3-0.6b'].default_quant}"
    assert entry.paths()[0].name == "qwen3-0.6b-0.gguf"


def test_the_same_bytes_are_installed_once(
    file: Path, store: Store, catalogue: Catalogue, tmp_path: Path
) -> None:
    first = adopt(file, store, catalogue)
    twin = tmp_path / "twin.gguf"
    shutil.copy(file, twin)
    again = adopt(twin, store, catalogue, move=True)
    assert not again.is_new
    assert again.entry == first.entry
    assert twin.exists(), "nothing was moved"


def test_another_file_of_that_name_is_not_written_over(
    file: Path, store: Store, catalogue: Catalogue, tmp_path: Path
) -> None:
    entry = adopt(file, store, catalogue).entry
    (tmp_path / "other").mkdir()
    other = write_model(tmp_path / "other" / file.name, seed=5)
    with pytest.raises(StoreError) as caught:
        adopt(other, store, catalogue)
    assert caught.value.cause == "name_taken"
    assert [check.problem for check in verify(entry)] == [None]


def test_move_takes_the_original_away(file: Path, store: Store, catalogue: Catalogue) -> None:
    entry = adopt(file, store, catalogue, move=True).entry
    assert not file.exists()
    assert entry.manifest.came_by == "move"
    assert [check.problem for check in verify(entry)] == [None]


@pytest.mark.usefixtures("no_links")
def test_across_volumes_it_is_copied(file: Path, store: Store, catalogue: Catalogue) -> None:
    entry = adopt(file, store, catalogue).entry
    assert entry.manifest.came_by in ("copy", "reflink")
    assert not entry.paths()[0].samefile(file)
    assert [check.problem for check in verify(entry)] == [None]


def test_a_link_is_followed_and_stays(file: Path, store: Store, catalogue: Catalogue, tmp_path: Path) -> None:
    link = tmp_path / "link-q8_0.gguf"
    link.symlink_to(file)
    entry = adopt(link, store, catalogue).entry
    assert entry.ref == "link:q8_0"
    assert not entry.paths()[0].is_symlink()
    assert link.is_symlink()


@pytest.mark.usefixtures("no_links")
def test_a_full_disk_leaves_nothing(
    file: Path, store: Store, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeqwen.models.install._reflink", lambda *_: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="no space left") as caught:
        adopt(file, store, catalogue)
    assert caught.value.cause == "disk_full"
    assert everything_under(store.root) == []


@pytest.mark.usefixtures("no_links")
@pytest.mark.parametrize(
    ("number", "cause"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "io"), (errno.EROFS, "no_permission")]
)
def test_a_disk_that_fails_midway_leaves_nothing(
    file: Path, store: Store, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, number: int, cause: str
) -> None:
    def fail(_reader: Any, writer: Any, _length: int) -> None:
        writer.write(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("edgeqwen.models.install._reflink", lambda *_: False)
    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(StoreError) as caught:
        adopt(file, store, catalogue)
    assert caught.value.cause == cause
    assert everything_under(store.root) == []
    assert file.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_without_permission_it_says_so(file: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(StoreError) as caught:
        adopt(file, Store(locked / "models"), catalogue)
    assert caught.value.cause == "no_permission"


@pytest.mark.parametrize("step", [1, 2])
def test_a_killed_import_installs_nothing_and_can_be_repeated(
    file: Path, store: Store, catalogue: Catalogue, step: int
) -> None:
    """The process dies before the file (1) or the manifest (2) gets its name."""
    code = f"""
import itertools, os, signal
count, real = itertools.count(1), Path.replace
def replace(path, target):
    if next(count) == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, target)
Path.replace = replace
"""
    code = importing(file, store, code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert store.entries() == []
    entry = adopt(file, store, catalogue).entry
    assert [check.problem for check in verify(entry)] == [None]
    assert not [path for path in everything_under(store.root) if path.endswith((".part", ".lock"))]


def test_two_imports_at_once_both_end_well(file: Path, store: Store) -> None:
    code = importing(file, store)
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    said = sorted(process.communicate()[0] for process in running)
    assert said == [b"False\n"] * 3 + [b"True\n"]
    assert len(store.entries()) == 1


def test_all_shards_come_along(tmp_path: Path, store: Store, catalogue: Catalogue) -> None:
    first = write_model(tmp_path / "Tiny-Q8_0.gguf", split_tensors=8)
    second = shards_of(first)[1]
    entry = adopt(second, store, catalogue).entry
    assert entry.ref == "tiny:q8_0"
    assert [path.name for path in entry.paths()] == [f"Tiny-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert read_located(locate("tiny", store, catalogue)).split_count == 3


def test_a_shard_alone_is_refused(tmp_path: Path, store: Store, catalogue: Catalogue) -> None:
    first = write_model(tmp_path / "Tiny-Q8_0.gguf", split_tensors=8)
    first.unlink()
    with pytest.raises(InvalidInput, match=r"one of 3 shards and Tiny-Q8_0-00001-of-00003\.gguf is not"):
        adopt(tmp_path / "Tiny-Q8_0-00002-of-00003.gguf", store, catalogue)


def test_shards_that_are_mixed_up_are_refused(tmp_path: Path, store: Store, catalogue: Catalogue) -> None:
    first, second, third = shards_of(write_model(tmp_path / "Tiny-Q8_0.gguf", split_tensors=8))
    spare = tmp_path / "spare"
    second.rename(spare)
    third.rename(second)
    spare.rename(third)
    with pytest.raises(InvalidGGUF, match="its name says shard 2"):
        adopt(first, store, catalogue)


def test_a_renamed_first_shard_is_refused(tmp_path: Path, store: Store, catalogue: Catalogue) -> None:
    first = write_model(tmp_path / "Tiny-Q8_0.gguf", split_tensors=8)
    lone = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(InvalidInput, match="one of 3 shards; keep their original names"):
        adopt(lone, store, catalogue)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage, "is damaged: its sha256 is"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"x"), "has 1 bytes instead of"),
    ],
)
def test_verify_names_what_is_wrong(
    file: Path, store: Store, catalogue: Catalogue, harm: Callable[[Path], object], words: str
) -> None:
    entry = adopt(file, store, catalogue, move=True).entry
    harm(entry.paths()[0])
    (check,) = verify(entry)
    assert check.path == entry.paths()[0]
    assert words in (check.problem or "")


def test_what_is_gone_or_short_is_not_opened(file: Path, store: Store, catalogue: Catalogue) -> None:
    path = adopt(file, store, catalogue, move=True).entry.paths()[0]
    path.write_bytes(b"x")
    with pytest.raises(StoreError, match="is damaged: it has 1 bytes"):
        locate("my-qwen3-tiny", store, catalogue)
    path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        locate("my-qwen3-tiny", store, catalogue)


def test_remove_frees_what_only_the_store_held(file: Path, store: Store, catalogue: Catalogue) -> None:
    linked = adopt(file, store, catalogue).entry
    assert store.remove(linked) == 0, "the original still holds the bytes"
    assert file.exists()
    moved = adopt(file, store, catalogue, move=True).entry
    assert store.remove(moved) == moved.size
    assert store.entries() == []
    assert not (store.root / "my-qwen3-tiny").exists()


def test_read_only_roots_are_searched_and_never_written(
    file: Path, store: Store, catalogue: Catalogue, tmp_path: Path
) -> None:
    other = Store(tmp_path / "usb")
    adopt(file, other, catalogue)
    both = Store(store.root, (tmp_path / "usb", tmp_path / "gone"))
    (entry,) = both.entries()
    assert not entry.is_writable
    assert locate("my-qwen3-tiny", both, catalogue).entry == entry
    with pytest.raises(StoreError, match="only reads"):
        both.remove(entry)
    assert not adopt(file, both, catalogue).is_new


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"layout": 1', '"layout": 2'),
        lambda text: text.replace('"name": "My', '"name": "../My'),
        lambda text: text.replace('"model": "my-qwen3-tiny"', '"model": "other"'),
        lambda text: text.replace('"sha256": "', '"sha256": "../../'),
        lambda text: "",
        lambda text: "[" * 100_000,
    ],
)
def test_a_manifest_that_cannot_be_trusted_does_not_count(
    file: Path, store: Store, catalogue: Catalogue, change: Callable[[str], str]
) -> None:
    entry = adopt(file, store, catalogue).entry
    manifest = entry.folder / MANIFEST
    manifest.write_text(change(manifest.read_text()))
    assert store.entries() == []
    assert store.broken_manifests() == [manifest]


def test_refs_find_what_is_installed(file: Path, store: Store, catalogue: Catalogue, tmp_path: Path) -> None:
    adopt(file, store, catalogue)
    for typed in ("my-qwen3-tiny", "My_Qwen3-Tiny-Instruct:F16", "My-Qwen3-Tiny"):
        assert store.find(parse_ref(typed), catalogue).ref == "my-qwen3-tiny:f16"
    with pytest.raises(NotInstalled, match="there is f16"):
        store.find(parse_ref("my-qwen3-tiny:q4_0"), catalogue)
    with pytest.raises(NotInstalled) as missing:
        store.find(parse_ref("qwen3-4b"), catalogue)
    assert (missing.value.download_bytes or 0) > 10**9
    with pytest.raises(UnknownModel) as unknown:
        store.find(parse_ref("my-qwen3-tyni"), catalogue)
    assert "my-qwen3-tiny" in unknown.value.suggestions


def test_without_a_quant_the_default_or_the_largest_is_meant(
    tmp_path: Path, store: Store, catalogue: Catalogue
) -> None:
    for quant, arch in (("Q4_0", "qwen2"), ("Q8_0", "qwen35")):
        adopt(write_model(tmp_path / f"mine-{quant}.gguf", arch), store, catalogue)
    assert store.find(parse_ref("mine"), catalogue).ref == "mine:q8_0"
    assert store.find(parse_ref("mine:q4_0"), catalogue).ref == "mine:q4_0"


@pytest.mark.model
def test_the_real_file_is_recognised(
    real_model: Path, store: Store, catalogue: Catalogue, tmp_path: Path
) -> None:
    renamed = tmp_path / "whatever.gguf"
    renamed.symlink_to(real_model)
    entry = adopt(renamed, store, catalogue).entry
    assert entry.ref == "qwen2.5-coder-0.5b:q4_k_m"
    assert catalogue.templates.get(entry.manifest.facts.template_sha256 or "")


def test_a_model_keeps_its_place_whatever_its_folder_is_called(
    tmp_path: Path, store: Store, catalogue: Catalogue
) -> None:
    for number, folder in enumerate(("in\u3000x", "Ti\u200dny", os.fsdecode(b"caf\xe9"))):
        (tmp_path / folder).mkdir()
        file = write_model(tmp_path / folder / f"Mine Instruct {number} Q8_0.gguf", seed=number)
        entry = adopt(file, store, catalogue).entry
        assert store.find(parse_ref(entry.ref), catalogue).folder == entry.folder


def test_one_bad_byte_in_a_manifest_hides_that_model_alone(
    file: Path, store: Store, catalogue: Catalogue
) -> None:
    entry = adopt(file, store, catalogue).entry
    raw = bytearray((entry.folder / MANIFEST).read_bytes())
    raw[raw.index(b"edgeqwen")] ^= 0x80
    (entry.folder / MANIFEST).write_bytes(raw)
    assert store.entries() == []
    assert store.broken_manifests()


def test_what_is_worked_on_is_not_removed(file: Path, store: Store, catalogue: Catalogue) -> None:
    entry = adopt(file, store, catalogue).entry
    [held] = entry.manifest.files
    with locked(store.partial, "another", [held.sha256]), pytest.raises(StoreError) as caught:
        store.remove(entry)
    assert (caught.value.cause, store.entries()) == ("in_use", [entry])
    store.remove(entry)
    assert (store.entries(), store.remove(entry)) == ([], 0), "the second time somebody was faster"
