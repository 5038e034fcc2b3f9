"""Rings of nodes with random lifetimes and payloads, as of jobs in a queue."""

import random

import stage

stage.reach("begin")


class Node:
    __slots__ = "next", "payload"


def ring(length):
    first = last = Node()
    for _ in range(length - 1):
        node = Node()
        node.next, node.payload = last, bytearray(random.randrange(20, 400))
        last = node
    first.next = last
    return first


random.seed(3)
jobs = [ring(3) for _ in range(2_000)]
stage.reach("started")
for _number in range(60_000):
    jobs[random.randrange(len(jobs))] = ring(random.randrange(2, 8))
stage.reach("end")
