"""Settings of glibc's malloc, differences between versions, and the record with both (`malloc_par` and more)."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from replay.allocators.glibc.large_cache import LARGE_BINS
from replay.allocators.glibc.memory import HEAP_SHIFT, NBINS, SMALL_UNITS_32, SMALL_UNITS_64, UNIT, UNIT_SHIFT
from replay.allocators.glibc.system import MAIN_ARENA, MAIN_HEAP
from replay.allocators.glibc.tcache import TCACHE_BINS
from replay.allocators.glibc.threads import NO_THREAD
from replay.jit.arrays import record
from replay.support.units import Size

MMAP_THRESHOLD = 128 << 10
"""DEFAULT_MMAP_THRESHOLD_MIN: the first value of the dynamic threshold."""
MMAP_THRESHOLD_MAX = {8: 32 << 20, 4: 512 << 10}
"""DEFAULT_MMAP_THRESHOLD_MAX by word size: the last value of the dynamic threshold."""
ARENAS_A_PROCESSOR = {8: 8, 4: 2}
"""NARENAS_FROM_NCORES by word size. Up to this number of arenas, glibc does not count processors."""
HEAP_BYTES_MAX = {8: UNIT << HEAP_SHIFT, 4: 1 << 20}
"""HEAP_MAX_SIZE by word size."""
UNLIMITED_ARENAS = 2**31 - 1
"""A limit above any number of threads. glibc accepts larger values, up to 64 bits of ones (-1)."""
TCACHE_BYTES_MAX = {8: UNIT * (TCACHE_BINS + 1) - 8, 4: UNIT * TCACHE_BINS - 4}
"""MAX_TCACHE_SIZE by word size: the largest request of the 64 small bins."""

Version = Annotated[Literal["2.31", "2.36", "2.41", "2.43"], BeforeValidator(str)]
"""A number is converted to a string, because YAML reads an unquoted version as a number."""


@dataclass(frozen=True)
class Rules:
    """Behaviour of one version of glibc."""

    tcache_count: int = 7
    tcache_bytes: int = 2 * TCACHE_BINS
    """Size of tcache_perthread_struct without its pointers to bins."""
    tcache_bins: int = TCACHE_BINS
    has_fastbins: bool = True
    calloc_uses_tcache: bool = False
    """calloc allocates from the tcache: from 2.41 on."""
    sorts_small: bool = False
    """A freed small chunk is put into its bin, not into the unsorted list: from 2.41 on."""
    keeps_slack: bool = False
    """A realloc that would free less than two words does nothing: from 2.41 on."""
    keeps_mapped_page: bool = False
    """A realloc of a mapped chunk that would free at most a page does nothing: only 2.41."""
    heap_info_words: int = 5
    """Number of fields of heap_info, in words."""
    lazy_tcache: bool = False
    """The tcache is created by the first free that can use it, not by the first malloc. realloc does not use it."""
    full_mapped_header: bool = False
    """The size of a mapped chunk excludes its header, and it has an overhead of two words instead of one."""
    aligned_in_tcache: bool = False
    """memalign allocates from the tcache, and frees lead and tail without it: from 2.38 on."""
    merges_any_tail: bool = False
    """memalign also frees a tail smaller than a chunk if the next chunk is free: only 2.41."""
    has_hugetlb: bool = True
    """The tunable glibc.malloc.hugetlb exists: from 2.35 on."""
    has_check: bool = False
    """malloc itself has the hooks of MALLOC_CHECK_: up to 2.33. Later, a separate library has them."""
    mmap_threshold_limited: bool = False
    """mmap_threshold is at most half of HEAP_MAX_SIZE: up to 2.34."""
    hp_threshold: bool = False
    """With reserved huge pages, their size is the default of mmap_threshold: 2.41 and 2.43."""
    hp_heaps: bool = False
    """With reserved huge pages, heaps of thread arenas have four of them: 2.36 and 2.41."""
    hp_swapped: bool = False
    """If reserved huge pages are missing, two arguments of the fallback are swapped, a bug: 2.36."""
    huge_heaps: bool = False
    """With transparent huge pages, heaps of thread arenas grow by huge pages, too; the main heap also if the kernel
    uses them always; madvise is not repeated after mremap: 2.43. Other versions assume address 0 as the first break
    when they round the end of the main heap."""


_2_41 = Rules(
    calloc_uses_tcache=True,
    sorts_small=True,
    keeps_slack=True,
    keeps_mapped_page=True,
    aligned_in_tcache=True,
    merges_any_tail=True,
    hp_threshold=True,
    hp_heaps=True,
)
RULES = {
    "2.31": Rules(heap_info_words=4, has_hugetlb=False, has_check=True, mmap_threshold_limited=True),
    "2.36": Rules(hp_heaps=True, hp_swapped=True),
    "2.41": _2_41,
    "2.43": Rules(
        tcache_count=16,
        tcache_bytes=2 * (TCACHE_BINS + LARGE_BINS),
        tcache_bins=TCACHE_BINS + LARGE_BINS,
        has_fastbins=False,
        calloc_uses_tcache=True,
        sorts_small=True,
        keeps_slack=True,
        lazy_tcache=True,
        full_mapped_header=True,
        aligned_in_tcache=True,
        hp_threshold=True,
        huge_heaps=True,
    ),
}


class Config(BaseModel):
    """glibc's malloc."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Version = "2.36"
    word_size: Literal[4, 8] = 8
    mmap_threshold: Size | Literal["dynamic"] = Field(
        "dynamic", description="Smallest request that gets its own mapping. dynamic: freeing a mapped chunk raises it."
    )
    trim_threshold: Size | Literal["dynamic"] = Field(
        "dynamic", description="Size of the top chunk that is released. dynamic: twice the mmap_threshold."
    )
    top_pad: Annotated[Size, Field(le=64 << 20)] | Literal["default"] = Field(
        "default", description="Bytes that the heap grows by in addition to the request."
    )
    mmap_max: int = Field(65_536, ge=0, le=2**31 - 1, description="Maximum number of mapped chunks.")
    mxfast: Size | Literal["default"] = Field("default", description="Largest request that fastbins serve.")
    tcache_count: Annotated[int, Field(ge=0, le=2**16 - 1)] | Literal["default"] = Field(
        "default", description="Maximum number of chunks in a tcache bin."
    )
    tcache_max: Size | Literal["default"] = Field("default", description="Largest request that the tcache serves.")
    arena_max: Annotated[int, Field(ge=1, le=UNLIMITED_ARENAS)] | Literal["auto"] = Field(
        "auto", description="Maximum number of arenas. auto: 8 per processor, once there are arena_test."
    )
    arena_test: Annotated[int, Field(ge=1, le=UNLIMITED_ARENAS)] | Literal["default"] = Field(
        "default", description="Number of arenas before glibc counts processors. default: 8, or 2 on 32-bit."
    )
    processors: int = Field(4, ge=1, le=4096, description="Number of processors of the process.")
    tcache_unsorted_limit: int = Field(
        0, ge=0, le=2**63 - 1, description="Maximum number of chunks that a malloc moves to the tcache. 0: no limit."
    )
    perturb: int = Field(
        0, ge=0, le=255, description="Byte for the pattern that malloc and free write over blocks. 0: off."
    )
    check: int = Field(0, ge=0, le=3, description="Consistency checks of 2.31, one byte a block. 0: off.")
    hugetlb: Size = Field(
        0,
        description="1: malloc requests transparent huge pages, if linux.transparent_huge_pages is madvise. 2: it maps "
        "reserved huge pages (MAP_HUGETLB). A size: as 2, if it equals linux.huge_page_size. 0: off.",
    )

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        rules = RULES[self.version]
        for key, limit in self._limits().items():
            value = getattr(self, key)
            if isinstance(value, int) and value > limit:
                raise ValueError(f"{key}: {value} exceeds {limit}; glibc {self.version} ignores it")
        if self.hugetlb and not rules.has_hugetlb:
            raise ValueError(f"hugetlb: not supported by glibc {self.version}, only from 2.35 on")
        if self.hugetlb > 1 and self.word_size == 4:
            raise ValueError(f"hugetlb: {self.hugetlb} (MAP_HUGETLB) is not supported for 32-bit; use 0 or 1")
        if self.check and rules.has_check and self.word_size == 4:
            raise ValueError("check: not supported for 32-bit")
        return self

    def _limits(self) -> dict[str, int]:
        """Returns the largest value of each setting that this version does not ignore."""
        rules, limits = RULES[self.version], {}
        if rules.has_fastbins:
            limits["mxfast"] = 20 * self.word_size  # MAX_FAST_SIZE
        if rules.mmap_threshold_limited:
            limits["mmap_threshold"] = HEAP_BYTES_MAX[self.word_size] // 2
        if rules.tcache_bins > TCACHE_BINS:
            limits["tcache_max"] = (1024 << LARGE_BINS) - UNIT - self.word_size
        return limits

    @property
    def notes(self) -> list[str]:
        """Messages about settings that have no effect, or less than expected."""
        rules, found = RULES[self.version], []
        if self.check and not rules.has_check:
            found.append(f"check: no effect in glibc {self.version} unless libc_malloc_debug.so is preloaded")
        if self.mxfast != "default" and not rules.has_fastbins:
            found.append(f"mxfast: glibc {self.version} has no fastbins")
        most = TCACHE_BYTES_MAX[self.word_size]
        if rules.tcache_bins == TCACHE_BINS and self.tcache_max != "default" and self.tcache_max > most:
            found.append(f"tcache_max: the tcache of glibc {self.version} serves at most {most} bytes")
        for key in ("arena_max", "arena_test"):
            if getattr(self, key) == UNLIMITED_ARENAS:
                found.append(f"{key}: this value means no limit; each thread gets its own arena")
        return found


PAR = record(
    "word_size", "header", "min_units", "small_units", "small_shift",
    "mmap_threshold", "threshold_max", "trim_threshold", "top_pad", "mmap_max", "dynamic",
    "max_fast", "tcache_bins", "tcache_count", "unsorted_limit",
    "sorts_small", "calloc_uses_tcache", "lazy_tcache", "keeps_slack_bytes", "keeps_mapped_page",
    "aligned_in_tcache", "merges_any_tail", "mapped_lead_least",
    "map_overhead", "remap_overhead", "map_offset", "map_size_less",
    "tcache_bytes", "tcache_units", "tcache_units_inside", "tcache_large",
    "perturb", "check", "hugetlb", "huge_heaps",
    "heap_bytes_max", "heap_header", "arena_header", "arena_test", "arena_limit_later",
    "hp_bytes", "hp_threshold", "hp_heaps", "hp_swapped", "mapped_heap_bytes",
    "thread", "arena", "tcache", "cache", "is_ready", "found", "touched_by_caller", "holes",
    "chunks", "spare", "mmaps", "used", "unused", "heaps", "unused_heap", "aligned_area",
    "arenas", "arena_limit", "free_arenas", "next_to_use",
)  # fmt: skip
"""Settings and rules, then, from `thread` on, variables:

    thread, arena, tcache, cache    the current thread, its arena, the state and the first bin of its tcache
    is_ready                        whether it has both, and its tcache has small bins only
    found                           a chunk that `_search` found before the tcache was created
    touched_by_caller               whether the caller of _int_malloc raises `touched` of the heap
    holes                           whether heaps have holes (`system`)
    chunks, spare                   number of CHUNK records ever used; head of the list of unused ones
    mmaps, used, unused             `n_mmaps`; the same two for MAPPED records
    heaps, unused_heap              the same two for HEAP records
    aligned_area                    `aligned_heap_area`
    arenas, arena_limit             `narenas`; `narenas_limit`, 0 before it is computed
    free_arenas, next_to_use        `free_list`; `next_to_use`
"""


def request_units(word_size: int, size: int) -> int:
    """request2size, in units of 16 bytes."""
    return max((size + word_size + UNIT - 1) >> UNIT_SHIFT, 4 * word_size >> UNIT_SHIFT)


def new_par(config: Config) -> np.ndarray:
    """Returns an array with one PAR record: the state before the first call."""
    records = np.zeros(1, PAR)
    par, rules, word = records[0], RULES[config.version], config.word_size
    par.word_size, par.header, par.min_units = word, 2 * word, 4 * word >> UNIT_SHIFT
    par.small_units = SMALL_UNITS_64 if word == 8 else SMALL_UNITS_32
    par.small_shift = 0 if word == 8 else 1  # SMALLBIN_CORRECTION
    _set_thresholds(par, config)
    fast = 8 * word * 2 if config.mxfast == "default" else config.mxfast
    par.max_fast = (fast + word) >> UNIT_SHIFT if rules.has_fastbins else 0
    par.tcache_count = rules.tcache_count if config.tcache_count == "default" else config.tcache_count
    par.tcache_bins = TCACHE_BINS
    if config.tcache_max != "default":
        par.tcache_bins = min(TCACHE_BINS, request_units(word, config.tcache_max) - int(par.min_units) + 1)
        if rules.lazy_tcache:
            par.tcache_large = request_units(word, config.tcache_max)
    par.unsorted_limit = config.tcache_unsorted_limit
    par.sorts_small, par.calloc_uses_tcache = rules.sorts_small, rules.calloc_uses_tcache
    par.lazy_tcache = rules.lazy_tcache
    par.keeps_slack_bytes = 2 * word if rules.keeps_slack else 0
    par.keeps_mapped_page = rules.keeps_mapped_page
    par.aligned_in_tcache, par.merges_any_tail = rules.aligned_in_tcache, rules.merges_any_tail
    par.mapped_lead_least = 0 if rules.full_mapped_header else par.min_units << UNIT_SHIFT
    par.map_offset = UNIT - 2 * word  # aligns blocks of mapped chunks
    if rules.full_mapped_header:
        par.map_overhead, par.map_size_less = par.map_offset + 2 * word, par.map_offset + 2 * word
        par.remap_overhead = par.map_overhead
    else:
        par.map_overhead, par.map_size_less = word + (UNIT - 1 if word == 4 else 0), par.map_offset
        par.remap_overhead = par.map_offset + word
    cache_bytes = rules.tcache_bytes + rules.tcache_bins * word
    par.tcache_units = request_units(word, cache_bytes)
    # If _int_malloc creates the tcache, it pads the size twice.
    par.tcache_units_inside = request_units(word, int(par.tcache_units) << UNIT_SHIFT)
    par.tcache_bytes = cache_bytes
    par.perturb, par.check = config.perturb, config.check if rules.has_check else 0
    par.dynamic &= par.check == 0  # free_check does not change thresholds
    par.hugetlb, par.huge_heaps = config.hugetlb == 1, rules.huge_heaps
    par.hp_bytes = config.hugetlb if config.hugetlb > 1 else 0
    par.hp_threshold = rules.hp_threshold and config.mmap_threshold == "dynamic"
    par.hp_heaps, par.hp_swapped = rules.hp_heaps, rules.hp_swapped
    _set_arenas(par, config, rules)
    par.thread, par.chunks, par.unused, par.heaps = NO_THREAD, NBINS, -1, MAIN_HEAP + 1
    return records


def _set_thresholds(par: np.record, config: Config) -> None:
    par.threshold_max = MMAP_THRESHOLD_MAX[config.word_size]
    par.dynamic = config.mmap_threshold == config.trim_threshold == "dynamic" and config.top_pad == "default"
    par.mmap_threshold = MMAP_THRESHOLD if config.mmap_threshold == "dynamic" else config.mmap_threshold
    par.trim_threshold = 128 << 10 if config.trim_threshold == "dynamic" else config.trim_threshold
    par.top_pad = 128 << 10 if config.top_pad == "default" else config.top_pad
    par.mmap_max = config.mmap_max
    par.dynamic &= config.mmap_max == 65_536


def _set_arenas(par: np.record, config: Config, rules: Rules) -> None:
    word, per_processor = config.word_size, ARENAS_A_PROCESSOR[config.word_size]
    par.heap_bytes_max = HEAP_BYTES_MAX[word]
    heap_info = rules.heap_info_words * word
    par.heap_header = heap_info + -(heap_info + 2 * word) % UNIT
    fastbins = (10 if word == 8 else 11) if rules.has_fastbins else 0
    flags = -(-(12 if rules.has_fastbins else 8) // word) * word
    par.arena_header = flags + (fastbins + 2 + 2 * NBINS - 2) * word + NBINS // 8 + 5 * word
    par.arenas, par.next_to_use = 1, MAIN_ARENA
    par.arena_test = per_processor if config.arena_test == "default" else config.arena_test
    par.arena_limit_later = per_processor * config.processors
    par.arena_limit = 0 if config.arena_max == "auto" else config.arena_max
