"""Commands that together call every entry with every combination of types that the shipped models and formats have."""

import gzip
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
STACKS = (
    "cpython-3.12", "cpython-2.7", "cpython-3.12-malloc", "cpython-3.12-musl", "cpython-3.12-musl-malloc", "ideal",
    "bump",
)  # fmt: skip
LOGS = {
    "log.csv": b"time_ns,op,block,size\n0,malloc,1,16\n5,realloc,1,50\n9,free,1,0\n",
    "log.heaptrack": b"v 10400 3\nX ./h\nI 1000 400000\ns 4 main\ni 400100 0 1\nt 1 0\na 10 1\n+ 0\nc 5\n- 0\n",
    "log.mtrace": b"= Start\n@ a:[0x1] + 0x10 0x10\n@ a:[0x1] < 0x10\n@ a:[0x1] > 0x30 0x50\n@ a:[0x2] - 0x30\n",
    "log.rep": b"20000\n1\n3\n1\na 0 512\nr 0 640\nf 0\n",
}
GENERATED = """
    run events.yaml --trim-every 1ms --addresses addresses.parquet
    run objects.yaml --no-reference
    run threads.yaml --no-reference
    generate events.yaml -o events.parquet
    trace info events.parquet
    trace cut events.parquet -o cut.parquet --from 1ms --to 2ms
    trace filter events.parquet -o filtered.parquet --domain obj
    trace merge events.parquet cut.parquet -o merged.parquet --processes
    trace scale events.parquet -o scaled.parquet --copies 2 --processes
"""
OF_EACH_STACK = """
    run events.yaml --no-reference -a
    run events.parquet --no-reference -a
    run scaled.parquet --no-reference -a
    pins events.parquet -a
    map events.parquet --at peak -a
"""
RECORDED = """
    record -o app.parquet --clean --sites --types --follow-fork program.py
    run app.parquet
    report app.parquet -o app.html --moments 3 --no-remedies
    trace info app.parquet
    run app.parquet --no-reference --set gc.threshold0=50
    verify app.parquet
"""


def commands() -> Iterator[list[str]]:
    """Yields arguments of replay; the commands run one after the other in one empty folder."""
    for name in ("events.yaml", "objects.yaml", "threads.yaml", "program.py", "texts.py"):
        shutil.copy(HERE / name, name)
    yield from _lines(GENERATED)
    for stack in STACKS:
        yield from ([*command, stack] for command in _lines(OF_EACH_STACK))
    for name, content in LOGS.items():
        Path(name).write_bytes(content)
        Path(f"{name}.gz").write_bytes(gzip.compress(content))
        yield ["import", name, "-o", f"{name}.parquet"]
        yield ["import", f"{name}.gz", "-o", f"{name}.gz.parquet"]
    if find_spec("memray"):
        for option in ("--native", "--trace-python-allocators"):
            capture = f"capture{option}.memray"
            subprocess.run([sys.executable, "-m", "memray", "run", "-q", option, "-o", capture, "texts.py"], check=True)
            yield ["import", capture, "-o", f"{capture}.parquet"]
    yield from _lines(RECORDED)


def _lines(text: str) -> Iterator[list[str]]:
    return map(shlex.split, text.strip().splitlines())
