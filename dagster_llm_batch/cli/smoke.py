"""`smoke`: send three rows to a real account, report each step, and compare our price with the vendor's.

It is an ordinary submission, in a namespace of its own, by the ordinary engine and ledger: whoever stops it, by Ctrl-C
or kill -9, gives the same command again, and it goes on where it was. Nothing is sent twice.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from pydantic import BaseModel

from dagster_llm_batch._version import __version__
from dagster_llm_batch.cli.commands import Command, ExitCode, json_option, leave
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import counted, print_json
from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Labeling, Limits, Resend, Spend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.loop.preview import parameter_warnings
from dagster_llm_batch.progress import states_text
from dagster_llm_batch.providers.dialogue import Recorder, recording_to
from dagster_llm_batch.providers.openai_api.servers import HasServer
from dagster_llm_batch.providers.registry import PROVIDERS, ProviderEntry
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.text import cell_text, learned_text, plain_words
from dagster_llm_batch.types import Endpoint, FindHints, StatusUnknown

if TYPE_CHECKING:
    import pyarrow as pa

    from dagster_llm_batch.core.pricing import TokenPrice
    from dagster_llm_batch.engine import Engine
    from dagster_llm_batch.loop.status import Status

__all__ = ["smoke_asset", "smoke_command", "smoke_labeling", "smoke_namespace", "smoke_rows"]

# A provider that is not registered has the defaults of an entry.
_OF_YOUR_OWN = ProviderEntry(provider="", resource="")
_TEXTS = ("I love this!", "This is the worst day of my life.", "The table is made of wood.")


class Sentiment(BaseModel):
    """The answer to each of the three texts."""

    label: Literal["positive", "negative", "neutral"]


@dataclass
class _Story:
    """The steps so far: printed at once for people, and at the end as JSON."""

    is_silent: bool
    steps: list[dict[str, str]] = field(default_factory=list)

    def tell(self, step: str, said: str) -> None:
        self.steps.append({"step": step, "said": said})
        if not self.is_silent:
            click.echo(f"{step:8}{cell_text(said, limit=400)}")


def _check_amount(context: click.Context, parameter: click.Parameter, written: str) -> str:
    """Return the amount as written. Raises BadParameter if it is not an amount."""
    try:
        amount = Decimal(written)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and amount >= 0):
        told = f"{written!r} is no amount of US dollars; it is a number from 0 on, as in 0.25."
        raise click.BadParameter(told, context, parameter)
    return written


@click.command("smoke", cls=Command, examples=["openai --max-usd 0.05 -f labels.py"])
@click.argument("name", metavar="PROVIDER")
@code_location_command
@click.option("--model", help="The provider's name of a model.  [default: the model of a dataset of this provider]")
@click.option("--params", help="Parameters as JSON, with a maximum of tokens, as '{\"max_tokens\": 64}'.")
@click.option(
    "--max-usd",
    default="0.05",
    show_default=True,
    callback=_check_amount,
    help="Hard limit on the amount billed, in US dollars.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the dialogue to, without keys, accounts and names.",
)
@click.option("--again", is_flag=True, help="Send three new rows after an earlier smoke has ended.")
@click.option("--poll-seconds", default=15.0, show_default=True, help="Seconds between two polls.")
@json_option
def smoke_command(
    deployment: DeploymentAccess,
    name: str,
    model: str | None,
    params: str | None,
    max_usd: str,
    poll_seconds: float,
    record: Path | None,
    *,
    again: bool,
    as_json: bool,
) -> None:
    """Send three short texts to a real account of PROVIDER, and check each step.

    It checks the account, estimates the price, creates one batch, waits for it and reads it. Then it compares the price
    with the vendor's own counts. --record writes the dialogue to a file for others, without keys and names.

    It costs money, at most --max-usd. A vendor with a minimum size of batches gets copies of the rows. It can take as
    long as the vendor's window. After an interruption, run the same command again, and it continues without
    paying twice.
    """
    story = _Story(as_json)
    with _engine(deployment) as engine:
        labeling = _labeling(deployment, engine, name, model, params, max_usd)
        recorder = None if record is None else _recorder(engine, labeling, record, again=again)
        try:
            with recording_to(recorder):
                is_sound = _smoke(engine, labeling, story, poll_seconds, again=again)
        except KeyboardInterrupt:
            story.tell("stopped", "the batch goes on at the vendor. Give the same command: nothing is paid twice.")
            leave(ExitCode.LATER)
    if as_json:
        print_json({"sound": is_sound, "steps": story.steps})
    if not is_sound:
        leave(ExitCode.NEEDS_A_PERSON)


def smoke_namespace(namespace: str) -> str:
    """Return the namespace of smokes: no sensor or asset of the deployment looks there."""
    return f"{namespace}-smoke"


def smoke_asset(name: str) -> str:
    """Return under which name the ledger has the smokes of a provider."""
    return f"smoke_{name}"


@contextmanager
def _engine(deployment: DeploymentAccess) -> Iterator[Engine]:
    resource = deployment.resource
    engine = resource.model_copy(update={"namespace": smoke_namespace(resource.namespace)}).engine()
    with closing(engine.ledger):
        yield engine


def _labeling(
    deployment: DeploymentAccess, engine: Engine, name: str, model: str | None, params: str | None, max_usd: str
) -> Labeling:
    """Return the labeling to send. Raises ConfigError for a provider that is not configured, or without a model."""
    engine.provider(name)
    datasets = (dataset.labeling for dataset in deployment.code.datasets.values())
    labelings = [one for dataset in datasets for one in dataset.models if one.provider == name]
    chats = [one for one in labelings if one.spec.endpoint in (Endpoint.CHAT, Endpoint.RESPONSES)]
    alike = next((one for one in chats if model in (None, one.spec.model)), None)
    if model is None and alike is None:
        raise ConfigError(f"No dataset of these definitions asks a model of '{name}' for texts. Name one: --model …")
    entry = PROVIDERS.get(engine.deployment.kind(name), _OF_YOUR_OWN)
    given = dict(entry.short_reply) if alike is None else alike.params
    try:
        given = given if params is None else dict(json.loads(params))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"--params {params!r} is no JSON object: {error}. Write one, as '{{\"max_tokens\": 64}}'."
        ) from None
    return smoke_labeling(
        name,
        str(model) if alike is None else alike.spec.model,
        given,
        endpoint=None if alike is None else alike.spec.endpoint.value,
        price=None if alike is None else alike.spend.price,
        max_usd=max_usd,
    )


def smoke_rows(number: int) -> list[dict[str, Any]]:
    """Return the rows of a round. Each round has other rows, so that earlier answers are not reused."""
    return [
        {"id": at, "text": text if number == 1 else f"{text} ({number})"} for at, text in enumerate(_TEXTS, start=1)
    ]


def smoke_labeling(
    name: str,
    model: str,
    params: Mapping[str, Any],
    *,
    endpoint: str | None = None,
    price: TokenPrice | None = None,
    max_usd: str,
) -> Labeling:
    """Return the labeling of a smoke."""
    return Labeling(
        asset=smoke_asset(name),
        model=f"{name}/{model}",
        key="id",
        prompt=Prompt(system="You label the sentiment of short texts.", user="{{ text }}"),
        response=Sentiment,
        params=params,
        endpoint=endpoint,
        limits=Limits(below_minimum="pad"),
        resend=Resend(max_waves=1, invalid_waves=1),
        # Not in expectation: never more.
        spend=Spend(price=price, limit="hard"),
        max_cost_usd=max_usd,
    )


def _recorder(engine: Engine, labeling: Labeling, file: Path, *, again: bool) -> Recorder:
    """Return the recorder of the dialogue. Raises ConfigError if the provider cannot be recorded."""
    kind = engine.deployment.kind(labeling.provider)
    kinds = [name for name, entry in PROVIDERS.items() if entry.can_record]
    if kind not in kinds:
        raise ConfigError(
            f"--record is for providers of the kinds {', '.join(kinds)}; '{labeling.provider}' is of '{kind}'. "
            "Nothing was sent. Leave --record out."
        )
    provider = engine.provider(labeling.provider)
    return Recorder(
        file,
        {
            "kind": kind,
            "server": provider.server.title if isinstance(provider, HasServer) else None,
            "model": labeling.spec.model,
            "params": dict(labeling.params),
            "endpoint": labeling.spec.endpoint.value,
            "round": _round(engine, labeling, again=again)[0],
            "package": __version__,
            "recorded_on": utc_now().date().isoformat(),
        },
    )


def _smoke(engine: Engine, labeling: Labeling, story: _Story, poll_seconds: float, *, again: bool) -> bool:
    """Go through all steps; return whether all went well."""
    provider, rules = engine.provider(labeling.provider), engine.deployment
    if (gap := rules.price_gap(labeling)) is not None:
        raise ConfigError(
            f"{gap} Without a price, --max-usd cannot be kept. Nothing was sent. Name a model whose price is "
            "known, or one of a dataset with Spend(price=TokenPrice(…))."
        )
    engine.check(labeling)
    nonce = f"s{uuid.uuid4().hex[:16]}"
    # Of a batch that cannot exist: the vendor has to list what there is, which shows whether it takes the key.
    sighting = provider.find(f"smoke-{nonce}", FindHints(utc_now(), 1, nonce))
    doubt = (
        f"; but it is unknown which of its batches are ours: {sighting.reason}"
        if isinstance(sighting, StatusUnknown)
        else ""
    )
    story.tell("key", f"{labeling.provider} takes the credentials: account {hide_secrets(provider.account)}{doubt}")
    number, known = _round(engine, labeling, again=again)
    rows = smoke_rows(number)
    for warning in parameter_warnings(engine.deployment, labeling):
        story.tell("params", warning)
    preview = engine.preview(labeling, rows, partition=str(number))
    if preview.refused:
        raise ConfigError(f"{preview.refused} Nothing was sent.")
    story.tell(
        "plan",
        f"{labeling.model}, round {number}: {counted(preview.to_send, 'request', 'requests')} to send; "
        f"{_usd(preview.estimated_usd)} expected, {_usd(preview.bound_usd)} at most ({preview.price_basis.value}); "
        f"{learned_text(None if preview.learned is None else preview.learned.complete, preview.output_basis)}; "
        f"--max-usd {labeling.max_cost_usd}",
    )
    submission_id = engine.plan(labeling, rows, partition=str(number)).submission_id
    status = engine.submit(labeling, submission_id)
    way = "was created" if not known else "is known from before; nothing is sent again"
    created = ", ".join(status.batch_ids)
    story.tell("create", f"batch {created} {way}" if created else "no batch was created yet")
    status = _wait(engine, labeling, submission_id, story, poll_seconds)
    labeled = engine.labels(labeling, submission_id)
    for row in [*labeled.labels.to_pylist(), *labeled.rejects.to_pylist()]:
        said = row.get("label") or f"no label ({row['llm_outcome']}): {row.get('llm_reason')}"
        tokens = f"{_number(row['llm_input_tokens'])} tokens in, {_number(row['llm_output_tokens'])} out"
        story.tell(
            "result",
            f"{rows[row['id'] - 1]['text']!r}: {said}; {row['llm_model']}, {tokens}, {_usd(row['llm_cost_usd'])}",
        )
    is_priced = _check_price(engine, labeling, status, [labeled.labels, labeled.rejects], story)
    if len(labeled.rejects):
        story.tell("end", f"{counted(len(labeled.rejects), 'row has', 'rows have')} no label: see the reasons above")
    return is_priced and not len(labeled.rejects)


def _round(engine: Engine, labeling: Labeling, *, again: bool) -> tuple[int, bool]:
    """Return the number of the round that is under way, or is to begin, and whether its rows were sent before."""
    number = 1
    while engine.latest(labeling.asset, str(number + 1)) is not None:
        number += 1
    last = engine.latest(labeling.asset, str(number))
    if last is not None and last.is_settled and again:
        return number + 1, False
    return number, last is not None and bool(engine.status(last.submission_id).batch_ids)


def _wait(engine: Engine, labeling: Labeling, submission_id: str, story: _Story, poll_seconds: float) -> Status:
    """Wait until all is settled, and tell whatever has changed."""
    last = ""
    while True:
        status = engine.advance(labeling, submission_id)
        now = f"{states_text(status)}; {status.done} of {counted(status.total, 'request', 'requests')} done"
        # A shard that was not sent waits, and is tried again. Its reason may need a person.
        waiting = (shard.reason for shard in status.shards if shard.state is ShardState.PLANNED)
        if reasons := "; ".join(sorted({plain_words(reason) for reason in waiting if reason})):
            now = f"{now}; not sent: {reasons}"
        if now != last:
            story.tell("poll", f"{utc_now():%H:%M:%S} UTC: {now}")
            last = now
        if status.is_settled:
            return status
        time.sleep(poll_seconds)


def _check_price(engine: Engine, labeling: Labeling, status: Status, tables: list[pa.Table], story: _Story) -> bool:
    """Compare our counts with the vendor's counts of the whole batch, and with its cost, if it reports one."""
    rows = [row for table in tables for row in table.to_pylist()]
    ours = tuple(sum(row[f"llm_{kind}_tokens"] or 0 for row in rows) for kind in ("input", "output"))
    cost, bound = status.submission.cost_usd, Decimal(str(labeling.max_cost_usd))
    story.tell("price", f"{_usd(cost)} by our prices, for {ours[0]} tokens in and {ours[1]} out, of --max-usd {bound}")
    is_sound = cost is not None and cost <= bound
    if cost is None:
        story.tell("price", "the replies have no usage, or a part of the usage has no known price")
    reports = engine.provider(labeling.provider).poll(status.batch_ids).values()
    theirs = [(report.input_tokens, report.output_tokens) for report in reports]
    if theirs and all(None not in pair for pair in theirs):
        whole = tuple(sum(pair[at] or 0 for pair in theirs) for at in (0, 1))
        padded = any(shard.batch.padding for shard in status.shards)
        agrees = whole == ours or padded
        story.tell(
            "price",
            f"the vendor counts {whole[0]} tokens in and {whole[1]} out for the batch: "
            + (
                "the same"
                if whole == ours
                else "with the copies that filled it up"
                if padded
                else "NOT the same as ours"
            ),
        )
        is_sound = is_sound and agrees
    else:
        story.tell("price", "the vendor has no token counts of the batch as a whole; ours come from its replies")
    if (both := status.reported_usd) is not None:
        reported, computed = both
        agrees = abs(reported - computed) <= max(reported, computed) / 100
        story.tell(
            "price", f"the vendor reports a cost of {_usd(reported)}: {'the same' if agrees else 'NOT the same'}"
        )
        is_sound = is_sound and agrees
    return is_sound


def _number(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens:,}"


def _usd(amount: Decimal | None) -> str:
    return "unknown" if amount is None else f"{amount.normalize():f} USD"
