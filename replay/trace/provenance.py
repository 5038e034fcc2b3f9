"""Where a trace comes from: interpreter, command, format, assumptions and edits.

Files and `--json` contain it as `origin` (`trace` in a summary): an object of strings. A string has the name of the
field here, unless the field declares another name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

CLEAN_START = "clean"
"""`Provenance.start` of a recording at whose start all pools of pymalloc were full."""
_DIGITS_MOST = 19
"""Digits of a count at most. Python refuses to convert strings of thousands of digits."""


def _called(name: str) -> Any:
    """Returns a field with this name in files."""
    return field(default=None, metadata={"name": name})


@dataclass(frozen=True)
class Provenance:
    """Where a trace comes from. A field is None if it is unknown or does not apply."""

    source: str | None = None
    """The format that was imported."""
    file: str | None = None
    """Name of the imported file, without its folder."""
    workload: str | None = None
    seed: int | None = None
    """Seed of the workload."""
    python: str | None = None
    """The release of CPython that an object program names, as in `3.12`."""
    interpreter: str | None = None
    """Implementation and version, as in `cpython 3.12.1`."""
    platform: str | None = None
    command: str | None = None
    """Command line of the recorded program, with the interpreter's name in place of its path."""
    allocator: str | None = None
    """CPython's allocator in an imported capture. Recordings have it in `Runtime`."""
    traced_allocators: str | None = _called("traced allocators")
    sites: str | None = None
    """The calls for which a recording has call sites; None if it has none."""

    start: str | None = None
    """CLEAN_START, or another description of how the recording started."""
    older_frees: int | None = _called("foreign_frees")
    """Frees of blocks older than the recording; `older_reallocs` is the same for reallocs."""
    older_reallocs: int | None = _called("foreign_reallocs")
    unseen_frees: int | None = None
    """Frees that the recorder's hooks missed."""
    left_out_calls: int | None = None
    """Calls of excluded threads; None if there are none."""

    cut_short: str | None = _called("cut short")
    """Where a truncated file ends."""
    assumed_time: str | None = _called("assumed time")
    assumed_thread: str | None = _called("assumed thread")
    assumed_domain: str | None = _called("assumed domain")
    assumed_frees: str | None = _called("assumed frees")
    assumed_reallocs: str | None = _called("assumed reallocs")
    dropped_frees: int | None = _called("dropped frees")
    """Of blocks older than the log."""
    converted_reallocs: int | None = _called("born by realloc")
    """Reallocs of blocks older than the log, converted to mallocs."""
    missing_frees: int | None = _called("missing frees")
    """Frees that are missing in the log and were added to the trace."""
    dropped_mappings: int | None = _called("dropped mappings")
    """Calls of mmap and munmap."""
    dropped_mapping_bytes: int | None = _called("dropped mapping bytes")
    failed_calls: int | None = _called("failed calls")
    dropped_lines: int | None = _called("dropped lines")
    """Unknown lines of a file that was read with lenient rules."""
    dropped_columns: str | None = _called("dropped columns")
    """Names of unknown columns of such a file."""

    edited: str | None = None
    """The commands that edited the trace, in their order."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further strings of a format, by names that it chooses. replay does not interpret them."""

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> "Provenance":
        """Reads an `origin`. A string that its field cannot represent exactly becomes a note."""
        known: dict[str, Any] = {}
        notes = {}
        for name, text in texts.items():
            if name in _TEXTS:
                known[_TEXTS[name]] = text
            elif name in _COUNTS and _is_count(text):
                known[_COUNTS[name]] = int(text)
            else:
                notes[name] = text
        return cls(**known, notes=notes)

    def texts(self) -> dict[str, str]:
        """Returns the `origin` for a file: the known fields and the notes, as strings by name."""
        found = {name: getattr(self, attribute) for name, attribute in (_TEXTS | _COUNTS).items()}
        known = {name: str(found[name]) for name in _NAMES if found[name] is not None}
        return known | {name: text for name, text in self.notes.items() if name not in known}

    @property
    def implementation(self) -> str:
        """Name of the recorded interpreter, e.g. `cpython`; empty if unknown."""
        return (self.interpreter or "").partition(" ")[0]

    @property
    def cpython_version(self) -> str:
        """Major and minor version of a recorded CPython; empty if unknown or if the interpreter is another one."""
        name, _, version = (self.interpreter or "").partition(" ")
        return ".".join(version.split(".")[:2]) if name == "cpython" else ""

    def edited_by(self, command: str) -> "Provenance":
        """Returns a copy with one more edit, without the fields that describe the unedited recording only."""
        return replace(
            self, edited=f"{self.edited}; {command}" if self.edited else command,
            start=None, older_frees=None, older_reallocs=None, unseen_frees=None, left_out_calls=None,
        )  # fmt: skip

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Makes pydantic validate the strings of a file with `from_texts`."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.from_texts, handler.generate_schema(dict[str, str]))


_NAMES = {each.metadata.get("name", each.name): each for each in fields(Provenance) if each.name != "notes"}
_TEXTS = {name: each.name for name, each in _NAMES.items() if each.type == str | None}
_COUNTS = {name: each.name for name, each in _NAMES.items() if each.type == int | None}


def common_provenance(each: Iterable[Provenance]) -> Provenance:
    """Returns the fields and notes that are equal in all of these."""
    first, *others = (origin.texts() for origin in each)
    return Provenance.from_texts({
        name: text for name, text in first.items() if all(other.get(name) == text for other in others)
    })  # fmt: skip


def _is_count(text: str) -> bool:
    return len(text) <= _DIGITS_MOST and text.isdecimal() and str(int(text)) == text
