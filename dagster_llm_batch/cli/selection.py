"""Find the submission, datasets and partitions that a command names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dagster_llm_batch.cli.completion import complete_partitions
from dagster_llm_batch.cli.deployment import DeploymentAccess
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.text import cell_text

if TYPE_CHECKING:
    import dagster as dg

    from dagster_llm_batch.assets.dataset import Dataset
    from dagster_llm_batch.storage.ledger import Ledger

__all__ = [
    "find_dataset",
    "find_submission",
    "nothing_submitted",
    "partition_option",
    "partitions_of",
    "partitions_option",
    "partitions_options",
]

_F = TypeVar("_F", bound=Callable[..., Any])
_ID_START = re.compile(r"[0-9a-f]{4,32}")
_SHOWN = 10

partition_option = click.option("-p", "--partition", shell_complete=complete_partitions, help="Partition key.")


def partitions_option(about: str) -> Callable[[_F], _F]:
    """Return the option `--partition`, which can be given any number of times, with this help."""
    return click.option(
        "-p", "--partition", "partitions", multiple=True, shell_complete=complete_partitions, help=about
    )


def partitions_options(function: _F) -> _F:
    """Add the options `--partition`, any number of times, and `--partition-range`."""
    span = click.option("--partition-range", help="Partitions from START to END, as START...END.")
    return span(partitions_option("Partition key, repeatable.")(function))


def find_submission(deployment: DeploymentAccess, target: str, partition: str | None) -> Submission:
    """Return the submission with this id (or a beginning of it), or the newest of an asset's partition."""
    ledger, namespace = deployment.ledger, deployment.namespace
    if deployment.has_code:
        by_key = {dataset.key.to_user_string(): name for name, dataset in deployment.code.all_datasets.items()}
        target = by_key.get(target, target)
    # An asset is tried first: its name could look like the beginning of an id.
    known = ledger.submissions.list_all(namespace)
    of_asset = [submission for submission in known if submission.asset == target]
    if not of_asset:
        return _by_id(known, namespace, target)
    if partition is None and len({submission.partition for submission in of_asset}) > 1:
        names = sorted({submission.partition for submission in of_asset}, reverse=True)
        raise click.UsageError(f"'{target}' has several partitions; say which with --partition: {_some(names)}.")
    matches = [submission for submission in of_asset if partition is None or submission.partition == partition]
    if not matches:
        names = sorted({submission.partition for submission in of_asset}, reverse=True)
        raise ConfigError(
            f"Nothing was submitted for partition '{partition}' of '{target}'; for these: {_some(names)}."
        )
    return matches[-1]


def nothing_submitted(ledger: Ledger, namespace: str, assets: Iterable[str]) -> str | None:
    """Return a sentence if nothing was submitted, or nothing for one of these assets; else None."""
    known = sorted({submission.asset for submission in ledger.submissions.list_all(namespace)})
    if not known:
        return f"Nothing was submitted in namespace '{namespace}'."
    strangers = [asset for asset in assets if asset not in known]
    if not strangers:
        return None
    shown = ", ".join(f"'{cell_text(asset)}'" for asset in strangers)
    return f"Nothing was submitted as {shown}; assets that have submissions: {_some(known)}."


def _by_id(known: Sequence[Submission], namespace: str, target: str) -> Submission:
    matches = (
        [submission for submission in known if submission.submission_id.startswith(target)]
        if _ID_START.fullmatch(target)
        else []
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        ids = _some([submission.submission_id for submission in matches])
        raise click.UsageError(f"{len(matches)} submissions start with '{target}': {ids}. Give more of the id.")
    assets = _some(sorted({submission.asset for submission in known})) or "none"
    raise ConfigError(
        f"'{target}' is neither a submission in namespace '{namespace}' nor an asset that has one. Assets that have: "
        f"{assets}."
    )


def find_dataset(deployment: DeploymentAccess, name: str) -> Dataset:
    """Return the labeled dataset of this name, or with labels of this asset key."""
    code = deployment.code
    by_name = {dataset.key.to_user_string(): dataset for dataset in code.all_datasets.values()} | code.all_datasets
    dataset = by_name.get(name)
    if dataset is None:
        names = _some(sorted(code.datasets)) or "none"
        raise click.UsageError(f"'{name}' is no labeled asset of {code.pointer}; its labeled assets: {names}.")
    if dataset.name not in code.datasets:
        key = dataset.resource_key
        raise click.UsageError(f"'{name}' is of the resource '{key}', not of '{code.resource_key}': --resource {key}.")
    return dataset


def partitions_of(
    deployment: DeploymentAccess,
    asset: Dataset | dg.AssetSpec,
    partitions: Sequence[str],
    partition_range: str | None,
) -> list[str | None]:
    """Return the partitions that were asked for, or None once for an unpartitioned asset."""
    name = asset.key.to_user_string()
    if asset.partitions_def is None:
        if partitions or partition_range:
            raise click.UsageError(f"'{name}' has no partitions; leave --partition out.")
        return [None]
    known = deployment.code.partitions(asset)
    if unknown := [partition for partition in partitions if partition not in known]:
        raise click.UsageError(f"'{name}' has no partition '{unknown[0]}'. {_kept(known)}")
    wanted = list(dict.fromkeys(partitions))
    if partition_range:
        wanted += [key for key in _between(name, known, partition_range) if key not in wanted]
    if not wanted:
        raise click.UsageError(
            f"'{name}' has partitions; say which with --partition KEY or --partition-range START...END. {_kept(known)}"
        )
    return list(wanted)


def _between(name: str, known: list[str], partition_range: str) -> list[str]:
    first, dots, last = partition_range.partition("...")
    if not dots:
        raise click.UsageError(
            f"--partition-range is written START...END, as in 2026-01-01...2026-01-31; got {partition_range!r}."
        )
    for end in (first, last):
        if end not in known:
            raise click.UsageError(f"'{name}' has no partition '{end}'. {_kept(known)}")
    span = known[known.index(first) : known.index(last) + 1]
    if not span:
        raise click.UsageError(f"--partition-range {partition_range} ends before it starts.")
    return span


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(name or "(none)" for name in shown[:_SHOWN]) + more


def _kept(known: Sequence[str]) -> str:
    """Return how many partitions a dataset has, with examples. Dynamic partitions may be empty."""
    if not known:
        return "It has none yet: add one first."
    return f"It has {len(known):,}, such as {', '.join(dict.fromkeys([*known[:1], *known[-1:]]))}."
