"""Allocator models of other packages: found by entry point, in numba or in plain Python, for either role."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run_python
from dist_info import write_dist_info

import replay
from replay.allocators import bump, bundled_names, find_model, foreign_sources, is_compiled

HEADER = '''
"""A toy allocator: mappings of {run_bytes} bytes, cut into blocks; freed ones are in lists by size."""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
'''

NUMBA = """
from replay.allocators.linux import mmap, touch
from replay.allocators import MARGIN, ask_for_room, extend, record
from replay.jit.compiling import by_reference
from replay.jit.compiling import leaf
"""

PLAIN = """
from replay.allocators.linux import mmap, touch
from replay.allocators import MARGIN, ask_for_room, extend, record


def leaf(function):
    return function


def by_reference(state_class):
    return state_class
"""

UNMARKED = """

def made_size(state, stack, place, size):
    return block_size(state, stack, place)
"""

MODEL = '''
RUN_BYTES = {run_bytes}


class Config(BaseModel):
    """A toy."""

    model_config = ConfigDict(extra="forbid", frozen=True)


RUN = record("end", "limit", "blocks")
BLOCK = record("address", "block_bytes", "next")


@by_reference
class State(NamedTuple):
    run: np.ndarray
    blocks: np.ndarray
    bins: np.ndarray


def new_state(config):
    return State(np.zeros(1, RUN), np.zeros(64, BLOCK), np.full(64, -1, np.int64))


@leaf
def malloc(state, stack, size):
    run = state.run[0]
    bin_index, block_bytes = 0, 16
    while block_bytes < size:
        block_bytes *= 2
        bin_index += 1
    place = state.bins[bin_index]
    if place >= 0:
        state.bins[bin_index] = state.blocks[place].next
        return place
    if run.end + block_bytes > run.limit:
        length = max(RUN_BYTES, (block_bytes + 4095) & -4096)
        run.end = mmap(stack, length)
        run.limit = run.end + length
    place = np.int64(run.blocks)
    run.blocks += 1
    if run.blocks + MARGIN > state.blocks.shape[0]:
        ask_for_room(stack)
    block = state.blocks[place]
    block.address, block.block_bytes, block.next = run.end, block_bytes, bin_index
    run.end += block_bytes
    touch(stack, block.address, block.address + block_bytes)
    return place


@leaf
def free(state, stack, place):
    block = state.blocks[place]
    bin_index, block_bytes = 0, 16
    while block_bytes < block.block_bytes:
        block_bytes *= 2
        bin_index += 1
    block.next = state.bins[bin_index]
    state.bins[bin_index] = place


@leaf
def block_size(state, stack, place):
    return state.blocks[place].block_bytes


@leaf
def address(state, stack, place):
    return state.blocks[place].address


def grow(state):
    return state._replace(blocks=extend(state.blocks, 2 * state.blocks.shape[0]))


def check(state, stack):
    assert state.run[0].end <= state.run[0].limit
'''

PROGRAM = """
import json, sys
from histories import fingerprint, seeded
from replay.allocators import find_model, is_compiled, model_names
from replay.config import load_config
from replay.simulation.run import run

roles, *names = sys.argv[1:]
trace, results = seeded(4, 3000).trace(), {}
STACKS = {"libc": ("cpython-3.12-malloc", ["libc"]), "small": ("cpython-3.12", ["mem", "obj"])}
for name in names:
    for role in roles.split():
        base, domains = STACKS[role]
        config = load_config(base, [f"domains.{domain}={name}" for domain in domains])
        results[f"{name} {role}"] = fingerprint(trace, config), int(run(trace, config).end.mmap)
compiled = {name: is_compiled(find_model(name)) for name in names}
print(json.dumps({"names": model_names(), "compiled": compiled, "results": results}))
"""


def write_model(site: Path, name: str, kind: str, run_bytes: int = 1 << 16) -> None:
    """Writes the toy's module, which maps `run_bytes` bytes at a time."""
    text = (HEADER + kind + MODEL).replace("{run_bytes}", str(run_bytes)).replace("{name}", name)
    (site / f"toy_{name}.py").write_text(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder as after an install: three models, one without a required function, one that is not imported."""
    folder = tmp_path_factory.mktemp("site")
    write_model(folder, "quick", NUMBA)
    write_model(folder, "slow", PLAIN)
    write_model(folder, "mixed", NUMBA + UNMARKED)
    write_model(folder, "broken", PLAIN)
    broken = folder / "toy_broken.py"
    broken.write_text(broken.read_text().replace("def free(", "def release("))
    (folder / "toy_crash.py").write_text("import no_such_thing\n")
    names = ("quick", "slow", "mixed", "broken", "crash")
    write_dist_info(folder, "replay.allocators", {name: f"toy_{name}" for name in names})
    return folder


def run_in(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A new process in which the folder is installed."""
    return run_python(*arguments, paths=(site,), env={"PYTHONDONTWRITEBYTECODE": "1"})


def play(site: Path, *names: str, roles: str = "libc small") -> dict:
    done = run_in(site, "-c", PROGRAM, roles, *names)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.system
def test_third_party_models_have_the_same_results_in_numba_and_in_plain_python(site):
    answer = play(site, "quick", "slow", "mixed")
    assert answer["names"] == [
        "broken",
        "bump",
        "crash",
        "glibc",
        "ideal",
        "mixed",
        "musl",
        "pymalloc",
        "quick",
        "slow",
    ]
    assert answer["compiled"] == {"quick": True, "slow": False, "mixed": False}
    results = answer["results"]
    assert results["quick libc"] == results["slow libc"] == results["mixed libc"]
    assert results["quick small"] == results["slow small"] == results["mixed small"]
    assert results["quick libc"] != results["quick small"]
    assert min(mmaps for _, mmaps in results.values()) > 10


@pytest.mark.parametrize(
    "name",
    [name.removeprefix("default_") for name in dir(replay.allocators) if name.startswith("default_")]
    + ["malloc", "free", "block_size", "address"],
)
def test_a_model_with_an_uncompiled_function_runs_in_plain_python(name):
    functions = {each: getattr(bump, each) for each in ("malloc", "free", "block_size", "address")}
    assert is_compiled(SimpleNamespace(**functions))
    assert not is_compiled(SimpleNamespace(**functions | {name: lambda *arguments: 0}))


@pytest.mark.system
def test_an_edit_of_another_packages_model_is_noticed(site):
    before = play(site, "quick", roles="libc")["results"]
    write_model(site, "quick", NUMBA, run_bytes=1 << 20)
    after = play(site, "quick", roles="libc")["results"]
    assert after["quick libc"][1] < before["quick libc"][1]
    write_model(site, "quick", NUMBA)
    assert play(site, "quick", roles="libc")["results"] == before


@pytest.mark.system
def test_the_contract_suite_picks_a_model_up_by_itself(tmp_path):
    write_model(tmp_path, "slow", PLAIN)
    write_dist_info(tmp_path, "replay.allocators", {"slow": "toy_slow"})
    suite = Path(__file__).parent / "test_allocator_contract.py"
    options = ("-vv", "-p", "no:cacheprovider", "-k", "slow and not digests")
    done = run_in(tmp_path, "-m", "pytest", *options, suite)
    assert done.returncode == 0, done.stdout
    assert "[slow as libc] PASSED" in done.stdout
    assert "[slow as small] PASSED" in done.stdout


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("broken", "/toy_broken.py) breaks the contract of models: lacks free"),
        ("crash", "allocator model 'crash' (toy_crash) cannot be imported: No module named 'no_such_thing'"),
        ("absent", "unknown allocator model 'absent'; known here: broken, bump, crash, "),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_by_name(site, name, sentence):
    program = f"""
from replay.config import load_config
from replay.support.errors import ConfigError
try:
    load_config("cpython-3.12", ["domains.libc={name}"])
except ConfigError as refusal:
    print(refusal)
"""
    done = run_in(site, "-c", program)
    assert done.stderr == ""
    assert sentence in done.stdout


def test_models_of_replay_itself_are_not_third_party():
    assert {"glibc", "pymalloc", "bump"} <= set(bundled_names())
    assert foreign_sources([find_model(name) for name in bundled_names()]) == ()
