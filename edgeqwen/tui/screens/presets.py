"""Ways to begin a chat: pick one, fill in its blanks."""

from __future__ import annotations

from collections.abc import Mapping

from textual import work

from edgeqwen.chat.presets import Preset
from edgeqwen.tui.language import _
from edgeqwen.tui.screens.chooser import Chooser, Row
from edgeqwen.tui.screens.dialogs import Form


class PresetScreen(Chooser[tuple[Preset, str] | None]):
    """Gives back a preset and its system prompt, filled in."""

    def __init__(self, presets: Mapping[str, Preset]) -> None:
        super().__init__()
        self._presets = presets

    def heading(self) -> str:
        return _("Begin a chat as")

    def hint(self) -> str:
        return _("Enter takes it · your own stand in presets.toml in the config folder · Esc back")

    def on_show(self) -> None:
        self.on_input_changed()

    def on_input_changed(self) -> None:
        words = self.filter.lower()
        found = [(key, preset) for key, preset in self._presets.items() if words in preset.title.lower()]
        self.show_rows([Row(key, preset.title, preset.system.replace("\n", " ")) for key, preset in found])

    def detail(self, key: str) -> str:
        return self._presets[key].system.strip()[:300]

    @work
    async def choose(self, key: str) -> None:
        preset = self._presets[key]
        values: dict[str, str] | None = {}
        if preset.blanks:
            values = await self.app.push_screen_wait(Form(preset.title, preset.blanks))
        if values is not None:
            self.dismiss((preset, preset.fill(values)))
