"""Settings of pymalloc, in which versions and builds differ, and their validation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from replay.allocators.pymalloc.arenas import NO_LINK
from replay.support.units import Size

ARENA_BYTES_MAX = 64 << 20
"""Far larger than in any build, and within the reserve of addresses for one event (`linux.SLACK_BYTES`)."""
HUGE_PAGE_BYTES = 2 << 20
"""Huge page size of x86-64."""


class Config(BaseModel):
    """CPython's pymalloc."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alignment: Size = 16
    arena_size: Size = 1 << 20
    pool_size: Size = 16 << 10
    small_threshold: Size = Field(
        512, description="Largest request that pymalloc serves. Larger ones, and those of 0 bytes, go to libc."
    )
    pool_header: Size = 48
    release: Literal["immediate", "keep-last"] = Field(
        "keep-last", description="When a free arena is unmapped. keep-last: not if it is the last usable one."
    )
    radix_tree: bool = True
    address_bits: int = Field(64, description="Address bits in the radix tree: 48 in 3.10, 64 in later versions.")
    huge_pages: bool = Field(
        False, description="Huge pages for arenas, which become resident as a whole on first touch."
    )
    word_size: Literal[4, 8] = 8

    @property
    def pool_overhead(self) -> int:
        """Offset of a pool's first block: the header, rounded up to `alignment`."""
        return -(-self.pool_header // self.alignment) * self.alignment

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        if self.alignment < self.word_size or self.alignment & (self.alignment - 1):
            raise ValueError(f"alignment: {self.alignment} is not a power of two of at least {self.word_size}")
        if self.pool_size < 256 or self.pool_size & (self.pool_size - 1):
            raise ValueError(f"pool_size: {self.pool_size} is not a power of two of at least 256")
        if self.arena_size > ARENA_BYTES_MAX:
            raise ValueError(f"arena_size: {self.arena_size} exceeds {ARENA_BYTES_MAX}, the largest supported size")
        if self.huge_pages and self.arena_size % HUGE_PAGE_BYTES:
            raise ValueError(
                f"arena_size: {self.arena_size} is not a multiple of the huge page size, {HUGE_PAGE_BYTES}"
            )
        if self.arena_size % self.pool_size:
            raise ValueError(f"arena_size: {self.arena_size} is not a multiple of pool_size, {self.pool_size}")
        if self.arena_size < 4 * self.pool_size:
            raise ValueError(f"arena_size: {self.arena_size} is less than four pools of {self.pool_size}")
        if self.radix_tree and self.arena_size & (self.arena_size - 1):
            raise ValueError(f"arena_size: {self.arena_size} is not a power of two; a radix tree requires one")
        if self.small_threshold < self.alignment or self.small_threshold % self.alignment:
            raise ValueError(
                f"small_threshold: {self.small_threshold} is not a multiple of alignment, {self.alignment}"
            )
        header = 4 * self.word_size + 4 * 4  # struct pool_header: four pointers, four unsigned ints
        if self.pool_header < header:
            raise ValueError(f"pool_header: {self.pool_header} is less than the size of struct pool_header, {header}")
        blocks = (self.pool_size - self.pool_overhead) // self.small_threshold
        if blocks < 2:
            raise ValueError(
                f"small_threshold: a pool of {self.pool_size} bytes holds fewer than two blocks of "
                f"{self.small_threshold}"
            )
        if (self.pool_size - self.pool_overhead) // self.alignment >= NO_LINK:
            raise ValueError(f"pool_size: a pool of {self.pool_size} bytes holds more than {NO_LINK - 1} blocks")
        if self.address_bits not in (48, 64):
            raise ValueError(f"address_bits: {self.address_bits} is neither 48 nor 64")
        return self
