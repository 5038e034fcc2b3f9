"""A cache of sessions that refer to themselves. Sessions become garbage when they are old."""

import stage

stage.reach("begin")


class Part:
    __slots__ = ("session",)


class Session:
    __slots__ = ("parts",)

    def __init__(self):
        self.parts = [Part() for _ in range(20)]
        for part in self.parts:
            part.session = self


cache = {}
stage.reach("started")
for number in range(110_000):
    cache[number] = Session()
    cache.pop(number - 5_000, None)
stage.reach("end")
