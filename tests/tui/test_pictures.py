"""The pictures of the documents are the screen as it is: drawn anew, they do not differ by a byte."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "screenshots.py"))


@pytest.mark.parametrize("name", SCRIPT["SCENES"])
def test_a_picture_is_up_to_date(name: str) -> None:
    drawn = SCRIPT["draw"](name)
    kept = SCRIPT["PICTURES"] / f"{name}.svg"
    assert drawn == kept.read_text(encoding="utf-8"), (
        "run scripts/screenshots.py and look at what `git diff` shows"
    )
    assert "url(http" not in drawn.replace('"', ""), "a picture fetches nothing"
