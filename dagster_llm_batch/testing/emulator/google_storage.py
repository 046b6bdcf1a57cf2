"""The few calls that Vertex AI's batch service makes to Cloud Storage, over its JSON API. Any GCS server will do.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import urllib.error
import urllib.request
from urllib.parse import quote

_TIMEOUT_SECONDS = 30


class StorageError(Exception):
    """The bucket or the object cannot be reached."""


class Storage:
    """Objects by gs:// address, on the server at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def read(self, uri: str) -> bytes:
        """The object's bytes."""
        bucket, name = _split(uri)
        return self._call(f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media", uri)

    def write(self, uri: str, data: bytes) -> None:
        """Write the object."""
        bucket, name = _split(uri)
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        self._call(path, uri, data)

    def _call(self, path: str, uri: str, data: bytes | None = None) -> bytes:
        headers = {"content-type": "application/octet-stream"} if data is not None else {}
        request = urllib.request.Request(f"{self._url}{path}", data, headers)  # noqa: S310  (the caller's own server)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                return bytes(response.read())
        except OSError as error:
            raise StorageError(f"{uri}: {error}") from error


def _split(uri: str) -> tuple[str, str]:
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    if not uri.startswith("gs://") or not bucket or not name:
        raise StorageError(f"{uri} is no gs://bucket/object address")
    return bucket, name
