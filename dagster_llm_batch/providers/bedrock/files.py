"""A batch's files in S3: requests up in parts, results down in pieces, both at constant memory.

s3://<bucket>/<prefix>/<job name>/requests.jsonl
s3://<bucket>/<prefix>/<job name>/results/<job id>/requests.jsonl.out
                                                  /manifest.json.out
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, BinaryIO, cast

from dagster_llm_batch.errors import ProviderError, RefusedError, TransientError
from dagster_llm_batch.providers.answers import OddAnswerError, refuse_lost, result_lines
from dagster_llm_batch.providers.bedrock.batches import job_id, job_name, output_of
from dagster_llm_batch.providers.bedrock.clients import Clients
from dagster_llm_batch.providers.bedrock.requests import BedrockLines
from dagster_llm_batch.providers.jsonlines import cut_heads, sized, split_lines
from dagster_llm_batch.types import BatchReport

__all__ = ["Files", "records"]

_MANIFEST = "/manifest.json.out"
_CHUNK_BYTES = 1 << 16


class Files:
    """The files of one provider's batches, below `prefix` in `bucket`."""

    def __init__(self, clients: Clients, bucket: str, prefix: str, kms_key_id: str | None) -> None:
        self._clients = clients
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._kms_key_id = kms_key_id

    def source(self, tag: str) -> str:
        """Tell where a batch's request file is."""
        return f"s3://{self._bucket}/{self._key(tag)}"

    def output(self, tag: str) -> dict[str, str]:
        """Tell where Bedrock shall write, and under which key."""
        place = {"s3Uri": self.source(tag).removesuffix("requests.jsonl") + "results/"}
        return place if self._kms_key_id is None else {**place, "s3EncryptionKeyId": self._kms_key_id}

    def upload(self, source: BinaryIO, tag: str, transfer_config: Any) -> None:
        """Write the request file; replaces an equal one that an earlier try left."""
        encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._kms_key_id}
        client = self._clients.of("s3")
        with self._clients.calls("upload the request file"):
            client.upload_fileobj(
                source,
                self._bucket,
                self._key(tag),
                ExtraArgs=None if self._kms_key_id is None else encryption,
                Config=transfer_config,
            )

    def forget(self, tag: str) -> None:
        """Delete the request file, if possible. Errors are ignored: the error that led here is more useful."""
        try:
            with self._clients.calls("delete the request file"):
                self._clients.of("s3", attempts=1).delete_object(Bucket=self._bucket, Key=self._key(tag))
        except ProviderError:
            return

    def delete(self, job: Any, source: str | None) -> None:
        """Delete the request file at `source`, and all that Bedrock wrote for the job."""
        for bucket, key in [(bucket, key) for bucket, key, _ in self._outputs(job)]:
            self._delete(bucket, key)
        if source is not None:
            bucket, _, key = source.removeprefix("s3://").partition("/")
            self._delete(bucket, key)

    def delete_source(self, source: str | None) -> None:
        """Delete the request file at `source`, if it is of this provider's own place and name."""
        bucket, _, key = (source or "").removeprefix("s3://").partition("/")
        own = f"{self._prefix}/" if self._prefix else ""
        if bucket == self._bucket and key.startswith(own) and key.endswith("/requests.jsonl"):
            self._delete(bucket, key)

    def _delete(self, bucket: str, key: str) -> None:
        with self._clients.calls(f"delete 's3://{bucket}/{key}'"):
            self._clients.of("s3").delete_object(Bucket=bucket, Key=key)

    def results(self, job: Any, report: BatchReport) -> Iterator[bytes]:
        """Yield the result lines of a job, from every output file in its own folder.

        Raises UnknownIdError if the files are missing: a lifecycle rule of the bucket may delete them.
        """
        files = [output for output in self._outputs(job) if not output[1].endswith(_MANIFEST)]
        if not files:
            refuse_lost(report, f"folder of '{report.batch_id}' below '{output_of(job)}'")
        for bucket, key, size in files:
            lines = split_lines(self._chunks(bucket, key, size))
            yield from result_lines(lines, "recordId", f"'s3://{bucket}/{key}'")

    def manifest(self, job: Any) -> dict[str, Any]:
        """Return the counts that Bedrock writes last; empty if they are missing."""
        for bucket, key, size in self._outputs(job):
            if key.endswith(_MANIFEST):
                try:
                    counts = json.loads(b"".join(self._chunks(bucket, key, size)))
                except (ValueError, RecursionError):
                    return {}
                return counts if isinstance(counts, dict) else {}
        return {}

    def _key(self, tag: str) -> str:
        return "/".join(part for part in (self._prefix, job_name(tag), "requests.jsonl") if part)

    def _outputs(self, job: Any) -> Iterator[tuple[str, str, int]]:
        """Return the bucket, key and bytes of the files in a job's own folder."""
        # Bedrock writes into a folder with the job's own id: files next to it are another job's.
        arn, uri = str(job["jobArn"]), output_of(job)
        if uri is None:
            raise TransientError(f"Could not list the results of '{arn}': the job does not tell where they are.")
        bucket, _, folder = uri.removeprefix("s3://").partition("/")
        prefix = "/".join(part for part in (folder.rstrip("/"), job_id(arn)) if part) + "/"
        with self._clients.calls(f"list the results of '{arn}'"):
            pages = self._clients.of("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            objects = [(str(item["Key"]), int(item["Size"])) for page in pages for item in _items(page)]
        yield from ((bucket, key, size) for key, size in objects if key.endswith(".out"))

    def _chunks(self, bucket: str, key: str, size: int) -> Iterator[bytes]:
        with self._clients.calls(f"download 's3://{bucket}/{key}'"):
            reply = self._clients.of("s3").get_object(Bucket=bucket, Key=key)
            got = 0
            with closing(reply["Body"]) as body:
                for chunk in body.iter_chunks(_CHUNK_BYTES):
                    got += len(chunk)
                    yield chunk
        if got != size:
            raise TransientError(f"Could not download 's3://{bucket}/{key}': got {got} of {size} bytes.")


def _items(page: Mapping[str, Any]) -> Any:
    """Return the entries of a page of a bucket's list. Raises for a page that is not such a list."""
    if not page.keys() & {"Contents", "IsTruncated", "KeyCount", "Name"}:
        raise OddAnswerError("the answer is no list of objects.")
    return page.get("Contents", ())


@contextmanager
def records(lines: BinaryIO, codec: BedrockLines) -> Iterator[BinaryIO]:
    """Give the lines as Bedrock gets them. Raises RefusedError for fewer than the model's minimum."""
    least = codec.limits.min_requests
    with sized(lines) as (file, _):
        start = file.tell()
        count = sum(1 for _ in islice(iter(file.readline, b""), least))
        file.seek(start)
        # Bedrock accepts such a job, and refuses it only when it validates it
        if 0 < count < least:
            raise RefusedError(
                f"A batch of {count} requests is below Bedrock's minimum of {least} for this model; Bedrock would take "
                "it, and fail it hours later. Nothing was sent. Send more rows together, set "
                "Limits(below_minimum='pad') or 'realtime', or ask AWS for a lower quota."
            )
        yield cast("BinaryIO", _Stream(cut_heads(file, codec.head)))


class _Stream(io.BufferedIOBase):
    """Blocks of bytes as a file that can be read once."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        taken, left = [self._rest], None if size is None or size < 0 else size - len(self._rest)
        while (left is None or left > 0) and (block := next(self._blocks, None)) is not None:
            taken.append(block)
            left = None if left is None else left - len(block)
        # Parts are megabytes: only the last block is cut, and all are put together once.
        self._rest = taken[-1][left:] if left is not None and left < 0 else b""
        taken[-1] = taken[-1][: len(taken[-1]) - len(self._rest)]
        return b"".join(taken)
