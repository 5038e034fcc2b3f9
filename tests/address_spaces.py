"""A process that makes system calls as ordered, and the model that makes the same, compared page by page."""

import errno
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from replay.allocators import LOG, NO_MEMORY, ROOM, SYSCALLS, TALLY, Stack, linux
from replay.allocators.linux.areas import NO_RESERVE, WRITABLE
from replay.allocators.linux.residency import resident_pages

PAGE, KIB, MIB = 4096, 1 << 10, 1 << 20
HUGE = 2 * MIB
NOT_MAPPED, MAPPED, RESIDENT, CLOSED = 0, 1, 2, 4
(
    MAP, UNMAP, TOUCH, BREAK, SURVEY, MAP_HUGETLB, ADVISE, GIVE, RESIZE, RESERVE, PROTECT, MAP_RESERVED, MAP_AT,
    UNPROTECT, FREE, ADVISE_SMALL, LAZY,
) = range(17)  # fmt: skip
PLACES = (0, PAGE, MIB, HUGE - PAGE)
"""Where the first mapping ends, modulo 2 MiB: what is aligned to huge pages lands differently with each."""

RELEASE = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
ALIGNS = RELEASE >= (6, 12)
needs_alignment = pytest.mark.skipif(not ALIGNS, reason="Linux before 6.12 aligns other lengths to huge pages, or none")
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = SWITCH.read_text().partition("[")[2].partition("]")[0] if SWITCH.exists() else "never"
needs_huge_pages = pytest.mark.skipif(
    HUGE_PAGES == "never" or RELEASE < (6, 18),
    reason="no transparent huge pages, or a Linux that merges areas and frees page tables by other rules",
)
NEEDS_LINUX = [
    pytest.mark.system,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 2**32,
        reason="the model is that of Linux on x86-64",
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]

ARENAS = (256 * KIB, MIB)
SMALL = (PAGE, 2 * PAGE, 3 * PAGE, 33 * PAGE, 132 * KIB, *ARENAS, MIB + PAGE, 511 * PAGE)
LARGE = (HUGE, HUGE + PAGE, 2 * HUGE - PAGE, 2 * HUGE, 5 * MIB, 5 * HUGE, 10 * MIB + PAGE, 16 * HUGE, 37 * MIB)
LENGTHS = SMALL + LARGE if ALIGNS else SMALL


def compiled(folder: Path) -> Path:
    """The program that makes the system calls, compiled into a folder."""
    path = folder / "mappings"
    source = Path(__file__).with_name("mappings.c")
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", path], check=True)
    return path


class Linux:
    """A process that executes orders; `base` and `heap` are what the model calls mmap_base and brk_base."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        start = process.stdout.read(16)
        if len(start) < 16 and process.wait() == 2:
            pytest.skip(process.stderr.read().decode())
        self.base, self.heap = struct.unpack("2q", start)

    def order(self, operation: int, address: int, length: int) -> int:
        self._process.stdin.write(struct.pack("3q", operation, address, length))
        self._process.stdin.flush()
        return struct.unpack("q", self._process.stdout.read(8))[0]

    def order_with(self, operation: int, address: int, length: int, more: int) -> int:
        self._process.stdin.write(struct.pack("4q", operation, address, length, more))
        self._process.stdin.flush()
        return struct.unpack("q", self._process.stdout.read(8))[0]

    def survey(self, start: int, end: int) -> np.ndarray:
        """The state of each page of [start, end)."""
        self.order(SURVEY, start, end - start)
        return np.frombuffer(self._process.stdout.read((end - start) // PAGE), np.uint8)


class Both:
    """Does everything twice, in the model first, and compares what comes of it."""

    @staticmethod
    def call(operation, stack: Stack, *arguments: int) -> int | None:
        """A call of the model, in plain Python; a test may set another function, such as a compiled one."""
        return operation(stack, *arguments)

    def __init__(self, real: Linux, huge_pages: str, reserved: int) -> None:
        self.linux, self.base, self.heap = real, real.base, real.heap
        state = linux.new_state(
            linux.Config(
                mmap_base=real.base,
                brk_base=real.heap,
                transparent_huge_pages=huge_pages,
                reserved_huge_pages=reserved,
            )
        )
        state.space[0].address_min = real.order_with(MAP_AT, PAGE, PAGE, 0)
        real.order(UNMAP, state.space[0].address_min, PAGE)
        self.stack = Stack(np.zeros(1, TALLY), np.zeros(64, LOG), np.zeros(1, np.int64), state, state, state)

    @property
    def regions(self) -> np.ndarray:
        return self.stack.linux.regions[: self.stack.linux.space[0].regions]

    @property
    def brk(self) -> int:
        return int(self.stack.linux.space[0].brk)

    def _model(self, operation, *arguments: int) -> int | None:
        answer = self.call(operation, self.stack, *arguments)
        tally = self.stack.tally[0]
        assert not tally.attention & NO_MEMORY
        if tally.attention & ROOM:
            self.stack = self.stack._replace(linux=linux.grow(self.stack.linux))
        self.calls = self.stack.log[: tally.rows_logged].copy()
        tally.attention = tally.rows_logged = 0
        return answer

    def map(self, length: int) -> int:
        address = int(self._model(linux.mmap, length))
        self._same_place(address, self.linux.order(MAP, 0, length), length)
        return address

    def map_hugetlb(self, length: int) -> int:
        address = int(self._model(linux.mmap_huge_pages, length))
        found = self.linux.order(MAP_HUGETLB, 0, length)
        if found < 0:
            pytest.skip("this Linux has no huge pages of 2 MiB to map")
        self._same_place(address, found, length)
        return address

    def map_reserved(self, length: int) -> int:
        address, found = int(self._model(linux.mmap_hugetlb, length, 0, 0)), self.linux.order(MAP_RESERVED, 0, length)
        if address < 0:
            assert found == -errno.ENOMEM
        else:
            self._same_place(address, found, length)
        return address

    def _same_place(self, address: int, found: int, length: int) -> None:
        pages = [(self.base - place) // PAGE for place in (address, found)]
        assert address == found, f"{length} bytes start {pages[0]} pages below the base, in Linux {pages[1]}"

    def unmap(self, start: int, length: int) -> None:
        self._model(linux.munmap, start, length)
        assert self.linux.order(UNMAP, start, length) == 0

    def touch(self, start: int, length: int) -> None:
        self._model(linux.touch, start, start + length)
        assert self.linux.order(TOUCH, start, length) == 0

    def advise(self, start: int, length: int) -> None:
        self._model(linux.advise_huge_pages, start, length)
        assert self.linux.order(ADVISE, start, length) == 0

    def give(self, start: int, length: int) -> None:
        self._model(linux.dontneed, start, length)
        assert self.linux.order(GIVE, start, length) == 0

    def resize(self, start: int, length: int, new_length: int) -> int:
        address = int(self._model(linux.mremap, start, length, new_length))
        self._same_place(address, self.linux.order_with(RESIZE, start, length, new_length), new_length)
        return address

    def reserve(self, length: int) -> int:
        address = int(self._model(linux.reserve, length, 0))
        self._same_place(address, self.linux.order(RESERVE, 0, length), length)
        return address

    def protect(self, start: int, length: int) -> None:
        self._model(linux.protect, start, length)
        assert self.linux.order(PROTECT, start, length) == 0

    def unmap_reserve(self, start: int, length: int, reserved: int) -> None:
        self._model(linux.munmap_reserve, start, length, reserved)
        assert self.linux.order(UNMAP, start, length) == 0

    def map_at(self, hint: int, length: int, flags: int = 0) -> int:
        address = int(self._model(linux.mmap_at, hint, length, flags))
        found = self.linux.order_with(MAP_AT, hint, length, flags)
        if address < 0:
            assert found in (-errno.EEXIST, -errno.ENOMEM)
        else:
            self._same_place(address, found, length)
        return address

    def map_aligned(self, hint: int, length: int, alignment: int, padding: int, flags: int) -> int:
        """The model's calls, one by one in Linux."""
        address = int(self._model(linux.mmap_aligned, hint, length, alignment, padding, flags))
        assert address % alignment == 0
        for call in self.calls:
            start, size = int(call.address), int(call.bytes)
            if SYSCALLS[call.kind] == "munmap":
                assert self.linux.order(UNMAP, start, size) == 0
            else:
                self._same_place(start, self.linux.order_with(MAP_AT, hint, size, flags), size)
                hint = 0
        return address

    def unprotect(self, start: int, length: int) -> None:
        self._model(linux.unprotect, start, length)
        assert self.linux.order(UNPROTECT, start, length) == 0

    def free(self, start: int, length: int) -> None:
        self._model(linux.free_lazily, start, length)
        assert self.linux.order(FREE, start, length) == 0

    def advise_small(self, start: int, length: int) -> None:
        self._model(linux.advise_small_pages, start, length)
        assert self.linux.order(ADVISE_SMALL, start, length) == 0

    def runs(self, kind: int = WRITABLE) -> list[tuple[int, int]]:
        """Stretches without a gap of areas that are writable, and of this kind."""
        found: list[tuple[int, int]] = []
        state = self.stack.linux
        for area in state.areas[: state.space[0].areas]:
            if area.kind & (WRITABLE | NO_RESERVE) == kind:
                start, end = int(area.start), int(area.end)
                found[-1:] = [(start, found[-1][1])] if found and found[-1][0] == end else [*found[-1:], (start, end)]
        return found

    def move_brk(self, new_brk: int) -> None:
        self._model(linux.brk, new_brk)
        assert self.linux.order(BREAK, new_brk, 0) == new_brk == self.brk

    def is_mapped(self, start: int, length: int) -> bool:
        return bool(((self.regions["start"] <= start) & (start + length <= self.regions["end"])).any())

    def compare_pages(self) -> None:
        """Page by page: what is mapped, resident and may be touched, some pages beyond each end included."""
        tally, space = self.stack.tally[0], self.stack.linux.space[0]
        resident = resident_pages(self.stack.linux)
        real = np.concatenate([self._compare_window(start, end, resident) for start, end in self._windows()])
        linux.check(self.stack.linux, self.stack)
        is_open = real & CLOSED == 0
        assert tally.mapped_bytes == np.count_nonzero((real != NOT_MAPPED) & is_open) * PAGE
        assert space.reserved_bytes == np.count_nonzero(~is_open) * PAGE
        assert tally.resident_bytes == np.count_nonzero(real & RESIDENT) * PAGE

    def compare_lazy(self) -> None:
        """How many bytes Linux may take because they were freed lazily."""
        lazy = sum(self.linux.order(LAZY, start, end - start) for start, end in self._windows())
        assert lazy == self.stack.linux.space[0].lazy_bytes

    def _windows(self) -> list[tuple[int, int]]:
        """Stretches of addresses with all mappings: the heap, what lies close to the base, and each other region."""
        space = self.stack.linux.space[0]
        low = int(space.lowest) - 64 * PAGE
        far = [(start - PAGE, end + PAGE) for start, end in self.regions.tolist() if end < low]
        windows: list[tuple[int, int]] = []
        for start, end in sorted([(self.heap, self.brk + 4 * PAGE), (low, self.base), *far]):
            if windows and start < windows[-1][1]:
                windows[-1] = windows[-1][0], max(end, windows[-1][1])
            else:
                windows.append((start, end))
        return windows

    def _compare_window(self, low: int, high: int, resident: np.ndarray) -> np.ndarray:
        """The real state of each page of a window, equal to the model's."""
        state, pages = self.stack.linux, np.zeros((high - low) // PAGE, np.uint8)
        heap = [(self.heap, self.brk)] if self.brk > self.heap else []
        for start, end in [*self.regions.tolist(), *heap]:
            pages[max(start - low, 0) // PAGE : max(end - low, 0) // PAGE] = MAPPED
        pages[(resident[(resident >= low) & (resident < high)] - low) // PAGE] = RESIDENT
        for start, end in state.reserves[: state.space[0].reserves].tolist():
            pages[max(start - low, 0) // PAGE : max(end - low, 0) // PAGE] |= CLOSED
        real = self.linux.survey(low, high)
        np.testing.assert_array_equal(pages, real)
        return real


@contextmanager
def beside_each_other(program: Path, place: int, huge_pages: str = "never", reserved: int = 0) -> Iterator[Both]:
    """Starts both, the first mapping ending at a given place modulo 2 MiB."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    pages = "single" if huge_pages == "never" else "huge"
    with subprocess.Popen([program, str(place), pages], **pipes) as process:
        both = Both(Linux(process), huge_pages, reserved)
        assert both.base % HUGE == place
        yield both
        both.compare_pages()
