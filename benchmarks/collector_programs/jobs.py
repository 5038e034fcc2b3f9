"""Jobs with children that refer to their parents, in a pool from which a job disappears after a random time."""

import random

import stage

stage.reach("begin")


class Job:
    def __init__(self, number, parent=None):
        self.number, self.parent, self.children = number, parent, []
        self.tags = {"n": number, "k": (number, number + 1)}
        if parent:
            parent.children.append(self)


random.seed(7)
pool = {}
stage.reach("started")
for number in range(45_000):
    root = Job(number)
    for child in range(random.randrange(4)):
        Job(child, root)
    pool[int(random.paretovariate(1.1)) % 3000] = root
stage.reach("end")
