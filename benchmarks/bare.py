"""Import this before Arrow makes an array, and the process has what an engine needs, as where no more is installed.

Arrow imports pandas where it is installed, as it is for the tests, which takes 0.3 CPU seconds and 60 MB. The SDKs of
OpenAI and Anthropic import aiohttp where it is, as the extras `s3` and `gcs` bring it: 9 MB. Neither the floor nor the
package needs these, so both are measured without.
"""

import sys
from importlib.abc import MetaPathFinder

_ABSENT = ("pandas", "aiohttp")


class _Absent(MetaPathFinder):
    """Finds none of these, nor lets others look for them."""

    def find_spec(self, name: str, *_: object) -> None:
        if name in _ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Absent())
