"""`cancel`, `resolve`, `recover`, `rename`, `retry`: decisions of a person. Each calls one verb of the engine."""

from __future__ import annotations

import re
from typing import Any

import click

from dagster_llm_batch.cli.commands import Command, ExitCode, confirm, json_option, leave, say
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command, ledger_command
from dagster_llm_batch.cli.output import counted, print_json, print_table
from dagster_llm_batch.cli.plan import plan_rows, print_plan
from dagster_llm_batch.cli.selection import (
    find_dataset,
    find_submission,
    partition_option,
    partitions_of,
    partitions_options,
)
from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.engine import Status
from dagster_llm_batch.engine.condition_facts import find_undecided
from dagster_llm_batch.engine.conditions import UNDECIDED, ConditionKind
from dagster_llm_batch.errors import ConfigError, IllegalTransitionError
from dagster_llm_batch.progress import progress_text
from dagster_llm_batch.states import ENDED, TRANSITIONS, ShardState, Transition
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.text import cell_text

__all__ = ["cancel_command", "recover_command", "rename_command", "resolve_command", "retry_command"]

_ASSET_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
"""Names that Dagster accepts for an asset: it computes an op's name from it, of letters, digits and `_`."""

_yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")


@click.command("cancel", cls=Command, examples=["moods -f labels.py"])
@click.argument("target", metavar="SUBMISSION|ASSET", shell_complete=complete_assets)
@partition_option
@code_location_command
@_yes_option
@json_option
def cancel_command(
    deployment: DeploymentAccess, target: str, partition: str | None, *, yes: bool, as_json: bool
) -> None:
    """Cancel a submission: send nothing more, and ask running batches to stop.

    Answers that exist by then are paid for. Dagster's sensor collects them and materializes their labels.
    """
    submission = find_submission(deployment, target, partition)
    name = cell_text(submission.place)
    confirm(f"Cancel submission {submission.submission_id} of {name} ({submission.requests:,} requests)?", yes=yes)
    _tell("Canceled", deployment.engine.cancel(submission.submission_id), as_json=as_json)


@click.command(
    "resolve",
    cls=Command,
    examples=["-f labels.py", "SHARD --batch-id batch_68f2 -f labels.py", "SHARD --no-batch -f labels.py"],
)
@click.argument("shard_id", metavar="[SHARD]", required=False)
@ledger_command
@click.option("--batch-id", help="The provider has this batch for the shard.")
@click.option("--no-batch", is_flag=True, help="The provider has no batch for the shard: send it again.")
@click.option("--lost", is_flag=True, help="The batch never ends or cannot be read: stop waiting for it.")
@_yes_option
@json_option
def resolve_command(
    deployment: DeploymentAccess,
    shard_id: str | None,
    batch_id: str | None,
    *,
    no_batch: bool,
    lost: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Decide on a shard in doubt, whose batch may exist, or on a batch that never ends or cannot be read.

    A shard is the part of a submission that becomes one batch. Without SHARD, the command lists the shards that need
    you. Look at the provider's console before you decide. With --no-batch the shard is sent again, and paid twice if a
    batch exists. With --lost nothing is sent: its rows are materialized without a label, and `retry` can send them
    again after showing the price. The cost stays reserved in the budgets, and answers that come within a month are
    used.
    """
    if shard_id is None:
        if batch_id or no_batch or lost:
            raise click.UsageError("Name the shard. `resolve` alone lists those in doubt, overdue or unreadable.")
        _list_stuck(deployment, as_json=as_json)
        return
    if [bool(batch_id), no_batch, lost].count(True) != 1:
        raise click.UsageError(
            "Give one of --batch-id (the provider has this batch), --no-batch (it has no batch) and --lost (the "
            "batch never ends, or cannot be read)."
        )
    confirm(_question(deployment, shard_id, batch_id, lost=lost), yes=yes)
    if lost:
        shard, then = (
            deployment.engine.give_up(shard_id),
            "When the other labels are materialized, `retry` sends its rows again.",
        )
    elif batch_id:
        shard, then = deployment.engine.resolve(shard_id, batch_id), "Dagster's sensor polls its batch from now on."
    else:
        shard, then = deployment.engine.resolve(shard_id, None), "The next run of its submission sends it."
    if as_json:
        print_json({"shard": shard})
    else:
        say(f"Shard {shard.shard_id} is '{shard.state.value}' now. {then}")


def _question(deployment: DeploymentAccess, shard_id: str, batch_id: str | None, *, lost: bool) -> str:
    shard = deployment.ledger.shards.get(shard_id)
    _check_in_question(shard, lost=lost)
    submission = deployment.ledger.submissions.get(shard.submission_id)
    of = f"shard {shard_id} of {cell_text(submission.place)}"
    if lost and shard.state in ENDED:
        return (
            f"Abandon the results of {of}? Its rows are materialized without a label. Rows that `retry` sends are paid "
            "a second time."
        )
    if lost:
        return (
            f"Abandon the batch of {of}? Its rows are materialized without a label. The batch is not stopped. If it "
            "completes, it is billed, and rows that `retry` sends are paid a second time."
        )
    if batch_id:
        return f"Take the batch {cell_text(batch_id)} for {of}?"
    return f"Send {of}? It is paid a second time if the provider has a batch for it after all."


def _check_in_question(shard: Shard, *, lost: bool) -> None:
    """Raise IllegalTransitionError for a shard that needs no decision."""
    answer, wanted = (
        ("--lost is for a batch that is in flight, or cannot be read", TRANSITIONS[Transition.GIVEN_UP][0])
        if lost
        else ("--batch-id and --no-batch are for a create call that left no record", {ShardState.SUBMITTING})
    )
    if shard.state not in wanted:
        stands = _STANDS.get(shard.state, shard.state.value)
        raise IllegalTransitionError(
            f"Shard {shard.shard_id} is {stands}; {answer}. Nothing was changed. `dagster-llm-batch resolve` alone "
            "lists the shards that are in doubt, overdue or unreadable."
        )


_STANDS = {
    ShardState.PLANNED: "not sent yet",
    ShardState.SUBMITTING: "in doubt, or being sent right now",
    ShardState.SUBMITTED: "in flight",
    ShardState.ENDED: "answered, and about to be collected",
    ShardState.COLLECTED: "collected: what it has is stored",
}
"""The state of a shard, in words."""


def _list_stuck(deployment: DeploymentAccess, *, as_json: bool) -> None:
    """List shards that need a decision: in doubt, overdue or unreadable."""
    found = find_undecided(deployment.engine)
    if as_json:
        kinds = {"orphans": ConditionKind.IN_DOUBT, "overdue": ConditionKind.OVERDUE}
        kinds["unreadable"] = ConditionKind.UNREADABLE
        print_json(
            {
                name: [{"shard": shard, "submission": one.submission} for one, shard in found if one.kind is kind]
                for name, kind in kinds.items()
            }
        )
        return
    now = utc_now()
    rows = [
        [
            shard.shard_id,
            condition.submission.asset,
            condition.submission.partition or None,
            f"{shard.provider} {hide_secrets(shard.account)}",
            shard.requests,
            UNDECIDED[condition.kind],
            None if shard.batch.sent_at is None else now - shard.batch.sent_at,
        ]
        for condition, shard in found
    ]
    if rows:
        print_table(["shard", "asset", "partition", "asked of", "requests", "why", "sent ago"], rows)
    else:
        say("No shard is in doubt, overdue or unreadable.")


@click.command("rename", cls=Command, examples=["moods feelings -f labels.py"])
@click.argument("old")
@click.argument("new")
@ledger_command
@_yes_option
@json_option
def rename_command(deployment: DeploymentAccess, old: str, new: str, *, yes: bool, as_json: bool) -> None:
    """Move all submissions of the asset OLD to the asset NEW, to avoid sending and paying again.

    Use it after an asset got a new name in the definitions. Batches under way will be materialized as NEW. A partition
    in which NEW has submissions of its own stays as it is.
    """
    if deployment.has_code:
        if old in deployment.code.all_datasets:
            raise ConfigError(f"'{old}' is in the definitions still. Give it its new name there first.")
        find_dataset(deployment, new)
    elif not _ASSET_NAME.fullmatch(new):
        raise click.UsageError(
            f"'{cell_text(new)}' can be no asset: Dagster takes letters, digits, '_', '-' and '.', with '/' between "
            "the parts of a key, as in 'support/topics'. Nothing was changed."
        )
    if not deployment.ledger.submissions.list_all(deployment.namespace, assets=[old], limit=1):
        raise ConfigError(f"Nothing was submitted as '{old}' in namespace '{deployment.namespace}'.")
    confirm(f"Give all that was submitted as '{old}' to '{new}'?", yes=yes)
    given, kept = deployment.engine.rename(old, new)
    if as_json:
        print_json({"given": given, "kept": kept})
        return
    say(f"{counted(len(given), 'partition is', 'partitions are')} those of '{new}' now.")
    if kept:
        names = ", ".join(name or "(none)" for name in kept[:10])
        say(f"{len(kept)} stay with '{old}', since '{new}' has submissions of its own there: {names}.")


@click.command("recover", cls=Command, examples=["-f labels.py"])
@ledger_command
@_yes_option
@json_option
def recover_command(deployment: DeploymentAccess, *, yes: bool, as_json: bool) -> None:
    """Recover batches that the ledger does not have, for example after it was restored from a backup.

    The payload store has a receipt of each shard that was sent. Nothing is sent: Dagster's sensor finds the batches at
    the provider and materializes their labels. A partition is also recovered before its next submission.
    """
    found = deployment.engine.recovery.find_unrecorded()
    places = sorted({receipt.submission.place for receipt in found})
    if found:
        shown = ", ".join(map(cell_text, places[:10])) + (", …" if len(places) > 10 else "")  # noqa: PLR2004 - as above
        shards = counted(len(found), "shard was", "shards were")
        confirm(f"{shards} sent, of {shown}, that the ledger has no record of. Recover them?", yes=yes)
    recovered = deployment.engine.recovery.recover_all() if found else []
    if as_json:
        print_json({"shards": recovered})
    elif not found:
        say("The ledger has a record of all that was sent.")
    else:
        say(f"{counted(len(recovered), 'shard is', 'shards are')} in doubt now; Dagster's sensor goes on.")


@click.command("retry", cls=Command, examples=["moods -f labels.py"])
@click.argument("asset", shell_complete=complete_assets)
@partitions_options
@code_location_command
@_yes_option
@json_option
def retry_command(
    deployment: DeploymentAccess,
    asset: str,
    partitions: tuple[str, ...],
    partition_range: str | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Send the rows of an asset that have no label again. Rows with a label are not sent.

    The command loads the rows as a run does, shows the cost, and asks before it sends.
    """
    dataset = find_dataset(deployment, asset)
    wanted = partitions_of(deployment, dataset, partitions, partition_range)
    # Batches that ended after they were abandoned are not sent again, and are not in the shown price.
    deployment.engine.poll_awaited([dataset.name], deployment.engine.now())
    plans = plan_rows(deployment, [(dataset, partition) for partition in wanted], again=True)
    documents = {"plans": [plan.document for plan in plans], "submissions": []}
    if not as_json:
        print_plan(plans)
    if any(plan.preview.refused for plan in plans):
        if as_json:
            print_json(documents)
        leave(ExitCode.FAILED)
    sending = sum(plan.preview.to_send for plan in plans)
    if sending:
        confirm(f"Send {sending:,} requests?", yes=yes)
    statuses = [_send(deployment, dataset, plan.partition) for plan in plans if plan.preview.to_send]
    if as_json:
        print_json({**documents, "submissions": [_document(status) for status in statuses]})
    else:
        for status in statuses:
            say(f"{status.submission.submission_id}: {progress_text(status)}")
        if not statuses:
            say("Nothing to ask again.")
    if any(status.states[ShardState.PLANNED.value] for status in statuses):
        click.echo("Some requests wait for room in the provider's queue; Dagster's sensor sends them.", err=True)
        leave(ExitCode.LATER)


def _send(deployment: DeploymentAccess, dataset: Any, partition: str | None) -> Status:
    engine = deployment.engine
    with deployment.code.rows(dataset, partition) as (rows, upstream):
        submission = engine.plan(dataset.with_gold(upstream), rows, partition=partition or "", again=True)
    return engine.submit(dataset.labeling, submission.submission_id)


def _tell(did: str, status: Status, *, as_json: bool) -> None:
    if as_json:
        print_json(_document(status))
    else:
        say(f"{did} {status.submission.submission_id}: {progress_text(status)}")


def _document(status: Status) -> dict[str, Any]:
    return {"submission": status.submission, "shards": status.shards}
