"""Settings of the cyclic garbage collector on the command line, as in `--set gc.threshold0=50000`."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

from replay.support.errors import ConfigError
from replay.support.names import nearest, printable
from replay.support.yaml_documents import parse_yaml
from replay.trace import Collector, Trace
from replay.trace.editing.collecting import CollectedTrace, CollectorSettings

_PREFIX = "gc."
_NAMES = tuple(field.name for field in fields(CollectorSettings))


def is_of_collector(override: str) -> bool:
    """Whether an override, or its key, is a setting of the collector."""
    return override.strip().startswith(_PREFIX)


def split_settings(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the overrides of the collector, and all others."""
    own = [text for text in overrides if is_of_collector(text)]
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


def as_options(settings: CollectorSettings) -> list[str]:
    """Returns the settings as overrides like `gc.enabled=false`."""
    values = {name: value for name, value in vars(settings).items() if value is not None}
    return [
        f"{_PREFIX}{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()
    ]


def with_collector(trace: Trace, settings: CollectorSettings) -> Trace:
    """Returns a recording or object program under these settings; the trace itself if there are none."""
    if not (overrides := as_options(settings)):
        return trace
    from replay.objects.tracing import ObjectTrace  # compiles the schema of object programs, a third of a second

    if not isinstance(trace, ObjectTrace):
        return CollectedTrace(trace, settings, " ".join(f"--set {text}" for text in overrides))
    if settings.freeze_at:
        raise ConfigError("gc.freeze_at is for recordings; in object programs, write `collector: freeze`")
    limits = settings.threshold0, settings.threshold1, settings.threshold2
    return trace.with_collector(limits, settings.enabled)


def collector_notes(settings: CollectorSettings, recorded: Collector) -> Iterator[str]:
    """Yields the assumptions of a simulation with these settings."""
    new = settings.over(recorded)
    thresholds = ", ".join(map(str, new.thresholds))
    how = f"with thresholds {thresholds}" if new.enabled else "disabled"
    frozen = f", frozen at {printable(settings.freeze_at)}" if settings.freeze_at else ""
    freed = (
        "recorded collection freed is freed by the next one of its generation"
        if new.is_automatic
        else "recorded collection freed stays live until the program calls gc.collect"
    )
    yield (
        f"garbage collector {how}{frozen}: the program is assumed to do the same otherwise, and what a\n"
        f"      {freed}; docs/recording.md has the rules"
    )
    if settings.is_more_frequent(recorded):
        yield "collections are more frequent than recorded, so figures are a rough estimate between bounds"
