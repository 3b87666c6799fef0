"""The interface in other languages: nothing is missing, and what is compiled is what was written."""

from __future__ import annotations

import gettext
import runpy
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.pofile import read_po

from edgeqwen.tui import language
from edgeqwen.tui.language import LANGUAGES, set_language

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "translate.py"))
OTHERS = [name for name in LANGUAGES if name != "en"]


def fields(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("name", OTHERS)
def test_every_text_is_translated_with_its_fields_and_compiled(name: str) -> None:
    folder = SCRIPT["LOCALE"] / name / "LC_MESSAGES"
    with (folder / "edgeqwen.po").open("rb") as file:
        written = {message.id: message.string for message in read_po(file) if message.id}
    with (folder / "edgeqwen.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    wanted = {message.id for message in SCRIPT["texts"]() if message.id}
    assert set(written) == wanted, "run scripts/translate.py"
    for text, translation in written.items():
        assert translation, f"{text!r} has no translation"
        assert fields(text) == fields(translation), text
        assert compiled.gettext(text) == translation, "run scripts/translate.py"


@pytest.mark.parametrize(
    ("setting", "locale", "expected"),
    [
        (None, "hu_HU.UTF-8", "Kilépés"),
        (None, "zh_CN.UTF-8", "退出"),
        (None, "fr_FR.UTF-8", "Quit"),
        ("en", "hu_HU.UTF-8", "Quit"),
        ("hu", "C", "Kilépés"),
    ],
)
def test_the_setting_goes_before_the_locale(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, locale: str, expected: str
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    set_language(setting)
    try:
        assert language._("Quit") == expected
    finally:
        set_language("en")
