"""See the package's docstring."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.truth import (
    annotators,
    cascade,
    cascade_copies,
    copies,
    dollars,
    ends,
    filter_tables,
    filters,
    gates,
    intervals,
    means,
    page,
    public,
    relabels,
    samples,
)
from benchmarks.truth.widths import set_bounds

_ALL = (
    *(intervals, samples, means, gates, annotators, cascade, filter_tables, copies, cascade_copies, relabels),
    *(dollars, ends),
)
SECTIONS = {module.SECTION.name: module.SECTION for module in _ALL}
"""The sections by name, in the order of the page."""

QUICK_DRAWS = 200


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truth", description="Whether what is said is true.")
    parser.add_argument("sections", nargs="*", help=f"some of: {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--data", type=Path, help="for public and filters, which are not in all: a folder of CSV files")
    parser.add_argument("--draws", type=int, default=1_000, help="data sets of each cell")
    parser.add_argument("--quick", action="store_true", help="print the part that is a test, and write nothing")
    parser.add_argument("--set-widths", action="store_true", help="set the bounds of widths by what is measured")
    options = parser.parse_args()
    sections = dict(SECTIONS)
    if options.data is not None:
        sections |= {module.NAME: module.section_of(options.data) for module in (public, filters)}
    elif away := {public.NAME, filters.NAME} & {*options.sections}:
        names = " and ".join(sorted(away))
        parser.error(f"{names}: the data sets are not here; give their folder, --data FOLDER")
    if unknown := sorted(set(options.sections) - set(sections)):
        parser.error(f"there is no section {', '.join(unknown)}; the sections are {', '.join(sections)}")
    draws = QUICK_DRAWS if options.quick else options.draws
    for name in options.sections or SECTIONS:
        section = sections[name]
        measured = section.measure(draws, options.quick)
        if options.set_widths:
            set_bounds(name, measured.widths, keep=options.quick)
        measured = page.with_bounds(name, measured)
        print(measured.text, *measured.broken, sep="\n", flush=True)
        if not options.quick:
            page.write(section, measured, draws)


if __name__ == "__main__":
    main()
