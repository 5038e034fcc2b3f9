"""The contract of every allocator model, in each role, and of every preset.

Models of other packages are picked up here by themselves once they are installed.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from histories import TINY, counters, fingerprint, histories, seeded, single_steps
from hypothesis import HealthCheck, given, settings

import replay
from replay.allocators import LEVELS, find_model, model_names, roles
from replay.config import StackConfig, load_config
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.support.bundled_files import config_names
from replay.trace import Op

# In the libc role, a model is alone; in the small role, it is on top of the default libc.
BASES = {"libc": ("cpython-3.12-malloc", ("libc",)), "small": ("cpython-3.12", ("mem", "obj"))}

# Presets that differ in nothing but their name are one stack.
PRESETS = {json.dumps(load_config(preset).effective_settings()): preset for preset in config_names()}
STACKS = {
    **{preset: (preset, ()) for preset in PRESETS.values()},
    **{
        f"{name} as {role}": (BASES[role][0], tuple(f"domains.{domain}={name}" for domain in BASES[role][1]))
        for name in model_names()
        for role in roles(name)
    },
    "tiny arenas, released at once": ("cpython-3.8", TINY),
    "tiny arenas, the last one kept": ("cpython-3.9", TINY),
    "tiny arenas, 8-byte alignment": ("cpython-3.6", TINY),
}
each_stack = pytest.mark.parametrize("stack", STACKS)
load = cache(lambda stack: load_config(*STACKS[stack]))
a_few = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def plain(function):
    """Returns a kernel as its plain Python function, so that nothing is compiled for one call."""
    return getattr(function, "py_func", function)


class Witness:
    """Simulates single events and counts live blocks itself."""

    def __init__(self, config: StackConfig) -> None:
        self._parts: list[np.ndarray] = []
        self.simulator = Simulator(config, addresses=lambda part, owners: self._parts.append(part))
        self.config = config
        self.live: dict[int, tuple[int, int, int]] = {}
        """Address, size and domain by number."""

    def note(self, events, row: int) -> None:
        number, op = int(events.block[row]), events.op[row]
        if op == Op.FREE:
            del self.live[number]
            return
        domain = self.live[number][2] if op == Op.REALLOC else int(events.domain[row])
        self.live[number] = int(self._parts[-1][0]), int(events.size[row]), domain

    def block_bytes(self) -> tuple[dict[int, int], set[int]]:
        """Allocated bytes by block number, and the numbers of blocks of the small role."""
        handed_out, small = {}, set()
        for number in self.live:
            place = int(self.simulator.blocks[number].place)
            stack = self.simulator.stack
            if place >= 0:
                small.add(number)
                handed_out[number] = int(plain(self.simulator.small_model.block_size)(stack.small, stack, place))
            else:
                handed_out[number] = int(plain(self.simulator.libc_model.block_size)(stack.libc, stack, ~place))
        return handed_out, small

    def check_layout(self) -> None:
        """Live blocks do not overlap and are aligned."""
        handed_out, small = self.block_bytes()
        spans = []
        for number, (address, size, _) in self.live.items():
            if number in small:
                alignment = getattr(self.config.small, "alignment", 16)
                spans.append((address, address + handed_out[number]))
            else:
                alignment = 2 * getattr(self.config.libc, "word_size", 8)
                spans.append((address, address + max(size, 1)))
            assert address % alignment == 0
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            assert end <= start, "two live blocks overlap"

    def check_account(self) -> None:
        """Counters equal the live blocks, and each layer contains the one above."""
        tally, (handed_out, small) = self.simulator.tally, self.block_bytes()
        sizes = {number: size for number, (_, size, _) in self.live.items()}
        assert tally.requested_bytes == sum(sizes.values())
        assert tally.block_bytes == sum(handed_out.values())
        assert all(handed_out[number] >= size for number, size in sizes.items())
        assert tally.small_requested_bytes == sum(sizes[number] for number in small)
        assert tally.small_block_bytes == sum(handed_out[number] for number in small)
        assert tally.mallocs + tally.callocs + tally.memaligns - tally.frees == len(self.live)
        assert tally.small_block_bytes <= tally.arena_bytes or not small or tally.arena_bytes == 0
        assert tally.pool_bytes <= tally.arena_bytes
        assert tally.arena_bytes + tally.heap_bytes <= tally.mapped_bytes
        assert tally.resident_bytes <= tally.mapped_bytes
        layout = self.simulator.layout
        for level in layout.dtype.names[: layout.ends[0]]:
            assert 0 <= tally[level] <= tally[f"{level}_peak"]

    def check_spans(self) -> None:
        """The spans of all models account for each mapped and each resident byte, and do not overlap."""
        spans, tally = self.simulator.spans(), self.simulator.tally
        assert spans["bytes"].sum() == tally.mapped_bytes
        assert spans["resident_bytes"].sum() == tally.resident_bytes
        assert (spans["address"][1:] >= (spans["address"] + spans["bytes"])[:-1]).all()
        assert (spans["live_bytes"] + spans["free_bytes"] <= spans["bytes"]).all()

    def check_classes(self) -> None:
        """Size classes have the live blocks of each domain and role, and at least as many allocations."""
        table = self.simulator.classes.reshape(4, 2, -1)
        _, small = self.block_bytes()
        blocks: Counter[tuple[int, int]] = Counter()
        size_bytes: Counter[tuple[int, int]] = Counter()
        for number, (_, size, domain) in self.live.items():
            blocks[domain, int(number in small)] += 1
            size_bytes[domain, int(number in small)] += size
        for domain, role in np.ndindex(4, 2):
            rows = table[domain, role]
            assert (rows["blocks"] >= rows["live_blocks"]).all()
            assert (rows["requested_bytes"] >= rows["live_requested_bytes"]).all()
            assert rows["live_blocks"].sum() == blocks[domain, role]
            assert rows["live_requested_bytes"].sum() == size_bytes[domain, role]


@each_stack
def test_a_long_history_preserves_layout_counters_and_the_models_invariants(stack):
    sizes = (0, 1, 16, 40, 100, 256, 400, 511, 512, 512, 513, 2000, 140_000)
    witness, events = Witness(load(stack)), seeded(7, 2000, sizes=sizes).events()
    for row in single_steps(witness.simulator, events):
        witness.note(events, row)
        if row % 100 == 99:
            witness.simulator.check()
            witness.check_account()
            witness.check_layout()
            witness.check_spans()
    witness.check_classes()


@each_stack
@a_few
@given(history=histories(40))
def test_every_step_of_a_random_history_preserves_the_invariants(stack, history):
    witness, events = Witness(load(stack)), history.events()
    for row in single_steps(witness.simulator, events):
        witness.note(events, row)
        witness.simulator.check()
        witness.check_account()
    witness.check_layout()
    witness.check_classes()


@each_stack
@a_few
@given(history=histories(with_realloc=False))
def test_peaks_are_the_highest_of_all_moments(stack, history):
    simulator, events = Simulator(load(stack)), history.events()
    moments = [simulator.stack.tally.copy()[0] for _ in single_steps(simulator, events)]
    for level in LEVELS:
        assert simulator.tally[f"{level}_peak"] == max(moment[level] for moment in moments)
    highest = max(moment.resident_bytes for moment in moments)
    first = next((moment for moment in moments if moment.resident_bytes == highest > 0), np.zeros_like(moments[0]))
    assert counters(simulator.at_peak) == counters(np.array([first]))


@each_stack
@a_few
@given(history=histories())
def test_peaks_of_requested_and_allocated_bytes_are_exact_during_a_realloc(stack, history):
    simulator, events = Simulator(load(stack)), history.events()
    moments = [simulator.stack.tally.copy()[0] for _ in single_steps(simulator, events)]
    for level in ("requested_bytes", "block_bytes"):
        assert simulator.tally[f"{level}_peak"] == max(moment[level] for moment in moments)
    for level in LEVELS:
        assert simulator.tally[f"{level}_peak"] >= max(moment[level] for moment in moments)


@each_stack
def test_when_everything_was_freed_nothing_is_live(stack):
    history = seeded(3, 600)
    history.free(*list(history.domains))
    end = run(history.trace(), load(stack)).end
    assert (end.requested_bytes, end.block_bytes, end.pool_bytes) == (0, 0, 0)
    assert end.mallocs + end.callocs == end.frees


def digests() -> dict[str, list[str]]:
    """Returns the results of every stack for three traces."""
    small = seeded(1, 1200, sizes=(1, 16, 40, 100, 256, 384, 385, 512))
    traces = [
        seeded(0, 500).trace(),
        small.trace(),
        seeded(2, 400, sizes=(513, 70_000, 140_000, 2_097_128)).trace(),
    ]
    return {stack: [fingerprint(trace, load(stack), 50) for trace in traces] for stack in STACKS}


@pytest.fixture(scope="module")
def own_digests():
    return digests()


def test_the_same_trace_gives_the_same_results_again(own_digests):
    assert digests() == own_digests


@pytest.mark.system
def test_plain_python_gives_the_same_results_as_machine_code(own_digests):
    paths = [
        str(Path(replay.__file__).parent.parent),
        str(Path(__file__).parent),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = {
        **os.environ,
        "NUMBA_DISABLE_JIT": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    program = "import json, test_allocator_contract as t; print(json.dumps(t.digests()))"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain_digests = json.loads(done.stdout)
    assert [stack for stack in STACKS if plain_digests[stack] != own_digests[stack]] == []


@pytest.mark.parametrize("name", model_names())
def test_no_field_of_a_models_state_hides_behind_an_attribute_of_numpy(name):
    model = find_model(name)
    state = model.new_state(model.Config())
    arrays = [field for field in state if isinstance(field, np.ndarray)]
    fields = [field for array in arrays for field in array.dtype.names or ()]
    assert [field for field in fields if hasattr(np.record, field)] == []
