"""`replay record --python`: programs in other interpreters without replay; the slow test verifies them.

pytest -m slow tests/test_record_python.py      each available interpreter, with a new recording
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import record, run_to_the_last

import replay
from replay.jit.kernel_cache import cache_root
from replay.recorder import tap as taps
from replay.trace import Op
from replay.verification.recordings import verify_recording

pytestmark = pytest.mark.system

if reason := taps.obstacle(clean=True):
    pytest.skip(reason, allow_module_level=True)

PROGRAM = """
import gc, json, sys, threading
documents = [{"id": i, "name": "x" * (i % 40), "tags": [str(j) for j in range(i % 7)]} for i in range(20_000)]
for _ in range(3):
    texts = [json.dumps(document) for document in documents]
    again = [json.loads(text) for text in texts]
    del texts[::2]
words = {}
for i in range(200_000):
    words[f"w{i % 9000}"] = [i] * (i % 20)
    if i % 3 == 0:
        words.pop(f"w{i // 2 % 9000}", None)
del documents, again
gc.collect()
threads = [threading.Thread(target=lambda: [{str(i): [i]} for i in range(30_000)]) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(sys.version.split()[0], "numpy" in sys.modules)
"""


def interpreters():
    """Every supported CPython that is downloaded, of pyenv, or in PATH, by version; includes that of the tests."""
    root = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    found = [
        *sorted(root.glob("versions/3.*/bin/python3")),
        *sorted(cache_root().glob("interpreters/*/usr/bin/python3.*")),
        *(shutil.which(f"python3.{minor}") for minor in range(11, 16)),
    ]
    versions = {}
    for path in [sys.executable, *filter(None, found)]:
        asked = subprocess.run([path, "-V"], capture_output=True, text=True, check=False)
        match = re.fullmatch(r"Python (3\.(\d+)\.\d+)", asked.stdout.strip())
        if match and int(match[2]) >= taps.OLDEST[1]:
            versions.setdefault(match[1], str(path))
    return versions


AT_HAND = interpreters()


def run(path, *options, program="pass"):
    return record("-o", path, *options, "-c", program, cwd=path.parent)


@pytest.mark.slow
@pytest.mark.parametrize("version", AT_HAND)
def test_the_model_has_all_of_a_recording_by_each_interpreter_at_hand(tmp_path, version):
    path = tmp_path / "trace.parquet"
    done = run(path, "--clean", "--python", AT_HAND[version], program=PROGRAM)
    assert done.stdout == f"{version} False\n"
    agreement = verify_recording(replay.open_source(path))
    assert agreement.preset == f"cpython-{version.rpartition('.')[0]}"
    assert agreement.arena_difference is None
    assert agreement.arena_events_compared > 20
    assert agreement.releases > 0
    assert agreement.addresses_compared > 500_000
    assert agreement.addresses_equal >= 0.999 * agreement.addresses_compared
    assert agreement.counts is not None
    assert agreement.counts.difference is None


@pytest.mark.parametrize("version", [version for version in AT_HAND if AT_HAND[version] != sys.executable][:3])
def test_a_program_is_recorded_by_an_interpreter_without_replay(tmp_path, version):
    path = tmp_path / "trace.parquet"
    code = "import sys\ntry: import replay\nexcept ImportError: print(sys.version.split()[0], sys.argv)\nsys.exit(7)"
    done = run(path, "--python", AT_HAND[version], program=code)
    assert (done.returncode, done.stdout) == (7, f"{version} ['-c']\n")
    trace = replay.open_source(path)
    assert trace.metadata.origin.texts()["interpreter"] == f"cpython {version}"
    assert trace.metadata.origin.texts()["command"].startswith(f"{Path(AT_HAND[version]).name} -c ")
    assert sum(int((batch.op <= Op.FREE).sum()) for batch in trace.batches()) > 1000


@pytest.mark.parametrize("version", [version for version in AT_HAND if AT_HAND[version] != sys.executable][:3])
def test_call_sites_are_recorded_with_the_interpreter_of_the_program(tmp_path, version):
    """Lines are decoded with the rules of the program's version, not of the one that runs replay."""
    path = tmp_path / "trace.parquet"
    (tmp_path / "keeping.py").write_text(
        "kept = []\ndef keep():\n    kept.append(\n        bytes(100_000)\n    )\nkeep()\n"
    )
    run(path, "--sites", "--python", AT_HAND[version], program="import keeping")
    trace = replay.open_source(path)
    sites = [site for batch in trace.batches() for site in batch.site[batch.size == 100_033]]
    (site,) = {trace.metadata.sites[number] for number in sites}
    assert (Path(site.file).name, site.function, site.line) == ("keeping.py", "keep", 4)


SUBINTERPRETER = """
import sys
try:
    import _interpreters
    number = _interpreters.create(sys.argv[1])
except ImportError:
    import _xxsubinterpreters as _interpreters
    number = _interpreters.create(isolated=sys.argv[1] == "isolated")
_interpreters.run_string(number, "kept = [str(number) * 3 for number in range(60_000)]")
_interpreters.destroy(number)
"""


@pytest.mark.parametrize("kind", ["isolated", "legacy"])
@pytest.mark.parametrize("version", AT_HAND)
def test_only_a_subinterpreter_with_a_pymalloc_of_its_own_makes_heaps_separate(tmp_path, version, kind):
    path = tmp_path / "trace.parquet"
    record("--clean", "--python", AT_HAND[version], "-o", path, "-c", SUBINTERPRETER, kind, check=True)
    trace = replay.open_source(path)
    separate = kind == "isolated" and not version.startswith("3.11.")
    assert trace.metadata.runtime.separate_heaps == separate
    if separate:
        with pytest.raises(replay.ReplayError, match="the recording does not have the owner of a block"):
            verify_recording(trace)


def test_the_interpreter_may_be_a_name_in_path(tmp_path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ("-o", "t.parquet", "--python", Path(sys.executable).name, "-c", "pass")
    record(*command, cwd=tmp_path, env=environment, check=True)
    assert replay.open_source(tmp_path / "t.parquet").metadata.origin.texts()["interpreter"].startswith("cpython 3.")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--python", "no-such-python"], "replay: --python: the program no-such-python does not exist\n"),
        (["--python", "/bin/true"], "replay: --python: /bin/true is not a working Python interpreter\n"),
    ],
)
def test_an_unusable_interpreter_is_reported_in_a_sentence(tmp_path, options, sentence):
    done = run(tmp_path / "t.parquet", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr == sentence
    assert not list(tmp_path.iterdir())


def test_forked_children_of_another_interpreter_are_recorded(tmp_path):
    code = "import os\nif os.fork():\n    os.wait()\nelse:\n    texts = [str(number) for number in range(5000)]"
    command = [sys.executable, "-m", "replay", "record", "--python", sys.executable, "--follow-fork", "-c", code]
    run_to_the_last(*command, cwd=tmp_path, check=True)
    (path,) = tmp_path.glob("trace.*.parquet")
    child = replay.open_source(path)
    assert child.metadata.phases[0] == "fork 1"
    assert child.metadata.origin.interpreter == f"cpython {platform.python_version()}"
    assert sum(int((events.op == Op.MALLOC).sum()) for events in child.batches()) > 4000


def test_an_interpreter_that_is_too_old_is_refused_by_its_name_and_version(tmp_path):
    root = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    older = next(iter(sorted(root.glob("versions/3.[6-9].*/bin/python"))), None)
    if older is None:
        pytest.skip("no older Python among pyenv's")
    done = run(tmp_path / "t.parquet", "--python", str(older))
    version = older.parents[1].name
    sentence = "only CPython 3.11 and newer can be recorded"
    assert (done.returncode, done.stderr) == (2, f"replay: --python: {older} is cpython {version}: {sentence}\n")


def test_a_clean_start_is_refused_for_another_interpreter_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    done = run(tmp_path / "t.parquet", "--clean", "--python", sys.executable)
    assert done.returncode == 2
    assert "a clean start needs plain pymalloc: unset PYTHONMALLOC" in done.stderr
