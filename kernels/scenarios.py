"""Commands that together call every entry with every combination of types that the shipped models and formats have."""

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
STACKS = ("cpython-3.12", "cpython-2.7", "cpython-3.12-malloc", "ideal", "bump")
LOGS = {
    "log.csv": b"time_ns,op,block,size\n0,malloc,1,16\n5,realloc,1,50\n9,free,1,0\n",
    "log.heaptrack": b"v 10400 3\nX ./h\nI 1000 400000\ns 4 main\ni 400100 0 1\nt 1 0\na 10 1\n+ 0\nc 5\n- 0\n",
    "log.mtrace": b"= Start\n@ a:[0x1] + 0x10 0x10\n@ a:[0x1] < 0x10\n@ a:[0x1] > 0x30 0x50\n@ a:[0x2] - 0x30\n",
    "log.rep": b"20000\n1\n3\n1\na 0 512\nr 0 640\nf 0\n",
    "log.umpire": b"",
}


def commands() -> Iterator[list[str]]:
    """Yields command lines; they run one after the other in one empty folder."""
    for name in ("events.yaml", "objects.yaml", "threads.yaml", "program.py"):
        shutil.copy(HERE / name, name)
    yield from ([*"run events.yaml --no-reference -a".split(), stack] for stack in STACKS)
    yield "run events.yaml --trim-every 1ms --addresses addresses.parquet".split()
    yield "run objects.yaml --no-reference".split()
    yield "run threads.yaml --no-reference".split()
    yield "generate events.yaml -o events.parquet".split()
    yield from ([*"run events.parquet --no-reference -a".split(), stack] for stack in STACKS)
    for stack in STACKS:
        yield [*"pins events.parquet -a".split(), stack]
        yield [*"map events.parquet --at peak -a".split(), stack]
    yield "trace info events.parquet".split()
    yield "trace cut events.parquet -o cut.parquet --from 1ms --to 2ms".split()
    yield "trace filter events.parquet -o filtered.parquet --domain obj".split()
    yield "trace merge events.parquet cut.parquet -o merged.parquet --processes".split()
    yield "trace scale events.parquet -o scaled.parquet --copies 2 --processes".split()
    yield from ([*"run scaled.parquet --no-reference -a".split(), stack] for stack in STACKS)
    for name, content in LOGS.items():
        if content:
            Path(name).write_bytes(content)
            Path(f"{name}.gz").write_bytes(gzip.compress(content))
            yield ["import", name, "-o", f"{name}.parquet"]
            yield ["import", f"{name}.gz", "-o", f"{name}.gz.parquet"]
    yield "record -o app.parquet --clean --sites --types --follow-fork program.py".split()
    yield "run app.parquet".split()
    yield "report app.parquet -o app.html --moments 3 --no-remedies".split()
    yield "trace info app.parquet".split()
    yield "run app.parquet --set collector.threshold0=50".split()
    yield "verify app.parquet".split()
