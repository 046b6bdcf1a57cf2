"""What the packages of this environment are compiled to, shared with a new one: `python tests/byte_code.py VENV`.

To compile a whole environment takes longer than a room of tests. Python takes what is linked only where the file
beside it has the size and the time of the one that was compiled, and compiles the others when they are used.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def share_byte_code(venv: Path) -> None:
    """Link it beside the same files in `venv`. One with another Python, or on another disk, stays as it is."""
    ours = Path(sysconfig.get_path("purelib"))
    theirs = venv / ours.relative_to(sys.prefix)
    # To another disk the packages were copied, and have times of their own.
    if not theirs.is_dir() or theirs.stat().st_dev != ours.stat().st_dev:
        return
    for compiled in ours.rglob("__pycache__"):
        beside = theirs / compiled.relative_to(ours)
        if beside.parent.is_dir() and not beside.exists():
            shutil.copytree(compiled, beside, copy_function=os.link)


if __name__ == "__main__":
    share_byte_code(Path(sys.argv[1]))
