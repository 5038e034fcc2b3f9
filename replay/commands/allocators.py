"""`replay allocators`: the presets, and the models that a configuration can use."""

import json
from typing import NamedTuple

from replay.commands.options import AsJson
from replay.support.names import by_version, say


class Model(NamedTuple):
    """An allocator model, and the roles that it can have."""

    name: str
    roles: tuple[str, ...]
    description: str


def allocators(as_json: AsJson = False) -> None:
    """List the allocator presets and models.

    Example: replay allocators --json
    """
    presets = _presets()
    models = _models()
    if as_json:
        rows = [{"name": name, "description": description} for name, description in presets.items()]
        say(json.dumps({"presets": rows, "models": [model._asdict() for model in models]}, indent=2))
        return
    from rich.table import Table

    from replay.reports.console import PlainConsole

    table = Table("preset", "description", box=None, header_style="bold")
    for name, description in presets.items():
        table.add_row(name, description)
    console = PlainConsole()
    console.print(table)
    table = Table("model", "roles", "description", box=None, header_style="bold")
    for model in models:
        table.add_row(model.name, ", ".join(model.roles), model.description)
    say()
    console.print(table)
    say()
    say("Presets use glibc 2.36. A suffix selects another version: cpython-3.12-glibc-2.31, -2.41 or -2.43.")
    say("next: replay run web-service -a cpython-3.9-glibc-2.41 --set pymalloc.arena_size='1 MiB'")


def _presets() -> dict[str, str]:
    """Returns descriptions by name, older versions first. Reads only YAML: checking a stack would import the models."""
    from replay.support.bundled_files import config_names, find_config
    from replay.support.yaml_documents import parse_yaml

    found = {}
    for name in sorted(config_names(), key=by_version):
        content = parse_yaml(find_config(name).read_text(encoding="utf-8"))
        found[name] = str(content.get("description", ""))
    return found


def _models() -> list[Model]:
    """Returns all models. One that cannot be used has no roles, and the reason as its description."""
    from replay.allocators import find_model, model_names, roles
    from replay.support.errors import ConfigError

    found = []
    for name in model_names():
        try:
            found.append(Model(name, roles(name), (find_model(name).__doc__ or "").strip().partition("\n")[0]))
        except ConfigError as error:
            found.append(Model(name, (), str(error)))
    return found
