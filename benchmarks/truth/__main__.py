"""See the package's docstring."""

from __future__ import annotations

import argparse

from benchmarks.truth import annotators, cascade, dollars, ends, gates, intervals, means, page, samples

_ALL = (intervals, samples, means, gates, annotators, cascade, dollars, ends)
SECTIONS = {module.SECTION.name: module.SECTION for module in _ALL}
"""By name, in the order of the page."""

QUICK_DRAWS = 200


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truth", description="Whether what is said is true.")
    parser.add_argument("sections", nargs="*", help=f"some of: {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--draws", type=int, default=1_000, help="data sets of each cell")
    parser.add_argument("--quick", action="store_true", help="print the part that is a test, and write nothing")
    options = parser.parse_args()
    if unknown := sorted(set(options.sections) - set(SECTIONS)):
        parser.error(f"there is no section {', '.join(unknown)}; the sections are {', '.join(SECTIONS)}")
    draws = QUICK_DRAWS if options.quick else options.draws
    for name in options.sections or SECTIONS:
        section = SECTIONS[name]
        measured = section.measure(draws, options.quick)
        print(measured.text, *measured.broken, sep="\n", flush=True)
        if not options.quick:
            page.write(section, measured, draws)


if __name__ == "__main__":
    main()
