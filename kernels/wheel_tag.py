"""Names the platform of a wheel that contains machine code, for hatchling. A wheel without it fits all platforms."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelTag(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable" and Path(self.root, "replay/jit/machine_code/index.json").is_file():
            build_data["pure_python"], build_data["tag"] = False, "py3-none-linux_x86_64"
