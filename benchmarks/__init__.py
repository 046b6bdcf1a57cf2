"""How fast the package is, how much memory it takes, and what it saves: beside the floor, in the same minutes.

python -m benchmarks                     all of it, into docs/performance.md
python -m benchmarks pipeline money      some of its parts; printed only
python -m benchmarks sensor --keep here  one part at a time, kept in a folder; when it holds all, the page is written

Whether what is said of figures is true is `benchmarks.truth`, into docs/truth.md.
"""
