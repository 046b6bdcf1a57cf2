"""Import this before Arrow makes an array, and the process has what an engine needs, as where no more is installed.

Arrow imports pandas where it is installed, as it is for the tests, which takes 0.3 CPU seconds and 60 MB. Neither the
floor nor the package needs it, so both are measured without.
"""

import sys
from importlib.abc import MetaPathFinder


class _Absent(MetaPathFinder):
    """Finds no pandas, nor lets others look for it."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Absent())
