"""S3 for the emulator: a client of the server it is given, and, for tests and demonstrations, a local server (moto's).

The protocol is real: client and vendor meet in the same buckets, as with the vendor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

HOST = "127.0.0.1"
_NOT_THERE = frozenset({"404", "NoSuchBucket", "NoSuchKey", "AccessDenied", "403"})


class S3:
    """The vendor's calls to S3, with its own credentials, like a service role."""

    def __init__(self, url: str, region_name: str = "us-east-1") -> None:
        import botocore.session  # type: ignore[import-untyped]  # noqa: PLC0415 -- only where there is an S3 server

        self._client: Any = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=url,
            region_name=region_name,
            aws_access_key_id="emulator-role",
            aws_secret_access_key="emulator-role",  # noqa: S106 -- no secret
        )

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """Return the keys with this prefix; empty if the bucket cannot be read."""
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]
        except self._client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in _NOT_THERE:
                return []
            raise

    def read(self, bucket: str, key: str) -> bytes:
        """Return the bytes of an object."""
        data: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def write(self, bucket: str, key: str, data: IO[bytes]) -> None:
        """Put an object in the place of an earlier one."""
        self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def delete_bucket(self, bucket: str) -> None:
        """Delete a bucket with all its objects and their versions, if it exists."""
        try:
            for page in self._client.get_paginator("list_object_versions").paginate(Bucket=bucket):
                found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
                objects = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in found]
                if objects:
                    self._client.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            self._client.delete_bucket(Bucket=bucket)
        except self._client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in _NOT_THERE:
                raise


@contextmanager
def local_s3(bucket: str = "emulator", port: int = 0) -> Iterator[str]:
    """Run a local S3 server with one empty bucket; give its URL. Needs `moto[server,s3]`.

    Servers that run at the same time in one process share their buckets, so give each another name.
    """
    try:
        from moto.server import ThreadedMotoServer  # noqa: PLC0415 -- a dependency of tests only
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("local_s3 needs moto: pip install 'moto[server,s3]'", name=error.name) from error

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it would print every request
    server = ThreadedMotoServer(ip_address=HOST, port=port, verbose=False)
    server.start()
    try:
        address, bound = server.get_host_and_port()
        url = f"http://{address}:{bound}"
        storage = S3(url)
        storage._client.create_bucket(Bucket=bucket)  # noqa: SLF001 -- the same file
        try:
            yield url
        finally:
            # Moto keeps the buckets of a process when a server stops.
            storage.delete_bucket(bucket)
    finally:
        server.stop()
