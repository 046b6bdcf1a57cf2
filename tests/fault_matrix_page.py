"""The page that holds the figures of all matrices, each between its marks, with the day and the commit of its run."""

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "fault-matrix.md"


def write(name: str, title: str, lines: Sequence[str]) -> None:
    """Put the lines between the marks of this name. Missing marks are added at the page's end."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = PAGE.read_text(encoding="utf-8")
    if begin not in page:
        page += f"\n{begin}\n{end}\n"
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    PAGE.write_text("\n".join([f"{head}{begin}", f"## {title}", "", _run_on(), "", *lines, f"{end}{tail}"]), "utf-8")


def _run_on() -> str:
    """Return the day and commit of the run: matrices take too long for every change, so readers need their age."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    # The page itself is being written.
    others = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{PAGE.relative_to(ROOT)}")
    changed = " with changes that are not committed" if others else ""
    return f"Run on {datetime.now(UTC):%Y-%m-%d} at commit `{git('rev-parse', '--short=10', 'HEAD')}`{changed}."
