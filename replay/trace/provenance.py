"""Where a trace comes from, and the names that this has in files.

Files and `--json` have it as `origin` (`trace` in a summary): an object of texts. The name of a text is that of the
field here, unless the field declares another one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

CLEAN_START = "clean"
"""`Provenance.start` of a recording that began with every pool of pymalloc full."""
_DIGITS_MOST = 19
"""Of a count; Python refuses to read numbers of thousands of digits."""


def _called(name: str) -> Any:
    """A field of that name in files."""
    return field(default=None, metadata={"name": name})


@dataclass(frozen=True)
class Provenance:
    """Where a trace comes from. None is unknown or does not apply."""

    source: str | None = None
    """The format that was imported."""
    file: str | None = None
    """Name of the imported file, without its folder."""
    workload: str | None = None
    seed: int | None = None
    """Of the workload."""
    interpreter: str | None = None
    """Implementation and version, as in `cpython 3.12.1`."""
    platform: str | None = None
    command: str | None = None
    """Command line of the recorded program; of the interpreter's path only the name."""
    allocator: str | None = None
    """CPython's allocator in an imported capture; a recording has it in `Runtime`."""
    traced_allocators: str | None = _called("traced allocators")
    sites: str | None = None
    """For which calls a recording has call sites; None if for none."""

    start: str | None = None
    """How a recording began: CLEAN_START or otherwise."""
    older_frees: int | None = _called("foreign_frees")
    """Frees of blocks older than the recording; the same of reallocs below."""
    older_reallocs: int | None = _called("foreign_reallocs")
    unseen_frees: int | None = None
    """Frees that did not pass the hooks."""
    left_out_calls: int | None = None
    """Calls of excluded threads; None if there were none."""

    cut_short: str | None = _called("cut short")
    """Where a truncated file ends."""
    assumed_time: str | None = _called("assumed time")
    assumed_thread: str | None = _called("assumed thread")
    assumed_domain: str | None = _called("assumed domain")
    assumed_frees: str | None = _called("assumed frees")
    assumed_reallocs: str | None = _called("assumed reallocs")
    dropped_frees: int | None = _called("dropped frees")
    """Of blocks older than the log."""
    born_by_realloc: int | None = _called("born by realloc")
    """Reallocs of blocks older than the log."""
    missing_frees: int | None = _called("missing frees")
    """Frees that the log lacks and the trace has."""
    dropped_mappings: int | None = _called("dropped mappings")
    """Calls of mmap and munmap."""
    dropped_mapping_bytes: int | None = _called("dropped mapping bytes")
    failed_calls: int | None = _called("failed calls")
    dropped_lines: int | None = _called("dropped lines")
    """Unknown lines of a file that was read leniently."""
    dropped_columns: str | None = _called("dropped columns")
    """Names of unknown columns of such a file."""

    edited: str | None = None
    """The commands that edited the trace, in order."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further texts of a format, under names that it chooses. Not interpreted."""

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> "Provenance":
        """Reads an `origin`; a text that its field cannot hold unchanged is a note."""
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
        """The `origin` of a file: what is known, as texts by name."""
        found = {name: getattr(self, attribute) for name, attribute in (_TEXTS | _COUNTS).items()}
        known = {name: str(found[name]) for name in _NAMES if found[name] is not None}
        return known | {name: text for name, text in self.notes.items() if name not in known}

    @property
    def implementation(self) -> str:
        """Name of the recorded interpreter, as in `cpython`; empty if unknown."""
        return (self.interpreter or "").partition(" ")[0]

    @property
    def cpython_version(self) -> str:
        """Major and minor version of a recorded CPython; empty if unknown or another interpreter."""
        name, _, version = (self.interpreter or "").partition(" ")
        return ".".join(version.split(".")[:2]) if name == "cpython" else ""

    def edited_by(self, words: str) -> "Provenance":
        """The same after one more edit, without what is true of the whole recording only."""
        return replace(
            self, edited=f"{self.edited}; {words}" if self.edited else words,
            start=None, older_frees=None, older_reallocs=None, unseen_frees=None, left_out_calls=None,
        )  # fmt: skip

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Validates the texts of a file."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.from_texts, handler.generate_schema(dict[str, str]))


_NAMES = {each.metadata.get("name", each.name): each for each in fields(Provenance) if each.name != "notes"}
_TEXTS = {name: each.name for name, each in _NAMES.items() if each.type == str | None}
_COUNTS = {name: each.name for name, each in _NAMES.items() if each.type == int | None}


def common_provenance(each: Iterable[Provenance]) -> Provenance:
    """What all of these agree on."""
    first, *others = (origin.texts() for origin in each)
    return Provenance.from_texts({
        name: text for name, text in first.items() if all(other.get(name) == text for other in others)
    })  # fmt: skip


def _is_count(text: str) -> bool:
    return len(text) <= _DIGITS_MOST and text.isdecimal() and str(int(text)) == text
