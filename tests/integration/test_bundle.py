"""Bundles: out of one machine's store, into another's, and everything that may happen to them in between."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeqwen.models.minisign import SecretKey, check, parse_public
from tests.support.program import Done, edgeqwen, is_one_sentence
from tests.support.tiny import write_model


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a bundle of one model in three parts, made on another machine."""
    env = {"EDGEQWEN_HOME": str(tmp_path / "factory")}
    edgeqwen("import", write_model(tmp_path / "Mine-Q8_0.gguf"), env=env)
    folder = tmp_path / "usb"
    done = edgeqwen("bundle", "export", "mine", "--to", folder, "--part-size", "100k", "--json", env=env)
    assert done.code == 0, done.err
    (tmp_path / "key.pub").write_text(done.json["public_key"])
    return folder


@pytest.fixture
def trusted(bundle: Path, tmp_path: Path) -> Path:
    assert edgeqwen("trust", "add", tmp_path / "key.pub", "--name", "factory").code == 0
    return bundle


def refused(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done
    assert is_one_sentence(
        "\n".join(line for line in done.err.splitlines() if "signed by" not in line[:12])
    ), done.err
    for word in words:
        assert word in done.err


def parts(bundle: Path) -> list[Path]:
    return sorted((bundle / "blobs").iterdir())


def test_a_model_travels(trusted: Path, home: Path) -> None:
    assert len(parts(trusted)) == 3
    assert edgeqwen("bundle", "verify", trusted).code == 0
    done = edgeqwen("bundle", "import", trusted)
    assert (done.code, done.out) == (0, "mine:q8_0\n")
    assert edgeqwen("verify", "mine").code == 0
    assert edgeqwen("run", "mine", "hi", "--max-tokens", "3", "--temp", "0").code == 0
    assert "installed already" in edgeqwen("bundle", "import", trusted).err
    assert not list((home / "data" / "models" / "partial").iterdir())


def test_people_can_check_it_by_hand(bundle: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, check=False)
    assert done.returncode == 0
    joined = b"".join(part.read_bytes() for part in parts(bundle))
    assert joined.startswith(b"GGUF")
    sbom = json.loads((bundle / "sbom.cdx.json").read_text())
    assert sbom["components"][0]["type"] == "machine-learning-model"


def test_a_stranger_is_not_trusted(bundle: Path, home: Path) -> None:
    refused(edgeqwen("bundle", "import", bundle), 4, "which is not trusted here", "edgeqwen trust add")
    (bundle / "manifest.json.minisig").unlink()
    refused(edgeqwen("bundle", "import", bundle), 4, "it is not signed")
    assert not (home / "data").exists()
    assert edgeqwen("bundle", "import", bundle, "--allow-unsigned").code == 0


def test_a_changed_manifest_is_found_out(trusted: Path) -> None:
    manifest = trusted / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"mine", b"evil"))
    for flags in ((), ("--allow-unsigned",)):
        refused(edgeqwen("bundle", "import", trusted, *flags), 4, "it was changed after it was signed")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip, "is damaged; carry it over again"),
        (lambda path: path.write_bytes(b"x"), "has 1 bytes instead of"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "cannot be read"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no regular file"),
    ],
)
def test_the_one_bad_part_is_named_and_the_rest_is_kept(
    trusted: Path, home: Path, harm: Callable[[Path], object], words: str
) -> None:
    bad = parts(trusted)[1]
    good = bad.read_bytes()
    harm(bad)
    refused(edgeqwen("bundle", "import", trusted), 4, bad.name, words)
    done = edgeqwen("bundle", "verify", trusted)
    assert done.code == 4
    assert [line.split()[0] for line in done.out.splitlines()] == ["ok", "damaged", "ok"]
    assert edgeqwen("list", "--json").json == []
    bad.unlink(missing_ok=True)
    bad.write_bytes(good)
    parts(trusted)[0].unlink()  # it has come over already
    assert edgeqwen("bundle", "import", trusted).code == 0
    assert edgeqwen("verify", "mine").code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("blobs/", "../../"),
        lambda text: text.replace('"model":"mine"', '"model":"../mine"'),
        lambda text: text.replace("Mine-Q8_0.gguf", "/etc/x.gguf"),
        lambda text: text.replace('"version":1', '"version":2'),
        lambda text: text[:-5],
    ],
)
def test_a_hostile_manifest_does_no_harm(bundle: Path, home: Path, change: Callable[[str], str]) -> None:
    (bundle / "manifest.json.minisig").unlink()
    manifest = bundle / "manifest.json"
    text = manifest.read_text()
    assert change(text) != text
    manifest.write_text(change(text))
    refused(edgeqwen("bundle", "import", bundle, "--allow-unsigned"), 2, "manifest")
    assert not (home / "data").exists()


def test_what_is_no_bundle(tmp_path: Path) -> None:
    refused(edgeqwen("bundle", "import", tmp_path), 2, "is no bundle")
    refused(edgeqwen("bundle", "import", tmp_path / "gone"), 2, "is no bundle")


def test_a_damaged_model_is_not_exported(tmp_path: Path, home: Path) -> None:
    edgeqwen("import", write_model(tmp_path / "Mine-Q8_0.gguf"), "--move")
    flip(next((home / "data").rglob("*.gguf")))
    refused(edgeqwen("bundle", "export", "mine", "--to", tmp_path / "out"), 4, "is damaged")
    assert not (tmp_path / "out" / "manifest.json").exists()
    refused(
        edgeqwen("bundle", "export", "mine", "--to", tmp_path / "out", "--part-size", "0"), 2, "not a size"
    )


def test_keys_are_kept_and_taken_away(trusted: Path, home: Path) -> None:
    (entry,) = edgeqwen("trust", "list", "--json").json
    assert entry["word"] == "factory"
    refused(edgeqwen("trust", "rm", "nobody"), 3, "nobody")
    assert edgeqwen("trust", "rm", "factory").code == 0
    refused(edgeqwen("bundle", "import", trusted), 4, "not trusted")
    refused(edgeqwen("trust", "add", "nonsense"), 2, "no minisign public key")


def test_the_secret_key_is_ones_own(tmp_path: Path, home: Path) -> None:
    edgeqwen("import", write_model(tmp_path / "Mine-Q8_0.gguf"))
    assert edgeqwen("bundle", "export", "mine", "--to", tmp_path / "out").code == 0
    assert (home / "config" / "signing.key").stat().st_mode & 0o077 == 0
    assert edgeqwen("bundle", "import", tmp_path / "out").code == 0, "a machine trusts itself"


def test_signatures() -> None:
    key = SecretKey.new()
    assert SecretKey.parse(str(key)) == key
    public = parse_public(f"untrusted comment: minisign public key\n{key.public()}\n")
    signature = key.sign(b"data", "a comment")
    assert check(b"data", signature, [public]) == (public, "a comment")
    for data, text in ((b"date", signature), (b"data", signature.replace("a comment", "b comment"))):
        with pytest.raises(Exception, match="changed after it was signed"):
            check(data, text, [public])


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="needs network namespaces")
def test_import_and_chat_without_any_network(trusted: Path) -> None:
    probe = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this system makes no network namespaces")
    python = [sys.executable, "-m", "edgeqwen"]
    for arguments in (
        ("bundle", "import", trusted),
        ("run", "mine", "hi", "--max-tokens", "3", "--temp", "0"),
    ):
        done = subprocess.run(
            ["unshare", "-rn", *python, *map(str, arguments)], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.timeout(600)  # pip may have to build llama.cpp where its cache is cold
def test_the_app_travels_and_installs_without_a_network(tmp_path: Path) -> None:
    edgeqwen("import", write_model(tmp_path / "Mine-Q8_0.gguf"))
    usb, app = tmp_path / "usb", tmp_path / "app"
    command = [sys.executable, "-m", "edgeqwen", "bundle", "export", "mine", "--to", str(usb), "--with-app"]
    with_cache = {**os.environ, "HOME": pwd.getpwuid(os.getuid()).pw_dir}  # where pip keeps what it has built
    done = subprocess.run(command, env=with_cache, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    install = ["sh", str(usb / "app" / "install.sh"), str(app)]
    no_index = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull}
    offline = {**os.environ, **no_index, "PYTHON": sys.executable}
    done = subprocess.run(install, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = subprocess.check_output([app / "bin" / "edgeqwen", "list", "--all"], text=True)
    assert "mine:q8_0" in listed
    assert "qwen3-4b:q4_k_m" in listed  # the catalogue came inside the wheel
    wheel = next((usb / "app" / "wheels").glob("edgeqwen-*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"!")
    assert edgeqwen("bundle", "verify", usb, "--allow-unsigned").code == 4
    done = subprocess.run(install, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "damaged" in done.stderr


def test_licences_travel(tmp_path: Path) -> None:
    edgeqwen("import", write_model(tmp_path / "Mine-Q8_0.gguf", metadata={"general.license": "apache-2.0"}))
    assert edgeqwen("bundle", "export", "mine", "--to", tmp_path / "usb").code == 0
    assert "Apache License" in (tmp_path / "usb" / "licences" / "apache-2.0.txt").read_text()
    assert "licences/apache-2.0.txt" in (tmp_path / "usb" / "SHA256SUMS").read_text()


def test_a_downloaded_part_is_gone_on_with_and_never_lost(trusted: Path, home: Path, tmp_path: Path) -> None:
    whole = b"".join(path.read_bytes() for path in parts(trusted))
    sha256 = parts(trusted)[0].name[:64]
    part = home / "data" / "models" / "partial" / f"{sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(whole[:150_000])
    bad = parts(trusted)[1]
    good = bad.read_bytes()
    flip(bad)
    refused(edgeqwen("bundle", "import", trusted), 4, bad.name)
    assert part.read_bytes() == whole[:150_000]
    bad.write_bytes(good)
    part.write_bytes(whole[:120_000] + b"wrong" + whole[120_005:150_000])
    part.chmod(0o444)
    assert edgeqwen("bundle", "import", trusted).code == 0
    assert edgeqwen("verify", "mine", "--full").code == 0


def test_hashes_in_a_manifest_are_no_paths(tmp_path: Path) -> None:
    victim, folder = tmp_path / "thesis.part", tmp_path / "usb"
    victim.write_text("precious")
    folder.mkdir()
    for sha256 in (str(tmp_path / "thesis"), "a\0b"):
        file = {"name": "a.gguf", "size": 0, "sha256": sha256}
        model = {"model": "evil", "quant": "q8_0", "licence": None, "catalogue_ref": None, "source": None}
        manifest = {
            "format": "edgeqwen-bundle", "version": 1, "bundle_id": "x", "created": "x", "tool": "x",
            "models": [{**model, "files": [file]}], "blobs": [{"sha256": sha256, "size": 0, "parts": []}],
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        refused(edgeqwen("bundle", "import", folder, "--allow-unsigned"), 2, "no bundle has")
    assert victim.exists()


def test_a_bundle_cannot_say_which_model_it_is(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["models"][0] |= {"catalogue_ref": "qwen3-4b", "source": "x\x1b[31mEVIL"}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "manifest.json.minisig").unlink()
    assert edgeqwen("bundle", "import", bundle, "--allow-unsigned").code == 0
    shown = edgeqwen("show", "mine", "--json")
    assert (shown.json["is_recognised"], shown.json["source"]) == (False, None)


def test_files_that_nobody_signed_for_are_named(trusted: Path) -> None:
    (trusted / "app" / "wheels").mkdir(parents=True)
    (trusted / "app" / "wheels" / "edgeqwen-99-py3-none-any.whl").touch()
    (trusted / "SHA256SUMS").write_text("0000  x\n")
    done = edgeqwen("bundle", "verify", trusted)
    assert done.code == 4
    assert "edgeqwen-99" in done.err
    assert "SHA256SUMS" in done.err


def test_an_export_writes_through_no_link(tmp_path: Path) -> None:
    edgeqwen("import", write_model(tmp_path / "Mine-Q8_0.gguf"))
    sha256 = edgeqwen("list", "--json").json[0]["files"][0]["sha256"]
    (tmp_path / "usb" / "blobs").mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "usb" / "blobs" / sha256).symlink_to(tmp_path / "mine.txt")
    assert edgeqwen("bundle", "export", "mine", "--to", tmp_path / "usb").code == 0
    assert (tmp_path / "mine.txt").read_text() == "precious"
