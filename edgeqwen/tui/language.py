"""The words of the interface in the user's language: English, 简体中文 or magyar, by gettext.

Owns which language is in use; `_` is looked up when it is called, so a change shows on the next draw.
"""

from __future__ import annotations

import gettext
import locale
import os
from pathlib import Path

LANGUAGES = {"en": "English", "zh_CN": "简体中文", "hu": "magyar"}
_FOLDER = Path(__file__).with_name("locale")
_current: gettext.NullTranslations = gettext.NullTranslations()


def set_language(name: str | None) -> None:
    """Use a language of LANGUAGES; None follows the locale, and anything unknown is English."""
    global _current
    wanted = name or _from_locale()
    _current = gettext.translation("edgeqwen", _FOLDER, [wanted], fallback=True)


def _(text: str) -> str:
    """Return a text of ours in the language in use."""
    return _current.gettext(text)


def N_(text: str) -> str:
    """Mark a text that `_` translates later, when it is shown."""
    return text


def _from_locale() -> str:
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    found = next(filter(None, names), None) or locale.getlocale()[0] or ""
    return next((code for code in LANGUAGES if found.startswith(code[:2])), "en")
