"""`python -m tests.faults`: run the tables, print them, and write them into docs/fault-matrix.md.

python -m tests.faults                 every fault and every trouble, at every provider, troubles on both ledgers
python -m tests.faults --only uploads  only this table
python -m tests.faults 429 --dry-run   only rows with these words in the name; writes nothing
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.crash.postgres import postgres
from tests.fault_matrix_page import write
from tests.faults import table, troubles
from tests.faults.attached_documents import ATTACHED_FAULTS, ATTACHED_VENDORS, make_attached_workspace
from tests.faults.flex import FLEX_FAULTS, FLEX_VENDORS, FlexFault, make_flex_workspace, problems_of_flex
from tests.faults.table import FAULTS, MATRIX_VENDORS, Expected, Fault, Never
from tests.faults.troubles import TROUBLES, Trouble, run_trouble
from tests.faults.uploads import UPLOAD_FAULTS, UPLOAD_VENDORS, UploadFault, problems_of_uploads, run_upload_fault
from tests.faults.vendor_workspace import ROWS, STRUCK, Ending, Servers, servers
from tests.faults.vendors import Vendor

FAULTS_INTRO = f"""\
Each cell is one submission of {ROWS} rows, through the engine and the vendor's own SDK, against the vendor's
emulator. Faults of rows affect {STRUCK} of them. A cell reads `rows / lost / billed twice`, then the outcomes if not
all succeeded, and the number of rounds if there was more than one. A row is lost if it does not have exactly one
outcome. It may be billed twice only if the vendor billed a request without returning its answer. The last column has
the hours, by the emulators' clock, from the plan until the alert: a failed run, a failed tick, or the check
`coverage`. It is empty if no alert was needed. The results are verified by the emulators' books and the final table.
Written by `python -m tests.faults`.
"""

UPLOADS_INTRO = f"""\
Each cell is one submission of {ROWS} rows with three documents, which are uploaded before the batch
(`Prompt(documents_as="upload")`). A fault of one document affects {STRUCK} rows. A cell reads as above. At the end of
each cell, the vendor had no document of the submission any more, and still had another program's file. Written by
`python -m tests.faults --only uploads`.
"""

ATTACHED_INTRO = f"""\
Each cell is one submission of {ROWS} rows with three documents inside of their requests (`Prompt(documents=…)`); at
OpenRouter, requests have addresses. A fault of one document affects {STRUCK} rows. A cell reads as above. Written by
`python -m tests.faults --only documents`.
"""

FLEX_INTRO = f"""\
Each cell is one submission of {ROWS} urgent rows, each a call in the tier "flex" (`Realtime(tier="flex")`). A cell
reads as above. At the end of each cell, every label had the price of the tier that its answer named. Written by
`python -m tests.faults --only flex`.
"""

TROUBLES_INTRO = f"""\
Each cell shows the effect of a problem with files, clocks, processes, backups or people on {ROWS} rows, independent
of the vendor's answers. Each was run on SQLite and on PostgreSQL. The clock advances an hour at a time (six if a
batch never ends) until there is an alert or the labels are materialized. The last column has the hours from the
problem to the alert. If a person has to act, the test does it then, and the cell shows the result.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The matrices of faults and troubles.")
    parser.add_argument("words", nargs="*", help="only those whose name has one of these")
    parser.add_argument(
        "--only", choices=("faults", "documents", "flex", "uploads", "troubles"), help="only this table"
    )
    parser.add_argument("--dry-run", action="store_true", help="do not write docs/fault-matrix.md")
    options = parser.parse_args()
    writes = not options.words and not options.dry_run
    began = time.monotonic()
    with (
        servers() as running,
        postgres() as new_database,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        tables: dict[str, tuple[str, str, Sequence[Any], Callable[[Any, Path], Mapping[str, Ending]]]] = {
            "faults": ("Result faults", FAULTS_INTRO, FAULTS, lambda row, path: table.run_row(row, running, path)),
            "documents": (
                "Faults of documents in requests",
                ATTACHED_INTRO,
                ATTACHED_FAULTS,
                lambda row, path: table.run_row(row, running, path, ATTACHED_VENDORS, make_attached_workspace),
            ),
            "flex": (
                "Faults of calls in flex",
                FLEX_INTRO,
                FLEX_FAULTS,
                lambda row, path: table.run_row(row, running, path, FLEX_VENDORS, make_flex_workspace),
            ),
            "uploads": (
                "Faults of uploads",
                UPLOADS_INTRO,
                UPLOAD_FAULTS,
                lambda row, path: run_upload_fault(row, running, path),
            ),
            "troubles": (
                "Files, clocks, processes, backups, people",
                TROUBLES_INTRO,
                TROUBLES,
                lambda row, path: _both_ledgers(row, running, path, new_database),
            ),
        }
        wrong = 0
        for name in [options.only] if options.only else tables:
            title, intro, rows, run = tables[name]
            lines, count = _table(rows, options.words, run, folder)
            wrong += count
            if writes:
                write(name, title, [*intro.splitlines(), "", *lines])
    print(f"In {time.monotonic() - began:.0f} s; cells that are not as expected: {wrong}")
    return 1 if wrong else 0


def _table(
    rows: Sequence[Fault | Trouble],
    words: Collection[str],
    run: Callable[[Any, Path], Mapping[str, Ending]],
    folder: str,
) -> tuple[list[str], int]:
    """Run the rows with one of these words. Return them as Markdown, and the number of unexpected cells."""
    vendors = _vendors_of(rows)
    names = [vendor.name for vendor in vendors]
    lines = ["| fault | " + " | ".join(names) + " | hours until alert |", "|" + " --- |" * (len(names) + 2)]
    wrong, notes = 0, dict[str, int]()
    for row in [row for row in rows if not words or any(word in row.name for word in words)]:
        place = Path(folder, type(row).__name__, str(len(lines)))
        place.mkdir(parents=True)
        endings = run(row, place)
        cells = [_cell(row.at(vendor), endings.get(vendor.name), notes) for vendor in vendors]
        lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {_hours(endings.values())} |")
        print(lines[-1], flush=True)
        judge = _judge_of(row)
        for vendor in vendors:
            if vendor.name in endings and (said := judge(row, vendor, endings[vendor.name])):
                wrong += 1
                print(f"    {vendor.name}: {'; '.join(said)}", flush=True)
    return [*lines, "", *(f"{number}. {text[0].upper()}{text[1:]}." for text, number in notes.items())], wrong


def _vendors_of(rows: Sequence[Fault | Trouble]) -> Sequence[Vendor]:
    if rows is ATTACHED_FAULTS:
        return ATTACHED_VENDORS
    if isinstance(rows[0], FlexFault):
        return FLEX_VENDORS
    return UPLOAD_VENDORS if isinstance(rows[0], UploadFault) else MATRIX_VENDORS


def _judge_of(row: Fault | Trouble) -> Callable[..., list[str]]:
    if isinstance(row, UploadFault):
        return problems_of_uploads
    if isinstance(row, FlexFault):
        return problems_of_flex
    return table.problems if isinstance(row, Fault) else troubles.problems


def _both_ledgers(
    trouble: Trouble, running: Servers, folder: Path, new_database: Callable[[], str]
) -> dict[str, Ending]:
    """Run a trouble at every vendor on both ledgers, and return the worse ending of the two."""

    def run(vendor: Any) -> Ending:
        endings = []
        for name, url in (("sqlite", None), ("postgresql", new_database())):
            place = folder / f"{vendor.name}-{name}"
            place.mkdir()
            endings.append(run_trouble(trouble, vendor, running, place, url))
        return max(endings, key=lambda ending: len(troubles.problems(trouble, vendor, ending)))

    vendors = [vendor for vendor in MATRIX_VENDORS if not isinstance(trouble.at(vendor), Never)]
    with ThreadPoolExecutor(len(vendors)) as pool:
        return {vendor.name: one for vendor, one in zip(vendors, pool.map(run, vendors), strict=True)}


def _hours(endings: Iterable[Ending]) -> str:
    """Return the hours until an alert, at the fastest and the slowest vendor; empty without an alert."""
    hours = sorted({f"{one.told_hours:.1f}" for one in endings if one.told_hours is not None}, key=float)
    return " to ".join(dict.fromkeys([hours[0], hours[-1]])) if hours else ""


def _cell(expected: Expected | Never, ending: Ending | None, notes: dict[str, int]) -> str:
    if isinstance(expected, Never):
        return f"-<sup>{notes.setdefault(expected.why, len(notes) + 1)}</sup>"
    assert ending is not None
    words = [f"{ending.rows} / {ending.lost} / {ending.twice}"]
    if ending.outcomes != Expected().outcomes:
        words.append(", ".join(f"{count} {outcome}" for outcome, count in sorted(ending.outcomes.items())))
    if ending.waves > 1:
        words.append(f"{ending.waves} rounds")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
