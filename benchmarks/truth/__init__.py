"""Whether what is said of figures is true: simulated data sets whose truth is known, and how often it is kept.

python -m benchmarks.truth                       all sections in full, into docs/truth.md: hours
python -m benchmarks.truth intervals --draws 200  one section, with fewer draws, into its place on the page
python -m benchmarks.truth --quick               the seeded part that is a test, printed
python -m benchmarks.truth public --data FOLDER   beside other packages, on public data sets that you have

A section is a module here with `NAME`, `TEXT` and `measure`; see `page.Section`.
"""
