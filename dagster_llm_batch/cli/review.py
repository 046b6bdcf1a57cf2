"""`review`: a page on this machine on which people look at the rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import click
import dagster as dg

from dagster_llm_batch.assets.translator import ANNOTATES_KEY, GATHERS_KEY, ROLE_TAG, SOURCE_KEY, TABLE_KEY
from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.conditions import conditions_of
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import print_json
from dagster_llm_batch.errors import ConfigError, MissingExtraError
from dagster_llm_batch.loop.provider_facts import account_of
from dagster_llm_batch.metadata import WANTED_KEY
from dagster_llm_batch.providers.capabilities import console_url

if TYPE_CHECKING:
    from dagster_llm_batch.review.forms import LabelForm
    from dagster_llm_batch.review.tables import StoredAsset

__all__ = ["review_command"]

_ROLES = ("labels", "rejects", "evaluation", "annotation")


@click.command("review", cls=Command, examples=["moods -f labels.py"])
@click.argument("asset", required=False, shell_complete=complete_assets)
@code_location_command
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port; 0 (the default) takes a free one.")
@click.option(
    "--user-header",
    help=(
        "Header in which your team's proxy sends the user's name, such as X-Forwarded-User. The proxy must remove this "
        "header from incoming requests."
    ),
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    help="Host name in the proxy's address, with its port unless that is 80 or 443. Repeatable.",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of the rows that every person judges, to measure agreement.",
)
@click.option(
    "--link", "as_link", is_flag=True, help="Print a new link to the page that already runs on --port, and end."
)
@json_option
def review_command(
    deployment: DeploymentAccess,
    asset: str | None,
    port: int,
    user_header: str | None,
    hosts: tuple[str, ...],
    overlap: float,
    *,
    as_link: bool,
    as_json: bool,
) -> None:
    """Serve a local page with rows, prompts and replies until interrupted, and print its link.

    No provider is asked. Judgments are stored in the ledger; nothing else is changed. Tables that an IO manager stored
    as Parquet are read in place. Other tables are loaded one partition at a time. The page listens on loopback only.
    The link opens once, in one browser, which stays logged in until it has not used the page for a day.
    """
    try:
        from dagster_llm_batch.review.access import Door, link_to, linkable  # noqa: PLC0415 - an extra, slow to load
        from dagster_llm_batch.review.deployment import ReviewedDeployment  # noqa: PLC0415
        from dagster_llm_batch.review.server import HOSTS, review_app, serve  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("review", "The page") from error
    if as_link:
        _print_link(link_to(port), as_json=as_json)
        return
    reviewed = ReviewedDeployment(
        str(deployment.code.pointer.module_name or deployment.code.pointer.python_file or "Dagster"),
        deployment.ledger,
        deployment.payloads,
        deployment.namespace,
        lambda: list(_stored_assets(deployment)),
        partial(_console_url, deployment),
        _forms(deployment),
        judged={
            str(spec.metadata[ANNOTATES_KEY]): spec.key.to_user_string()
            for spec in deployment.code.specs
            if ANNOTATES_KEY in spec.metadata
        },
        waiting=lambda: [(each.submission.asset, str(each.advice)) for each in conditions_of(deployment)],
    )
    # The first page shows this list, too.
    keys = [one.key for one in reviewed.assets()]
    start = "/"
    if asset is not None:
        if asset not in keys:
            raise ConfigError(f"There is no stored table {asset!r}; there are {', '.join(keys) or 'none yet'}.")
        start = f"/table/{quote(asset)}"
    door = Door(user_header, hosts)
    with ExitStack() as stack:

        def tell(address: str) -> None:
            stack.enter_context(linkable(door, urlsplit(address).port or 0))
            _print_link(f"{address}{start}#token={door.token()}", as_json=as_json)
            if not as_json:
                click.echo("It works once, in one browser. Ctrl-C ends the page.", err=True)

        serve(review_app(reviewed, door, [*HOSTS, *hosts], overlap), port, tell)


def _print_link(url: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"url": url}, indent=None)
    else:
        click.echo(f"Open {url}")
    sys.stdout.flush()


def _stored_assets(deployment: DeploymentAccess) -> Iterator[StoredAsset]:
    """Yield the tables that there is something of: those of datasets, then those of evaluations, then all others that
    lie in Parquet.
    """
    from dagster_llm_batch.review.masked_rows import hidden_row, hidden_text, row_keys, row_masks  # noqa: PLC0415 - an extra
    from dagster_llm_batch.review.tables import StoredAsset  # noqa: PLC0415

    code = deployment.code
    masks = row_masks(code.specs, code.all_datasets.values())
    keys = row_keys(code.specs, code.all_datasets.values())
    datasets = {key: each for each in code.datasets.values() for key in (each.key, each.rejects_key)}
    specs = {spec.key: spec for spec in code.specs}
    for key in sorted(specs, key=lambda key: (key not in datasets, not _is_ours(specs[key]), key.to_user_string())):
        spec, places, dataset, mask = specs[key], code.stored_places(key), datasets.get(key), masks.get(key)
        # Another asset may store anything, of any size.
        if not places or not (_is_ours(spec) or any(places.values())):
            continue
        evidence = dataset.labeling.evidence if dataset else None
        gathers, role = spec.metadata.get(GATHERS_KEY), str(spec.metadata.get(TABLE_KEY, ""))
        own = dataset.name if dataset else None
        if gathers:
            # Labels and rejects of one name, as those of a dataset that is asked itself.
            own, role = key.to_user_string().removesuffix(f"_{role}" if role else ""), role or "labels"
        is_remote = any("://" in place for place in places.values() if place)
        yield StoredAsset(
            key=key.to_user_string(),
            dataset=own,
            role=spec.tags.get(ROLE_TAG) or role,
            row_key=dataset.labeling.key if dataset else str(spec.metadata.get(SOURCE_KEY, "")),
            gathers=str(gathers) if gathers else None,
            files={partition: place for partition, place in places.items() if place},
            others=tuple(partition for partition, place in places.items() if not place),
            load=partial(_load, deployment, key),
            order=tuple(places),
            hide=hidden_row(mask, is_ours=_is_ours(spec)) if mask else None,
            hide_sent=hidden_text(mask, dataset.labeling.mask) if mask and dataset else None,
            keys=keys.get(key, ()),
            quotes=evidence.quotes if evidence and dataset and key == dataset.key else {},
            # Files on a local disk show by themselves whether they have changed.
            at=code.materialized_at(key) if own or is_remote else None,
            # Each partition has its own metadata.
            before=partial(code.figures_before, key),
            earlier=partial(code.partitions_before, key),
            may_grow=WANTED_KEY in spec.metadata,
        )


def _load(deployment: DeploymentAccess, key: dg.AssetKey, partition: str) -> object:
    return deployment.code.load_asset(key, partition or None)


def _forms(deployment: DeploymentAccess) -> list[LabelForm]:
    """Return what people can be asked of the rows of each dataset. Nobody judges a vector."""
    from dagster_llm_batch.review.forms import form_of_labeling  # noqa: PLC0415 - an extra

    forms = [form_of_labeling(name, dataset.labeling) for name, dataset in deployment.code.datasets.items()]
    return [form for form in forms if form is not None]


def _console_url(deployment: DeploymentAccess, provider: str, batch_id: str) -> str | None:
    known = deployment.engine.deployment.providers.get(provider)
    # One that cannot be made, as without its key, has no address: the row is shown all the same.
    return None if known is None or account_of(known) is None else console_url(known, batch_id)


def _is_ours(spec: dg.AssetSpec) -> bool:
    return spec.tags.get(ROLE_TAG) in _ROLES or TABLE_KEY in spec.metadata or GATHERS_KEY in spec.metadata
