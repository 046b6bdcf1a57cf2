"""Hides optional packages from this process. Import this module before Arrow makes an array.

If pandas is installed, for example for the tests, Arrow imports it, which takes 0.3 CPU seconds and 60 MB. If aiohttp
is installed, for example with the extras `s3` and `gcs`, the SDKs of OpenAI and Anthropic import it: 9 MB. Neither the
floor nor the package needs these, so both are measured without.
"""

import sys
from importlib.abc import MetaPathFinder

_ABSENT = ("pandas", "aiohttp")


class _Absent(MetaPathFinder):
    """Fails the import of these packages before other finders are asked."""

    def find_spec(self, name: str, *_: object) -> None:
        if name in _ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Absent())
