"""Options that take several values: the option repeated, or one value with commas."""

import typer


def split_list(texts: list[str] | None) -> list[str] | None:
    """Returns the values of an option, in order; None if the option is missing. An empty list is refused."""
    if texts is None:
        return None
    values = [value for text in texts for value in text.split(",") if value]
    if texts and not values:
        raise typer.BadParameter("names nothing")
    return values
