"""`emulate`: the emulated providers on loopback, for trying things out without a key and without a bill."""

from __future__ import annotations

import click

from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.errors import MissingExtraError

__all__ = ["emulate_command"]


@click.command("emulate", cls=Command, examples=["--port 8700"])
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port; 0 (the default) takes a free one.")
@click.option(
    "--pace-seconds",
    type=click.FloatRange(0),
    default=2.0,
    show_default=True,
    help="Seconds a batch stays in each state.",
)
@click.option("--key", "keys", multiple=True, help="Accepted API key, repeatable.")
@click.option(
    "--all", "everything", is_flag=True, help="Also run local S3 and Cloud Storage, for Bedrock and Vertex AI."
)
@click.option(
    "--seed", type=int, help="Seed of ids and of the order of result rows.  [default: a new one at each start]"
)
@json_option
def emulate_command(
    port: int, pace_seconds: float, keys: tuple[str, ...], seed: int | None, *, everything: bool, as_json: bool
) -> None:
    """Run emulated providers on this machine until interrupted. Their answers are simulated, and nothing is billed.

    The command prints the variables to export, so that the vendors' own SDKs use the emulator.
    """
    try:
        from dagster_llm_batch.testing.emulator.__main__ import main  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise MissingExtraError("emulator", "The emulator") from error
    arguments = ["--port", str(port), "--pace-seconds", str(pace_seconds)]
    arguments += [] if seed is None else ["--seed", str(seed)]
    arguments += [part for key in keys for part in ("--key", key)]
    main([*arguments, *(["--all"] if everything else []), *(["--json"] if as_json else [])])
