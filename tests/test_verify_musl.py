"""The model of musl's malloc, compared with real ones: every address and every system call."""

from functools import cache

import numpy as np
import pytest
from conftest import invoke
from histories import History
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators.musl.settings import LAZY_VERSIONS
from replay.config import load_config
from replay.simulation.run import run
from replay.trace import Domain, MemoryTrace, Op
from replay.verification.libc_compare import verify_libc
from replay.verification.libc_oracles import LibcOracle, survey_musls
from replay.verification.libc_shapes import SHAPES, build_shape

ORACLES = survey_musls()[0]
MUSL = "cpython-3.12-musl-malloc"
with_musl = pytest.mark.skipif(not ORACLES, reason="no static musl on this machine: see `replay verify --libc --list`")
each_oracle = pytest.mark.parametrize("oracle", ORACLES, ids=[oracle.name for oracle in ORACLES])
OF_EACH_RULE = [*[oracle for oracle in ORACLES if oracle.version in LAZY_VERSIONS][-1:], *ORACLES[-1:]]
"""The newest version with MADV_FREE, and the newest one: there is no other rule that versions differ in."""
of_each_rule = pytest.mark.parametrize("oracle", OF_EACH_RULE, ids=[oracle.name for oracle in OF_EACH_RULE])
newest = pytest.mark.parametrize("oracle", ORACLES[-1:], ids=[oracle.name for oracle in ORACLES[-1:]])
shape_of = cache(build_shape)


@pytest.mark.system
@with_musl
@pytest.mark.parametrize("shape", SHAPES)
@of_each_rule
def test_every_block_and_system_call_equals_the_real_musl(oracle: LibcOracle, shape: str) -> None:
    agreement = verify_libc(shape_of(shape, 10_000), oracle)
    assert agreement.exact, agreement.difference
    assert agreement.addresses_compared > 3_000


@pytest.mark.system
@with_musl
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@newest
def test_many_events_agree_with_the_newest_musl(oracle: LibcOracle, shape: str) -> None:
    agreement = verify_libc(shape_of(shape, 100_000, 1), oracle)
    assert agreement.exact, agreement.difference
    assert agreement.addresses_compared > 30_000


@pytest.mark.system
@with_musl
@pytest.mark.parametrize("shape", ["churn", "mapped", "stretch", "bimodal", "aligned"])
@newest
def test_resident_pages_equal_the_real_musl(oracle: LibcOracle, shape: str) -> None:
    agreement = verify_libc(shape_of(shape, 20_000), oracle, resident=True)
    assert agreement.resident_error is not None
    assert agreement.resident_error <= 0.02


@pytest.mark.system
@with_musl
@each_oracle
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_short_traces_agree(oracle: LibcOracle, data: st.DataObject) -> None:
    sizes = st.one_of(
        st.integers(0, 300),
        st.integers(0, 3_000),
        st.integers(1_000, 140_000),
        st.sampled_from([156, 157, 2_028, 4_076, 131_051, 131_052, 131_053, 300_000]),
    )
    history, live = History(), []
    for _ in range(data.draw(st.integers(1, 200))):
        action = data.draw(st.integers(0, 5)) if live else 0
        if action == 5:
            live.append(history.memalign(1 << data.draw(st.integers(4, 18)), data.draw(sizes), Domain.LIBC))
        elif action <= 1:
            live.append(history.malloc(data.draw(sizes), Domain.LIBC, op=Op(action)))
        elif action == 2:
            history.realloc(data.draw(st.sampled_from(live)), max(data.draw(sizes), 1))
        else:
            history.free(live.pop(data.draw(st.integers(0, len(live) - 1))))
    agreement = verify_libc(history.trace(), oracle)
    assert agreement.exact, agreement.difference


def addresses_of(trace: MemoryTrace, *overrides: str) -> list[int]:
    """Returns the address after each event in the model."""
    found: list[np.ndarray] = []
    run(trace, load_config(MUSL, overrides), addresses=lambda part, owners: found.append(part))
    return np.concatenate(found).tolist()


def test_the_first_blocks_of_a_class_are_slots_of_a_group_nested_in_larger_ones() -> None:
    history = History()
    for _ in range(3):
        history.malloc(10, Domain.LIBC)
    first, second, third = addresses_of(history.trace())
    assert (second - first, third - second) == (16, 16)
    # 30 slots of 16 bytes and a header have 496 bytes, less than half a page: they are nested in a slot of 496 bytes.
    # Two of these are nested in a slot of 1,008 bytes, and two of these in one of 2,032 bytes, of which two have a
    # page. Each group has a header of 16 bytes.
    assert first % 4096 == 4 * 16


def test_the_offset_in_a_slot_grows_by_a_unit_each_time_it_is_used_again() -> None:
    # 180 bytes need 12 units, a class without groups, so the next one with 15 units is used: 3 units remain. Groups of
    # two slots are nested; the first block keeps the group.
    history = History()
    history.malloc(180, Domain.LIBC)
    for _ in range(5):
        history.free(history.malloc(180, Domain.LIBC))
    first, *others = (address for address in addresses_of(history.trace()) if address)
    # The first offset in fresh memory is the number of mappings so far, which is 1.
    slot = first - 16 + 15 * 16
    assert [(address - slot) // 16 for address in others] == [1, 2, 3, 0, 1]


@pytest.mark.parametrize(("size", "mremaps"), [(131_051, 0), (131_052, 1)])
def test_blocks_from_131052_bytes_on_have_a_mapping_of_their_own_which_is_resized(size: int, mremaps: int) -> None:
    history = History()
    history.realloc(history.malloc(size, Domain.LIBC), 300_000)
    end = run(history.trace(), load_config(MUSL)).end
    assert end.mremap == mremaps
    # One page of metas, and ⌈(300,000 + 20) / 4,096⌉ = 74 pages.
    assert end.heap_bytes == 75 * 4096
    # The page without access below the metas is a call of mmap too.
    assert end.mmap == 1 + 2 - mremaps


@with_musl
def test_settings_of_glibc_are_refused_with_musl() -> None:
    result = invoke("verify", "--libc", "-a", "musl", "--env", "MALLOC_TOP_PAD_=0")
    assert "musl has none" in str(result.exception)
