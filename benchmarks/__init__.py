"""Benchmarks of the package's speed, memory and savings, compared with the floor in the same minutes.

- python -m benchmarks: measure everything, into docs/performance.md
- python -m benchmarks shapes money: measure some parts, and only print them
- python -m benchmarks shapes --write: measure these parts, and replace their sections of the page
- python -m benchmarks sensor --keep here: keep a part in a folder, for a later call with --keep and --write
- python -m benchmarks shapes --floors folder: also measure other floors, which the folder holds

`benchmarks.truth` measures whether the statistics keep their guarantees, into docs/truth.md.
"""
