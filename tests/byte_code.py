"""The compiled byte code of this environment's packages, shared with a new one: `python tests/byte_code.py VENV`.

Compiling a whole environment takes longer than the tests of a folder. Python uses a linked file only if its source has
the size and time of the compiled source. It compiles other files on first use.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def share_byte_code(venv: Path) -> None:
    """Link the byte code to the same files in `venv`. An environment with another Python or disk stays unchanged."""
    ours = Path(sysconfig.get_path("purelib"))
    theirs = venv / ours.relative_to(sys.prefix)
    # On another disk, the packages are copies with different times.
    if not theirs.is_dir() or theirs.stat().st_dev != ours.stat().st_dev:
        return
    for compiled in ours.rglob("__pycache__"):
        beside = theirs / compiled.relative_to(ours)
        if beside.parent.is_dir() and not beside.exists():
            shutil.copytree(compiled, beside, copy_function=os.link)


if __name__ == "__main__":
    share_byte_code(Path(sys.argv[1]))
