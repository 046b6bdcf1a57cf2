"""Golden files: requests to every provider, their costs, and stored and delivered data, byte for byte.

python -m tests.golden           # list the files that differ
python -m tests.golden --write   # write the current code's files; then read `git diff tests/golden`
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.golden.cases import CASES, Servers
from tests.golden.golden import FILES, difference, golden


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files anew")
    parser.add_argument("cases", nargs="*", help=f"only these: {', '.join(CASES)}")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    servers = Servers()
    changed = 0
    try:
        texts = {}
        for name in given.cases or CASES:
            with tempfile.TemporaryDirectory() as folder:
                texts[name] = CASES[name](Path(folder), servers).encode()
    finally:
        servers.close()
    for name, text in texts.items():  # all texts exist by now, so the files are never half written
        shown = difference(name, golden(name), text)
        changed += bool(shown)
        print(shown or f"{name}: same")
        if shown and given.write:
            FILES.mkdir(exist_ok=True)
            (FILES / f"{name}.txt").write_bytes(text)
    if given.write and not given.cases:
        for path in FILES.glob("*.txt"):
            if path.stem not in CASES:
                path.unlink()
    print(f"{changed} of {len(texts)} differ{'; written' if given.write and changed else ''}")
    return 1 if changed and not given.write else 0


if __name__ == "__main__":
    sys.exit(main())
