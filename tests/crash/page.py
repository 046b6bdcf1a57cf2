"""The page that holds the figures of all matrices, each between its own marks."""

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fault-matrix.md"


def write(name: str, lines: Sequence[str]) -> None:
    """Put the lines between the marks of this name, and the marks at the page's end where they are not there yet."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Fault matrix\n"
    if begin not in page:
        page += f"\n{begin}\n{end}\n"
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join([f"{head}{begin}", *lines, f"{end}{tail}"]), encoding="utf-8")
