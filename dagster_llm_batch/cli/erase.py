"""`erase`: delete stored data of rows, exclude them from submissions, and list places out of reach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

import click

from dagster_llm_batch.cli.commands import Command, ExitCode, confirm, json_option, leave, say
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.output import PATH_CHARS, SHORT_ID, counted, print_json, print_table
from dagster_llm_batch.cli.selection import find_dataset, partitions_option
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.ledger.batches import count_batches
from dagster_llm_batch.text import cell_text
from dagster_llm_batch.upkeep.erase import FoundRows, Left, ProviderCopy

__all__ = ["erase_command"]

_RUNS_SHOWN = 5


@click.command("erase", cls=Command, examples=["moods --key 17 -f labels.py", "moods --key 17 --delete -f labels.py"])
@click.argument("assets", nargs=-1, required=True, metavar="ASSET...", shell_complete=complete_assets)
@click.option("--key", "keys", multiple=True, help="Key of a row, as in its table, repeatable.")
@click.option(
    "--keys-file", type=click.File(encoding="utf-8"), help="File with one key in each line, or - for standard input."
)
@partitions_option("Partition key, repeatable.  [default: all]")
@click.option("--undo", is_flag=True, help="Allow these rows again. Deleted data does not come back.")
@click.option("--delete", is_flag=True, help="Delete. Without it, only list the files.")
@click.option(
    "--also-unread",
    is_flag=True,
    help="Also delete batches at providers that were abandoned before they were read. The paid answers to their other "
    "rows are lost.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@ledger_command
@json_option
def erase_command(
    deployment: DeploymentAccess,
    assets: tuple[str, ...],
    keys: tuple[str, ...],
    keys_file: TextIO | None,
    partitions: tuple[str, ...],
    *,
    undo: bool,
    delete: bool,
    also_unread: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase the rows with these keys from everything that is stored here, and exclude them from future submissions.

    This covers requests, raw results, results and lists of rows. Providers are asked to delete their stored data of
    ended batches with such rows, and uploaded documents that no other row needs. Without --delete, the command only
    lists files and batches. Rows that are still in their table are not sent, materialized or exported again.

    The command ends with a list of places that it cannot reach. Without keys it continues earlier calls, for example
    for rows that were in flight. The ledger keeps a digest of each key. Exit code 4 means that something is left to do.
    """
    names = [_name(deployment, asset) for asset in assets]
    given = list(dict.fromkeys([*keys, *_keys_in(keys_file)]))
    chosen = partitions or None
    if undo:
        _undo(deployment, names, given, chosen, yes=yes, as_json=as_json)
        return
    eraser = deployment.engine.eraser
    found = [one for name in names for one in eraser.find(name, given, chosen)]
    files = sorted(file.path for file in eraser.find_files(*names))
    adopted = sorted({batch_id for one in found for batch_id in one.adopted})
    if not as_json:
        _print_found(found)
        _print_files(found, files)
        _print_batches(found, also_unread=also_unread)
    if not delete:
        if as_json:
            print_json({"deleted": False, "found": [_document(one) for one in found], "removed_files": files})
        else:
            say("Nothing was deleted. Give --delete to delete.")
        return
    what = f"the rows of {counted(len(given), 'key', 'keys')}" if given else "what earlier calls could not reach"
    stays = f" What providers store of adopted batches stays: {', '.join(adopted)}." if adopted else ""
    confirm(f"Erase {what} from {', '.join(names)}? This cannot be undone.{stays}", yes=yes)
    for name in names:
        eraser.add_tombstones(name, given, chosen)
    left = [one for name in names for one in eraser.erase(name)]
    there = eraser.erase_at_providers(*names, also_unread=also_unread)
    unfinished = eraser.erase_left_behind()
    beyond = _beyond(deployment, names, found)
    if as_json:
        print_json(
            {
                "deleted": True,
                "found": [_document(one) for one in found],
                "removed_files": files,
                "left": [{"submission_id": one.submission.submission_id, "reason": one.reason} for one in left],
                "at_providers": there,
                "unfinished_files": unfinished,
                "not_reached": beyond,
            }
        )
    else:
        _print_erased(found, left, there, unfinished, beyond, given)
    if left or unfinished or any(one.left and one.is_ours for one in there):
        leave(ExitCode.LATER)


def _name(deployment: DeploymentAccess, asset: str) -> str:
    """Return the ledger's name of an asset, after it took over submissions under its former names."""
    if deployment.has_code:
        dataset = find_dataset(deployment, asset)
        deployment.engine.take_over(dataset.labeling)
        return dataset.name
    if not deployment.ledger.submissions.list_all(deployment.namespace, assets=[asset], limit=1):
        raise ConfigError(f"Nothing was submitted as '{asset}' in namespace '{deployment.namespace}'.")
    return asset


def _keys_in(file: TextIO | None) -> list[str]:
    lines = [] if file is None else file.read().split("\n")
    return [line for line in (line.removesuffix("\r") for line in lines) if line]


def _undo(
    deployment: DeploymentAccess,
    names: Sequence[str],
    keys: Sequence[str],
    partitions: Sequence[str] | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    if not keys:
        raise click.UsageError("Name the rows that may be asked again: --key or --keys-file.")
    confirm(f"Let the rows of {counted(len(keys), 'key', 'keys')} be asked again?", yes=yes)
    eraser = deployment.engine.eraser
    taken_back = sum(eraser.take_back_tombstones(name, keys, partitions) for name in names)
    if as_json:
        print_json({"taken_back": taken_back})
    else:
        say(
            f"{counted(taken_back, 'row', 'rows')} may be asked again, when their `…_batch` is materialized. What was "
            "removed does not come back."
        )


def _document(found: FoundRows) -> dict[str, object]:
    submission = found.submission
    return {
        "submission_id": submission.submission_id,
        "asset": submission.asset,
        "partition": submission.partition,
        "rows": found.rows,
        "shared_requests": found.shared,
        "in_flight": [shard.batch.batch_id for shard in found.in_flight],
        "manifest_lost": found.manifest_lost,
        "files": found.files,
        "adopted_batches": found.adopted,
        "given_up_batches": found.given_up,
    }


def _print_found(found: Sequence[FoundRows]) -> None:
    if not found:
        say("No stored row has such a key.")
        return
    columns = ["submission", "asset", "partition", "rows", "requests that others have too", "batches in flight", "note"]
    rows: list[list[object]] = [
        [
            one.submission.submission_id[:SHORT_ID],
            one.submission.asset,
            one.submission.partition or None,
            one.rows,
            one.shared,
            count_batches(one.in_flight),
            "its manifest is lost, so this is unknown" if one.manifest_lost else None,
        ]
        for one in found
    ]
    print_table(columns, rows)


def _print_files(found: Sequence[FoundRows], removed: Sequence[str]) -> None:
    """Print the paths of stored files that are rewritten without the rows, or deleted."""
    for verb, paths in (
        ("Written anew without these rows", sorted({path for one in found for path in one.files})),
        ("Removed, of pruned submissions and killed processes", removed),
    ):
        if paths:
            say(f"{verb}:")
            for path in paths:
                click.echo(f"- {cell_text(path, PATH_CHARS)}")


def _print_batches(found: Sequence[FoundRows], *, also_unread: bool) -> None:
    """Print the batches with these rows that providers delete, and the batches that stay."""
    adopted = {batch_id for one in found for batch_id in one.adopted}
    given_up = {batch_id for one in found for batch_id in one.given_up} if not also_unread else set()
    ended = {(shard.provider, shard.batch.batch_id or "") for one in found for shard in one.ended}
    for provider, batch_id in sorted(ended):
        then = "stays there: it was adopted, and is its sender's" if batch_id in adopted else "is deleted there"
        if batch_id in given_up:
            then = "stays there if its answers to other rows may still be read; --also-unread deletes these, too"
        say(f"Batch {batch_id} of {provider} {then}.")


def _print_erased(
    found: Sequence[FoundRows],
    left: Sequence[Left],
    there: Sequence[ProviderCopy],
    unfinished: int,
    beyond: Sequence[dict[str, str]],
    given: Sequence[str],
) -> None:
    rows = sum(one.rows for one in found)
    if rows:
        say(f"Erased {counted(rows, 'row', 'rows')}; they are not sent or materialized again.")
    else:
        later = " Rows with these keys are not sent if they come." if given else ""
        say(f"Erased 0 rows: none was found.{later}")
    if shared := sum(one.shared for one in found):
        say(f"{counted(shared, 'request stays', 'requests stay')}: other rows ask just the same.")
    for one in left:
        say(f"Not yet: submission {one.submission.submission_id[:SHORT_ID]}: {one.reason}.")
    for copy in there:
        state = "deleted there" if copy.left is None else f"not deleted there: {copy.left}"
        say(f"{'Document' if copy.is_document else 'Batch'} {copy.batch_id} of {copy.provider}: {state}.")
    if unfinished:
        say(
            f"Not yet: {counted(unfinished, 'unfinished file is', 'unfinished files are')} less than a day old, of "
            "processes that work now or were killed. Call this again then."
        )
    say("What this command cannot reach:")
    for item in beyond:
        say(f"- {item['what']}: {item['then']}")


def _beyond(deployment: DeploymentAccess, names: Sequence[str], found: Sequence[FoundRows]) -> list[dict[str, str]]:
    """Return places with rows that this package cannot change, each with a next step."""
    places = {(one.submission.asset, one.submission.partition) for one in found}
    partitions = sorted({partition for _, partition in places if partition})
    tables = ", ".join(dict.fromkeys(table for name in names for table in _tables(deployment, name)))
    where = f", partitions {', '.join(partitions)}" if partitions else ""
    runs = list(dict.fromkeys(one.submission.run_id for one in found if one.submission.run_id))
    shown = " ".join(runs[:_RUNS_SHOWN]) + (f" and {len(runs) - _RUNS_SHOWN} more" if len(runs) > _RUNS_SHOWN else "")
    made_of = _made_of(deployment, names)
    judged = [
        {
            "what": f"labeled datasets that are made of these: {', '.join(made_of)}",
            "then": (
                "their requests hold such rows, in a chain under the same keys, otherwise under their own: erase those "
                "too."
            ),
        }
    ]
    return [
        *(judged if made_of else []),
        {
            "what": f"tables that IO managers stored: {tables}{where}",
            "then": "materialize these again; the rows are left out then. A table with versions keeps the older ones.",
        },
        {
            "what": "the table that the rows come from",
            "then": "delete them there. Until then they are left out, and counted, at each plan.",
        },
        {
            "what": f"Dagster's event log: messages and previews of runs{f', such as {shown}' if shown else ''}",
            "then": "`dagster run delete RUN_ID` removes a run with its events.",
        },
        {
            "what": "answers in real time, and providers' logs and legal records",
            "then": "see the provider's retention policy; a batch that it has forgotten by itself is gone.",
        },
        {
            "what": "backups, versions in buckets, free pages and logs of databases, files that were exported",
            "then": "let them expire; VACUUM rewrites a SQLite or PostgreSQL ledger.",
        },
    ]


def _made_of(deployment: DeploymentAccess, names: Sequence[str]) -> list[str]:
    """Return the labeled datasets, as judges, whose rows are made of labels of these."""
    if not deployment.has_code:
        return []
    tables = {key for name in names for key in deployment.code.tables_of(deployment.code.all_datasets[name])}
    return sorted(
        name for name, dataset in deployment.code.all_datasets.items() if dataset.key in tables and name not in names
    )


def _tables(deployment: DeploymentAccess, name: str) -> Iterable[str]:
    if not deployment.has_code:
        return [f"labels and rejects of '{name}', and tables made from them"]
    return [key.to_user_string() for key in deployment.code.tables_of(deployment.code.all_datasets[name])]
