"""The verbs about model files: import, list, show, verify, rm. They ask the core and print what it says."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from edgeqwen.cli import describe, output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import complete_ref, json_option, yes_option
from edgeqwen.cli.space import list_leftovers
from edgeqwen.errors import DownloadError, InvalidInput, NotInstalled, StoreError
from edgeqwen.models import store as stores
from edgeqwen.models.adopt import adopt
from edgeqwen.models.download import Watch
from edgeqwen.models.locate import locate
from edgeqwen.models.pull import origins_of
from edgeqwen.models.ref import parse_ref
from edgeqwen.models.repair import repair
from edgeqwen.models.sources import user_sources
from edgeqwen.models.store import Entry
from edgeqwen.text import size_text


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--move", is_flag=True, help="Remove the original once the store has it.")
@json_option
@click.pass_obj
def import_model(invocation: Invocation, path: Path, move: bool) -> None:
    """Take a GGUF file from this machine into the store.

    The file is checked, hashed and looked up in the catalogue. It is linked where the disk allows, else
    copied. Shards that lie beside it come along.
    """
    with output.Status() as status:
        adopted = adopt(
            path,
            invocation.store,
            invocation.catalogue,
            move=move,
            progress=lambda done, total: status.share(f"checking {path.name}", done, total),
        )
    entry = adopted.entry
    if adopted.is_new:
        invocation.stamps.put(entry)
    if invocation.as_json:
        output.document({**describe.entry_data(entry), "is_new": adopted.is_new})
        return
    if not adopted.is_new:
        output.note(f"{path.name} is installed already as {entry.ref}")
    elif entry.manifest.catalogue_ref:
        output.note(f"recognised {path.name} by its size and sha256; installed by {entry.manifest.came_by}")
    else:
        output.note(f"not a file of the catalogue; installed under its own name by {entry.manifest.came_by}")
    output.line(entry.ref)


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Show the models that could be installed, too.")
@click.option("--partial", is_flag=True, help="Show what unfinished downloads have left instead.")
@json_option
@click.pass_obj
def list_models(invocation: Invocation, everything: bool, partial: bool) -> None:
    """List the models that are installed."""
    if partial:
        list_leftovers(invocation)
        return
    store = invocation.store
    entries = store.entries() + (store.shipped() if everything else [])
    for path in store.broken_manifests():
        output.note(f"warning: {path} cannot be read, so its model is left out")
    installed = {entry.manifest.model for entry in entries}
    others = [
        model for ref, model in invocation.catalogue.models.items() if everything and ref not in installed
    ]
    if invocation.as_json:
        output.document([*map(describe.entry_data, entries), *map(describe.model_data, others)])
        return
    rows = [describe.entry_row(entry, invocation.catalogue) for entry in entries] + [
        describe.model_row(model) for model in others
    ]
    if rows:
        output.table(("REF", ">SIZE", ">CONTEXT", "LICENCE", "WHERE"), rows)
    else:
        output.note("no model is installed yet")
        output.note(
            "\nhint: `edgeqwen list --all` shows what `edgeqwen pull` can get, "
            "`edgeqwen import` takes a file, `edgeqwen run demo` talks to the built-in demo"
        )


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@json_option
@click.pass_obj
def show(invocation: Invocation, ref: str) -> None:
    """Show what is known of a model.

    REF is an installed model, the path of a GGUF file, or a model of the catalogue.
    """
    catalogue = invocation.catalogue
    try:
        data = describe.located_data(locate(ref, invocation.store, catalogue), catalogue)
    except NotInstalled:
        if (parsed := parse_ref(ref)).model is None:
            raise
        data = describe.catalogue_data(catalogue.find(parsed), catalogue)
    if invocation.as_json:
        output.document(data)
    else:
        output.fields(describe.in_words(data))


@click.command("verify")
@click.argument("ref", shell_complete=complete_ref, required=False)
@click.option("--all", "everything", is_flag=True, help="Check every installed model.")
@click.option("--full", is_flag=True, help="Hash also the files that look unchanged.")
@click.option("--repair", "repairs", is_flag=True, help="Hash everything and download damaged places again.")
@json_option
@click.pass_obj
def verify_models(
    invocation: Invocation, ref: str | None, everything: bool, full: bool, repairs: bool
) -> int:
    """Check installed files and name the damaged ones.

    Files whose inode, size and times are those of the last check count as unchanged; --full hashes them all
    the same. With --repair, only the chunks of 16 MiB that are wrong are downloaded.
    """
    if (ref is None) != everything:
        raise InvalidInput("name a model or give `--all`, one of the two")
    store = invocation.store
    entries = [_installed(invocation, ref)] if ref else store.entries()
    problems = [
        {"path": str(path), "problem": "cannot be read"} for path in store.broken_manifests() if not ref
    ]
    n_files = n_hashed = 0
    repaired: list[dict[str, Any]] = []
    for entry in entries:
        if not (full or repairs) and invocation.stamps.hold(entry):
            checks = [stores.FileCheck(path, None) for path in entry.paths()]
            note = " (unchanged)"
        else:
            checks, note = _hash(invocation, entry), ""
            n_hashed += len(checks)
        n_files += len(checks)
        for check in checks:
            problem = check.problem
            if problem and repairs:
                fixed, problem = _try_repair(invocation, entry, check.path, raises=ref is not None)
                repaired += fixed
            if problem:
                problems.append({"path": str(check.path), "problem": problem})
            if not invocation.as_json:
                verdict = "damaged" if problem else "repaired" if check.problem else "ok"
                output.line(f"{verdict:9}{entry.ref}  {check.path.name}{note}")
    if invocation.as_json:
        output.document({"files": n_files, "hashed": n_hashed, "problems": problems, "repaired": repaired})
    _tell_verified(problems, n_unhashed=n_files - n_hashed)
    return 4 if problems else 0


def _tell_verified(problems: list[dict[str, str]], *, n_unhashed: int) -> None:
    for problem in problems:
        output.note(f"error: {problem['path']} {problem['problem']}")
    if problems:
        output.note(
            "\nhint: `--repair` downloads the damaged places again; or `edgeqwen rm` and import a good copy"
        )
    elif n_unhashed:
        output.note(f"{n_unhashed} unchanged since their last hash; `--full` hashes them again")


@click.command()
@click.argument("refs", shell_complete=complete_ref, nargs=-1, required=True, metavar="REF...")
@yes_option
@json_option
@click.pass_obj
def rm(invocation: Invocation, refs: tuple[str, ...], yes: bool) -> None:
    """Remove installed models.

    The files they were imported from stay where they are.
    """
    entries = list({entry.ref: entry for entry in (_installed(invocation, ref) for ref in refs)}.values())
    if not yes:
        names = " and ".join(entry.ref for entry in entries)
        if not sys.stdin.isatty():
            raise InvalidInput(f"removing {names} needs a yes: give `--yes` where nobody can be asked")
        click.confirm(
            f"remove {names} ({size_text(sum(entry.size for entry in entries))})?", abort=True, err=True
        )
    freed = {entry.ref: invocation.store.remove(entry) for entry in entries}
    if invocation.as_json:
        output.document([{"ref": ref, "freed_bytes": n_bytes} for ref, n_bytes in freed.items()])
        return
    for ref, n_bytes in freed.items():
        output.note(f"removed {ref}, {size_text(n_bytes)} freed")


def _try_repair(
    invocation: Invocation, entry: Entry, path: Path, *, raises: bool
) -> tuple[list[dict[str, Any]], str | None]:
    """Repair one file; returns what it took, or, where others may still be repaired, why it could not be."""
    try:
        return [{"path": str(path), **_repair(invocation, entry, path)}], None
    except (StoreError, DownloadError) as error:
        if raises:
            raise
        return [], f"cannot be repaired: {error.message}"


def _repair(invocation: Invocation, entry: Entry, path: Path) -> dict[str, int]:
    """Make one file right again and say what it took. Raises StoreError or DownloadError."""
    origins = origins_of(entry, invocation.catalogue)
    index = entry.paths().index(path)
    file = entry.manifest.files[index]
    sources = user_sources(invocation.config.pull.sources)
    with output.Status() as status:
        watch = Watch(lambda held: status.share(f"repairing {path.name}", held, file.size), output.note)
        fetched = repair(entry, file, origins[index], invocation.store, sources, watch)
    output.note(f"repaired {path.name}; {size_text(fetched)} were downloaded")
    return {"downloaded_bytes": fetched}


def _hash(invocation: Invocation, entry: Entry) -> list[stores.FileCheck]:
    with output.Status() as status:
        checks = list(stores.verify(entry, partial(status.share, f"checking {entry.ref}")))
    if not any(check.problem for check in checks):
        invocation.stamps.put(entry)
    return checks


def _installed(invocation: Invocation, ref: str) -> Entry:
    """Return the entry a ref means. Raises InvalidInput for a path: only the store is asked here."""
    parsed = parse_ref(ref)
    if parsed.path is not None:
        raise InvalidInput(f"{ref} is a path; name an installed model, as `edgeqwen list` shows them")
    return invocation.store.find(parsed, invocation.catalogue)
