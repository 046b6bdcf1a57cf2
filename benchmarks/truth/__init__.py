"""Tests of the guarantees of statistics: simulated data sets with known truth, and the share that keeps a guarantee.

- python -m benchmarks.truth: measure all sections in full, into docs/truth.md; takes hours
- python -m benchmarks.truth intervals --draws 200: measure one section with fewer draws, into its place on the page
- python -m benchmarks.truth --quick: print the seeded part that is also a test
- python -m benchmarks.truth public --data FOLDER: compare with other packages, on public data sets that you have

A section is a module here with `NAME`, `TEXT` and `measure`; see `page.Section`.
"""
