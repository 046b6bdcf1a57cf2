"""The sample of a cascade's plan, and its requests to the oracle in the first wave; `escalation.py` has the second.

    wave 1   the model gets all requests, the oracle the requests of the sampled rows
    wave 2   the oracle gets the requests below the threshold, and those without a valid answer of the model
    later    requests that the oracle did not answer, as far as Resend allows; the model gets no request again

The decisions are in a file next to the manifest, which is written before a wave depends on it. They are computed from
stored results alone, so the file is the same if it is written again after a crash. If a cascade would cost more than
the oracle alone, the sample is all rows, and the model gets no request.

Only labelings with a cascade import this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property, partial
from itertools import compress, count
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.cascade.gold import read_gold
from dagster_llm_batch.cascade.sample_size import readable_levels
from dagster_llm_batch.core.audit import Audit, Calibration, count_independent
from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, canonical_json, configuration_fingerprint, packed
from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.memory import chunks
from dagster_llm_batch.core.pricing import Costs, Estimate
from dagster_llm_batch.core.thresholds import (
    choose_sample,
    count_allowed,
    count_least,
    digest_keys,
    expect_accepted,
    look_confidence,
    relative_cost,
    smallest,
)
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.errors import ConfigError, MissingGoldError
from dagster_llm_batch.files.request_files import (
    CALIBRATION,
    ShardFiles,
    WrittenLines,
    delete_requests,
    levels_of,
    requests_of,
)
from dagster_llm_batch.loop.knowledge import find_requests
from dagster_llm_batch.loop.plan import OracleShare, Plan, Planning, RowsState
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.core.shares import AuditedAnswers
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.files.request_writer import Drafted
    from dagster_llm_batch.loop.known_requests import KnownRequests

__all__ = ["draw_sample", "forget_sampled", "store_levels"]

_ID = "llm_request_id"
_ROWS_AT_ONCE = 65_536
# The number of earlier submissions on which expectations are based.
_REMEMBERED, _LOOKED_AT = 5, 100
_AT_ONCE, _COUNTED_AT_ONCE = 16, 1_024
# For a line without a count of tokens: the model's own answer exists already.
_BYTES_A_TOKEN = 4


def forget_sampled(payloads: PayloadStore, submission: Submission, going: set[str]) -> None:
    """Remove requests of erased rows from the stored sample and audit."""
    levels = levels_of(payloads, submission)
    if levels is not None and not going.isdisjoint(levels.drawn):
        store_levels(payloads, submission.folder, levels.keep_drawn({*levels.drawn} - going))


def store_levels(payloads: PayloadStore, folder: str, levels: Levels) -> None:
    """Write the decisions on a submission into its folder."""
    with payloads.writer(f"{folder}/{CALIBRATION}") as out:
        out.write(levels.as_json())


def _cascade(labeling: Labeling) -> Cascade:
    assert labeling.cascade is not None
    return labeling.cascade


@dataclass(frozen=True)
class _Looks:
    """Earlier interim looks at the same rows, as far as their files exist, and digests of these rows.

    `asked` is the number of these rows that the cascade labels now: all but those apart (see Sampling).
    """

    asked: int
    keys_id: str
    requests_id: str
    known: Mapping[tuple[str, int | None], Levels | None]

    def of(self, cascade: Cascade, calibration: str, seed: str, sample: int | None) -> int:
        """Return the number of this look, from 1 on. `sample` is the number of drawn rows, if it is known.

        A repeated decision is the same look. So is a stricter guarantee with the same sampled rows: a favorable result
        is not a reason for more requests to the oracle.
        """
        looks = [None if levels is None else levels.look for levels in self.known.values()]
        for levels in filter(None, self.known.values()):
            if sample not in (None, levels.sample):
                continue
            is_stricter = (
                sample is not None
                # Other rows apart leave other rows to draw from.
                and levels.rows == self.asked
                and (levels.seed, levels.score, levels.target) == (seed, cascade.score, cascade.target)
                and (levels.within is None) is (cascade.within is None)
                and (levels.filters, levels.yes) == (cascade.filters, cascade.yes)
                and levels.agreement <= cascade.least_share
                and levels.confidence <= cascade.confidence
            )
            if is_stricter or levels.calibration_id == calibration:
                return levels.look or 1
        # Each submission of older code, or without files, is one more look.
        return 1 + looks.count(None) + max(filter(None, looks), default=0)


def draw_sample(plan: Plan, planning: Planning) -> Plan:
    """Take the step of a cascade: draw the sample, and write the oracle's requests of the first wave."""
    sampling = Sampling(planning)
    planning.unwanted.callback(sampling.discard)
    if plan.rows_state is not RowsState.NEW:
        assert plan.known is not None
        sampling.repeat(plan.known)
        return replace(plan, questions=0)
    knowledge, oracle = planning.knowledge, planning.labeling.models[1].model
    place = (planning.deployment, planning.labeling, knowledge.reusable)
    answered = find_requests(*place, again=knowledge.again, of=oracle)
    try:
        sampled = sampling.draw(plan, answered)
    except MissingGoldError as error:
        return replace(plan, refusals=(*plan.refusals, error))
    return replace(sampled, sources=knowledge.reusable_ids if sampled.drafted.reused or answered else ())


@dataclass(frozen=True)
class _Chosen:
    """The size of the sample, and its basis.

    Attributes:
        size: The number of rows; all rows if a cascade would cost more than its oracle.
        audit, earlier: The audit of `Rolling`, and the threshold of earlier partitions; None without them.
        relative_cost: The expected cost as a share of the oracle's for all rows; None if unknown.
        accepted: The expected share of rows whose label of the model is accepted.
        each: The expected cost of one request to the oracle; None if unknown.
        seed, calibration, looks: The seed of the draw, its digest, and earlier looks at these rows.
    """

    size: int
    audit: Audit | None
    earlier: Calibration | None
    relative_cost: float | None
    accepted: float
    each: Decimal | None
    seed: str
    calibration: str
    looks: _Looks


@dataclass(frozen=True)
class _Drawn:
    """The sampled rows: their requests, and their gold. `requests` is None if only the oracle gets requests."""

    requests: list[str] | None
    gold: list[Any] | None


@dataclass(frozen=True)
class _Written:
    """The oracle's shards of the first wave, their cost, and the cost of all later requests."""

    shards: list[Shard]
    now: Estimate
    later: Estimate


class Sampling:
    """Draw the sample of a finished draft, and write its requests to the oracle in the first wave."""

    def __init__(self, planning: Planning) -> None:
        self._planning = planning
        self._writer = planning.writer
        self._deployment = planning.deployment
        self._labeling = planning.labeling
        self._payloads = planning.writer.payloads
        self._partition = planning.partition
        self._submission_id = planning.submission_id
        self._written: list[ShardFiles] = []
        # The near copies, or the rows with older labels, which are no part of the rows that the cascade labels.
        self._apart: AuditedAnswers | None = None

    @cached_property
    def _folder(self) -> str:
        return self._writer.path(self._partition, self._submission_id, CALIBRATION).rpartition("/")[0]

    def repeat(self, known: Submission) -> None:
        """Repeat the decision on an earlier submission of the same rows."""
        if (levels := levels_of(self._payloads, known)) is not None:
            store_levels(self._payloads, self._folder, replace(levels, is_repeated=True))

    def draw(self, plan: Plan, known: KnownRequests | None) -> Plan:
        """Return the plan with the oracle's shards, their expected cost, and the next wave's reserve.

        `known` has the requests that the oracle has answered or gets now.
        """
        drafted = plan.drafted
        rows = drafted.rows - drafted.skipped - drafted.unreadable.rows
        if plan.shares is not None and not plan.shares.asks_all:
            self._apart = plan.shares
            rows -= plan.shares.rows
        tokens = plan.estimate.input_tokens // plan.estimate.requests if plan.estimate.requests else None
        if tokens is None and self._apart is not None:
            tokens = self._apart.tokens
        chosen = self._choose(drafted, rows, tokens)
        drawn = self._draw_rows(chosen, rows)
        if drawn.requests is None:
            # The model gets no request, so it costs nothing.
            for shard in drafted.shards:
                delete_requests(self._payloads, shard)
            drafted = replace(drafted, shards=[])
        written = self._write(drafted, self._asked_first(drawn, chosen.audit), known, tokens)
        has_older_labels = plan.shares is not None and plan.shares.leads_elsewhere
        levels = replace(self._decided(chosen, drawn, rows), has_older_labels=has_older_labels)
        store_levels(self._payloads, self._folder, levels)
        return replace(
            self._priced(plan, chosen, written, is_alone=drawn.requests is None),
            drafted=replace(drafted, shards=[*drafted.shards, *written.shards]),
            levels=levels,
            questions=count_requests([*drafted.shards, *written.shards]),
        )

    def _choose(self, drafted: Drafted, rows: int, tokens: int | None) -> _Chosen:
        """Choose the size of the sample. Raises ConfigError if such a sample could not accept a row."""
        cascade, oracle, seed = _cascade(self._labeling), self._labeling.models[1], self._seed()
        least = self._deployment.codec(oracle).limits.min_requests
        is_auto = cascade.sample == "auto"
        looks = self._earlier_looks(seed, drafted.rows, rows, None if is_auto else drafted.fingerprint)
        calibration = self._digest(cascade, seed)
        asked_for = None if cascade.sample == "auto" else min(cascade.sample, rows)
        size = self._usual_size(cascade, rows, least, looks.of(cascade, calibration, seed, asked_for))
        apart = 0 if self._apart is None else len(self._apart.apart)
        audit, earlier = self._audit(cascade, seed, rows, drafted.requests - apart)
        if earlier is not None:
            size = 0
        each = self._writer.estimate(oracle).expected_usd(tokens or 0)
        cheap = Decimal(0) if tokens is None else self._writer.estimate(self._labeling).expected_usd(tokens)
        accepted, cost = self._expect_accepted(cascade), None
        # Before the draw, so that it does not depend on the rows that certify this partition.
        size = self._tune_size(size, rows, least, (cheap, each))
        if each and cheap is not None and rows:
            audited = 0 if audit is None else round(audit.share * rows)
            prices = (float(cheap), float(each))
            cost = relative_cost(*prices, min(size + audited, rows), rows, accepted)
            # A sample that sets later partitions' thresholds is not a cost of theirs.
            lasting = cost if audit is None else relative_cost(*prices, audited, rows, accepted)
            # A person who names a sample wants one. A free model costs nothing while it is useless, such as a student
            # before its training.
            if lasting > 1 and is_auto:
                size, audit, earlier = rows, None, None
        return _Chosen(size, audit, earlier, cost, accepted, each, seed, calibration, looks)

    def _draw_rows(self, chosen: _Chosen, rows: int) -> _Drawn:
        """Draw the rows. Raises MissingGoldError or InputError if gold lacks some of them."""
        if chosen.size >= rows and chosen.audit is None:
            return _Drawn(None, None)
        cascade, (keys, requests) = _cascade(self._labeling), self._drawn(chosen.size, chosen.seed)
        # Before files with a cost are written: people must label the missing rows first.
        return _Drawn(requests, None if cascade.gold is None else read_gold(self._labeling, cascade, keys))

    def _priced(self, plan: Plan, chosen: _Chosen, written: _Written, *, is_alone: bool) -> Plan:
        """Return the plan with the oracle's cost."""
        of_oracle, later, each = written.now, written.later, chosen.each
        if not plan.estimate.requests and later.requests:
            # The model has answered all before, so the oracle's own requests show their length.
            each = self._writer.estimate(self._labeling.models[1]).expected_usd(later.input_tokens // later.requests)
        estimate = of_oracle if is_alone or not plan.estimate.requests else replace(plan.estimate)
        if estimate is not of_oracle:
            estimate.add_surcharge(Costs(of_oracle.cost_usd, of_oracle.bound_usd))
        estimate.row_bound_usd = _dearest(estimate.row_bound_usd, of_oracle.row_bound_usd, later.row_bound_usd)
        rest = Decimal(0) if each is None else each * later.requests
        held = 0 if self._apart is None else len(self._apart.held)
        # The reserve is for all rows; the expected cost, for the rows that will not be accepted. Held requests are
        # expected to share labels.
        of_held = Decimal(0) if each is None else each * held
        unexpected = of_held + (rest - of_held) * Decimal(str(round(chosen.accepted, 6)))
        oracle = OracleShare(
            model=_cascade(self._labeling).oracle,
            requests=count_requests(written.shards),
            input_tokens=of_oracle.expected_input,
            output_tokens=of_oracle.expected_output,
            estimated_usd=of_oracle.cost_usd,
            later=round((later.requests - held) * (1 - chosen.accepted)),
            later_usd=None if each is None else rest - unexpected,
            later_most=later.requests,
            reserved_usd=None if each is None else rest,
            later_bound_usd=later.bound_usd,
        )
        # At most, the oracle answers all rows, each at its highest cost.
        estimate.add_surcharge(Costs(rest - unexpected, later.bound_usd))
        # Limits count as if each of the model's labels were rejected.
        whole = replace(estimate)
        whole.add_surcharge(Costs(unexpected, Decimal(0)))
        held_usd = None if each is None or self._apart is None else of_held
        return replace(
            plan, estimate=estimate, whole=whole, oracle=oracle, reserved_usd=rest or None, held_usd=held_usd
        )

    def _decided(self, chosen: _Chosen, drawn: _Drawn, rows: int) -> Levels:
        """Return the decisions on the submission, as they are stored."""
        cascade, looks, requests = _cascade(self._labeling), chosen.looks, drawn.requests
        look = None
        if requests is not None and chosen.earlier is None:
            look = looks.of(cascade, chosen.calibration, chosen.seed, len(requests))
        levels = Levels(
            calibration_id=chosen.calibration,
            oracle=cascade.oracle,
            score=cascade.score,
            target=cascade.target,
            agreement=cascade.least_share,
            confidence=cascade.confidence,
            within=cascade.within,
            filters=cascade.filters,
            yes=cascade.yes,
            gold=drawn.gold,
            seed=chosen.seed,
            rows=rows,
            sample=rows if requests is None else len(requests),
            sampled=requests,
            relative_cost=chosen.relative_cost,
            audit=chosen.audit,
            look=look,
            keys_id=looks.keys_id,
            requests_id=looks.requests_id,
        )
        if chosen.earlier is not None:
            levels = levels.set_threshold(chosen.earlier)
        return levels.ask_oracle_alone() if requests is None else levels

    def _earlier_looks(self, seed: str, rows: int, asked: int, again: str | None) -> _Looks:
        """Return the number of samples of these rows that set a threshold, or will: by the ledger's submissions.

        `again` is the fingerprint of submissions that drew the same rows as now: they are the same look.

        Rows with the same keys are the same rows. If the models and the prompt are the same, too, but the requests
        differ, then the content of the rows has changed, and it is new.
        """
        keys_id, requests_id = self._digest_rows()
        known: dict[tuple[str, int | None], Levels | None] = {}
        deployment = self._deployment
        for submission in deployment.ledger.submissions.of_partition(
            deployment.namespace, self._labeling.asset, self._partition
        ):
            if submission.questions is None:
                continue
            found = list(readable_levels(deployment.payloads, [submission]))
            if not found:
                # Its files were pruned or are damaged, so only its number of rows is known.
                if submission.rows == rows and submission.fingerprint != again:
                    known[submission.fingerprint, None] = None
                continue
            levels = found[0][1]
            if not levels.sampled or levels.is_rolling:
                continue
            if levels.threshold is None and submission.state is not SubmissionState.OPEN:
                continue
            is_same = levels.rows == asked if levels.keys_id is None else levels.keys_id == keys_id
            is_changed = levels.seed == seed and levels.requests_id not in (None, requests_id)
            if is_same and not is_changed:
                known[levels.calibration_id, levels.sample] = levels
        return _Looks(asked, keys_id, requests_id, known)

    def _digest_rows(self) -> tuple[str, str]:
        """Return digests of the keys and of the requests of all rows, independent of their order."""
        of_keys = of_requests = 0
        # All of them: with other rows apart, they are the same rows.
        for keys, ids in self._all_rows():
            of_keys += int(digest_keys(keys, "look").sum(dtype=np.uint64))
            heads = np.frombuffer(packed(ids.to_pylist()), np.uint8).reshape(-1, REQUEST_ID_BYTES)[:, :8]
            of_requests += int(heads.copy().view(">u8").sum(dtype=np.uint64))
        return f"{of_keys % 2**64:016x}", f"{of_requests % 2**64:016x}"

    def _usual_size(self, cascade: Cascade, rows: int, least: int, look: int) -> int:
        """Return the size of the sample before the data of other partitions are read.

        Raises ConfigError if there were so many looks at these rows that such a sample could not accept a row.
        """
        confidence = look_confidence(cascade.confidence, look)
        if cascade.sample == "auto":
            return choose_sample(rows, cascade.least_share, confidence, least)
        size = min(cascade.sample, rows)
        if look == 1 or size == rows or count_allowed(size, rows, cascade.least_share, confidence) >= 0:
            return size
        needed = count_least(cascade.least_share, confidence)
        raise ConfigError(
            f"'{self._labeling.asset}': Cascade.sample={cascade.sample!r} is too small for look {look} at the same "
            f"rows. All looks share the {1 - cascade.confidence:.1%} risk that the guarantee fails, so this one needs "
            f"{needed:,} rows. Nothing was sent. Give more, or 'auto', or go back to the definition of an earlier look."
        )

    def _tune_size(self, size: int, rows: int, at_least: int, usd: tuple[Decimal | None, Decimal | None]) -> int:
        """Return the size of the sample: `size`, or a size that cost less in other partitions.

        `usd`: the costs of a request at the model and at the oracle.
        """
        cascade, tuning, (cheap, each) = _cascade(self._labeling), self._planning.tuning, usd
        if tuning is None or cascade.sample != "auto" or cheap is None or not each:
            return size
        # Replays count labels that disagree.
        if cascade.guarantee is not None:
            return size
        # People who label the sample must know its size.
        if cascade.calibrate != "partition" or cascade.gold is not None or size >= rows:
            return size
        return tuning.choose_sample(self._deployment, self._partition, rows, size, at_least, float(cheap / each))

    def _refuse_too_few(self, requests: int, least: int) -> None:
        """Raise ConfigError if the oracle's vendor would not take the sample: the model's requests would be useless."""
        if 0 < requests < least and self._labeling.limits.below_minimum == "refuse":
            raise ConfigError(
                f"'{self._labeling.asset}': the sample of the cascade goes to {_cascade(self._labeling).oracle}, which "
                f"takes at least {least} requests in a batch; these are {requests}. Nothing was sent. Give "
                "Cascade(sample=…) more rows. Or set Limits(below_minimum='pad') (billed copies fill the batch) or "
                "'realtime' (answered at once, at the price of real time)."
            )

    def _expect_accepted(self, cascade: Cascade) -> float:
        """Return the expected share of accepted rows, by the last submissions of the dataset, if there are some.

        This partition's own share is not used: a choice by the same sample that certifies it breaks the guarantee in 30
        of 100 cases.
        """
        deployment, configuration = self._deployment, self._writer.configuration
        # In a backfill, most of the newest submissions are not complete yet.
        known = deployment.ledger.submissions.list_all(
            deployment.namespace, assets=[self._labeling.asset], limit=_LOOKED_AT, newest=True
        )
        same = [one for one in known if one.is_settled and one.config_fingerprint == configuration]
        earlier = (levels for _, levels in readable_levels(deployment.payloads, same[:_REMEMBERED]))
        alike = (one for one in earlier if (one.filters, one.yes) == (cascade.filters, cascade.yes))
        shares = [one.accepted for one in alike if one.accepted is not None and not one.asks_oracle_alone]
        return sum(shares) / len(shares) if shares else expect_accepted(cascade.least_share)

    def _seed(self) -> str:
        """Return the seed of the draw: the partition and the calibrated configuration, in any account.

        If somebody changed the prompt, a model or a parameter after a look at the sampled rows, the same rows would be
        biased toward it, so others are drawn. The same configuration draws the same rows again, which are paid once.
        Another guarantee does, too: its sample has these rows and more, or some of them.
        """
        prompt, turns = self._labeling.prompt, self._labeling.spec.turns
        turns_asked = [[turn.role, turn.text] for turn in turns]
        asked: list[Any] = [prompt.system, prompt.user, list(prompt.images), turns_asked, *prompt.asked_documents]
        if self._labeling.near is not None:
            # With other near copies, the sample is drawn from other rows.
            asked.append(self._labeling.near.grouping)
        models = [configuration_fingerprint("", one.provider, one.spec) for one in self._labeling.models]
        digest = hashlib.sha256(canonical_json([models, asked]).encode()).hexdigest()
        place = (self._deployment.namespace, self._labeling.asset, self._partition)
        return "/".join([*place, digest[:16]])

    def _digest(self, cascade: Cascade, seed: str) -> str:
        content: list[Any] = [self._writer.configuration, self._labeling.prompt_version, cascade.promise, seed]
        if self._labeling.audited is not None:
            content.append(self._labeling.audited.promise)
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]

    def _count_independent(self, rows: int, requests: int) -> int:
        """Return the number of independent rows that these rows, which share requests, count as."""
        if rows == requests:
            return rows
        heads = [np.frombuffer(packed(ids.to_pylist()), np.uint8) for _, ids in self._rows()]
        ids = np.concatenate(heads).reshape(-1, REQUEST_ID_BYTES)
        return count_independent(np.unique(ids[:, :8].copy().view(">u8"), return_counts=True)[1])

    def _audit(self, cascade: Cascade, seed: str, rows: int, requests: int) -> tuple[Audit | None, Calibration | None]:
        """Return the audit of this partition, and the threshold that earlier ones give, if they do."""
        if not rows or not isinstance(cascade.calibrate, Rolling):
            return None, None
        from dagster_llm_batch.cascade.audit import calibrate_on_earlier, history_id  # noqa: PLC0415 - few are rolling

        history = history_id(self._writer.configuration, self._labeling, cascade)
        place = (self._deployment, self._labeling, cascade, self._partition)
        found = calibrate_on_earlier(*place, self._count_independent(rows, requests), history)
        why_not = found if isinstance(found, str) else None
        # By another seed, so that rows inside and outside of the sample are audited equally often.
        bound = np.uint64(cascade.calibrate.audit * 2**64)
        audited = [
            request_id
            for keys, ids in self._rows()
            for request_id in ids.filter(pa.array(digest_keys(keys, f"audit:{seed}") < bound)).to_pylist()
        ]
        audit = Audit(share=cascade.calibrate.audit, requests=audited, history_id=history, why_not=why_not)
        return audit, None if isinstance(found, str) else found

    def _drawn(self, size: int, seed: str) -> tuple[list[object], list[str]]:
        """Return the rows with the smallest digests: the key and the request of each."""
        if not size:
            return [], []
        bound = np.empty(0, np.uint64)
        for keys, _ in self._rows():
            bound = smallest(bound, digest_keys(keys, seed), size)
        last = bound.max()
        drawn_keys: list[object] = []
        drawn: list[str] = []
        for keys, ids in self._rows():
            are_drawn = digest_keys(keys, seed) <= last
            drawn_keys += compress(keys, are_drawn)
            drawn += ids.filter(pa.array(are_drawn)).to_pylist()
        return drawn_keys, drawn

    def _asked_first(self, drawn: _Drawn, audit: Audit | None) -> set[str] | None:
        """Return the requests that the oracle is asked in the first wave; None for all but the held ones."""
        if drawn.requests is None:
            return None
        copies = [] if self._apart is None else self._apart.audited.to_pylist()
        return {*drawn.requests, *(() if audit is None else audit.requests), *copies}

    def _rows(self) -> Iterator[tuple[Sequence[object], pa.Array]]:
        """Yield the keys and the request_ids of the rows that the cascade labels: those that are not apart."""
        apart = None if self._apart is None else self._apart.apart
        for keys, ids in self._all_rows():
            if apart is None:
                yield keys, ids
                continue
            are_own = pc.invert(pc.is_in(ids, apart))
            yield list(compress(keys, are_own.to_pylist())), ids.filter(are_own)

    def _all_rows(self) -> Iterator[tuple[Sequence[object], pa.Array]]:
        """Yield the keys and the request_ids of all rows with a request."""
        key = self._labeling.key
        for batch in self._payloads.iter_batches(f"{self._folder}/manifest.parquet", _ROWS_AT_ONCE, [key, _ID]):
            asked = batch.filter(pc.is_valid(batch[_ID]))
            yield keys_of(asked, key), asked[_ID]

    def _write(
        self, drafted: Drafted, wanted: set[str] | None, known: KnownRequests | None, tokens: int | None
    ) -> _Written:
        """Write the oracle's shards of the first wave. Raises ConfigError if they are too few for its vendor."""
        oracle = self._labeling.models[1]
        writer, spare = self._writer, self._writer.spare(self._submission_id, self._partition, oracle)
        numbers = count(max((shard.number for shard in drafted.shards), default=-1) + 1)
        wave = replace(writer.wave(self._submission_id, self._partition, 1), shard_numbers=numbers)
        files = writer.files(wave, oracle, Lane.BATCH)
        self._written.append(files)
        estimate, later, counter = writer.estimate(oracle), writer.estimate(oracle), self._deployment.counter(oracle)
        bound_of = partial(counter.bound_of_line, has_files=self._labeling.prompt.sends_files)

        held = frozenset() if self._apart is None else frozenset(self._apart.held.to_pylist())

        def wanted_lines() -> Iterator[tuple[str, bytes]]:
            expected: list[int] = []
            bounds: list[int | None] = []
            for request_id, line in requests_of(self._payloads, spare.path, spare.nonce):
                if known is not None and request_id in known:
                    continue
                if request_id not in held and (wanted is None or request_id in wanted):
                    yield request_id, line
                    continue
                expected.append(tokens or len(line) // _BYTES_A_TOKEN)
                bounds.append(bound_of(line))
                if len(bounds) == _COUNTED_AT_ONCE:
                    later.add(InputCounts(expected, bounds))
                    expected, bounds = [], []
            later.add(InputCounts(expected, bounds))

        for chunk in chunks(wanted_lines(), _AT_ONCE):
            ids, encoded = zip(*chunk, strict=True)
            likely = [tokens or len(line) // _BYTES_A_TOKEN for line in encoded]
            counts = InputCounts(likely, [bound_of(line) for line in encoded])
            files.add(WrittenLines(ids, encoded, spare.nonce), ids, counts, estimate.add)
        shards = files.close()
        estimate.add_surcharge(files.surcharge)
        self._refuse_too_few(count_requests(shards), self._deployment.codec(oracle).limits.min_requests)
        return _Written(shards, estimate, later)

    def discard(self) -> None:
        """Remove the written files."""
        for files in self._written:
            files.discard()
        self._payloads.delete(f"{self._folder}/{CALIBRATION}")


def _dearest(*amounts: Decimal | None) -> Decimal | None:
    """Return the largest amount; None if one is unknown."""
    known = [amount for amount in amounts if amount is not None]
    return max(known) if len(known) == len(amounts) else None
