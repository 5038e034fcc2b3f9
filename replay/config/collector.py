"""Settings of the cyclic garbage collector on the command line, as in `--set gc.threshold0=50000`."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

from replay.support.errors import ConfigError
from replay.support.names import nearest, printable
from replay.support.yaml_documents import parse_yaml
from replay.trace import Collector
from replay.trace.editing.collecting import CollectorSettings

_PREFIX = "gc."
_NAMES = tuple(field.name for field in fields(CollectorSettings))


def split_settings(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the overrides of the collector, and all others."""
    own = [text for text in overrides if text.strip().startswith(_PREFIX)]
    return own, [text for text in overrides if text not in own]


def collector_settings(overrides: Sequence[str]) -> CollectorSettings:
    """Returns the settings of overrides like `gc.enabled=false`. Raises ConfigError for a wrong one."""
    values = {}
    for override in overrides:
        key, _, text = override.partition("=")
        name = key.strip().removeprefix(_PREFIX)
        if name not in _NAMES:
            raise ConfigError(f"--set {printable(override)}: unknown key {name!r}; {nearest(name, _NAMES)}")
        values[name] = _value(override, name, text.strip())
    return CollectorSettings(**values)  # type: ignore[arg-type]


def _value(override: str, name: str, text: str) -> int | bool | str:
    if name == "freeze_at":
        return text
    try:
        value = parse_yaml(text)
    except ValueError:
        value = None
    wanted = bool if name == "enabled" else int
    if type(value) is not wanted or value < 0:
        example = "gc.enabled=false" if wanted is bool else f"gc.{name}=50000"
        raise ConfigError(f"--set {printable(override)}: write it like {example}")
    return value


def collector_notes(settings: CollectorSettings, recorded: Collector) -> Iterator[str]:
    """Yields the assumptions of a simulation with these settings."""
    new = settings.over(recorded)
    thresholds = ", ".join(map(str, new.thresholds))
    how = f"with thresholds {thresholds}" if new.enabled else "disabled"
    frozen = f", frozen at {printable(settings.freeze_at)}" if settings.freeze_at else ""
    yield (
        f"garbage collector {how}{frozen}: the program is assumed to do the same otherwise, and what a\n"
        "      recorded collection freed is freed by the next one of its generation; docs/recording.md has the rules"
    )
    if settings.is_more_frequent(recorded):
        yield "collections are more frequent than recorded, so figures are a rough estimate between bounds"
