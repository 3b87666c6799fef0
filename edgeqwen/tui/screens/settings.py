"""The settings as a list: Enter changes one, Delete gives it back its default. Writes config.toml at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from textual import work
from textual.binding import Binding, BindingType

from edgeqwen import config
from edgeqwen.chat.sampling import check_setting
from edgeqwen.errors import EdgeQwenError
from edgeqwen.models.library import Library
from edgeqwen.tui.language import _
from edgeqwen.tui.screens.chooser import Chooser, Row
from edgeqwen.tui.screens.dialogs import Form

CHOICES: dict[str, tuple[str, ...]] = {
    "tui.theme": ("dark", "light", "ansi", "contrast"),
    "tui.language": ("en", "zh_CN", "hu"),
    "tui.enter_sends": ("true", "false"),
    "run.think": ("true", "false"),
    "run.full": ("stop", "drop-oldest", "drop-thinking", "keep-ends"),
}
NUMBERS = (
    "sampler.temperature",
    "sampler.top_p",
    "sampler.top_k",
    "sampler.min_p",
    "sampler.repeat_penalty",
    "sampler.max_tokens",
    "run.ctx",
    "run.threads",
    "kv.max_mib",
)


class SettingsScreen(Chooser[None]):
    """Every setting that a running chat can follow."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("delete,ctrl+r", "reset", "Default", priority=True)]

    def __init__(self, library: Library, card: dict[str, Any], changed: Callable[[str], None]) -> None:
        """`card` holds the values of the model's card, by SamplerParams' names."""
        super().__init__()
        self._library, self._card, self._changed = library, card, changed

    def heading(self) -> str:
        return _("Settings · {file}").format(file=self._library.paths.config_file)

    def hint(self) -> str:
        return _("Enter changes · Delete resets · context and threads count from the next load · Esc back")

    def on_show(self) -> None:
        self.on_input_changed()

    def on_input_changed(self) -> None:
        keys = [key for key in (*NUMBERS, *CHOICES) if self.filter.lower() in key]
        self.show_rows([Row(key, key, self._value(key)) for key in keys])

    def _set_to(self, key: str) -> str:
        """Return what a setting is set to, empty when it is not."""
        table, _dot, name = key.partition(".")
        value = getattr(getattr(self._library.config, table), name)
        return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    def _value(self, key: str) -> str:
        if text := self._set_to(key):
            return text
        table, _dot, name = key.partition(".")
        if table == "sampler" and self._card.get(name) is not None:
            return _("{value}, as the model card says").format(value=self._card[name])
        return _("by itself")

    def detail(self, key: str) -> str:
        table, _dot, name = key.partition(".")
        kinds = {field.name: field.default_factory for field in dataclasses.fields(config.Config)}
        kind = kinds[table]
        return (getattr(kind, "__doc__", "") or "") + f"  [{table}] {name}"

    @work
    async def choose(self, key: str) -> None:
        if key in CHOICES:
            current = self._value(key)
            choices = CHOICES[key]
            at = choices.index(current) + 1 if current in choices else 0
            self._set(key, choices[at % len(choices)])
            return
        answer = await self.app.push_screen_wait(Form(key, {key: self._set_to(key)}))
        if answer and answer[key].strip():
            self._set(key, answer[key].strip())

    def action_reset(self) -> None:
        if self.key:
            self._set(self.key, None)

    def _set(self, key: str, value: str | None) -> None:
        try:
            if value is not None:
                check_setting(key, config.parse_value(value))
            config.set_value(self._library.paths.config_file, key, value)
            self._library.__dict__.pop("config", None)  # read anew when it is asked for
            self._changed(key)
        except EdgeQwenError as error:
            self.notify(error.message, severity="error")
        self.on_input_changed()
