"""What differs between releases of CPython: sizes, small integers, free lists, growth of lists."""

import numpy as np

from replay.objects.heap import CALLOC, MALLOC, REALLOC, RULES
from replay.objects.kinds import FREE_LISTS, TUPLES_KEPT, Kind
from replay.trace import Domain

IN_WARM_CODE, AFTER_FIRST_RUN, ALWAYS = range(1, 4)
"""When an instruction drops its operands in another order, because CPython specialises it; 0 is never."""
RELEASES = tuple((3, minor) for minor in range(8, 16))


_DICTS_TOO_LARGE = ((3, 10), (3, 13, 4))
"""From which release on, and up to which, CPython moves dicts of one or two keys to 16 slots instead of 8."""

_KEY_FIRST = {11: IN_WARM_CODE, 14: AFTER_FIRST_RUN, 15: ALWAYS}
_SPECIALISED = {11: IN_WARM_CODE, 12: AFTER_FIRST_RUN, 13: AFTER_FIRST_RUN, 14: AFTER_FIRST_RUN, 15: AFTER_FIRST_RUN}
_INDEX_FIRST = {11: IN_WARM_CODE, 12: AFTER_FIRST_RUN, 13: AFTER_FIRST_RUN, 15: ALWAYS}
_RIGHT_FIRST = {**_SPECIALISED, 15: ALWAYS}

_FUNCTION_BYTES = {8: 136, 9: 136, 10: 144, 11: 152, 12: 160, 13: 160, 14: 168, 15: 168}
SORTED_ATTRIBUTES = (3, 14)
"""From this release on, a class has the attributes that its methods assign to `self` before its first instance."""


def rules_of(version: tuple[int, ...]) -> np.ndarray:
    """Returns the RULES record of a release such as (3, 13), meaning its newest version, or of a version (3, 13, 0)."""
    release = version[:2]
    rules = np.zeros(1, RULES)
    rules["int_least"] = 32 if release >= (3, 11) else 0
    rules["length_least"] = 32 if release >= (3, 14) else 0
    rules["small_ints"] = 1025 if release >= (3, 15) else 257
    rules["list_classic"] = release <= (3, 8)
    rules["constants_op"] = CALLOC if release <= (3, 8) else REALLOC if release <= (3, 9) else MALLOC
    rules["pop_keeps_empty"] = release <= (3, 11)
    rules["text_header"] = 41 if release >= (3, 12) else 49
    rules["range_iterator_bytes"] = 40 if release >= (3, 12) else 48
    rules["range_lengths"] = release <= (3, 11)
    rules["range_arguments"] = release <= (3, 8)
    rules["keeps_arguments"] = release <= (3, 10)
    rules["locals_from_last"] = release >= (3, 14)
    rules["tuples_lost"] = 20 if (3, 11) <= release <= (3, 12) else 0  # kept, and never used again
    rules["append_resizes"] = release <= (3, 10)
    rules["least_shrunk"] = 32 if release >= (3, 14) else 0
    rules["tuple_header"] = 48 if release >= (3, 14) else 40
    rules["sequence_iterators"] = release <= (3, 14)
    rules["trashcan_levels"] = 50 if release <= (3, 12) else 0
    rules["collects_in_loop"] = release >= (3, 12)
    rules["collects_disabled"] = release == (3, 12)  # a collection that was requested before gc.disable()
    rules["clears_values"] = release == (3, 12)  # the collector frees the values of an instance that it clears
    rules["tracks_all_tuples"] = release <= (3, 13)
    rules["count_bytes"] = 28 if release <= (3, 13) else 32
    rules["keys_header"] = 32 if release >= (3, 11) else 40
    rules["keys_domain"] = Domain.MEM if release >= (3, 13) else Domain.OBJ
    rules["text_entry"] = 16 if release >= (3, 11) else 24
    first, end = _DICTS_TOO_LARGE
    rules["slots_least"] = 16 if first <= release and (*version, 99)[:3] < end else 8
    rules["pairs_values"] = 10 if release >= (3, 14) else 1 << 16
    rules["instance_bytes"] = 56 if release == (3, 11) else 48
    rules["splits_dicts"] = release <= (3, 10)
    rules["values_inline"] = release >= (3, 13)
    rules["right_first"] = _RIGHT_FIRST.get(release[1], 0)
    rules["item_key_first"] = _KEY_FIRST.get(release[1], 0)
    rules["index_first"] = _INDEX_FIRST.get(release[1], 0)
    rules["list_before_item"] = release == (3, 14)
    rules["stores_specialised"] = _SPECIALISED.get(release[1], 0)
    rules["from_top"] = release >= (3, 14)
    rules["method_first"] = (3, 11) <= release <= (3, 13)
    rules["frozen_twice"] = release <= (3, 13)
    rules["sets_reuse"] = release != (3, 9)
    rules["generator_bytes"] = {8: 112, 9: 112, 10: 104, 11: 168, 12: 160, 13: 160}.get(release[1], 168)
    rules["coroutine_more"] = 8 if release <= (3, 10) else 0
    rules["frame_object_bytes"] = {11: 136, 12: 136, 13: 152}.get(release[1], 168 if release >= (3, 14) else 0)
    rules["exit_bytes"] = 88 if release >= (3, 12) else 0
    rules["throws_exit"] = release <= (3, 12)
    rules["exposes"] = release >= (3, 14)
    rules["inlines_loops"] = release >= (3, 12)
    rules["clears_new"] = (*version, 99)[:3] >= (3, 13, 1)
    rules["wraps_results"] = release <= (3, 9)  # of generators and coroutines: tuples, and all in handlers
    rules["keeps_failed"] = AFTER_FIRST_RUN if release >= (3, 15) else 0  # arguments of `next` after an exception
    rules["chains_exits"] = release >= (3, 9)  # what closes a generator has what this handles as its context
    rules["notes_exits"] = (3, 12) <= release <= (3, 13)  # the place that an exception leaves in a generator
    rules["links_caller"] = release >= (3, 12) and not rules["clears_new"]
    rules["function_bytes"] = _FUNCTION_BYTES[release[1]]
    rules["cells_apart"] = release <= (3, 10)
    rules["inits_inline"] = AFTER_FIRST_RUN if release >= (3, 13) else 0
    rules["slots_inline"] = AFTER_FIRST_RUN if release >= (3, 14) else 0
    rules["copies_arguments"] = release >= (3, 14)
    rules["arguments_forward"] = (3, 11) <= release <= (3, 13)
    rules["exception_bytes"] = 88 if release >= (3, 11) else 80
    rules["own_exception_bytes"] = {8: 88, 9: 88, 10: 88, 11: 96}.get(release[1], 104)
    rules["exception_first"] = release >= (3, 14)
    rules["separate_traceback"] = release <= (3, 11)
    rules["handlers_last"] = release == (3, 12)
    rules["delays_exceptions"] = (3, 11) <= release <= (3, 12)
    rules["pushes_addresses"] = release == (3, 8)
    rules["pushes_places"] = (3, 11) <= release <= (3, 13)
    rules["frame_base"] = {8: 384, 9: 384, 10: 376}.get(release[1], 0)
    rules["weakref_bytes"] = 80 if release >= (3, 11) else 72
    rules["weakref_slot_bytes"] = 16 if release >= (3, 12) else 8
    rules["calls_alone"] = release <= (3, 12)  # an only callback, without a tuple
    rules["keeps_references"] = release >= (3, 15)  # those without callbacks, until finalizers have run
    rules["clears_references_again"] = (*version, 99)[:3] >= (3, 13, 1)
    rules["resurrects_all"] = release <= (3, 8)
    _set_thread_rules(rules, version)
    return rules


def _set_thread_rules(rules: np.ndarray, version: tuple[int, ...]) -> None:
    """Sets the rules about threads, locks and queues. `version` as in `rules_of`: (3, 13) is the newest of 3.13."""
    release, is_newer = version[:2], (*version, 99)[:3] >= (3, 11, 7)
    state_bytes = {8: 264, 9: 264, 10: 280, 11: 360, 12: 288, 13: 344, 14: 936, 15: 1104}[release[1]]
    rules["thread_state_bytes"] = 336 if version == (3, 13, 0) else state_bytes
    rules["thread_state_op"] = MALLOC if release <= (3, 10) else CALLOC
    rules["boot_bytes"] = 40 if release == (3, 8) else 48 if release >= (3, 13) or not is_newer else 32
    rules["boot_domain"] = Domain.RAW if is_newer else Domain.MEM
    rules["callback_bytes"] = 16 if release <= (3, 13) else 0
    rules["handle_bytes"] = 72 if release >= (3, 13) else 0
    rules["lock_bytes"] = 56 if release >= (3, 10) else 40
    rules["locks_have_header"] = release >= (3, 10)
    rules["lock_raw_bytes"] = 32 if release <= (3, 12) or version == (3, 13, 0) else 0
    rules["queue_bytes"] = 88 if release >= (3, 13) else 72
    rules["queues_have_list"] = release <= (3, 12)
    rules["clears_queues"] = release >= (3, 10)
    rules["checks_often"] = release <= (3, 9)


def default_thresholds(version: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns gc.get_threshold() of a release."""
    return (700 if version[:2] <= (3, 12) else 2000), 10, 10


def free_list_limits(version: tuple[int, ...]) -> np.ndarray:
    """Returns the number of objects in each free list."""
    release = version[:2]
    limits = np.zeros(FREE_LISTS, np.int64)
    limits[Kind.FLOAT] = 100
    limits[Kind.LIST] = 80
    limits[Kind.DICT] = 80
    limits[Kind.KEYS] = 80
    limits[len(Kind) + 1 : len(Kind) + TUPLES_KEPT] = 2000
    if release <= (3, 10):  # elsewhere, only shorter tuples are kept
        limits[len(Kind) + 20] = 0
    limits[Kind.METHOD] = 256 if release <= (3, 8) else 20 if release >= (3, 14) else 0
    if release >= (3, 14):
        limits[Kind.INT] = 100
        limits[Kind.RANGE] = 6
        limits[Kind.RANGE_ITERATOR] = 6
        limits[Kind.LIST_ITERATOR] = 10
        limits[Kind.TUPLE_ITERATOR] = 10
    return limits


def emptied_free_lists(version: tuple[int, ...]) -> np.ndarray:
    """Returns the free lists in the order in which a collection of the oldest generation empties them."""
    tuples = [len(Kind) + length for length in range(TUPLES_KEPT)]
    floats_first = version >= (3, 13)
    kinds = [
        Kind.LIST, Kind.LIST_ITERATOR, Kind.TUPLE_ITERATOR, Kind.DICT, Kind.KEYS, Kind.RANGE, Kind.RANGE_ITERATOR,
        Kind.INT,
    ]  # fmt: skip
    order = [Kind.FLOAT, *tuples, *kinds] if floats_first else [Kind.METHOD, *tuples, Kind.FLOAT, *kinds]
    return np.array([*order, *(which for which in range(FREE_LISTS) if which not in order)], np.int64)
