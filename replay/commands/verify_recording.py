"""`replay verify RECORDING`: compares the model with the recorded process."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from replay.commands.compilation import report_compilation
from replay.support.names import say

if TYPE_CHECKING:
    from replay.trace import Trace


def verify_recording(trace: "Trace", name: str, *, as_json: bool) -> None:
    """Prints the differences between a recording and the model of its interpreter; exits with 1 if there are any."""
    from replay.verification.recordings import verify_recording as compare

    with report_compilation():
        agreement = compare(trace)
    if as_json:
        say(json.dumps({"trace": name, "exact": agreement.exact, **asdict(agreement)}, indent=2))
    else:
        unequal = agreement.addresses_compared - agreement.addresses_equal
        say(
            f"{name}, compared with the model of {agreement.preset}:\n"
            f"  addresses     {agreement.addresses_compared:,} compared, {unequal:,} unequal\n"
            f"  arena events  {agreement.arena_events_equal:,} of {agreement.arena_events_compared:,} equal, "
            f"{agreement.releases:,} of them releases\n"
            f"  older blocks  {agreement.older_frees:,} freed and simulated, {agreement.older_frees_unseen:,} whose "
            "address was not reused"
        )
        if agreement.counts is None:
            say("  counts        none: the program ended by os._exit, exec or a signal, or an older replay recorded it")
        else:
            counts = agreement.counts
            say(
                f"  counts        {counts.compared:,} compared, {counts.compared - counts.equal:,} unequal: pools and "
                "blocks by size class, arenas;\n"
                f"                {counts.blocks_unplaced:,} free blocks in older pools have an unknown size class"
            )
        if not agreement.exact and agreement.predictable_events < agreement.events:
            say(
                f"  predictable   up to row {agreement.predictable_events:,} of {agreement.events:,}: there a pool of "
                "older blocks\n                may have become empty, and its arena is unknown"
            )
        counted = agreement.counts.difference if agreement.counts else None
        for difference in filter(None, (agreement.difference, agreement.arena_difference, counted)):
            say(f"  {difference}")
    if not agreement.prediction_agrees:
        raise typer.Exit(1)
