"""`replay schema`: the JSON Schema of YAML files, with which editors complete and check them."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from replay.support.names import say


class Kind(StrEnum):
    """A kind of file."""

    WORKLOAD = "workload"
    CONFIG = "config"
    SWEEP = "sweep"
    OBJECTS = "objects"


def schema(
    kind: Annotated[Kind, typer.Argument(metavar="workload|config|sweep|objects", help="Kind of file.")],
) -> None:
    """Print the JSON Schema of a workload, a configuration, a sweep or an object program.

    Example: replay schema workload > workload.schema.json
    """
    if kind is Kind.WORKLOAD:
        from replay.workload import Workload

        content = Workload.model_json_schema()
    elif kind is Kind.OBJECTS:
        from replay.objects.language import Program

        content = Program.model_json_schema()
    elif kind is Kind.SWEEP:
        from replay.sweeps.plan import Plan

        content = Plan.model_json_schema()
    else:
        from replay.config import stack_type

        content = stack_type().model_json_schema()
    say(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **content}, indent=2))
