"""Documents of every kind must be regular files of limited size; anything else is refused at once."""

import os

import pytest

from replay.config import load_config
from replay.gates.baselines import read_baseline
from replay.gates.cases import load_suite
from replay.sources.yaml import open_trace
from replay.support.errors import ReplayError
from replay.sweeps.plan import load_plan

READERS = {
    "workload": open_trace,
    "stack": load_config,
    "sweep": lambda path: load_plan(str(path)),
    "suite": load_suite,
    "baseline": read_baseline,
}


@pytest.fixture(params=READERS)
def read(request):
    return READERS[request.param]


def test_a_pipe_is_refused_and_not_waited_for(read, tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(ReplayError, match=r"pipe\.yaml: is not a regular file"):
        read(pipe)


def test_a_device_without_an_end_is_refused(read, tmp_path):
    endless = tmp_path / "endless.yaml"
    endless.symlink_to("/dev/zero")
    with pytest.raises(ReplayError, match=r"endless\.yaml: is not a regular file"):
        read(endless)


def test_a_file_that_exceeds_the_limit_is_refused(read, tmp_path):
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ReplayError, match=r"large\.yaml: exceeds the limit of (4|64) MiB"):
        read(large)
