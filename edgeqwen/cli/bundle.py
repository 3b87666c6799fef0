"""`edgeqwen bundle` and `edgeqwen trust`: models across an air gap, and whose signatures count."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import complete_ref, json_option
from edgeqwen.errors import InvalidInput, NotFound
from edgeqwen.models import bundle as bundles
from edgeqwen.models.catalogue import Catalogue
from edgeqwen.models.export import Contents
from edgeqwen.models.export import export as write_bundle
from edgeqwen.models.locks import locked
from edgeqwen.models.minisign import PublicKey, SecretKey, parse_public
from edgeqwen.models.ref import parse_ref
from edgeqwen.models.store import Entry
from edgeqwen.models.volume import is_fat
from edgeqwen.paths import Paths, shipped_licence
from edgeqwen.text import clean_line, size_text

_FAT_PART = 3_900 << 20  # FAT32 ends at 4 GiB - 1
_NO_LIMIT = 1 << 60
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

_folder = click.argument("folder", type=click.Path(path_type=Path))
_allow_unsigned = click.option(
    "--allow-unsigned", is_flag=True, help="Take a bundle that no trusted key has signed."
)


@click.group()
def bundle() -> None:
    """Carry models to a machine without a network."""


@bundle.command("export")
@click.argument("refs", shell_complete=complete_ref, nargs=-1, required=True, metavar="REF...")
@click.option(
    "--to", "folder", required=True, type=click.Path(path_type=Path), help="A new folder, as on a USB drive."
)
@click.option("--part-size", metavar="SIZE", help="Cut files into parts, such as 3900M; by itself on FAT.")
@click.option("--with-app", is_flag=True, help="Add edgeqwen itself and a script that installs it offline.")
@click.option(
    "--platform",
    metavar="TAG",
    help="Platform of the app: manylinux2014_aarch64 ...; else this machine's.",
)
@json_option
@click.pass_obj
def export(
    invocation: Invocation,
    refs: tuple[str, ...],
    folder: Path,
    part_size: str | None,
    with_app: bool,
    platform: str | None,
) -> None:
    """Write installed models into a folder, signed with this machine's key.

    The first export makes the key. Its public half is printed: `edgeqwen trust add KEY` on the other machine.
    """
    store, catalogue = invocation.store, invocation.catalogue
    entries = {entry.ref: entry for entry in (store.find(parse_ref(ref), catalogue) for ref in refs)}
    if not folder.name and not folder.is_absolute():
        raise InvalidInput("name a folder with `--to`")
    if platform and not with_app:
        raise InvalidInput("`--platform` is the app's; it needs `--with-app`")
    key = _signing_key(invocation.paths)
    size = _size(part_size) if part_size else (_FAT_PART if is_fat(folder) else _NO_LIMIT)
    with output.Status() as status:
        progress = partial(status.share, f"writing {folder}")
        if with_app:
            output.note("gathering edgeqwen's own wheels with pip")
        licences = _licence_texts(invocation.catalogue, entries.values())
        contents = Contents(list(entries.values()), licences, with_app, platform)
        manifest = write_bundle(contents, folder, key, size, progress)
    public = key.public()
    if invocation.as_json:
        output.document(
            {"folder": str(folder), "bundle_id": manifest.bundle_id, "size_bytes": manifest.size,
             "models": list(entries), "public_key": str(public), "key_name": public.name}
        )  # fmt: skip
        return
    output.note(f"wrote {' and '.join(entries)}, {size_text(manifest.size)}, signed by the key {public.name}")
    output.note("on the other machine, once:")
    output.line(f"edgeqwen trust add {public}")
    output.line("edgeqwen bundle import FOLDER")


@bundle.command("verify")
@_folder
@_allow_unsigned
@json_option
@click.pass_obj
def verify_bundle(invocation: Invocation, folder: Path, allow_unsigned: bool) -> int:
    """Check signature and every part of a bundle; installs nothing."""
    opened = bundles.open_bundle(folder, _trusted(invocation.paths), allow_unsigned=allow_unsigned)
    results = []
    with output.Status() as status:
        for part, problem in bundles.verify(opened, partial(status.share, f"checking {folder}")):
            status.clear()
            results.append({**asdict(part), "problem": problem})
            if not invocation.as_json:
                output.line(f"{'damaged' if problem else 'ok':9}{part.name}")
    problems = [result["problem"] for result in results if result["problem"]]
    problems += bundles.strangers(opened)
    if invocation.as_json:
        output.document(
            {"signed_by": opened.signed_by and opened.signed_by.name, "parts": results, "problems": problems}
        )
    else:
        _tell_signer(opened)
    for problem in problems:
        output.note(f"error: {problem}")
    return 4 if problems else 0


@bundle.command("import")
@_folder
@_allow_unsigned
@json_option
@click.pass_obj
def import_bundle(invocation: Invocation, folder: Path, allow_unsigned: bool) -> None:
    """Install the models of a bundle, checked part by part.

    One that was stopped goes on where it was. A damaged part is named, and only that one must come again.
    """
    opened = bundles.open_bundle(folder, _trusted(invocation.paths), allow_unsigned=allow_unsigned)
    _tell_signer(opened)
    with output.Status() as status:
        installed = bundles.install(
            opened, invocation.store, invocation.catalogue, partial(status.share, f"importing {folder}")
        )
    for entry, is_new in installed:
        if is_new:
            invocation.stamps.put(entry)
    if invocation.as_json:
        output.document([{"ref": entry.ref, "is_new": is_new} for entry, is_new in installed])
        return
    for entry, is_new in installed:
        if not is_new:
            output.note(f"{entry.ref} is installed already")
        output.line(entry.ref)


@click.group()
def trust() -> None:
    """Say whose bundles are taken."""


@trust.command("add")
@click.argument("key")
@click.option("--name", default="", help="A word to know it by.")
@json_option
@click.pass_obj
def trust_add(invocation: Invocation, key: str, name: str) -> None:
    """Trust a public key: its text, or a minisign .pub file."""
    text = _key_text(key)
    public = parse_public(text)
    keys = {known.id: (known, word) for known, word in _read_trusted(invocation.paths)}
    keys[public.id] = (public, clean_line(name, 60))
    _write_trusted(invocation.paths, list(keys.values()))
    if invocation.as_json:
        output.document({"name": public.name, "key": str(public)})
    else:
        output.note(f"bundles signed by the key {public.name} are taken now")


def _key_text(key: str) -> str:
    """Return the key itself, or what the file of this name holds. Raises InvalidInput."""
    try:
        return Path(key).read_text(encoding="utf-8", errors="replace") if Path(key).is_file() else key
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return key
        raise InvalidInput(f"cannot read {key}: {error.strerror}") from error


@trust.command("list")
@json_option
@click.pass_obj
def trust_list(invocation: Invocation) -> None:
    """List the trusted keys."""
    keys = _read_trusted(invocation.paths)
    if invocation.as_json:
        output.document([{"name": key.name, "key": str(key), "word": word} for key, word in keys])
    elif keys:
        output.table(("NAME", "KEY", "WORD"), [(key.name, str(key), word) for key, word in keys])
    else:
        output.note("no key is trusted; `edgeqwen trust add KEY` adds one")


@trust.command("rm")
@click.argument("name")
@json_option
@click.pass_obj
def trust_rm(invocation: Invocation, name: str) -> None:
    """Trust a key no longer; NAME is its name or word in the list."""
    if not name.strip():
        raise InvalidInput("name the key to be trusted no longer; `edgeqwen trust list` shows them")
    keys = _read_trusted(invocation.paths)
    kept = [(key, word) for key, word in keys if name not in (key.name, word, str(key))]
    if len(kept) == len(keys):
        raise NotFound(f"no trusted key is called {clean_line(name, 60)}")
    _write_trusted(invocation.paths, kept)
    if invocation.as_json:
        output.document({"removed": len(keys) - len(kept)})
    else:
        output.note("removed")


def _tell_signer(opened: bundles.Opened) -> None:
    if opened.signed_by is None:
        output.note("note: no trusted key has signed this bundle; it is taken because you said so")
    else:
        output.note(f"signed by the key {opened.signed_by.name}")


def _signing_key(paths: Paths) -> SecretKey:
    """Return this user's key, made at the first need. Raises InvalidInput."""
    path = paths.signing_key
    try:
        with locked(path.parent, path.stem):
            if path.exists():
                return SecretKey.parse(path.read_text(encoding="ascii", errors="replace"))
            key, temporary = SecretKey.new(), path.with_suffix(".new")
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"{key}\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)  # whole or not at all
            return key
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}; without that file a new key is made") from error
    except OSError as error:
        raise InvalidInput(f"cannot use the key in {path}: {error.strerror}") from error


def _trusted(paths: Paths) -> list[PublicKey]:
    """Return the trusted keys; a machine trusts its own."""
    own = [_signing_key(paths).public()] if paths.signing_key.exists() else []
    return [*own, *(key for key, _ in _read_trusted(paths))]


def _read_trusted(paths: Paths) -> list[tuple[PublicKey, str]]:
    try:
        lines = paths.trusted_keys.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidInput(f"cannot read {paths.trusted_keys}: {error.strerror}") from error
    keys = []
    for number, line in enumerate(lines, 1):
        text, _, word = line.partition(" ")
        if not line.strip() or line.startswith("#"):
            continue
        try:
            keys.append((parse_public(text), word.strip()))
        except InvalidInput as error:
            raise InvalidInput(f"{paths.trusted_keys}, line {number}: {error.message}") from error
    return keys


def _write_trusted(paths: Paths, keys: list[tuple[PublicKey, str]]) -> None:
    path = paths.trusted_keys
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(f"{key} {word}".rstrip() + "\n" for key, word in keys), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from error


def _licence_texts(catalogue: Catalogue, entries: Iterable[Entry]) -> dict[str, str]:
    """Return the texts of the licences of models; where we have only its address, that."""
    texts = {}
    for entry in entries:
        model = catalogue.models.get(entry.manifest.catalogue_ref or "")
        key = model.licence if model else (entry.manifest.facts.licence or "").lower()
        known = catalogue.licences.get(key)
        text = shipped_licence(key)
        if text is not None:
            texts[key] = text.read_text(encoding="utf-8")
        elif known is not None:
            texts[key] = f"{known.name}\n\nThe text is not carried along. It is at {known.url}\n"
    return texts


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmg]?)i?b?", text.strip().lower())
    if match is None or not int(match[1]):
        raise InvalidInput(f"not a size: {clean_line(text, 40)}; write one such as 3900M")
    return int(match[1]) * _UNITS[match[2]]
