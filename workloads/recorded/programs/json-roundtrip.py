"""A JSON service: documents are parsed, changed and serialised again,
and a cache keeps the latest of them."""

import replay

replay.mark("import")
import json
import random
from collections import deque

replay.mark("warm-up")
chance = random.Random(1)
WORDS = [f"{chance.getrandbits(40):x}" for _ in range(500)]


def make_document(number):
    items = [
        {"sku": chance.choice(WORDS), "price": chance.random() * 100, "count": chance.randrange(9), "tags": WORDS[:3]}
        for _ in range(chance.randrange(5, 80))
    ]
    return {"id": number, "customer": {"name": chance.choice(WORDS), "vip": number % 7 == 0}, "items": items}


bodies = [json.dumps(make_document(number)) for number in range(36)]

replay.mark("work")
kept = deque(maxlen=20)
for turn in range(36):
    document = json.loads(bodies[turn % len(bodies)])
    document["turn"] = turn
    document["items"].sort(key=lambda item: item["price"])
    kept.append(document)
    bodies[turn % len(bodies)] = json.dumps(document, indent=None if turn % 3 else 2)

replay.mark("drop the cache")
kept.clear()
