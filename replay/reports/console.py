"""The console with which commands print tables; names from traces cannot inject markup or control characters."""

from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from replay.support.names import printable


class PlainConsole(Console):
    """Prints text without markup, emoji codes or highlighting; control characters are escaped."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(_spelled(text), **options)

    def render(self, renderable: RenderableType, options: Any = None) -> Any:
        if isinstance(renderable, Text) and _spelled(renderable.plain) != renderable.plain:
            renderable = renderable.blank_copy(_spelled(renderable.plain))
        return super().render(renderable, options)


def _spelled(text: str) -> str:
    return printable(text, keep="\n")
