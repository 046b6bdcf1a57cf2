"""`python -m dagster_llm_batch.testing.emulator`: serve until interrupted; prints where, and what to export."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence

from dagster_llm_batch.testing.emulator.server import DEFAULT_KEY, Emulator


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
    parser.add_argument("--gcs-url", help="a Cloud Storage server, for the files of the Vertex AI emulator")
    parser.add_argument("--s3-url", help="an S3 server, for the files of the Bedrock emulator")
    parser.add_argument("--seed", type=int, default=0, help="decides ids and the order of result rows")
    options = parser.parse_args(arguments)
    keys = None if options.any_key else options.key or [DEFAULT_KEY]
    with Emulator(
        pace=options.pace_seconds,
        keys=keys,
        seed=options.seed,
        port=options.port,
        gcs_url=options.gcs_url,
        s3_url=options.s3_url,
    ) as emulator:
        sys.stdout.write(
            f"OpenAI emulator at {emulator.openai_base_url} (Azure v1 form: {emulator.azure_base_url})\n"
            f"export OPENAI_BASE_URL={emulator.openai_base_url}\n"
            f"export OPENAI_API_KEY={keys[0] if keys else DEFAULT_KEY}\n"
            f"export ANTHROPIC_BASE_URL={emulator.anthropic_base_url}\n"
            f"export ANTHROPIC_API_KEY={keys[0] if keys else DEFAULT_KEY}\n"
            f"Vertex AI emulator at {emulator.vertex_base_url} (its files are on the server that --gcs-url names)\n"
            f"Gemini emulator at {emulator.gemini_base_url}\n"
            f"Bedrock emulator at {emulator.bedrock_url} (its files are on the server that --s3-url names)\n"
        )
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stdout.write("stopped\n")


if __name__ == "__main__":
    main()
