"""Pairs of peers with payloads, which become garbage at once, beside data that the program keeps."""

import stage

stage.reach("begin")


class Peer:
    __slots__ = "other", "payload"


options = [{"name": str(number), "value": [number]} for number in range(60_000)]
stage.reach("started")
for _number in range(60_000):
    first, second = Peer(), Peer()
    first.other, second.other = second, first
    first.payload, second.payload = bytes(1200), bytes(400)
stage.reach("end")
