"""Records as dicts with links between parents and children, as of a parsed document."""

import stage

stage.reach("begin")


def document(number):
    root = {"id": number, "children": []}
    for child in range(8):
        root["children"].append({"id": child, "parent": root, "tags": [number, child]})
    return root


latest = {}
stage.reach("started")
for number in range(30_000):
    latest[number % 300] = document(number)
stage.reach("end")
