"""Models that run on machines of one's own: a command here, or on a cluster."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import Field

from dagster_llm_batch.protocols import Provider

__all__ = ["CommandBatchResource"]


class CommandBatchResource(dg.ConfigurableResource[Any]):
    """A command that reads an OpenAI-format batch file and writes a results file, as `vllm run-batch` does.

    It runs detached on the machine of the run that submits, and goes on when that run ends.
    """

    command: list[str] = Field(
        description="The command and its arguments; {input}, {output} and {model} are replaced. No shell is involved.",
        examples=[["vllm", "run-batch", "-i", "{input}", "-o", "{output}", "--model", "{model}"]],
    )
    workdir: str | None = Field(
        default=None,
        description="Folder for input, output and log of each batch, on this machine. Default: below the Dagster home.",
    )
    account: str | None = Field(default=None, description="What tells its answers apart. Default: the command.")

    def provider(self, default_workdir: str) -> Provider:
        """The provider; starts nothing."""
        from dagster_llm_batch.providers.command import CommandProvider  # noqa: PLC0415 - as the others

        return CommandProvider(command=self.command, workdir=self.workdir or default_workdir, account=self.account)
