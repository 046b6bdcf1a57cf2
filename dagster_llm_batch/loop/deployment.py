"""The deployment that every step works for: its providers, ledger, payload store and rules."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar

from dagster_llm_batch.arguments import nearest_name
from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.core.identity import canonical_json, configuration_fingerprint
from dagster_llm_batch.core.keys import ErasedKeys
from dagster_llm_batch.core.memory import release_all_memory
from dagster_llm_batch.core.pricing import FREE, Estimate, Tariff, context_tokens, price_dispute, price_gap, tariff
from dagster_llm_batch.core.sharding import tightest
from dagster_llm_batch.core.token_counts import InputCounter, output_tokens, tokenizer_of, writes_cache
from dagster_llm_batch.definition.destinations import AllowedDestinations
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.definition.rules import Budget, QueueLimit
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.request_files import Owner, definition_in, levels_of
from dagster_llm_batch.loop.provider_facts import account_of, window_of
from dagster_llm_batch.protocols import Codec, Provider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.openrouter.servers import INLINE_SERVERS
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.events import EventData
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.records import QueueOccupancy, Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore, unnamed_file
from dagster_llm_batch.types import BatchLimits, Lane, PriceBasis, RequestSpec

if TYPE_CHECKING:
    from dagster_llm_batch.core.forecast import Learned
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.shares import AuditedAnswers

__all__ = [
    "GONE_AFTER",
    "LONGEST_PAUSE",
    "PART_ROWS",
    "Deployment",
    "Gate",
    "SentDefinition",
    "Threads",
    "new_id",
    "submissions_at_work",
]

PART_ROWS = 8_192
"""Labels of more rows are assembled in parts, unless a deployment sets another number."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads(ThreadPoolExecutor):
    """A pool whose calls see the caller's context variables: a span of OpenTelemetry finds its parent there.

    At the end of `with`, also after an error, started calls finish and the others are canceled.
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        call = partial(fn, *args, **kwargs)
        # A copy for each call: two threads cannot be in one context at the same time.
        return super().submit(copy_context().run, call)

    def __exit__(self, *_error: object) -> None:
        self.shutdown(cancel_futures=True)
        # Each thread had an arena in C's allocator, which would keep the freed memory.
        release_all_memory()


# The number of earlier submissions to learn from, and the number of tokens priced at a time to get a price per token.
_REMEMBERED, _MANY = 80, 1_000

_LEASE = "submission:"
_AT_WORK = "run:"
_LEASE_SECONDS = 60.0

# The patience that each answer restores.
_EARNED = timedelta(seconds=1)

# A batch is overdue after its vendor's window times this factor.
_GRACE = 1.5

# The time for which a gate stays closed if the provider named no time.
_SHORTEST_ABSENCE = timedelta(minutes=1)

GONE_AFTER = timedelta(hours=1)
"""The time for which a provider must not know a batch, or its results, before they count as gone. A vendor can miss one
for a moment, for example while a replica lags behind. Then its answers would be abandoned too early.
"""

LONGEST_PAUSE = timedelta(hours=1)
"""The longest wait for the next try, whatever wait a provider names."""


def new_id() -> str:
    """Return the id of a new submission. All ids in its plan are derived from it."""
    return uuid.uuid4().hex


class Gate:
    """Limit the total wait of real-time calls to one model while its provider turns them away. Thread-safe.

    Calls that wait at the same time count once. When the patience is used up, the gate closes for this process. Calls
    do not wait at a closed gate: unasked requests are left to a later run.
    """

    def __init__(self, clock: Callable[[], datetime], patience: timedelta) -> None:
        self._clock = clock
        self._patience = self._left = patience
        self._waited_until = self._not_before = clock()
        self._closed_until: datetime | None = None
        self._lock = threading.Lock()

    @property
    def closed_until(self) -> datetime | None:
        """Return when the gate opens again, with new patience; None while it is open."""
        with self._lock:
            if self._closed_until is not None and self._closed_until <= self._clock():
                self._closed_until, self._left = None, self._patience
            return self._closed_until

    def seconds_to_wait(self) -> float:
        """Return how long to wait before the next call. A rate limit holds for all calls to the model."""
        return max(0.0, (self._not_before - self._clock()).total_seconds())

    def turn_away(self, seconds: float, *, is_for_all: bool) -> bool:
        """Record that a call was turned away for so long; return whether enough patience is left to wait."""
        with self._lock:
            now = self._clock()
            until = now + min(timedelta(seconds=min(seconds, 1e9)), LONGEST_PAUSE)
            more = until - max(now, self._waited_until)
            if more > self._left:
                self._closed_until = until if is_for_all else now + _SHORTEST_ABSENCE
                return False
            if more > timedelta():
                self._left -= more
                self._waited_until = until
            if is_for_all:
                self._not_before = max(self._not_before, until)
            return True

    def let_in(self) -> None:
        """Record an answered call, which restores one second of patience."""
        with self._lock:
            self._left = min(self._patience, self._left + _EARNED)


@dataclass(frozen=True)
class SentDefinition:
    """The definition that a submission was sent by.

    `is_known` is True if it is stored. Older code did not store it. Then `labeling` is the present definition, and the
    only known fact is whether the two differ.
    """

    labeling: Labeling
    submission: Submission
    is_known: bool
    _find_changes: Callable[[], Sequence[str]]

    @cached_property
    def changes(self) -> Sequence[str]:
        """The arguments that differ now. Reads the account from the provider."""
        return self._find_changes()

    def refuse_unknown(self) -> None:
        """Raise ConfigError if an unstored definition, which differs from the present one, asked for the replies."""
        if self.is_known or not self.changes:
            return
        raise ConfigError(
            f"Submission {self.submission.submission_id} of '{self.submission.asset}' was made with another model, "
            "parameters, response schema or account than the present definition has, so its replies are not read with "
            "it. They stay stored unchanged. Restore the earlier definition to label with it, or submit the rows again."
        )


@dataclass(frozen=True)
class Deployment:
    """One deployment of labelings. It is equal in all processes that share a ledger and a namespace.

    Args:
        providers: By name, the first part of a labeling's model.
        ledger: Records submissions, shards and leases.
        payloads: Stores requests and results.
        namespace: Keeps production, branches and development apart within one ledger and payload store.
        clock: Returns the present time, with its time zone.
        sleep: Waits for so many seconds.
        lease_wait_seconds: The time to wait for another process that works on the same submission.
        download_wait_seconds: The time to wait for another process that downloads the same shared batch.
        budgets: Limits on the total cost of all submissions in a period.
        queue_limits: By name of a provider: how much may be in its queue at once.
        overdue_after: The time until a batch is reported as overdue. None: one and a half windows of the vendor.
        fetched_prices: True to use the price book that `dagster-llm-batch prices --fetch` stored, if any. False: only
            the bundled book.
        transfers_at_once: The number of simultaneous uploads of request files, and of downloads of results.
        tune: True to plan new submissions by the history of earlier ones; see advice/tuner.py.
        keep_request_files: The time for which a batch's request file stays at its provider after its results were
            stored. None: it is not deleted.
        kinds: By name of a provider: its kind in the registry. Default: the name itself.
        destinations: The allowed destinations of rows; default: all.
        new_id: Returns a unique id for a new submission.
        few_rows: A plan with more rows keeps their keys and request_ids in files.
        few_known: Up to this many known requests are held without numpy, which takes long to load.
        part_rows: Labels of more rows are assembled in parts. Another number changes the data versions of streams.
        new_file: Makes an unnamed temporary file.
        gates: By provider, account and model: this process's gates for calls in real time.
        batch_outcomes: By provider, account and batch_id: the outcomes of shared batches, if this process has counted
            them.
        opened_here: The ids of submissions opened by this process: all of their sendings are on record.
        codecs: The 16 newest codecs, each with its provider and its spec.
    """

    providers: Mapping[str, Provider]
    ledger: Ledger
    payloads: PayloadStore
    namespace: str
    clock: Callable[[], datetime] = utc_now
    sleep: Callable[[float], None] = time.sleep
    lease_wait_seconds: float = 0.0
    download_wait_seconds: float = 600.0
    budgets: Sequence[Budget] = ()
    queue_limits: Mapping[str, QueueLimit] = field(default_factory=dict)
    overdue_after: timedelta | None = None
    fetched_prices: bool = False
    transfers_at_once: int = 4
    tune: bool = False
    keep_request_files: timedelta | None = timedelta(days=1)
    kinds: Mapping[str, str] = field(default_factory=dict)
    destinations: AllowedDestinations = field(default_factory=AllowedDestinations)
    new_id: Callable[[], str] = new_id
    few_rows: int = 1 << 15
    few_known: int = 1 << 12
    part_rows: int = PART_ROWS
    new_file: Callable[[], IO[bytes]] = unnamed_file
    gates: dict[tuple[str, str, str], Gate] = field(default_factory=dict)
    batch_outcomes: dict[tuple[str, str, str], Counter[str]] = field(default_factory=dict)
    opened_here: set[str] = field(default_factory=set)
    codecs: deque[tuple[Provider, RequestSpec, Codec]] = field(default_factory=partial(deque, maxlen=16))

    def __post_init__(self) -> None:
        """Raise ConfigError for a number of transfers below 1, or no time for a batch."""
        if self.transfers_at_once < 1:
            raise ConfigError(f"transfers_at_once={self.transfers_at_once!r} is not allowed; it is at least 1.")
        if self.overdue_after is not None and self.overdue_after <= timedelta():
            raise ConfigError(f"overdue_after={self.overdue_after} is not allowed; a batch needs some time.")
        if self.keep_request_files is not None and self.keep_request_files < timedelta():
            raise ConfigError(f"keep_request_files={self.keep_request_files} is not allowed; it is None, or 0 or more.")

    def erased_keys(self, partition: str, *assets: str) -> ErasedKeys:
        """Return the keys of a partition's rows that were erased from these assets."""
        tombstones = self.ledger.tombstones.list_all(self.namespace, *assets)
        digests: defaultdict[str, set[str]] = defaultdict(set)
        for tombstone in tombstones:
            if tombstone.undone_at is None and tombstone.partition in (None, partition):
                digests[tombstone.salt].add(tombstone.digest)
        return ErasedKeys({salt: frozenset(known) for salt, known in digests.items()}, len(tombstones))

    def leased(self, *submission_ids: str, wait_seconds: float | None = None) -> AbstractContextManager[Lease]:
        """Hold these submissions' leases during a block. Raises LeaseError if another process has one."""
        patience = self.lease_wait_seconds if wait_seconds is None else wait_seconds
        names = [_lease_name(submission_id) for submission_id in submission_ids]
        return self.ledger.leases.hold(*names, seconds=_LEASE_SECONDS, wait_seconds=patience)

    def provider(self, name: str) -> Provider:
        """Return the configured provider of this name. Raises ConfigError for an unknown name."""
        if name not in self.providers:
            known = ", ".join(sorted(self.providers)) or "none"
            presets = {*SERVERS, *INLINE_SERVERS}
            near = None if name in PROVIDERS or name in presets else nearest_name(name, {*PROVIDERS, *self.providers})
            settings = f"preset({name!r}, ...)" if name in presets else "..."
            field_text = f"{name}=..." if name in PROVIDERS else f"providers={{{name!r}: {settings}}}"
            then = f"Add it to LLMBatchResource({field_text})." if near is None else f"Did you mean '{near}'?"
            raise ConfigError(f"No provider '{name}' is configured; configured: {known}. {then}")
        return self.providers[name]

    def kind(self, name: str) -> str:
        """Return the kind of the provider of this name: facts that its vendor decides, and not its account."""
        return self.kinds.get(name, name)

    def codec(self, labeling: Labeling) -> Codec:
        """Return the codec for this labeling's requests. Raises what Provider.codec raises."""
        provider, spec = self.provider(labeling.provider), labeling.spec
        # Each step asks for it, and lowering a response schema takes longer than the lines of a small batch. A labeling
        # makes its spec once, so the same object is the same spec.
        for known_provider, known_spec, known in tuple(self.codecs):
            if known_provider is provider and known_spec is spec:
                return known
        codec = provider.codec(spec)
        self.codecs.append((provider, spec, codec))
        return codec

    def queue_limit(self, provider: str, model: str) -> tuple[QueueLimit | None, str | None]:
        """Return the limit for a model, and the model that it counts (None: all models of the provider)."""
        if (own := self.queue_limits.get(f"{provider}/{model}")) is not None:
            return own, model
        return self.queue_limits.get(provider), None

    def batch_limits(self, labeling: Labeling) -> BatchLimits:
        """Return the limits of one batch: the least of the provider's, the labeling's and the queue's."""
        limits = labeling.limits
        tight = tightest(self.codec(labeling).limits, limits.max_requests_per_batch, limits.max_bytes_per_batch)
        queue, _ = self.queue_limit(labeling.provider, labeling.spec.model)
        return tight if queue is None else tightest(tight, queue.max_requests, max_tokens=queue.max_tokens)

    def configuration(self, labeling: Labeling) -> str:
        """Return the fingerprint of an answer's inputs besides the request: account, model, parameters, schema."""
        account = self.provider(labeling.provider).account
        own = configuration_fingerprint(account, labeling.provider, labeling.spec)
        if labeling.mask is not None:
            masked = canonical_json(labeling.mask.settings())
            own = hashlib.sha256(f"{own} {masked}".encode()).hexdigest()[: len(own)]
        if labeling.cascade is None:
            return own
        # Another oracle gives other labels.
        return hashlib.sha256(f"{own} {self.configuration(labeling.models[1])}".encode()).hexdigest()[: len(own)]

    def sent_definition(self, labeling: Labeling, submission: Submission) -> SentDefinition:
        """Return the definition that a submission was sent by. It is used to read and materialize the answers."""
        stored = definition_in(self.payloads, submission.manifest_path)

        def find_changes() -> Sequence[str]:
            if stored is None:
                is_other = submission.config_fingerprint != self.configuration(labeling)
                return ["model, parameters, response schema or account"] if is_other else []
            provider = self.providers.get(submission.provider)
            is_other = provider is not None and account_of(provider) not in (None, submission.account)
            return [*labeling.changes_since(stored), *(["account"] if is_other else [])]

        as_sent = labeling if stored is None else labeling.as_of(stored)
        return SentDefinition(as_sent, submission, is_known=stored is not None, _find_changes=find_changes)

    def leases(self) -> set[str]:
        """Return the ids of the submissions that processes work on now."""
        return submissions_at_work(self.ledger)

    def at_work(self, run_id: str) -> AbstractContextManager[Lease]:
        """Show during a block that this run plans and sends. The lease of a dead process expires."""
        return self.ledger.leases.hold(f"{_AT_WORK}{run_id}:{uuid.uuid4().hex}", seconds=_LEASE_SECONDS)

    def runs_at_work(self) -> set[str]:
        """Return the ids of the runs that plan and send now."""
        names = (name for name in self.ledger.leases.active() if name.startswith(_AT_WORK))
        return {name.removeprefix(_AT_WORK).rpartition(":")[0] for name in names}

    def levels(self, labeling: Labeling, submission: Submission) -> Levels | None:
        """Return a cascade's record of the model that answers each row; None if the labeling is no cascade."""
        if labeling.cascade is None:
            return None
        return levels_of(self.payloads, submission)

    def shares(self, labeling: Labeling, submission: Submission) -> AuditedAnswers | None:
        """Return the near copies or the older labels of a submission, and the decision on them.

        None if the labeling has no such setting, or the submission has nothing to decide.
        """
        if labeling.audited is None:
            return None
        from dagster_llm_batch.files.share_files import relabels_of, shares_of  # noqa: PLC0415 - few labelings do

        return (relabels_of if labeling.near is None else shares_of)(self.payloads, submission)

    def has_audit(self, labeling: Labeling, submission: Submission) -> bool:
        """Return whether a submission has stored what an audit decides on, even if that is lost."""
        if labeling.relabel is None or submission.questions is None:
            return labeling.near is not None
        if labeling.cascade is None:
            return True
        # Each cascade has questions.
        levels = self.levels(labeling, submission)
        return levels is not None and levels.has_older_labels

    def tariff(self, labeling: Labeling) -> Tariff:
        """Return the present prices of this labeling's requests in a batch."""
        return self.terms(labeling)()

    def price_gap(self, labeling: Labeling) -> str | None:
        """Return why the labeling's price is unknown; None if it is known."""
        if self.tariff(labeling).basis is not PriceBasis.UNKNOWN:
            return None
        return price_gap(self.provider(labeling.provider).price_book or "", labeling.spec.model, self.clock())

    def price_dispute(self, labeling: Labeling) -> str | None:
        """Return the difference between two price tables for the labeling's model; None if its price is undisputed."""
        book = self.provider(labeling.provider).price_book
        if book is None or labeling.spend.price is not None:
            return None
        return price_dispute(book, labeling.spec.model, self.clock())

    def terms(self, labeling: Labeling) -> Callable[[], Tariff]:
        """Return a picklable factory for the tariff: a tariff with tiers cannot be pickled to workers."""
        book = self.provider(labeling.provider).price_book
        if book is None and labeling.spend.price is None:
            return _free
        about = (book or "", labeling.spec.model, self.clock(), labeling.spend.price)
        return partial(_tariff_of_fetched, self.payloads, *about) if self.fetched_prices else partial(tariff, *about)

    def context_tokens(self, labeling: Labeling) -> int | None:
        """Return the model's context window in tokens; None if unknown."""
        book = self.provider(labeling.provider).price_book
        return None if book is None else context_tokens(book, labeling.spec.model)

    def counter(self, labeling: Labeling) -> InputCounter:
        """Return the counter of the input tokens of this labeling's requests."""
        book = self.provider(labeling.provider).price_book
        return InputCounter(book, labeling.spec, self.context_tokens(labeling), self.tokenizer(labeling))

    def tokenizer(self, labeling: Labeling) -> Callable[[Sequence[str]], list[int]] | None:
        """Return the tokenizer of the labeling's model, if it is installed and needs no network."""
        book = self.provider(labeling.provider).price_book
        return _openai_tokenizer() if tokenizer_of(book, labeling.spec.model) == "o200k" else None

    def estimate(self, labeling: Labeling, lane: Lane = Lane.BATCH, learned: Learned | None = None) -> Estimate:
        """Return an estimate, without any request yet, at the prices of this labeling's model in this lane."""
        spec = labeling.spec
        said, default = labeling.spend.expected_output_tokens, self.provider(labeling.provider).default_output_tokens
        output = output_tokens(spec, self.context_tokens(labeling), said, default)
        return Estimate(self.tariff(labeling).of(lane), output, writes_cache=writes_cache(spec), learned=learned)

    def learned(self, labeling: Labeling, *, of_oracle: bool = False) -> Learned | None:
        """Return estimates from earlier submissions of this labeling for the next one; None with too little history.

        With `of_oracle`, the estimates are for the requests to the oracle of its cascade.
        """
        names = (labeling.asset, *labeling.resend.former_names)
        asked = labeling.models[1] if of_oracle else labeling
        billed = self.ledger.history.billed_submissions(self.namespace, names, labeling.model, _REMEMBERED)
        taught = {s.submission_id: _taught(s, asked.model if of_oracle else None) for s in billed}
        if not (known := [submission for submission in billed if taught[submission.submission_id] is not None]):
            return None
        from dagster_llm_batch.core.forecast import Billed, Rates, learn  # noqa: PLC0415 - only where there are some

        configured = (self.configuration(labeling), labeling.prompt_version)
        same: list[Submission] = []
        alike: list[Submission] = []
        for submission in reversed(known):
            is_same = (submission.config_fingerprint, _billed(submission)["prompt"]) == configured
            (same if is_same else alike).append(submission)
        tariff = self.tariff(asked)
        rates = Rates(*(float(tariff.mean_usd(*tokens) or 0) for tokens in ((_MANY, 0), (0, _MANY))))
        if not any(rates):
            rates = Rates(1, 1)
        earlier, others = (
            [Billed(*(taught[each.submission_id][name] for name in Billed._fields)) for each in of]  # type: ignore[index]
            for of in (same, alike)
        )
        learned = learn(earlier, others, rates)
        if learned is not None and labeling.cascade is not None:
            # The share that is escalated matters more for the total than the length of one model's replies.
            learned = replace(learned, low=None, high=None)
        told = [s for s in same if None not in (s.p05_usd, s.p95_usd, s.cost_usd)]
        held = sum(s.p05_usd <= s.cost_usd <= s.p95_usd for s in told)  # type: ignore[operator]  # all known
        return None if learned is None else replace(learned, judged=len(told), held=held)

    def owner(self, labeling: Labeling, lane: Lane = Lane.BATCH) -> Owner:
        """Return the provider, account and model that this labeling asks."""
        account, has_uploads = self.provider(labeling.provider).account, labeling.prompt.documents_as == "upload"
        return Owner(labeling.provider, account, labeling.spec.model, lane, has_uploads)

    def provider_of(self, shard: Shard) -> Provider:
        """Return the shard's provider. Raises ConfigError if another account is configured now."""
        provider = self.provider(shard.provider)
        # Another account would report all batches of the shard as gone, and they would be paid again.
        if provider.account != shard.account:
            former, now = hide_secrets(shard.account), hide_secrets(provider.account)
            msg = (
                f"Shard {shard.shard_id} was made with the {shard.provider} account '{former}'; the configured "
                f"account '{now}' cannot see its batches. Configure '{former}' again until its submission "
                f"{shard.submission_id} is complete, or submit the rows again."
            )
            raise ConfigError(msg)
        return provider

    def gate(self, labeling: Labeling) -> Gate:
        """Return the gate that all calls in real time to this labeling's model share in this process."""
        owner = self.owner(labeling)
        gate = Gate(self.clock, labeling.realtime.patience)
        return self.gates.setdefault((owner.provider, owner.account, owner.model), gate)

    def is_late(self, submission: Submission) -> bool:
        """Return whether the submission's deadline has passed."""
        return submission.deadline_at is not None and self.clock() >= submission.deadline_at

    def noted_since(self, shard: Shard, data: EventData) -> datetime | None:
        """Return when an event of this kind was first recorded for a shard; None if it is recorded only now.

        A later time than now comes from a wrong clock. The event is then recorded again, or nothing would follow until
        then.
        """
        now = self.clock()
        for event in self.ledger.events.of_submission(shard.submission_id):
            if event.kind == data.kind and event.shard_id == shard.shard_id and event.at <= now:
                return event.at
        self.ledger.events.add(shard.submission_id, data, shard.shard_id)
        return None

    def overdue_at(self, shard: Shard) -> datetime | None:
        """Return when the shard's batch becomes, or became, overdue; None if it is not in flight."""
        if shard.state is not ShardState.SUBMITTED or shard.batch.submitted_at is None:
            return None
        return shard.batch.submitted_at + self.patience(shard)

    def patience(self, shard: Shard) -> timedelta:
        """Return how long the shard's batch may take, or wait for room, before it is reported."""
        return self.overdue_after or _GRACE * window_of(self.providers.get(shard.provider))

    def queue_occupancy(self, shard: Shard) -> QueueOccupancy:
        """Return the present rule for counting batches in the queue of the shard's provider."""
        return QueueOccupancy.at(self.clock(), window_of(self.providers.get(shard.provider)))

    def is_overdue(self, shard: Shard) -> bool:
        """Return whether the shard's batch runs for longer than its vendor documents, plus a grace."""
        at = self.overdue_at(shard)
        return at is not None and at <= self.clock()

    def tag(self, shard: Shard) -> str:
        """Return the tag that identifies the shard's batch at the provider: the namespace's digest and the nonce."""
        owner = hashlib.blake2b(self.namespace.encode(), digest_size=4).hexdigest()
        return f"dlb-{owner}-{shard.nonce}"


def _taught(submission: Submission, oracle: str | None) -> Mapping[str, Any] | None:
    """Return the bill of a submission's own model, or of this oracle; None without a bill."""
    billed = _billed(submission)
    if oracle is None:
        return billed if "requests" in billed else None
    of_oracle: Mapping[str, Any] | None = billed.get("oracle")
    return of_oracle if of_oracle is not None and of_oracle["model"] == oracle else None


def _billed(submission: Submission) -> Mapping[str, Any]:
    # The query returns only submissions that have it.
    assert submission.billed is not None
    return submission.billed


def submissions_at_work(ledger: Ledger) -> set[str]:
    """Return the ids of submissions that living processes work on now."""
    return {name.removeprefix(_LEASE) for name in ledger.leases.active() if name.startswith(_LEASE)}


def _tariff_of_fetched(payloads: PayloadStore, *about: Any) -> Tariff:
    """Return a tariff by the fetched price book; see `tariff`. Works in a worker without a deployment, too."""
    use_fetched_book(payloads)
    return tariff(*about)


def use_fetched_book(payloads: PayloadStore) -> None:
    """Take prices from the book that was last fetched into this store, if any. See `use_stored_book`."""
    from dagster_llm_batch.core.price_book import BOOK_FILE, use_stored_book  # noqa: PLC0415 - it takes a while to load

    def read() -> bytes | None:
        if not payloads.exists(BOOK_FILE):
            return None
        with payloads.reader(BOOK_FILE) as file:
            return file.read()

    use_stored_book(repr(payloads), read, time.monotonic())


# The vocabulary of OpenAI's models since gpt-4o: its address in tiktoken, and its digest. From tiktoken 0.14.0.
_VOCABULARY = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
_VOCABULARY_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


@lru_cache(maxsize=1)
def _openai_tokenizer() -> Callable[[Sequence[str]], list[int]] | None:
    """Return the token counter of tiktoken; None if tiktoken, or the file that it would download, is missing."""
    if find_spec("tiktoken") is None:
        return None
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    cache = Path(tempfile.gettempdir(), "data-gym-cache") if folder is None else Path(folder)
    try:
        vocabulary = (cache / hashlib.sha1(_VOCABULARY.encode(), usedforsecurity=False).hexdigest()).read_bytes()
    except OSError:
        return None
    # tiktoken would replace any other file by a download.
    if folder == "" or hashlib.sha256(vocabulary).hexdigest() != _VOCABULARY_SHA256:
        return None
    encoding = import_module("tiktoken").get_encoding("o200k_base")
    return lambda texts: [len(encoding.encode_ordinary(text)) for text in texts]


def _free() -> Tariff:
    return FREE


def _lease_name(submission_id: str) -> str:
    return f"{_LEASE}{submission_id}"
