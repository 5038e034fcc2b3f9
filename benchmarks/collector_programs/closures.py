"""Functions that call themselves through a closure, made for each request. Every tenth is kept for a while."""

from collections import deque

import stage

stage.reach("begin")


def handler(number):
    seen = {}

    def visit(depth):
        seen[depth] = (number, depth)
        return visit(depth - 1) if depth else len(seen)

    visit(4)
    return visit


recent = deque(maxlen=500)
stage.reach("started")
for number in range(60_000):
    made = handler(number)
    if number % 10 == 0:
        recent.append(made)
stage.reach("end")
