"""`python -m tests.architecture_page`: the package's modules, imports between packages, and the path of a row.

With --write, into docs/design/architecture.md, between its marks. Packages and arrows come from the import graph, the
first lines of docstrings from the modules, the way from `benchmarks.journey`.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import grimp

import dagster_llm_batch
from tests.row_path import walk

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dagster_llm_batch"
FOLDER = Path(dagster_llm_batch.__file__).parent
"""The folder of the package under test, which may be an installed one."""
PAGE = ROOT / "docs" / "design" / "architecture.md"
MARKS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("tree", "packages", "walk", "way")}


def tree() -> str:
    """Return every folder with its docstring's first line, and its modules with theirs."""
    lines = []
    for folder in sorted(path.parent for path in FOLDER.rglob("__init__.py")):
        modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        name = folder.relative_to(FOLDER.parent).as_posix()
        lines += [f"### `{name}/`", "", _first_line(folder / "__init__.py"), ""] if lines else []
        if modules:
            lines += ["| Module | What it holds |", "| --- | --- |"]
            lines += [f"| `{path.name}` | {_first_line(path)} |" for path in modules]
            lines.append("")
    return "\n".join(lines).strip()


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def packages() -> str:
    """Return the imports between packages as a Mermaid diagram from the top down, without arrows that others imply."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True)
    package = {module: module.split(".")[1] for module in graph.modules if module != PACKAGE}
    arrows: dict[str, set[str]] = {name: set() for name in sorted(set(package.values()))}
    for module, its_package in package.items():
        for imported in graph.find_modules_directly_imported_by(module):
            if imported in package and package[imported] != its_package:
                arrows[its_package].add(package[imported])
    drawn = [
        f"    {above} --> {below}"
        for above, targets in arrows.items()
        for below in sorted(targets)
        if not any(below in _reached(arrows, other, {above}) for other in targets - {below})
    ]
    return "\n".join(["```mermaid", "flowchart TD", *drawn, "```"])


def _reached(arrows: dict[str, set[str]], start: str, seen: set[str]) -> set[str]:
    """Return all packages that imports lead to from `start`."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for package in arrows[waiting.pop()] - seen - found:
            found.add(package)
            waiting.append(package)
    return found


def way() -> str:
    """Return the modules that one row enters, in order, with adjacent ones of one package on one line."""
    # In a separate process, since it keeps optional packages from being imported.
    command = [sys.executable, "-m", "benchmarks.journey", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    parts = []
    for name, entered in json.loads(done.stdout).items():
        functions = sum(len(names) for names in entered.values())
        parts += [f"**{name.capitalize()}**: {len(entered)} modules, {functions} functions.", ""]
        for number, (package, modules) in enumerate(groupby(entered, key=lambda module: module.rpartition(".")[0]), 1):
            parts.append(
                f"{number}. `{package or PACKAGE}`: {', '.join(module.rpartition('.')[2] for module in modules)}"
            )
        parts.append("")
    return "\n".join(parts).strip()


def with_part(page: str, name: str, text: str) -> str:
    """Return the page with `text` between the marks of this name."""
    begin, end = MARKS[name]
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        sys.exit(f"{PAGE.relative_to(ROOT)} needs the lines {begin} and {end}.")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"


if __name__ == "__main__":
    made = {"tree": tree, "packages": packages, "walk": walk, "way": way}
    if "--write" in sys.argv[1:]:
        written = PAGE.read_text(encoding="utf-8")
        for part, make in made.items():
            written = with_part(written, part, make())
        PAGE.write_text(written, encoding="utf-8")
    else:
        print("\n\n".join(make() for make in made.values()))
