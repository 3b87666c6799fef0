"""Models as rows, as JSON and in words. One dictionary per model feeds both forms; decides nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgeqwen.errors import InvalidInput
from edgeqwen.models.catalogue import Catalogue, Model
from edgeqwen.models.fit import DEFAULT_CONTEXT
from edgeqwen.models.locate import Located, read_located
from edgeqwen.models.store import Entry
from edgeqwen.text import size_text

Data = dict[str, Any]


def entry_row(entry: Entry, catalogue: Catalogue) -> tuple[str, ...]:
    """Return an installed variant as a row of `edgeqwen list`."""
    where = "store" if entry.is_writable else str(entry.folder.parent.parent)
    facts = entry.manifest.facts
    model = catalogue.models.get(entry.manifest.catalogue_ref or "")
    licence = model.licence if model else facts.licence or "-"
    return (entry.ref, size_text(entry.size), f"{facts.context:,}", licence, where)


def model_row(model: Model) -> tuple[str, ...]:
    """Return a model of the catalogue as a row of `edgeqwen list --all`."""
    variant = model.variant(model.default_quant)
    size = size_text(variant.size) if variant else "-"
    return (f"{model.ref}:{model.default_quant}", size, f"{model.context:,}", model.licence, "not installed")


def entry_data(entry: Entry) -> Data:
    """Return an installed variant for `--json`."""
    manifest = entry.manifest
    return {
        "ref": entry.ref,
        "model": manifest.model,
        "quant": manifest.quant,
        "size_bytes": entry.size,
        "context": manifest.facts.context,
        "architecture": manifest.facts.architecture,
        "is_installed": True,
        "is_recognised": manifest.catalogue_ref is not None,
        "is_writable": entry.is_writable,
        "came_by": manifest.came_by,
        "created": manifest.created,
        "files": [{**asdict(file), "path": str(entry.folder / file.name)} for file in manifest.files],
    }


def model_data(model: Model) -> Data:
    """Return a model of the catalogue, which is not installed, for `--json`."""
    return {
        "ref": model.ref,
        "name": model.name,
        "is_installed": False,
        "architecture": model.architecture,
        "n_parameters": round(model.parameters_b * 1e9),
        "context": model.context,
        "context_yarn": model.context_yarn,
        "capabilities": list(model.capabilities),
        "thinking": model.thinking,
        "source": f"https://huggingface.co/{model.repo}/tree/{model.revision}",
        "variants": [
            {
                "quant": variant.quant,
                "size_bytes": variant.size,
                "is_default": variant is model.variant(model.default_quant),
                "files": [asdict(file) for file in variant.files],
            }
            for variant in model.variants
        ],
    }


def catalogue_data(model: Model, catalogue: Catalogue) -> Data:
    """Return a model of the catalogue with its licence."""
    return {**model_data(model), "licence": asdict(catalogue.licences[model.licence])}


def located_data(located: Located, catalogue: Catalogue) -> Data:
    """Return all that is known of a model that is here. Raises InvalidInput or InvalidGGUF."""
    if located.is_script:
        raise InvalidInput(f"{located.name} is a script for the scripted engine, not a model")
    facts, entry, model = read_located(located), located.entry, located.model
    licence = asdict(catalogue.licences[model.licence]) if model else None
    template = facts.template_sha256
    return {
        "ref": located.name,
        "name": model.name if model else facts.name,
        "is_installed": entry is not None,
        "is_recognised": entry is not None and entry.manifest.catalogue_ref is not None,
        "architecture": facts.architecture,
        "n_parameters": round(model.parameters_b * 1e9) if model else facts.n_parameters,
        "quant": entry.manifest.quant if entry else facts.quant,
        "licence": licence or {"name": facts.licence, "commercial_use": None, "url": None},
        "context": facts.context,
        "context_yarn": model.context_yarn if model else None,
        "capabilities": list(model.capabilities) if model else None,
        "thinking": model.thinking if model else None,
        "template": {"sha256": template, "known_as": catalogue.templates.get(template or "")},
        "weights_bytes": facts.weights_bytes,
        "kv_bytes_per_token": facts.kv_bytes_per_token(),
        "recurrent_state_bytes": facts.recurrent_state_bytes,
        "files": [{"path": str(path), "size_bytes": path.stat().st_size} for path in located.paths],
        "sha256": [file.sha256 for file in entry.manifest.files] if entry else None,
        "source": entry.manifest.source if entry else None,
    }


def in_words(data: Data) -> list[tuple[str, str]]:
    """Return the fields of `edgeqwen show`, from the dictionary that `--json` prints."""
    known = "" if data["is_installed"] else " (not installed)"
    fields = [
        ("model", f"{data['ref']}{known}"),
        ("name", data["name"] or "-"),
        ("licence", _licence(data["licence"])),
        ("context", _context(data)),
        ("architecture", f"{data['architecture']}, {_parameters(data['n_parameters'])} parameters"),
        ("good for", ", ".join(data["capabilities"] or ()) or "not known"),
        ("thinking", _THINKING.get(data["thinking"], "not known")),
    ]
    return fields + (_present(data) if "files" in data else _absent(data))


_THINKING = {"none": "never", "toggle": "can be switched: --think, --no-think", "always": "always"}


def _present(data: Data) -> list[tuple[str, str]]:
    per_token = data["kv_bytes_per_token"]
    n_ctx = min(DEFAULT_CONTEXT, data["context"])
    at_default = size_text(per_token * n_ctx + data["recurrent_state_bytes"])
    weights = size_text(data["weights_bytes"])
    cache = f"{size_text(per_token)} per token of context ({at_default} at {n_ctx:,} tokens)"
    fields = [
        ("quant", data["quant"] or "not known"),
        ("template", _template(data["template"])),
        ("memory", f"weights {weights}, and {cache}"),
    ]
    fields += [("file", f"{file['path']} ({size_text(file['size_bytes'])})") for file in data["files"]]
    fields += [("sha256", digest) for digest in data["sha256"] or ()]
    return fields + ([("came from", data["source"])] if data["source"] else [])


def _absent(data: Data) -> list[tuple[str, str]]:
    fields = []
    for variant in data["variants"]:
        usual = ", the usual choice" if variant["is_default"] else ""
        names = ", ".join(file["name"] for file in variant["files"])
        fields.append(("variant", f"{variant['quant']}: {size_text(variant['size_bytes'])}{usual} ({names})"))
    return [*fields, ("source", data["source"])]


def _licence(licence: Data) -> str:
    if licence["name"] is None:
        return "not stated in the file"
    use = {True: "commercial use allowed", False: "no commercial use", None: "not checked by us"}
    return f"{licence['name']} ({use[licence['commercial_use']]})"


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"


def _context(data: Data) -> str:
    more = f" ({data['context_yarn']:,} with YaRN)" if data["context_yarn"] else ""
    return f"{data['context']:,} tokens{more}"


def _template(template: Data) -> str:
    if template["sha256"] is None:
        return "none in the file; plain ChatML is used"
    if template["known_as"]:
        return f"known: {template['known_as']}"
    return f"not a known one (sha256 {template['sha256'][:12]}…); it runs in a sandbox"
