"""`python -m example_project.labelers --model NAME -i in.jsonl -o out.jsonl`: one command for all labelers.

All arguments go to the labeler unchanged, including `--model`.
"""

from __future__ import annotations

import argparse
import importlib
import sys

LABELERS = ("clerk", "raters", "smollm2", "vader")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m example_project.labelers", add_help=False)
    parser.add_argument("--model", choices=LABELERS, required=True)
    labeler = parser.parse_known_args(argv)[0].model
    return int(importlib.import_module(f"example_project.labelers.{labeler}").main(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
