"""Find a code location by the command line or pyproject.toml, without loading Dagster."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import click

__all__ = ["Pointer", "pointer_in"]


@dataclass(frozen=True)
class Pointer:
    """Place of definitions: a module, a file, or a folder of `dg` definitions. `source` is its origin."""

    source: str
    module_name: str | None = None
    python_file: str | None = None
    autoload_module: str | None = None
    attribute: str | None = None
    working_directory: str | None = None

    def __str__(self) -> str:
        module = self.module_name or self.autoload_module
        place = f"the file {self.python_file}" if self.python_file else f"the module {module}"
        return f"{place} ({self.source})"


def pointer_in(pyproject: Path) -> Pointer | None:
    """Return what [tool.dagster] or [tool.dg.project] of a pyproject.toml point to."""
    if not pyproject.is_file():
        return None
    try:
        tool = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{pyproject} cannot be read: {error}") from error
    block, project = tool.get("dagster", {}), tool.get("dg", {}).get("project", {})
    modules = [module.get("name") for module in block.get("modules", [])]
    names = [block["module_name"]] if "module_name" in block else modules
    if len(names) > 1:
        raise click.UsageError(
            f"[tool.dagster] in {pyproject} names {len(names)} modules: {', '.join(names)}. Say which one with -m."
        )
    if names:
        return Pointer(f"[tool.dagster] in {pyproject}", module_name=names[0])
    if not project:
        return None
    source, root = f"[tool.dg.project] in {pyproject}", project.get("root_module")
    if project.get("autoload_defs"):
        return Pointer(source, autoload_module=project.get("defs_module", f"{root}.defs"))
    return Pointer(source, module_name=project.get("code_location_target_module", f"{root}.definitions"))
