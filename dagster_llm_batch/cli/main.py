"""The console script `dagster-llm-batch`."""

from __future__ import annotations

import click

from dagster_llm_batch._version import __version__
from dagster_llm_batch.cli.cost import cost_command
from dagster_llm_batch.cli.decisions import (
    cancel_command,
    recover_command,
    rename_command,
    resolve_command,
    retry_command,
)
from dagster_llm_batch.cli.doctor import doctor_command
from dagster_llm_batch.cli.emulate import emulate_command
from dagster_llm_batch.cli.erase import erase_command
from dagster_llm_batch.cli.export import export_command
from dagster_llm_batch.cli.plan import plan_command
from dagster_llm_batch.cli.prices import prices_command
from dagster_llm_batch.cli.prune import prune_command
from dagster_llm_batch.cli.review import review_command
from dagster_llm_batch.cli.submissions import list_command, show_command
from dagster_llm_batch.cli.watch import watch_command

__all__ = ["main"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 needs a person; 4 try again later.",
)
@click.version_option(__version__, prog_name="dagster-llm-batch")
def main() -> None:
    """LLM batches of Dagster assets: plan, look, cancel, resolve, recover, rename, retry, export, prune, erase.

    The deployment is a Dagster code location (-m, -f, or what pyproject.toml in this folder points to), or, for
    commands that need neither rows nor providers, a ledger by its address (--ledger).
    """


for _command in (
    plan_command,
    list_command,
    show_command,
    watch_command,
    cost_command,
    cancel_command,
    resolve_command,
    recover_command,
    rename_command,
    retry_command,
    review_command,
    export_command,
    prices_command,
    prune_command,
    erase_command,
    doctor_command,
    emulate_command,
):
    main.add_command(_command)
