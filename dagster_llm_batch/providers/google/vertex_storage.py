"""Request and result files of Vertex AI in Google Cloud Storage, through the official SDK, in constant memory.

A request file is written once: an object that is already there is used if it holds the same bytes, and else refused.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, closing, suppress
from typing import IO, TYPE_CHECKING, Any

from dagster_llm_batch.errors import ProviderError, RefusedError, TransientError
from dagster_llm_batch.providers.answers import OddAnswerError, UnknownIdError, refuse_lost, result_lines
from dagster_llm_batch.providers.google.errors import PreconditionFailedError
from dagster_llm_batch.providers.google.files import CHUNK_BYTES
from dagster_llm_batch.providers.jsonlines import split_lines
from dagster_llm_batch.types import BatchReport

if TYPE_CHECKING:
    from google.cloud.storage import Client  # type: ignore[import-untyped]

__all__ = ["VertexStorage"]

# The SDK holds a chunk three times, for each file that is under way.
_UPLOAD_CHUNK_BYTES = 2 << 20
# the kind of a list of objects, also of one without any
_LIST = "storage#objects"
# The SDK's default is two minutes a call. The caller of a provider tries again, and has less time than that.
_RETRY_SECONDS = 10.0


class VertexStorage:
    """Objects of one bucket. The client is built on the first call. A call waits `timeout_seconds` for its answer.

    `calls` is the context in which a call is made; it turns exceptions of the SDK into our errors.
    """

    def __init__(
        self,
        client: Callable[[], Client],
        bucket: str,
        timeout_seconds: float,
        calls: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._make = client
        self._made: Client | None = None
        self._bucket = bucket
        self._timeout_seconds = timeout_seconds
        self._calls = calls

    def upload(self, folder: str, file: IO[bytes], size: int) -> str:
        """Write the file into the folder, once; return its gs:// address.

        Its name holds its checksum: where a create call made no batch after all, the same tag may be sent with other
        rows.
        """
        from google_crc32c import Checksum  # noqa: PLC0415 -- comes with the SDK, which is an extra

        digest = Checksum()
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
        file.seek(0)
        name = f"{folder}/requests-{digest.hexdigest().decode('ascii')}.jsonl"
        uri = f"gs://{self._bucket}/{name}"
        blob = self._client().bucket(self._bucket).blob(name, chunk_size=_UPLOAD_CHUNK_BYTES)
        checksum = base64.b64encode(digest.digest()).decode("ascii")
        try:
            with self._calls(f"upload {uri}"):
                blob.upload_from_file(
                    file, size=size, content_type="application/jsonl", if_generation_match=0, **self._patience()
                )
                if (blob.size, blob.crc32c) != (size, checksum):
                    raise OddAnswerError("the answer does not confirm that all of the file arrived.")
        except PreconditionFailedError:
            with self._calls(f"read {uri}"):
                blob.reload(**self._patience())
            if (blob.size, blob.crc32c) != (size, checksum):
                raise RefusedError(f"Could not upload {uri}: another file is there already. Remove it.") from None
        return uri

    def delete(self, uri: str) -> None:
        """Remove the object, if that is possible; errors are ignored."""
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        try:
            with self._calls(f"delete {uri}"):
                self._client().bucket(bucket).blob(name).delete(**self._patience())
        except ProviderError:
            # the error that led here matters more
            pass

    def delete_objects(self, uris: Collection[str], folder: str | None) -> None:
        """Remove these objects, and all below the folder."""
        client = self._client()
        places = [uri.removeprefix("gs://").partition("/")[::2] for uri in uris]
        if folder is not None:
            bucket, _, prefix = folder.removeprefix("gs://").partition("/")
            with self._calls(f"list {folder}"):
                listed = client.list_blobs(bucket, prefix=f"{prefix.rstrip('/')}/", **self._patience())
                places += [(bucket, str(blob.name)) for blob in listed]
        for bucket, name in places:
            with suppress(UnknownIdError), self._calls(f"delete gs://{bucket}/{name}"):
                client.bucket(bucket).blob(name).delete(**self._patience())

    def lines(self, folder: str, report: BatchReport, id_field: str = "custom_id") -> Iterator[bytes]:
        """Yield the lines of all files below this gs:// address, in the order of their names.

        Raises UnknownIdError if the files are missing: a lifecycle rule of the bucket may delete them.
        """
        bucket, _, prefix = folder.removeprefix("gs://").partition("/")
        client = self._client()
        with self._calls(f"list {folder}"):
            listing = client.list_blobs(bucket, prefix=f"{prefix.rstrip('/')}/", **self._patience())
            blobs = []
            for page in listing.pages:
                if not page.num_items and page.raw_page.get("kind") != _LIST:
                    raise OddAnswerError("the answer is no list of objects.")
                blobs += [(str(blob.name), blob.size, blob.crc32c, blob) for blob in page]
            blobs.sort(key=lambda blob: blob[0])
        files = [blob for blob in blobs if not blob[0].endswith("/")]
        if not files:
            refuse_lost(report, f"folder {folder}")
        for name, size, checksum, blob in files:
            lines = split_lines(self._chunks(blob, size, checksum))
            yield from result_lines(lines, id_field, f"gs://{bucket}/{name}")

    def _chunks(self, blob: Any, size: int | None, listed_checksum: str | None) -> Iterator[bytes]:
        """Yield the object's bytes. Their total is compared with the listed size and checksum; pieces are unchecked."""
        from google_crc32c import Checksum  # noqa: PLC0415 -- comes with the SDK, which is an extra

        uri = f"gs://{blob.bucket.name}/{blob.name}"
        digest, got = Checksum(), 0
        with closing(_Download(self._client(), blob, self._timeout_seconds)) as download:
            read = self._patience()["retry"](download.read)
            # no further than listed: a server that ignores where to begin gives the whole file again for the rest
            while got < (size or 0):
                with self._calls(f"download {uri}"):
                    piece = read()
                if not piece:
                    break
                digest.update(piece)
                got += len(piece)
                yield piece
        checksum = base64.b64encode(digest.digest()).decode("ascii")
        if (got, checksum) != (size, listed_checksum):
            raise TransientError(f"Could not download {uri}: the {got} bytes that came are not the {size} listed.")

    def _patience(self) -> dict[str, Any]:
        from google.cloud.storage.retry import DEFAULT_RETRY  # type: ignore[import-untyped]  # noqa: PLC0415 -- an extra

        seconds = self._timeout_seconds
        return {"timeout": seconds, "retry": DEFAULT_RETRY.with_timeout(min(seconds, _RETRY_SECONDS))}

    def _client(self) -> Client:
        if self._made is None:
            self._made = self._make()
        return self._made


class _Download:
    """The bytes of an object as one answer; after a break, the next request starts at the break.

    The SDK's own reader makes a call for each piece, which takes five times as long as its bytes.
    """

    def __init__(self, client: Client, blob: Any, timeout_seconds: float) -> None:
        # no public name: the session with the client's credentials and its guard
        self._session = client._http  # noqa: SLF001
        # by name: the address of the bytes that a listing gives may be another server's, which has no credentials
        self._url = f"{client.api_endpoint}/download/storage/v1{blob.path}"
        self._asked = {"alt": "media", "generation": blob.generation}
        self._timeout_seconds = timeout_seconds
        self._answer: Any = None
        self._got = 0

    def read(self) -> bytes:
        """Return the next bytes, or empty bytes at the end. May be called again after an exception."""
        try:
            if self._answer is None:
                self._answer = self._ask()
            piece: bytes = self._answer.raw.read(CHUNK_BYTES, decode_content=True)
        except Exception:
            self.close()
            raise
        self._got += len(piece)
        return piece

    def _ask(self) -> Any:
        from google.api_core.exceptions import from_http_response  # noqa: PLC0415 -- comes with the SDK

        rest = {"Range": f"bytes={self._got}-"} if self._got else {}
        answer = self._session.get(
            self._url, params=self._asked, headers=rest, stream=True, timeout=self._timeout_seconds
        )
        if not answer.ok:
            with answer:
                raise from_http_response(answer)  # type: ignore[no-untyped-call]
        return answer

    def close(self) -> None:
        """Give the connection back, or away where there is more to come on it."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None
