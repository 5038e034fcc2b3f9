"""Fuzzes what reads files and command lines: the targets of `tests/fuzz_targets.py`, one after the other.

    pip install atheris
    python benchmarks/fuzz/run.py --minutes 30                  all targets
    python benchmarks/fuzz/run.py --minutes 30 parquet memray   some targets
    python benchmarks/fuzz/run.py --minutes 30 --random         without atheris: random mutations

Each target runs in a separate process, whose memory and time for an input are limited. atheris looks for inputs that
reach new code of the readers, kernels excluded. Prints a line a target: executions and the failure, if any. An input
that fails is kept in --failures, as a file TARGET-DIGEST; repeat it with

    python benchmarks/fuzz/run.py --input FILE TARGET

Exit code 1 if an input failed.
"""

import argparse
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import fuzz_targets as fuzz  # noqa: E402

from replay.jit.compiling import is_kernel  # noqa: E402

RESIDENT_MB = 4096
"""Limit of a fuzzing process, with what libFuzzer and its corpus take."""
PACKAGES = ("sources", "workload", "objects", "config", "gates", "sweeps", "support", "trace", "commands", "__main__")


def content_of(target: str, data: bytes) -> bytes:
    """Returns the input that libFuzzer's bytes stand for: themselves, or the choices of a generated table."""
    return fuzz.table(random.Random(data), random.Random(data).randrange(4)) if target == "table" else data


def keep_failure(target: str, content: bytes, failures: Path) -> Path:
    """Writes a failing input to a file, and returns its path."""
    failures.mkdir(parents=True, exist_ok=True)
    path = failures / f"{target}-{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    return path


def fuzz_randomly(target: str, seconds: float, failures: Path, folder: Path) -> None:
    """Runs random mutations until the time is over; the last line is the result as JSON."""
    end, executions, accepted = time.monotonic() + seconds, 0, 0
    random_ = random.Random(f"{target} {time.time_ns()}")
    with fuzz.limited():
        while time.monotonic() < end:
            content = fuzz.mutated(random_, target)
            path = keep_failure(target, content, failures)
            accepted += fuzz.in_time(target, content, folder)
            path.unlink()
            executions += 1
    print(json.dumps({"executions": executions, "accepted": accepted}))


def fuzz_with_atheris(target: str, seconds: float, failures: Path, folder: Path) -> None:
    """Runs libFuzzer, which ends the process. It prints the number of executions."""
    import atheris

    for name, module in list(sys.modules.items()):
        if name.startswith("replay.") and name.split(".")[1] in PACKAGES:
            instrument(atheris, module)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, sample in enumerate(fuzz.samples(target)):
        (corpus / str(number)).write_bytes(sample if target != "table" else bytes([number]))

    def one(data: bytes) -> None:
        content = content_of(target, data)
        try:
            fuzz.check(target, content, folder)
        except BaseException:
            print("failed:", keep_failure(target, content, failures), flush=True)
            raise

    def mutate(data: bytes, size_max: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        if random_.randrange(2) or target == "table":
            return atheris.Mutate(data, size_max)
        content = bytearray(data)
        fuzz.edit(random_, content, target)
        return bytes(content[:size_max])

    options = [f"-max_total_time={int(seconds)}", f"-timeout={fuzz.SECONDS}", f"-rss_limit_mb={RESIDENT_MB}"]
    options += ["-max_len=200000", f"-artifact_prefix={failures}/{target}-", "-print_final_stats=1"]
    failures.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def instrument(atheris: Any, module: ModuleType) -> None:
    """Makes all functions of a module report the code that they reach, except kernels, which numba compiles."""
    owners = [module, *(each for each in vars(module).values() if isinstance(each, type))]
    for owner in owners:
        for function in list(vars(owner).values()):
            function = getattr(function, "__func__", function)
            if not isinstance(function, FunctionType) or function.__module__ != module.__name__ or is_kernel(function):
                continue
            atheris.instrument_func(function)


def run_target(target: str, arguments: argparse.Namespace, seconds: float) -> bool:
    """Runs a target in a separate process, and prints what it found. Returns whether an input failed."""
    words = ["--seconds", str(seconds), "--failures", str(arguments.failures), *["--random"] * arguments.random, target]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    counted = re.findall(r"(?:number_of_executed_units: |\"executions\": |^#)(\d+)", output, re.MULTILINE)
    failed = done.returncode != 0
    print(f"{target}: {int(counted[-1]) if counted else 0:,} executions{', FAILED' if failed else ''}", flush=True)
    if failed:
        print("\n".join(output.splitlines()[-60:]), flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(fuzz.TARGETS)}")
    parser.add_argument("--minutes", type=float, default=30, help="in all (default 30)")
    parser.add_argument("--random", action="store_true", help="random mutations instead of atheris")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder (default fuzz-failures)")
    parser.add_argument("--input", type=Path, help="run this input once instead")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)  # one target, in this process
    arguments = parser.parse_args()
    targets = arguments.targets or list(fuzz.TARGETS)
    if unknown := set(targets) - set(fuzz.TARGETS):
        parser.error(f"unknown target {unknown.pop()}; choose from {', '.join(fuzz.TARGETS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.input:
            print("accepted" if fuzz.in_time(targets[0], arguments.input.read_bytes(), folder) else "refused")
            return
        if arguments.seconds is not None:
            for sample in fuzz.samples(targets[0]):  # compiles the kernels
                fuzz.check(targets[0], sample, folder)
            run = fuzz_randomly if arguments.random else fuzz_with_atheris
            run(targets[0], arguments.seconds, arguments.failures.absolute(), folder)
            return
    seconds = 60 * arguments.minutes / len(targets)
    failed = [target for target in targets if run_target(target, arguments, seconds)]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
