"""How fast the package is, how much memory it takes, and what it saves: beside the floor, in the same minutes.

python -m benchmarks                         all of it, into docs/performance.md
python -m benchmarks shapes money            some of its parts; printed only
python -m benchmarks shapes --write          these parts into the page, whose other sections stay
python -m benchmarks sensor --keep here      a part kept in a folder, for a later call with --keep and --write
python -m benchmarks shapes --floors folder  other floors beside, which the folder holds

Whether what is said of figures is true is `benchmarks.truth`, into docs/truth.md.
"""
