"""Puts a trained demo model into the package: file, manifest, and its size and sha256 in models.toml.

python scripts/ship_demo_model.py FILE
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from edgeqwen.models.adopt import adopt
from edgeqwen.models.catalogue import load_catalogue
from edgeqwen.models.digest import digest_of
from edgeqwen.models.facts import read_facts
from edgeqwen.models.store import Store, write_manifest
from edgeqwen.paths import shipped_catalogue, shipped_models

NAME = "edgeqwen-demo-q8_0.gguf"


def main() -> None:
    """Replace the model that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    file, catalogue, folder = parser.parse_args().file, shipped_catalogue(), shipped_models()
    read_facts(file)  # what is no model takes nobody's place
    row = f'name = "{NAME}", size = {file.stat().st_size}, sha256 = "{digest_of(file).sha256}"'
    text = catalogue.read_text(encoding="utf-8")
    catalogue.write_text(re.sub(rf'name = "{NAME}", [^}}]*?(?= }})', row, text), encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / NAME
        shutil.copyfile(file, copy)
        shutil.rmtree(folder, ignore_errors=True)
        entry = adopt(copy, Store(folder), load_catalogue(catalogue, Path("no user file"))).entry
    shutil.rmtree(folder / "partial", ignore_errors=True)
    made = replace(entry.manifest, came_by="copy", source="scripts/train_demo_model.py")
    write_manifest(entry.folder, made)
    print(f"{entry.ref}: {entry.folder / NAME}")


if __name__ == "__main__":
    main()
