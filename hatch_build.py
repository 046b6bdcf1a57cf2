"""The description that a package index shows: the README without what leads into the repository.

An index knows no file beside the README, and this package has no public address yet that links could begin with.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]+\)\n+", re.MULTILINE)
_NEXT = re.compile(r"^Next: .*\n(.+\n)*", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]+\)")


class DescriptionHook(MetadataHookInterface):
    """Called by hatchling for each wheel and sdist."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description: no pictures, no list of further pages, and of other relative links the words alone."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = _LINK.sub(r"\1", _NEXT.sub("", _PICTURE.sub("", text)))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
