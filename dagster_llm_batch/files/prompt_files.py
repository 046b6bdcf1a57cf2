"""The files of rows below a folder: images below `Prompt.image_root`, documents below `Prompt.file_root`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from dagster_llm_batch.core.address_secrets import refuse_credentials
from dagster_llm_batch.core.documents import RULES_OF_TEXT, fault_of_size
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_files import RowFiles, WrongPathError
from dagster_llm_batch.types import DocumentRules

__all__ = ["FilesBelow", "files_of"]

# Two names of one kind of store.
_ALIASES = {"gcs": "gs", "s3a": "s3"}
# A plain path, or the scheme of a local disk.
_LOCAL = re.compile(r"(?:file|local):|(?![A-Za-z][A-Za-z0-9+.-]*://)")


def files_of(prompt: Prompt, rules: Sequence[DocumentRules] = ()) -> RowFiles:
    """Return how the files of rows are read for this prompt. `rules`: the vendors' limits for documents."""
    image_root, file_root = prompt.image_root, prompt.file_root
    if prompt.documents_as == "text":
        rules = [RULES_OF_TEXT]
    return RowFiles(
        load_image=None if image_root is None else FilesBelow(image_root, "image_root"),
        load_document=None if file_root is None else FilesBelow(file_root, "file_root", rules),
        rules=rules,
    )


class FilesBelow:
    """Read files below one folder: by a relative path, or by an address that begins with the folder's.

    Others, and paths that lead out of the folder, are refused: rows may be untrusted. `argument` is the name of the
    argument with the folder, for messages. A file that is larger than the `rules` allow is not read.
    """

    def __init__(self, root: str, argument: str, rules: Sequence[DocumentRules] = ()) -> None:
        refuse_credentials(root, argument)
        from upath import UPath  # noqa: PLC0415 - takes long to load, and few prompts have files

        self._root, self._argument = UPath(root), argument
        self._rules = rules
        # In a chain of file systems, as simplecache::file:///folder, the last one has the files.
        own = root.rpartition("::")[2]
        self._is_local = _LOCAL.match(own) is not None
        self._address = f"{_address(own).rstrip('/')}/" if "://" in own else None

    def __call__(self, path: str) -> bytes:
        """Return the bytes of a file. Raises WrongPathError, or an error of the store."""
        if self._address is not None and "://" in path:
            path = _address(path).removeprefix(self._address)
        if path.startswith("/") or "\\" in path or "://" in path or ".." in path.split("/"):
            address = "" if self._address is None else ", nor an address that begins with it"
            msg = f"is not a relative path below {self._argument}{address}"
            raise WrongPathError(msg)
        file = self._root / path
        if self._is_local:
            # A symbolic link may lead out. `resolve` of a path with a scheme does not follow links.
            real = Path(os.path.realpath(file.path))
            if not real.is_relative_to(os.path.realpath(self._root.path)):
                msg = f"leads out of {self._argument}"
                raise WrongPathError(msg)
            found = real.stat()
            # Reading a pipe would wait for its writer.
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                msg = f"is no regular file below {self._argument}"
                raise WrongPathError(msg)
            size = found.st_size
        else:
            size = file.stat().st_size if self._rules else 0
        # A server may not know the size of a file.
        if (fault := fault_of_size(size or 0, self._rules)) is not None:
            msg = f"is too large: {fault}"
            raise WrongPathError(msg)
        return bytes(file.read_bytes())


def _address(address: str) -> str:
    """Return the address of a file with one name for each kind of store."""
    scheme, mark, place = address.partition("://")
    return f"{_ALIASES.get(scheme, scheme)}{mark}{place}"
