"""`doctor`: whether a deployment can do its work. Asks every part once; sends nothing, and costs nothing."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from time import monotonic

import click
from rich.text import Text

from dagster_llm_batch.advice.end_forecast import EndHistory, EndScore
from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.cli.commands import Command, ExitCode, json_option, leave
from dagster_llm_batch.cli.conditions import conditions_of
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.findings import Finding, Severity
from dagster_llm_batch.cli.kept import find_kept_money
from dagster_llm_batch.cli.output import age, cell, console, counted, money, print_json
from dagster_llm_batch.cli.prices import OLD_BOOK, rules_text
from dagster_llm_batch.cli.smoke import smoke_asset, smoke_namespace
from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.core.audit import bound_share
from dagster_llm_batch.core.durations import FEWEST
from dagster_llm_batch.core.price_book import book_text, fetched_at, newest_price_change
from dagster_llm_batch.core.price_sources import oldest_source
from dagster_llm_batch.engine import Engine, Labeling
from dagster_llm_batch.engine.conditions import GOES_ON, WAITS_IN_VAIN, Condition, ConditionKind, split_by_dataset
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.files.ownership import owns_batch
from dagster_llm_batch.loop.deployment import use_fetched_book
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.loop.preview import parameter_warnings
from dagster_llm_batch.loop.provider_facts import account_of, ask_provider
from dagster_llm_batch.loop.pruned import is_pruned
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.capabilities import check_setup, count_files
from dagster_llm_batch.providers.openai_api.servers import HasServer, Server, unseen_facts
from dagster_llm_batch.resources import Budget
from dagster_llm_batch.states import IN_FLIGHT, HoldReason, ShardState
from dagster_llm_batch.storage.ledger.batches import count_batches, has_batch
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.records import Shard, SpendLimit, Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Cause, Outcome
from dagster_llm_batch.upkeep.stored_documents import DocumentRemover
from dagster_llm_batch.upkeep.uploads import UploadRemover, accounts_of

__all__ = ["doctor_command", "judge_end_forecasts"]

_UNPOLLED = timedelta(hours=1)
_OLD_PRICES = timedelta(days=180)
# Discounts and surcharges change less often than prices.
_OLD_RULES = timedelta(days=365)
_NEARLY = Decimal("0.9")
_READING_SECONDS = 60.0
_FILES_SHOWN = 5
_CONDITIONS_SHOWN = 20
# Conditions whose advice names the submission.
_NAMED_BY_THEMSELVES = (
    *(ConditionKind.NO_DATASET, ConditionKind.STRANDED),
    *(ConditionKind.OVERDUE, ConditionKind.HELD_QUEUE),
)
_LATE_FILES = timedelta(days=3)
# So many submissions end by the p90 of their forecasts, if these are right.
_PROMISED_BY_P90 = 0.9
# Descriptions of a server's settings with unclear names.
_FACTS = {
    "base url": "its address",
    "price book": "its price book",
    "price rule": "the price rule of a batch",
    "endpoints": "the APIs with batches",
    "create endpoints": "the name of an API when a batch is created",
    "max requests": "the most requests of a batch",
    "max bytes": "the most bytes of a batch",
    "windows": "the allowed windows of a batch",
    "expiry": "the expiry of request files",
    "file limits": "the limit of stored request files",
    "has pages": "pages in the list of batches",
    "keeps metadata": "metadata of batches",
    "keeps file names": "names of files",
    "calls": "the calls about batches, which are not OpenAI's",
    "counts": "its counts of requests",
    "errors": "the form of its errors",
    "output tokens": "the most tokens of a reply",
}
_ON_FILES = (
    "Run `dagster-llm-batch prune --delete` to delete the files of collected batches. Delete files of other programs "
    "or lost ledgers at the vendor's console."
)


_STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.PROBLEM: "bold red"}


@click.command("doctor", cls=Command, examples=["-f labels.py"])
@ledger_command
@json_option
def doctor_command(deployment: DeploymentAccess, *, as_json: bool) -> None:
    """Check a deployment: credentials, permissions, storage, ledger, sensor, definitions, limits and prices.

    It asks each provider for its batches, writes a probe to the payload store, and reads the ledger and its files. It
    compares definitions with the providers' limits. It sends nothing, so permission to create batches stays unknown
    until `smoke` or a run sends one. Exit code 3 means that there is a problem.
    """
    findings = list(_findings(deployment))
    worst = Severity.PROBLEM if any(finding.verdict is Severity.PROBLEM for finding in findings) else Severity.OK
    if as_json:
        print_json({"healthy": worst is Severity.OK, "findings": findings})
    else:
        out = console()
        for finding in findings:
            head = Text.assemble((f"{finding.verdict.value:8}", _STYLES[finding.verdict]), f"{finding.check}: ")
            out.print(head, cell(finding.said), sep="")
            if finding.then:
                out.print("        ", cell(finding.then), sep="")
        out.print(_counts_text([finding.verdict for finding in findings]))
    if worst is Severity.PROBLEM:
        leave(ExitCode.NEEDS_A_PERSON)


def _counts_text(verdicts: Sequence[Severity]) -> str:
    """Return the last line: the number of checks, and of warnings and problems."""
    warnings = counted(verdicts.count(Severity.WARNING), "warning", "warnings")
    problems = counted(verdicts.count(Severity.PROBLEM), "problem", "problems")
    return f"{counted(len(verdicts), 'check', 'checks')}: {verdicts.count(Severity.OK):,} ok, {warnings}, {problems}."


def _findings(deployment: DeploymentAccess) -> Iterator[Finding]:
    """Yield the findings of all checks. A check that fails is a finding, and the other checks still run."""
    if deployment.has_code:
        # If the definitions do not load, only this error is reported.
        _ = deployment.code
        yield from _each("definitions", partial(_definitions, deployment))
    ledger = _tried("ledger", partial(_ledger, deployment))
    yield ledger
    yield _tried("payload store", lambda: _payload_store(deployment.payloads, deployment.payload_place))
    if deployment.has_code:
        yield from _each("providers", partial(_providers, deployment))
        for name, dataset in sorted(deployment.code.datasets.items()):
            for labeling in dataset.labeling.models:
                yield _tried(f"dataset {name}", partial(_dataset, deployment, labeling))
            yield _tried(f"IO manager of {name}", partial(_sink, deployment, dataset))
        yield from _each("budget", partial(_budgets, deployment))
    if ledger.verdict is Severity.OK and deployment.missing_ledger_file is None:
        engine = deployment.engine
        yield _tried("ledger and payloads", partial(_unrecorded, engine))
        yield _tried("stored files", partial(_stored_files, engine))
        yield from _each("erased rows", partial(_erased, deployment))
        unread: dict[str, Exception] = {}
        conditions = cache(lambda: conditions_of(deployment, unread.__setitem__))
        yield from _each("conditions", lambda: _shown(conditions()))
        yield from _each("ledger rows", lambda: _unread_rows(unread))
        yield from _each("rows without a label", partial(_left, deployment))
        yield from _each("kept money", partial(_kept_in_vain, deployment))
        if deployment.has_code:
            yield from _each("request files", partial(_request_files, engine))
            yield from _each("documents", partial(_documents, engine))
        yield from _each("batches under way", lambda: _under_way(deployment, conditions()))
        yield from _each("forecasts of ends", partial(_end_forecasts, engine))
    yield _tried("price book", partial(_prices, deployment))
    yield _tried("price rules", lambda: judge_price_rules(_price_books(deployment), utc_now().date()))


def _tried(check: str, look: Callable[[], Finding]) -> Finding:
    """Return the finding, or the error as one."""
    return next(_each(check, lambda: iter([look()])))


def _each(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings, and the error that ends them as one. A wrong command line stays an error."""
    try:
        yield from look()
    except click.ClickException:
        raise
    except Exception as error:  # noqa: BLE001 - of a file system's own library: anything may come
        yield Finding(check, Severity.PROBLEM, _reason(error))


def _reason(error: Exception) -> str:
    """Return the message of an error. Messages of other packages can be a bare name, so theirs has its class before."""
    return str(error) if isinstance(error, LLMBatchError) else f"{type(error).__name__}: {error}"


def _providers(deployment: DeploymentAccess) -> Iterator[Finding]:
    for name, provider in sorted(deployment.dry_engine.providers.items()):
        yield _tried(f"provider {name}", partial(_provider, name, provider))
        if account_of(provider) is None:
            # All other checks of it would fail with the same message.
            continue
        yield from _files_at(name, provider)
        if isinstance(provider, HasServer):
            yield _tried(f"preset of {name}", partial(_preset, deployment, name, provider.server))


def _budgets(deployment: DeploymentAccess) -> Iterator[Finding]:
    for budget in deployment.resource.budgets:
        yield _tried("budget", partial(_budget, deployment.dry_engine, budget))


def _end_forecasts(engine: Engine) -> Iterator[Finding]:
    if (finding := judge_end_forecasts(EndHistory(engine.ledger, engine.namespace, utc_now()).score())) is not None:
        yield finding


def _definitions(deployment: DeploymentAccess) -> Iterator[Finding]:
    code = deployment.code
    names = ", ".join(sorted(code.datasets)) or "none"
    verdict = Severity.OK if code.datasets else Severity.WARNING
    yield Finding("definitions", verdict, f"{code.pointer}: labeled assets {names}; namespace '{deployment.namespace}'")
    alone = [
        name
        for name, dataset in code.datasets.items()
        if dataset.mode == "deferred" and not code.is_looked_after(dataset)
    ]
    if alone:
        problem = f"no sensor materializes the labels of {', '.join(alone)}"
        then = (
            "Add build_llm_batch_sensor() to the definitions' sensors, with their resource_key and them in its target."
        )
        yield Finding("sensor", Severity.WARNING, problem, then)
    elif (standstill := code.standstill()) is not None:
        yield Finding("sensor", Severity.WARNING, standstill.problem, f"{standstill.then}.")
    elif any(dataset.mode == "deferred" for dataset in code.datasets.values()):
        yield Finding("sensor", Severity.OK, "Dagster's daemon runs, and the sensor's last tick succeeded")


def _ledger(deployment: DeploymentAccess) -> Finding:
    missing = deployment.missing_ledger_file
    if missing is not None:
        return Finding("ledger", Severity.OK, f"no file yet at {missing}; the first submission creates it")
    under_way = len(deployment.ledger.submissions.progress(deployment.namespace))
    submissions = counted(under_way, "submission", "submissions")
    state = f"{deployment.ledger} answers; {submissions} under way in namespace '{deployment.namespace}'"
    return Finding("ledger", Severity.OK, state)


def _payload_store(payloads: PayloadStore, place: str) -> Finding:
    # Permissions to write, to read and to delete may be granted apart: each is tried.
    probe = f"doctor-{uuid.uuid4().hex}"
    content = uuid.uuid4().bytes
    try:
        with payloads.writer(probe) as file:
            file.write(content)
        with payloads.reader(probe) as file:
            same = file.read() == content
    finally:
        payloads.delete(probe)
    if not same:
        then = "Look for a proxy or a cache in front of it. Send nothing before it returns what was written."
        return Finding("payload store", Severity.PROBLEM, f"{place} does not return the bytes that were written", then)
    return Finding("payload store", Severity.OK, f"files can be written, read and deleted in {place}")


def _unrecorded(engine: Engine) -> Finding:
    """Find shards with a receipt in the payload store and without a record in the ledger."""
    found = engine.recovery.find_unrecorded()
    if not found:
        return Finding(
            "ledger and payloads", Severity.OK, "the ledger has each shard that has a receipt in the payload store"
        )
    places = sorted({receipt.submission.place for receipt in found})
    shown = ", ".join(places[:_FILES_SHOWN]) + (", …" if len(places) > _FILES_SHOWN else "")
    shards = counted(len(found), "shard was", "shards were")
    since = min(receipt.shard.batch.sent_at or receipt.submission.created_at for receipt in found)
    problem = (
        f"{shards} sent since {since:%Y-%m-%d %H:%M} UTC, but the ledger lacks them: {shown}. The ledger was "
        "restored from a backup, or a process of this deployment uses another ledger"
    )
    then = "Run dagster-llm-batch recover; it costs nothing. Give all processes the same ledger (ledger_url)."
    return Finding("ledger and payloads", Severity.PROBLEM, problem, then)


def _stored_files(engine: Engine) -> Finding:
    """Read the files that the ledger names, of the newest submissions first, for as long as there is time."""
    ledger, payloads = engine.ledger, engine.payloads
    give_up_at = monotonic() + _READING_SECONDS
    read = late = 0
    lost: list[str] = []
    remade: list[str] = []
    for submission in reversed(ledger.submissions.list_all(engine.namespace)):
        if monotonic() > give_up_at:
            late += 1
        elif not is_pruned(ledger, submission):
            for path, can_be_made in _needed(ledger.shards.of_submission(submission.submission_id), submission):
                read += 1
                if not payloads.is_whole(path):
                    (remade if can_be_made else lost).append(path)
    state = f"labels need {counted(read, 'stored file', 'stored files')}, all present and undamaged"
    if late:
        state += f"; there was no time to read the files of {counted(late, 'older submission', 'older submissions')}"
    if not lost and not remade:
        return Finding("stored files", Severity.OK, state)
    shown = ", ".join((lost + remade)[:_FILES_SHOWN]) + (", …" if len(lost + remade) > _FILES_SHOWN else "")
    problem = f"{len(lost + remade)} of {read} stored files that labels need are gone or damaged: {shown}"
    if not lost:
        return Finding(
            "stored files", Severity.WARNING, problem, "Nothing to do: the next run that needs them writes them again."
        )
    then = (
        "Restore them from a backup. Otherwise raw results are fetched from the provider again. Requests whose results "
        "it no longer has count as unanswered. A manifest is written when its `…_batch` is materialized again."
    )
    return Finding("stored files", Severity.PROBLEM, problem, then)


def _needed(shards: Sequence[Shard], submission: Submission) -> Iterator[tuple[str, bool]]:
    """Yield the files of a submission that are needed, and whether each can be made of others."""
    if submission.manifest_path:
        yield submission.manifest_path, False
    for shard in shards:
        if shard.state is ShardState.PLANNED:
            yield shard.path, False
        if shard.raw_path:
            yield shard.raw_path, False
        if shard.results_path:
            yield shard.results_path, True


def _provider(name: str, provider: Provider) -> Finding:
    check_setup(provider)
    doubt = ask_provider(provider, utc_now())
    state = f"account {hide_secrets(provider.account)} answers"
    if doubt is not None:
        warning = f"{state}, but a batch whose create call fails may not be found again: {doubt.reason}"
        return Finding(
            f"provider {name}", Severity.WARNING, warning, "If that happens, decide with `dagster-llm-batch resolve`."
        )
    return Finding(f"provider {name}", Severity.OK, state)


def _files_at(name: str, provider: Provider) -> Iterator[Finding]:
    """Compare a provider's stored request files with its limits."""
    check = f"files at {name}"
    try:
        counts = count_files(provider)
    except Exception as error:  # noqa: BLE001 - of a provider, which may be the user's own: anything may come
        yield Finding(check, Severity.WARNING, f"the stored files cannot be counted: {error}")
        return
    for what, used, most in counts:
        if most is None:
            continue
        state = f"{used:,} of {most:,} {what}"
        if used >= most:
            yield Finding(check, Severity.PROBLEM, f"{state}: the next upload will fail", _ON_FILES)
        elif used > _NEARLY * most:
            yield Finding(check, Severity.WARNING, state, _ON_FILES)
        else:
            yield Finding(check, Severity.OK, state)


def _request_files(engine: Engine) -> Iterator[Finding]:
    """Yield request files that should have gone from their providers by now."""
    due = UploadRemover(engine.deployment).due()
    late = [shard for shard in due if _since(shard.collected_at, utc_now()) > _LATE_FILES]
    if late:
        places = ", ".join(sorted({shard.provider for shard in late}))
        problem = f"request files of {counted(len(late), 'collected batch', 'collected batches')} are still at {places}"
        yield Finding(
            "request files", Severity.WARNING, problem, "Run dagster-llm-batch prune --delete: it shows the obstacle."
        )


def _documents(engine: Engine) -> Iterator[Finding]:
    """Yield the documents at each provider, those that should have gone by now, and those out of reach."""
    accounts, now = accounts_of(engine.deployment), utc_now()
    for provider, account, count, size in engine.ledger.documents.count_stored(engine.namespace):
        state = f"{counted(count, 'document', 'documents')} ({size:,} bytes) in {provider}'s storage"
        if (provider, account) in accounts:
            yield Finding("documents", Severity.OK, state)
            continue
        then = "Configure this account and run dagster-llm-batch prune --delete, or delete them in the console."
        problem = f"{state}, account {hide_secrets(account)}, which is not configured: they stay until they expire"
        yield Finding("documents", Severity.WARNING, problem, then)
    due = DocumentRemover(engine.deployment).due()
    late = [upload for upload in due if _since(upload.lost_at or upload.needed_at, now) > _LATE_FILES]
    if late:
        places = ", ".join(sorted({upload.provider for upload in late}))
        problem = f"{counted(len(late), 'document', 'documents')} that no submission needs, still at {places}"
        yield Finding(
            "documents", Severity.WARNING, problem, "Run dagster-llm-batch prune --delete: it shows the obstacle."
        )


def _preset(deployment: DeploymentAccess, name: str, server: Server) -> Finding:
    """Report settings of a server that are unverified, and whether a smoke has verified them since."""
    check = f"preset of {name}"
    unseen, seen = unseen_facts(server)
    told = f"{server.title}: all its settings are verified on the live server"
    if unseen:
        told = (
            f"{server.title}: these settings are taken from its documents, and are not verified on the live "
            f"server: {'; '.join(_FACTS.get(name, name) for name in unseen)}. If one is wrong, a batch may be "
            "refused, or its cost may be wrong"
        )
    smoke = None
    if deployment.missing_ledger_file is None:
        namespace, asset = smoke_namespace(deployment.namespace), smoke_asset(name)
        settled = [one for one in deployment.ledger.submissions.list_all(namespace, assets=[asset]) if one.is_settled]
        smoke = next((one for one in reversed(settled) if one.outcomes.get(Outcome.SUCCEEDED.value)), None)
    if smoke is not None:
        return Finding(check, Severity.OK, f"{told}. A smoke on {smoke.created_at:%Y-%m-%d} got its labels")
    if seen:
        return Finding(check, Severity.OK, told)
    then = f"Check it with three rows, for five cents at most: dagster-llm-batch smoke {name} --max-usd 0.05"
    return Finding(check, Severity.WARNING, told, then)


def _dataset(deployment: DeploymentAccess, labeling: Labeling) -> Finding:
    engine, check = deployment.dry_engine, f"dataset {labeling.asset}"
    # The check that runs before a submission: schema and parameters against the model's limits. Nothing is sent.
    engine.check(labeling)
    limits = engine.deployment.codec(labeling).limits
    basis = engine.deployment.tariff(labeling).basis
    least = f"at least {limits.min_requests:,}, " if limits.min_requests > 1 else ""
    warnings = parameter_warnings(engine.deployment, labeling)
    problem = (
        f"{labeling.model} takes its schema{'' if warnings else ' and parameters'}; a batch holds {least}at most "
        f"{limits.max_requests:,} requests and {limits.max_bytes:,} bytes; prices: {basis.value}; "
        f"{engine.deployment.destinations.describe(labeling.model, labeling.params)}"
    )
    if (gap := engine.deployment.price_gap(labeling)) is not None:
        then = f"Costs will be unknown. {gap} Correct the model's name, or give Spend(price=TokenPrice(...))."
        return Finding(check, Severity.WARNING, problem, then)
    doubts = list(filter(None, map(engine.deployment.price_dispute, labeling.models)))
    if warnings or doubts:
        told = f"{problem}. {' '.join(warnings)}" if warnings else problem
        return Finding(check, Severity.WARNING, told, " ".join(doubts) or None)
    return Finding(check, Severity.OK, problem)


def _sink(deployment: DeploymentAccess, dataset: Dataset) -> Finding:
    deployment.code.check_sink(dataset, None)
    return Finding(f"IO manager of {dataset.name}", Severity.OK, "it can store the labels")


def _budget(engine: Engine, budget: Budget) -> Finding:
    rule = budget.rule()
    since = rule.since(utc_now())
    spent = engine.ledger.money.spent_usd(engine.namespace, asset=rule.asset, since=since)
    limit = SpendLimit(Decimal(rule.max_usd), engine.namespace, asset=rule.asset, since=since)
    kept = engine.ledger.money.committed_usd(limit)
    state = f"{rule}: {money(spent)} billed or expected, {money(kept)} at most"
    if spent > _NEARLY * limit.max_usd:
        return Finding(
            "budget", Severity.WARNING, state, "Submissions that would exceed it are refused. To send more, raise it."
        )
    return Finding("budget", Severity.OK, state)


def judge_end_forecasts(score: EndScore) -> Finding | None:
    """Return how often forecasts of ends were right; None before the first one can be judged."""
    if not score.judged_p90:
        return None
    # A low rate of few forecasts may be chance.
    is_late = score.judged_p90 >= FEWEST and bound_share(score.held_p90, score.judged_p90, 0.95)[1] < _PROMISED_BY_P90
    said = f"of earlier forecasts {score}"
    if not is_late:
        return Finding("forecasts of ends", Severity.OK, said)
    then = (
        "Submissions end later than forecast, for example because a vendor is slower. Forecasts adapt in some weeks. "
        "Leave more time, or set a deadline (`Realtime(deadline=…)`)."
    )
    return Finding("forecasts of ends", Severity.WARNING, said, then)


def _under_way(deployment: DeploymentAccess, conditions: Sequence[Condition]) -> Iterator[Finding]:
    """Yield problems of undelivered submissions, and whether batches in flight are polled."""
    now, engine = utc_now(), deployment.engine
    is_stuck = any(condition.kind in WAITS_IN_VAIN for condition in conditions)
    progress = engine.ledger.submissions.progress(engine.namespace)
    others = {p.submission.submission_id for p in progress if not deployment.is_looked_at(p.submission.asset)}
    in_flight = filter(has_batch, engine.ledger.shards.in_flight(engine.namespace))
    flying = [shard for shard in in_flight if shard.submission_id not in others]
    unseen = [shard for shard in flying if _since(shard.polled_at or shard.batch.submitted_at, now) > _UNPOLLED]
    if unseen:
        problem = f"{_part(unseen, flying)} have not been polled for more than {age(_UNPOLLED)}"
        yield Finding("polling", Severity.PROBLEM, problem, "Start Dagster's daemon, and switch the sensor on.")
    stopping = [shard for shard in flying if shard.cause is Cause.STOPPED]
    if stopping:
        problem = f"{_part(stopping, flying)} were asked to stop and have not ended; they may be billed"
        then = "Dagster's sensor repeats failed requests to stop, and collects finished answers."
        yield Finding("canceled batches", Severity.WARNING, problem, then)
    if deployment.has_code:
        accounts = {name: account_of(provider) for name, provider in engine.providers.items()}
        for provider, account in sorted({(s.provider, s.account) for s in flying if s.state in IN_FLIGHT}):
            # Another account does not know the batch: asked there, it would look lost.
            if accounts.get(provider) != account:
                advice = RULES[HoldReason.CANNOT_ASK].message(provider, account, accounts.get(provider))
                yield Finding("accounts", Severity.PROBLEM, advice.problem, f"{advice.then}.")
    if not (is_stuck or unseen or stopping):
        state = f"{count_batches(flying)} in flight, 0 in doubt, all polled"
        yield Finding("batches under way", Severity.OK, state)


def _part(shards: Sequence[Shard], flying: Sequence[Shard]) -> str:
    return f"{count_batches(shards):,} of {count_batches(flying):,} batches"


def _shown(conditions: Sequence[Condition]) -> Iterator[Finding]:
    """Yield the conditions, by the list that ticks go by."""
    for kind in ConditionKind:
        first, rest = split_by_dataset(condition for condition in conditions if condition.kind is kind)
        shown = [*first, *rest][: max(_CONDITIONS_SHOWN, len(first))]
        for condition in shown:
            place = "" if kind in _NAMED_BY_THEMSELVES else f"{condition.submission.place}: "
            is_problem = condition.is_due(utc_now()) and kind not in GOES_ON
            verdict = Severity.PROBLEM if is_problem else Severity.WARNING
            yield Finding(kind.value, verdict, f"{place}{condition.advice.problem}", f"{condition.advice.then}.")
        if more := len(first) + len(rest) - len(shown):
            then = "dagster-llm-batch list shows all submissions."
            yield Finding(kind.value, Severity.WARNING, f"{more:,} more like these", then)


def _unread_rows(unread: Mapping[str, Exception]) -> Iterator[Finding]:
    """Yield rows of the ledger that cannot be read. Their conditions are unknown."""
    for row_id, error in unread.items():
        said = f"the row {row_id} cannot be read: {_reason(error)}"
        then = "Use the version of this package that wrote it, or restore the ledger from a backup."
        yield Finding("ledger rows", Severity.PROBLEM, said, then)


def _left(deployment: DeploymentAccess) -> Iterator[Finding]:
    """Yield rows without a label that only a person can send again."""
    for submission, shard in deployment.ledger.submissions.left_shards(deployment.namespace):
        if not deployment.is_looked_at(submission.asset):
            continue
        # All of it may have been answered where it was sent.
        if shard.cause is Cause.ADOPTED and set(submission.outcomes) == {Outcome.SUCCEEDED.value}:
            continue
        advice = RULES[HoldReason.LATE_ANSWERS].message(submission, shard)
        yield Finding("rows without a label", Severity.WARNING, advice.problem, f"{advice.then}.")


def _kept_in_vain(deployment: DeploymentAccess) -> Iterator[Finding]:
    """Yield money that limits keep for submissions that are not being sent."""
    for kept in find_kept_money(deployment).values():
        if kept.nobody is not None and deployment.is_looked_at(kept.submission.asset):
            yield Finding("kept money", Severity.WARNING, kept.text, kept.then)


def _erased(deployment: DeploymentAccess) -> Iterator[Finding]:
    """Yield assets with rows that were erased, and that files or providers hold still."""
    ledger, namespace = deployment.ledger, deployment.namespace
    known = (tombstone.asset for tombstone in ledger.tombstones.list_all(namespace))
    tombstones = Counter(asset for asset in known if deployment.is_looked_at(asset))
    for asset, count in sorted(tombstones.items()):
        submissions = ledger.submissions.list_all(namespace, assets=[asset])
        here = sum(not submission.has_applied(count) for submission in submissions)
        stored = ledger.shards.at_providers(namespace, asset)
        there = count_batches(shard for shard in stored if owns_batch([shard]))
        if here or there:
            problem = (
                f"rows of {asset} were erased; {counted(here, 'submission', 'submissions')} may hold some of them, and "
                f"providers store {counted(there, 'batch', 'batches')} with such rows"
            )
            then = f"Run dagster-llm-batch erase {asset} --delete: it continues, and shows the obstacle."
            yield Finding("erased rows", Severity.WARNING, problem, then)


def _since(then: datetime | None, now: datetime) -> timedelta:
    return timedelta() if then is None else now - then


def _prices(deployment: DeploymentAccess) -> Finding:
    now = utc_now()
    if deployment.has_code and deployment.resource.fetched_prices:
        use_fetched_book(deployment.payloads)
        if (at := fetched_at()) is None:
            then = "Fetch one: dagster-llm-batch prices --fetch. Until then the bundled book holds."
            return Finding("price book", Severity.WARNING, "fetched_prices is set, but no book was fetched", then)
        state = f"{book_text(now.date())}, {age(now - at)} old"
        if now - at > OLD_BOOK:
            then = "Fetch it again: dagster-llm-batch prices --fetch"
            return Finding("price book", Severity.WARNING, state, then)
        return Finding("price book", Severity.OK, state)
    changed = newest_price_change(now.date())
    state = book_text(now.date())
    if changed is None or now.date() - changed > _OLD_PRICES:
        then = "Upgrade it: pip install --upgrade genai-prices; or see `dagster-llm-batch prices --help`"
        return Finding("price book", Severity.WARNING, state, then)
    ago = now.date() - changed
    return Finding("price book", Severity.OK, f"{state}, {f'{age(ago)} ago' if ago else 'today'}")


def _price_books(deployment: DeploymentAccess) -> list[str | None] | None:
    """Return the price books of the configured providers; None for all vendors, if the providers are unknown."""
    if not deployment.has_code:
        return None
    made = [provider for provider in deployment.dry_engine.providers.values() if account_of(provider) is not None]
    return [provider.price_book for provider in made] if made else None


def judge_price_rules(books: Collection[str | None] | None, today: date) -> Finding:
    """Tell how old the oldest of our own price rules is that these price books rest on; of all books where None."""
    oldest = oldest_source(books)
    old = today - oldest.read_on
    state = rules_text(oldest, today, "" if books is None else " for the configured providers")
    if old > _OLD_RULES:
        state += " That is more than a year, so estimates and costs that rest on it may be wrong."
        then = f"Upgrade dagster-llm-batch, or compare {oldest.document} with your bill."
        return Finding("price rules", Severity.WARNING, state, then)
    return Finding("price rules", Severity.OK, f"{state} A rule counts as current for a year.")
