"""A program to record: garbage cycles, a collection, texts, and a child process."""

import gc
import os

for _ in range(30):
    cycle = []
    cycle.append(cycle)
gc.collect()
texts = [str(number) for number in range(50)]
if os.fork() == 0:
    texts += [str(number) for number in range(50, 60)]
    os._exit(0)
os.wait()
