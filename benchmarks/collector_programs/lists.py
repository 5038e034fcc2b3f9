"""Trees of small lists with links to their parents. Half of them live for a while."""

import stage

stage.reach("begin")


def tree(depth, parent):
    node = [parent]
    if depth:
        node.append(tree(depth - 1, node))
        node.append(tree(depth - 1, node))
    return node


kept = []
stage.reach("started")
for number in range(12_000):
    made = tree(4, None)
    if number % 2:
        kept.append(made)
    if len(kept) > 400:
        del kept[0]
stage.reach("end")
