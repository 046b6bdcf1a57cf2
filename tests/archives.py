"""Archives that the repository keeps, unpacked on every supported Python."""

from __future__ import annotations

import tarfile
from pathlib import Path

__all__ = ["unpack_archive"]


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a tar file into a folder."""
    with tarfile.open(archive) as files:
        # extractall takes the filter as an argument from 3.11.4 on, and warns from 3.12 on without one.
        files.extraction_filter = getattr(tarfile, "data_filter", None)
        files.extractall(folder)
