"""glibc's model compared with every real glibc of this machine."""

import json
from collections.abc import Collection
from functools import cache

import pytest
from conftest import invoke, reserved_pages_alone, skipped_where_disturbed
from histories import History
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators.glibc import RULES
from replay.support.errors import ConfigError, TraceError
from replay.trace import TRIM_MARK, Domain, MemoryTrace, Op
from replay.verification.libc_compare import (
    LibcAgreement,
    _as_one_batch,
    _config_after,
    _overrides,
    _run_model,
    _thread_allocations,
    verify_libc,
)
from replay.verification.libc_oracles import LibcOracle, run_libc, survey_libcs
from replay.verification.libc_shapes import SHAPES, build_shape

ORACLES = survey_libcs()[0]
SETTINGS = (
    "MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_MMAP_THRESHOLD_=0", "MALLOC_TRIM_THRESHOLD_=0", "MALLOC_TOP_PAD_=0",
    "MALLOC_TOP_PAD_=1000", "MALLOC_MMAP_MAX_=3", "GLIBC_TUNABLES=glibc.malloc.tcache_count=0",
    "GLIBC_TUNABLES=glibc.malloc.tcache_count=100", "GLIBC_TUNABLES=glibc.malloc.tcache_max=100",
    "GLIBC_TUNABLES=glibc.malloc.tcache_max=2000000:glibc.malloc.tcache_count=3",
    "GLIBC_TUNABLES=glibc.malloc.mxfast=0", "GLIBC_TUNABLES=glibc.malloc.mxfast=160",
    "GLIBC_TUNABLES=glibc.malloc.tcache_unsorted_limit=2", "MALLOC_ARENA_MAX=2", "MALLOC_ARENA_TEST=3",
    HUGETLB := "GLIBC_TUNABLES=glibc.malloc.hugetlb=1", f"{HUGETLB}:glibc.malloc.top_pad=3000000",
    RESERVED := "GLIBC_TUNABLES=glibc.malloc.hugetlb=2", f"{RESERVED}:glibc.malloc.top_pad=3000000",
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1048576", "MALLOC_TRIM_THRESHOLD_=-1",
    "MALLOC_PERTURB_=1", "MALLOC_CHECK_=3", "GLIBC_TUNABLES=glibc.malloc.check=1:glibc.malloc.perturb=255",
)  # fmt: skip
"""Settings with reserved huge pages use normal pages if the machine has none (vm.nr_hugepages)."""
VALUES = {
    "mmap_threshold": ("0", "65536", "300000", "2097152", "33554432"),
    "trim_threshold": ("0", "-1", "65536", "1000000"),
    "top_pad": ("0", "1000", "3000000", "040000"),
    "mmap_max": ("0", "3", "100000"),
    "mxfast": ("0", "8", "64", "160"),
    "tcache_count": ("0", "1", "100", "65535"),
    "tcache_max": ("0", "100", "1032", "4000", "3000000"),
    "tcache_unsorted_limit": ("2", "-1"),
    "arena_max": ("1", "2", "-1"),
    "arena_test": ("1", "3"),
    "perturb": ("0", "1", "0xff"),
    "check": ("0", "1", "2", "3"),
    "hugetlb": ("0", "1", "2", "2097152", "1048576"),
}
"""Valid values of each tunable, for random combinations."""

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not ORACLES, reason="no glibc that has a model on this machine: see `replay verify --libc --list`"
    ),
]
each_oracle = pytest.mark.parametrize("oracle", ORACLES, ids=[oracle.name for oracle in ORACLES])
each_shape = pytest.mark.parametrize("shape", SHAPES)
shape_of = cache(build_shape)


def compared(*arguments: object, **options: object) -> LibcAgreement:
    """As `verify_libc`, under settings that may take huge pages."""
    with reserved_pages_alone(), skipped_where_disturbed():
        return verify_libc(*arguments, **options)


@each_shape
@each_oracle
def test_every_block_system_call_and_page_equals_the_real_malloc(oracle: LibcOracle, shape: str) -> None:
    agreement = verify_libc(shape_of(shape, 20_000), oracle, resident=True)
    assert agreement.exact, agreement.difference
    assert agreement.unequal == 0
    assert agreement.addresses_compared > 7_000
    assert agreement.resident_error is not None
    assert agreement.resident_error <= 0.02


@pytest.mark.slow
@each_shape
@each_oracle
def test_a_million_events_agree(oracle: LibcOracle, shape: str) -> None:
    agreement = verify_libc(shape_of(shape, 1_000_000), oracle)
    assert agreement.exact, agreement.difference
    assert agreement.addresses_compared > 300_000


@pytest.mark.parametrize("assignment", SETTINGS)
@each_oracle
def test_settings_have_the_same_effect_on_model_and_real_malloc(oracle: LibcOracle, assignment: str) -> None:
    is_huge = "hugetlb" in assignment
    if is_huge and not RULES[oracle.version].has_hugetlb:
        pytest.skip(f"glibc {oracle.version} has no such tunable")
    resident = is_huge or "perturb" in assignment.lower() or "check" in assignment.lower()
    shapes = "churn", "mapped", "stretch", "towers", "bursts", "first_large", "threads", "full_heaps"
    for shape in (*shapes, "aligned", "aligned_alike", "aligned_large", "aligned_threads"):
        compare = compared if is_huge else verify_libc
        agreement = compare(shape_of(shape, 10_000), oracle, assignments=[assignment], resident=resident)
        assert agreement.exact, f"{shape}: {agreement.difference}"
        assert not resident or agreement.resident_error <= 0.02


SPELLINGS = (
    ["MALLOC_TOP_PAD_= \t+010000"], ["MALLOC_TOP_PAD_=0X1fF0"], ["MALLOC_MMAP_THRESHOLD_=18446744073709551615"],
    ["GLIBC_TUNABLES=glibc.malloc.top_pad=1::glibc.malloc.top_pad=9000"],
    ["GLIBC_TUNABLES=glibc.malloc.top_pad=9000", "MALLOC_TOP_PAD_=1"],
    ["MALLOC_TOP_PAD_=1", "GLIBC_TUNABLES=glibc.malloc.top_pad=9000"],
)  # fmt: skip


@pytest.mark.parametrize("assignments", SPELLINGS, ids=lambda assignments: ",".join(assignments))
@each_oracle
def test_spellings_of_settings_mean_the_same_to_model_and_real_malloc(
    oracle: LibcOracle, assignments: list[str]
) -> None:
    if oracle.version == "2.31" and "MMAP_THRESHOLD" in assignments[0]:
        pytest.skip("glibc 2.31 ignores a threshold above 32 MiB, and so it is refused")
    for shape in ("towers", "mapped"):
        agreement = verify_libc(shape_of(shape, 4_000), oracle, assignments=assignments)
        assert agreement.exact, f"{shape}: {agreement.difference}"


@pytest.mark.parametrize(
    ("assignment", "versions"),
    [
        ("MALLOC_ARENA_MAX=0", RULES),
        ("MALLOC_MMAP_MAX_=2147483648", RULES),
        ("GLIBC_TUNABLES=glibc.malloc.tcache_count=65536", RULES),
        ("GLIBC_TUNABLES=glibc.malloc.mxfast=161", ("2.31", "2.36", "2.41")),
        ("GLIBC_TUNABLES=glibc.malloc.tcache_max=4194281", ("2.43",)),
        ("MALLOC_MMAP_THRESHOLD_=33554433", ("2.31",)),
        ("MALLOC_TOP_PAD_=9000k", ("2.41", "2.43")),
        ("MALLOC_TOP_PAD_=18446744073709551616", ("2.41", "2.43")),
        ("GLIBC_TUNABLES=glibc.malloc.top_pad=9000:", ("2.41", "2.43")),
        ("GLIBC_TUNABLES=glibc.malloc.top_pad=9000=1", ("2.41", "2.43")),
    ],
)
def test_refused_settings_have_no_effect_on_the_real_malloc(
    monkeypatch: pytest.MonkeyPatch, assignment: str, versions: Collection[str]
) -> None:
    for oracle in ORACLES:
        if oracle.version in versions:
            with pytest.raises(ConfigError):
                verify_libc(shape_of("churn", 10), oracle, assignments=[assignment])
    monkeypatch.setattr("replay.verification.libc_compare.overrides_of", lambda assignments: [])
    for oracle in ORACLES:
        if oracle.version in versions:
            for shape in ("towers", "mapped", "bursts", "threads"):
                agreement = verify_libc(shape_of(shape, 4_000), oracle, assignments=[assignment])
                assert agreement.exact, f"{oracle.name}, {shape}: {agreement.difference}"


@each_oracle
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    chosen=st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}),
    shape=st.sampled_from(list(SHAPES)),
)
def test_random_settings_have_the_same_effect_on_model_and_real_malloc(
    oracle: LibcOracle, chosen: dict[str, str], shape: str
) -> None:
    if not RULES[oracle.version].has_hugetlb:
        chosen.pop("hugetlb", None)
    assignment = "GLIBC_TUNABLES=" + ":".join(f"glibc.malloc.{key}={value}" for key, value in chosen.items())
    compare = compared if "hugetlb" in chosen else verify_libc
    agreement = compare(shape_of(shape, 2_000), oracle, assignments=[assignment], resident=True)
    assert agreement.exact, f"{assignment}: {agreement.difference}"
    assert agreement.resident_error is not None
    assert agreement.resident_error <= 0.02, assignment


@each_oracle
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_short_traces_agree(oracle: LibcOracle, data: st.DataObject) -> None:
    sizes = st.one_of(
        st.integers(0, 1_100),
        st.integers(1_000, 140_000),
        st.sampled_from([1_032, 1_033, 65_500, 131_047, 131_048, 131_049, 135_144, 300_000, 2_097_128]),
    )
    history, live = History(), []
    domains = st.sampled_from([Domain.LIBC, Domain.RAW])
    several = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 200))):
        if several and data.draw(st.integers(0, 9)) == 0:
            history.by(data.draw(st.integers(0, 3)))
        action = data.draw(st.integers(0, 5)) if live else 0
        if action == 5:
            live.append(history.memalign(1 << data.draw(st.integers(4, 22)), data.draw(sizes), data.draw(domains)))
        elif action <= 1:
            live.append(history.malloc(data.draw(sizes), data.draw(domains), op=Op(action)))
        elif action == 2:
            block, size = data.draw(st.sampled_from(live)), data.draw(sizes)
            if size or history.domains[block] == Domain.RAW:
                history.realloc(block, size)
            else:  # realloc(p, 0)
                live.remove(block)
                history.free(block)
        else:
            history.free(live.pop(data.draw(st.integers(0, len(live) - 1))))
    agreement = verify_libc(history.trace(), oracle)
    assert agreement.exact, agreement.difference


@each_oracle
def test_the_harness_frees_by_a_realloc_to_0_bytes_as_c_does(oracle: LibcOracle) -> None:
    history = History()
    block = history.malloc(40, Domain.LIBC)
    history.malloc(40, Domain.LIBC)
    history.realloc(block, 0)
    history.malloc(40, Domain.LIBC)
    first, _, freed, again = run_libc(history.trace(), oracle).addresses.tolist()
    assert (freed, again) == (0, first)


@each_oracle
def test_requests_of_0_bytes_reach_libc_as_the_domain_makes_them(oracle: LibcOracle) -> None:
    history = History()
    for domain in Domain:
        for op in (Op.MALLOC, Op.CALLOC):
            block = history.malloc(0, domain, op=op)
            if domain == Domain.LIBC:
                history.realloc(block, 100)
            else:
                history.realloc(history.malloc(100, domain), 0)
                history.realloc(block, 0)
    agreement = verify_libc(history.trace(), oracle, resident=True)
    assert agreement.exact, agreement.difference
    assert agreement.addresses_compared == 28


def test_a_realloc_to_0_bytes_of_libc_is_refused_with_its_row() -> None:
    history = History()
    history.realloc(history.malloc(40, Domain.LIBC), 0)
    with pytest.raises(TraceError, match=r"^row 1: realloc of block 0 to 0 bytes in domain libc frees the block"):
        verify_libc(history.trace(), ORACLES[0])


def test_the_command_reports_that_everything_is_equal() -> None:
    version = ORACLES[-1].version
    result = invoke("verify", "--libc", "-a", version, "--events", "2000", "--json")
    code, output = result.exit_code, result.output
    assert code == 0
    rows = json.loads(output[output.index("[") :])
    assert [row["trace"] for row in rows] == list(SHAPES)
    assert all(row["exact"] and row["oracle"] == f"glibc-{version}" for row in rows)


def test_a_setting_without_effect_has_a_note() -> None:
    without = next(oracle for oracle in ORACLES if oracle.version >= "2.36")
    result = invoke("verify", "--libc", "-a", without.version, "--events", "100", "--env", "MALLOC_CHECK_=3")
    code, output = result.exit_code, result.output
    assert code == 0
    message = f"note: check: no effect in glibc {without.version} unless libc_malloc_debug.so is preloaded"
    assert output.splitlines().count(message) == 1


def test_a_difference_is_reported_and_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.verification.libc_compare.overrides_of", lambda assignments: ["glibc.top_pad=0"])
    result = invoke("verify", "--libc", "-a", ORACLES[0].version, "--events", "2000")
    code, output = result.exit_code, result.output
    assert code == 1
    assert "in the real malloc, at" in output or "in reality" in output


def test_the_list_has_the_available_libraries() -> None:
    result = invoke("verify", "--libc", "--list")
    code, output = result.exit_code, result.output
    assert code == 0
    assert ORACLES[0].name in output


@each_oracle
def test_the_main_thread_is_that_of_the_first_block_though_another_trims_before(oracle: LibcOracle) -> None:
    history = History()
    history.by(5).mark()
    for thread in (9, 5, 9, 5):
        history.by(thread).malloc(1000, Domain.LIBC)
        history.free(history.malloc(200_000, Domain.LIBC))
    history.by(5).end_thread()  # which the main thread cannot
    agreement = verify_libc(history.trace(TRIM_MARK), oracle)
    assert agreement.exact, agreement.difference
    assert agreement.addresses_compared == 8


def released_by_trim(trace: MemoryTrace, oracle: LibcOracle, assignments: Collection[str] = ()) -> tuple[int, int]:
    """Returns the resident bytes that malloc_trim(0) releases after a trace: in a real process, and as the model says
    before it does so. The trims that follow the trace make a tenth of all rows, so resident bytes are read before."""
    events, mark = _as_one_batch(trace), History()
    assert events.rows % 9 == 0
    for _ in range(events.rows // 9):
        mark.mark()
    environment = dict(assignment.split("=", 1) for assignment in assignments)
    whole = MemoryTrace([events, mark.events()], trace.metadata)
    real = run_libc(whole, oracle, mode="resident", environment=environment)
    before = _thread_allocations(events, real.thread_bytes)
    config = _config_after(events, before, real, _overrides(oracle, [*assignments]))
    predicted = _run_model(events, config, before, real)[3].trimmable_bytes()
    return int(real.resident[-2] - real.resident[-1]), predicted


def freed_small_chunks(threads: int) -> MemoryTrace:
    """Each thread frees 8,999 small blocks, before a live one that keeps the end of its heap."""
    history, pins = History(), []
    for thread in range(threads):
        history.by(thread)
        blocks = history.mallocs(8_999, 64, Domain.LIBC)
        pins.append(history.malloc(2_000, Domain.LIBC))
        history.free(*blocks)
    history.by(0)
    for _ in range(-len(history.rows) % 9):
        history.malloc(64, Domain.LIBC)
    return history.trace(TRIM_MARK)


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        ["MALLOC_ARENA_MAX=1"],
        ["GLIBC_TUNABLES=glibc.malloc.mxfast=0"],
        ["GLIBC_TUNABLES=glibc.malloc.tcache_count=3000"],
    ],
    ids=",".join,
)
@each_oracle
def test_what_malloc_trim_would_release_includes_fastbins_but_no_tcache(
    oracle: LibcOracle, assignments: list[str]
) -> None:
    real, predicted = released_by_trim(freed_small_chunks(3), oracle, assignments)
    assert predicted == real > 600_000


@each_shape
@each_oracle
def test_what_malloc_trim_would_release_is_what_it_releases(oracle: LibcOracle, shape: str) -> None:
    real, predicted = released_by_trim(shape_of(shape, 18_000), oracle)
    assert predicted == real
