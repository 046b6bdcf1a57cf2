"""The console script `dagster-llm-batch`."""

from __future__ import annotations

from importlib import import_module

import click

from dagster_llm_batch._version import __version__

__all__ = ["main"]

# Name of the command: the module that has it, as `<name>_command`, and its line in `--help`. Loading all of them takes
# seconds (Dagster, SQLAlchemy, pyarrow), so that each is imported when it is called, and `--help` imports none.
_COMMANDS = {
    "plan": ("plan", "What would be sent, and cost. Sends nothing."),
    "advise": ("advise", "Which model, cascade and lane reach a quality by a time and for an amount."),
    "list": ("submissions", "Submissions: those under way, or all."),
    "show": ("submissions", "One submission: its batches and what happened."),
    "watch": ("watch", "Live progress: counts, rate, age, expected end."),
    "cost": ("cost", "Money spent, saved and wasted, and the month's forecast."),
    "cancel": ("decisions", "Stop a submission; what is done already is kept."),
    "resolve": ("decisions", "Say what became of a shard that nobody can tell."),
    "recover": ("decisions", "Recover what the ledger has lost, after a backup was restored."),
    "adopt": ("adopt", "Land the answers of a batch that was sent elsewhere. Sends nothing."),
    "rename": ("decisions", "Give an asset's submissions to its new name."),
    "retry": ("decisions", "Ask again for rows that have no label."),
    "review": ("review", "A page on this machine to look at rows, prompts and replies."),
    "export": ("export", "Labels, rejects, mistakes, judgments or fine-tuning examples, as a file."),
    "export-tasks": ("tasks", "Rows for people to judge in Label Studio, Argilla or a spreadsheet."),
    "import-judgments": ("tasks", "What people said in Label Studio, Argilla or a spreadsheet, into the ledger."),
    "answer": ("answer", "A batch file, answered by a student. Asks no LLM."),
    "prices": ("prices", "The price book in use and its age; fetch a newer one."),
    "prune": ("prune", "Remove stored files that nothing needs any more."),
    "erase": ("erase", "Remove what is stored of rows, and ask them no more."),
    "doctor": ("doctor", "Credentials, permissions, limits, storage, ledger, prices."),
    "smoke": ("smoke", "Three rows through a real account, step by step, and their price."),
    "emulate": ("emulate", "Emulated providers on loopback. Answers are simulated."),
}


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of `--help`."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None where there is none of this name."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"dagster_llm_batch.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, from what is known without importing it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 needs a person; 4 try again later.",
)
@click.version_option(__version__, prog_name="dagster-llm-batch")
def main() -> None:
    """LLM batches of Dagster assets: plan, advise, look, cancel, resolve, recover, rename, retry, export, prune, erase.

    The deployment is a Dagster code location (-m, -f, or what pyproject.toml in this folder points to), or, for
    commands that need neither rows nor providers, a ledger by its address (--ledger).
    """
