"""The replay log of LLNL Umpire, plain or compressed: a JSON object in each line. There are two layouts.

2022 and newer   `category`, `name`, `numeric_args`, `string_args`, `tags`, `timestamp`
older            `kind`, `event`, `payload`, `result`, `timestamp`: a call with a result occurs twice, first without
                 its result

allocate         `allocator_ref`, `size`, `pointer` (older: `memory_ptr`)
deallocate       `allocator_ref`, `pointer` (older: `memory_ptr`)
reallocate       two objects: `current_ptr` and `size`, then `new_ptr`; operations in between belong to it; with size 0
                 it frees the block, and `new_ptr` is in a pool of Umpire for blocks of 0 bytes
make_…           has an allocator's name; other operations do not concern blocks

A block is identified by its allocator and its address; its call site is the allocator's name. Device memory is
simulated as host memory. The log has no threads and domains.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from replay.sources._logs.calls import MOVE, NO_PARTNER, Calls, libc_calls
from replay.sources._logs.lines import plain_head, read_pieces, unknown_line
from replay.sources._logs.log_trace import Findings, LogTrace, open_lines
from replay.support.limits import MAX_SIZE
from replay.trace import Op, Provenance, Site

SUFFIXES = (".replay",)
_FIRST_OBJECT = re.compile(
    rb'^\s*\{(?=[^\n]*"timestamp"\s*:)[^\n]*("kind"\s*:\s*"replay"|"category"\s*:\s*")', re.MULTILINE
)
_MALLOC, _REALLOC, _FREE = int(Op.MALLOC), int(Op.REALLOC), int(Op.FREE)
_ADDRESS_BITS = 48
"""Bits of user addresses on x86-64, ARM and POWER. The higher bits of a key are the allocator's number."""


def sniff(head: bytes) -> bool:
    return _FIRST_OBJECT.search(plain_head(head)) is not None


def open_trace(path: Path) -> LogTrace:
    """Returns the trace. `batches` reads and validates the events."""
    return open_lines(path, "umpire", _read, lenient=False, addresses=False)


def open_lenient(path: Path) -> LogTrace:
    """The same, but skips and counts unknown lines."""
    return open_lines(path, "umpire", _read, lenient=True, addresses=False)


def _read(path: Path, findings: Findings, *, lenient: bool) -> Iterator[Calls]:
    findings.origin = Provenance(assumed_thread="0", assumed_domain="libc")
    log = _Log(findings)
    for piece in read_pieces(path):
        position = 0
        for text in piece.text.tobytes().splitlines(keepends=True):
            try:
                if text.strip():
                    log.convert(text)
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
                if not lenient:
                    raise unknown_line(path, piece, position, "an Umpire replay log") from None
                findings.dropped_lines += 1
            position += len(text)
        yield log.new_calls()


class _Call(NamedTuple):
    """A row of `Calls`."""

    op: int
    key: int
    size: int
    time_ns: int
    site: int
    partner: int = NO_PARTNER


class _Log:
    """Converts the log, one object after the other."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._allocators: dict[str, int] = {}
        self._calls: list[_Call] = []
        self._moving: tuple[int, int] | None = None
        self._now_ns = 0

    def convert(self, text: bytes) -> None:
        """Converts one line. Raises the exceptions of its conversion if it is invalid."""
        record = json.loads(text)
        self._now_ns = max(self._now_ns, _int64(record["timestamp"]))
        if "category" in record:
            if record["category"] == "operation":
                self._operate(record["name"], record)
        elif record["kind"] == "replay":
            self._operate_older(record["event"], record.get("payload"), record.get("result"))

    def new_calls(self) -> Calls:
        """Returns the calls since the last call of this method."""
        rows, self._calls = self._calls, []
        columns = np.array(rows, np.int64).reshape(-1, len(_Call._fields)).T
        op, key, size, time_ns, site, partner = (column.copy() for column in columns)
        site = site.astype(np.uint32)
        return libc_calls(op.astype(np.uint8), key, size, time_ns=time_ns, site=site, partner=partner)

    def _operate(self, name: str, record: dict[str, dict[str, str]]) -> None:
        texts = record.get("string_args", {})
        if name in ("make_memory_resource", "make_allocator"):
            self._name(texts["allocator_ref"], record["tags"]["allocator_name"])
        elif name in ("allocate", "named_allocate"):
            self._allocate(texts["allocator_ref"], texts["pointer"], record["numeric_args"]["size"])
        elif name == "deallocate":
            self._deallocate(texts["allocator_ref"], texts["pointer"])
        elif name == "reallocate" and "new_ptr" in texts:
            self._end_move(texts["allocator_ref"], texts["new_ptr"])
        elif name == "reallocate":
            self._moving = (
                self._key(texts["allocator_ref"], texts["current_ptr"]),
                _size(record["numeric_args"]["size"]),
            )

    def _operate_older(self, event: str, payload: dict[str, str], result: str | dict[str, str] | None) -> None:
        if event == "makeMemoryResource" and isinstance(result, str):
            self._name(result, payload["name"])
        elif event == "makeAllocator" and isinstance(result, dict):
            self._name(result["allocator_ref"], payload["allocator_name"])
        elif event == "allocate" and isinstance(result, dict):
            self._allocate(payload["allocator_ref"], result["memory_ptr"], payload["size"])
        elif event == "deallocate":
            self._deallocate(payload["allocator_ref"], payload["memory_ptr"])
        elif event == "reallocate":
            raise ValueError("the format of older versions is unknown")

    def _name(self, reference: str, name: str) -> None:
        """Names a new allocator, which can have the address of an earlier one."""
        if len(self._findings.sites) == 1 << (63 - _ADDRESS_BITS):
            raise ValueError("too many allocators")
        self._allocators[reference] = len(self._findings.sites)
        self._findings.sites.append(Site(name, "", 0))

    def _allocator(self, reference: str) -> int:
        if reference not in self._allocators:  # created before the log began
            self._name(reference, reference)
        return self._allocators[reference]

    def _key(self, reference: str, pointer: str) -> int:
        """Returns the key of a block; 0 for a null pointer."""
        address = 0 if pointer == "(nil)" else int(pointer, 16)
        if not 0 <= address < 1 << _ADDRESS_BITS:
            raise ValueError("no address")
        return (self._allocator(reference) << _ADDRESS_BITS | address) if address else 0

    def _allocate(self, reference: str, pointer: str, size: int | str) -> None:
        key = self._key(reference, pointer)
        if self._moving is not None:
            return
        if key == 0:
            self._findings.failed_calls += 1
            return
        self._calls.append(_Call(_MALLOC, key, _size(size), self._now_ns, self._allocator(reference)))

    def _deallocate(self, reference: str, pointer: str) -> None:
        key = self._key(reference, pointer)
        if key and self._moving is None:
            self._calls.append(_Call(_FREE, key, 0, self._now_ns, self._allocator(reference)))

    def _end_move(self, reference: str, pointer: str) -> None:
        """Ends a realloc: of a block, of NULL, or to 0 bytes."""
        if self._moving is None:
            raise ValueError("the first half of a realloc is missing")
        (old, size), self._moving = self._moving, None
        new, site = self._key(reference, pointer), self._allocator(reference)
        if old and new:
            self._calls.append(_Call(MOVE, old, 0, self._now_ns, site))
            self._calls.append(_Call(_REALLOC, new, size, self._now_ns, site, len(self._calls) - 1))
        elif new:
            self._calls.append(_Call(_MALLOC, new, size, self._now_ns, site))
        elif old:
            self._calls.append(_Call(_FREE, old, 0, self._now_ns, site))


def _int64(value: int | str) -> int:
    number = int(value)
    if number >= 1 << 63:
        raise ValueError("more than 63 bits")
    return number


def _size(value: int | str) -> int:
    size = int(value)
    if not 0 <= size <= MAX_SIZE:
        raise ValueError("no size")
    return size
