"""Installs a package the way an installer leaves it: modules and a dist-info folder on the path."""

from pathlib import Path


def write_dist_info(site: Path, group: str, modules: dict[str, str]) -> None:
    """Makes the modules (by entry point name) entry points of `group`; replaces those of an earlier call."""
    info = site / "toys-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    points = "".join(f"{name} = {module}\n" for name, module in modules.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}")
