"""`python -m tests.faults`: run the whole matrix, print it, and write it into docs/fault-matrix.md.

python -m tests.faults                 every fault, at every provider
python -m tests.faults 429 --dry-run   the faults whose name has these words; writes nothing
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fault_matrix_page import write
from tests.faults.table import FAULTS, VENDORS, Expected, Fault, Never, problems, run_row
from tests.faults.vendor_workspace import ROWS, STRUCK, Ending, servers

INTRO = f"""\
Each cell is one submission of {ROWS} rows, of which faults of rows strike {STRUCK}, through the engine with the
vendor's own SDK in front of its emulator. It reads `rows / lost / billed twice`, then the outcomes where not all
succeeded, and the waves where there was more than one. Lost is a row without exactly one outcome. Billed twice is right
only where the vendor billed a request and gave no answer to it. The emulators' books and the final table are the
witnesses. Printed and written by `python -m tests.faults`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The matrix of result faults.")
    parser.add_argument("words", nargs="*", help="only faults whose name has one of these")
    parser.add_argument("--dry-run", action="store_true", help="do not write docs/fault-matrix.md")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.words or any(word in fault.name for word in options.words)]
    lines, wrong, notes = [], 0, dict[str, int]()
    began = time.monotonic()
    with servers() as running, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for number, fault in enumerate(chosen):
            endings = run_row(fault, running, Path(folder, str(number)))
            lines.append(
                f"| {fault.name} | " + " | ".join(_cell(fault, v.name, endings, notes) for v in VENDORS) + " |"
            )
            print(lines[-1], flush=True)
            for vendor in VENDORS:
                if vendor.name in endings and (said := problems(fault, vendor, endings[vendor.name])):
                    wrong += 1
                    print(f"    {vendor.name}: {'; '.join(said)}", flush=True)
    header = ["| fault | " + " | ".join(vendor.name for vendor in VENDORS) + " |", "|" + " --- |" * (len(VENDORS) + 1)]
    footnotes = [f"{number}. {text[0].upper()}{text[1:]}." for text, number in notes.items()]
    print("\n".join(footnotes))
    print(f"{len(chosen)} faults in {time.monotonic() - began:.0f} s; cells that are not as expected: {wrong}")
    if not options.words and not options.dry_run:
        write("faults", "Result faults", [*INTRO.splitlines(), "", *header, *lines, "", *footnotes])
    return 1 if wrong else 0


def _cell(fault: Fault, name: str, endings: dict[str, Ending], notes: dict[str, int]) -> str:
    def note(text: str) -> str:
        return f"<sup>{notes.setdefault(text, len(notes) + 1)}</sup>"

    expected = next(fault.at(vendor) for vendor in VENDORS if vendor.name == name)
    if isinstance(expected, Never):
        return f"-{note(expected.why)}"
    ending = endings[name]
    words = [f"{ending.rows} / {ending.lost} / {ending.twice}"]
    if ending.outcomes != Expected().outcomes:
        words.append(", ".join(f"{count} {outcome}" for outcome, count in sorted(ending.outcomes.items())))
    if ending.waves > 1:
        words.append(f"{ending.waves} waves")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
