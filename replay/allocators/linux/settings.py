"""Settings of the address space, and the limits of its tables."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from replay.support.units import Size

SLACK_BYTES = 256 << 20
"""Limit of the address space that one event may map in addition to its request: an arena, tables, top_pad, alignment to
huge pages. Limits of settings guarantee that their sum is lower."""
GAP_BYTES = 1 << 20
"""Minimum distance between heap and mappings."""
CHUNK_SHIFT = 28
CHUNK_BYTES = 1 << CHUNK_SHIFT
"""Bit tables of mappings far below all others are in chunks of this size of address space."""
CHUNKS_SPARE = 8
"""Limit of the chunks that one event may need in addition to those for its bytes, if its mappings are far apart."""
ADDRESS_MIN = 1 << 16
"""vm.mmap_min_addr: a lower hint is replaced by this address."""


class Config(BaseModel):
    """Linux: the address space below the allocators."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    page_size: Size = 4096
    huge_page_size: Size = Field(
        2 << 20, description="Size of a huge page. Mappings of a multiple of it are aligned to it. 0: none."
    )
    transparent_huge_pages: Literal["never", "madvise", "always"] = Field(
        "never", description="Huge pages on first touch. madvise: where malloc requests them. always: everywhere."
    )
    reserved_huge_pages: int = Field(
        0, ge=0, le=1 << 20, description="Free reserved huge pages (vm.nr_hugepages), for mappings with MAP_HUGETLB."
    )
    mmap_base: Size = Field(0x7FFFF7FF1000, description="End address of the first mapping.")
    brk_base: Size = Field(0x555555560000, description="Start address of the heap.")

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        if not 256 <= self.page_size <= 1 << 21 or self.page_size & (self.page_size - 1):
            raise ValueError(f"page_size: {self.page_size} is not a power of two from 256 bytes to 2 MiB")
        if self.huge_page_size and (
            self.huge_page_size & (self.huge_page_size - 1)
            or self.huge_page_size % self.page_size
            or self.huge_page_size > 32 << 20
        ):
            raise ValueError(f"huge_page_size: {self.huge_page_size} is not a power of two from page_size to 32 MiB")
        if self.transparent_huge_pages != "never" and self.huge_page_size <= self.page_size:
            raise ValueError(
                f"transparent_huge_pages: {self.transparent_huge_pages} needs a huge_page_size above page_size"
            )
        if self.reserved_huge_pages and self.huge_page_size <= self.page_size:
            raise ValueError(f"reserved_huge_pages: {self.reserved_huge_pages} need a huge_page_size above page_size")
        for name in ("mmap_base", "brk_base"):
            if getattr(self, name) % self.page_size:
                raise ValueError(f"{name}: {getattr(self, name):#x} is not a multiple of the page size")
        if not 0 < self.brk_base < self.mmap_base - 2 * SLACK_BYTES or self.mmap_base >= 1 << 47:
            raise ValueError(
                f"mmap_base: {self.mmap_base:#x} must be well above brk_base {self.brk_base:#x} and below 2^47"
            )
        return self
