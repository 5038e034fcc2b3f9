"""A batch job with NumPy: chunks of a log are parsed into lists and byte buffers;
temporary arrays, which malloc allocates directly, are not recorded."""

import io
import random
import sys

import numpy as np

import replay

TYPES = {"time": np.int64, "bytes": np.int64, "seconds": np.float64}
chance = random.Random(1)


def make_log(lines):
    text = io.StringIO()
    for _ in range(lines):
        host, size = chance.randrange(300), int(chance.paretovariate(1.2) * 500)
        text.write(f"{chance.randrange(10**9)};{size};{chance.random():.4f};host-{host}.example\n")
    return text.getvalue()


logs = [make_log(1000) for _ in range(14)]
columns, hosts = {name: bytearray() for name in TYPES}, []

with replay.record(sys.argv[1], clean=True, force=True):
    replay.mark("load")
    for log in logs:
        *fields, names = zip(*(line.split(";") for line in log.splitlines()), strict=True)
        hosts.extend(names)
        for name, texts in zip(TYPES, fields, strict=True):
            columns[name] += np.array(texts, TYPES[name]).tobytes()
    replay.mark("group")
    views = {name: np.frombuffer(buffer, TYPES[name]) for name, buffer in columns.items()}
    names, group = np.unique(np.array(hosts), return_inverse=True)
    for _ in range(5):
        totals = np.bincount(group, weights=views["bytes"] / views["seconds"].clip(0.001))
        table = [{"host": host, "total": total} for host, total in zip(names.tolist(), totals.tolist(), strict=True)]
        table.sort(key=lambda row: row["total"])
    replay.mark("write")
    sorted_by_time = [view[np.argsort(views["time"])].tobytes() for view in views.values()]
