"""`replay allocators`: the presets, and the models that a configuration can use."""

import ast
import json
from pathlib import Path
from typing import NamedTuple

from replay.commands.options import AsJson
from replay.support import bundled_files as resources
from replay.support.bundled_files import MODEL_GROUP
from replay.support.names import by_version, say


class Model(NamedTuple):
    """An allocator model. `roles` is None for an installed model, whose roles are known only after an import."""

    name: str
    roles: tuple[str, ...] | None
    description: str


def allocators(as_json: AsJson = False) -> None:
    """List the allocator presets and models.

    Example: replay allocators --json
    """
    presets = _presets()
    models = [*_bundled_models(), *_installed_models()]
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
        table.add_row(model.name, ", ".join(model.roles or ()), model.description)
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


def _bundled_models() -> list[Model]:
    """Returns the models of this package. Their sources are parsed, because an import would load the compiler."""
    models = []
    folder = Path(resources.__file__).parents[1] / "allocators"
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ROLES":
                description = (ast.get_docstring(tree) or "").partition("\n")[0]
                name = path.parent.name if path.stem == "__init__" else path.stem
                models.append(Model(name, ast.literal_eval(statement.value), description))
    return models


def _installed_models() -> list[Model]:
    """Returns the models of other packages."""
    from importlib.metadata import entry_points

    return [Model(point.name, None, f"from {point.value}") for point in entry_points(group=MODEL_GROUP)]
