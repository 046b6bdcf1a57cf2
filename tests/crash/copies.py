"""The near copies to ask, computed from the requests and their answers, independently of the engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import pyarrow as pa
import scipy

from dagster_llm_batch.core.reuse import Near
from dagster_llm_batch.core.thresholds import digest_requests, look_confidence
from dagster_llm_batch.files.request_files import levels_of, request_ids
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore


def judge_copies(
    near: Near, texts: list[str], ledger: Ledger, payloads: PayloadStore, submission: Submission, labels: pa.Table
) -> list[str]:
    """Return differences from the expected requests and labels. All texts are near copies of one leader.

    Sent first: the leader, and the audit. Sent in the second round, if more audited copies differ from the leader than
    allowed: all others. If not, each of them has the leader's label.
    """
    shards = ledger.shards.of_submission(submission.submission_id)
    first, second = ([shard for shard in shards if shard.wave == wave] for wave in (1, 2))
    topics = {
        row["llm_request_id"]: row["topic"]
        for shard in first
        for row in payloads.read_table(shard.results_path or "").to_pylist()
    }
    requests = payloads.read_table(submission.manifest)["llm_request_id"].to_pylist()
    leader, copies = min(requests), len(requests) - 1
    # The most copies that may be wrong, and one more.
    too_many = int(near.error * copies) + 1
    sample, risk = near.sample, 1 - look_confidence(near.confidence, 1)
    assert sample != "auto"
    allowed = [
        count for count in range(sample + 1) if scipy.stats.hypergeom.cdf(count, copies, too_many, sample) <= risk
    ]
    wrong = sum(topic != topics[leader] for topic in topics.values())
    is_shared = bool(allowed) and wrong <= max(allowed)
    asked = {*_ids(payloads, first)}
    rest = [] if is_shared else sorted(set(requests) - asked)
    delivered = labels["llm_request_id"].to_pylist()
    expected = [one if one in asked or not is_shared else leader for one in requests]
    checks = {
        "not all texts are near copies": all(_jaccard(*pair) >= near.similarity for pair in combinations(texts, 2)),
        f"the leader is not asked first: {leader}": leader in asked,
        f"audited copies: {len(asked) - 1}": len(asked) - 1 == sample,
        "a request is asked twice": len(_ids(payloads, shards)) == len(set(_ids(payloads, shards))),
        f"asked in the second round: {_ids(payloads, second)}, not {rest}": _ids(payloads, second) == rest,
        f"requests of rows: {sorted(delivered)}, not {sorted(expected)}": sorted(delivered) == sorted(expected),
    }
    return [what for what, is_right in checks.items() if not is_right]


class Asked(NamedTuple):
    """Requests to both models in all, batches of each round, and differences from the engine."""

    requests: int
    waves: tuple[int, ...]
    problems: list[str]


def judge_cascade_copies(
    near: Near, ledger: Ledger, payloads: PayloadStore, submission: Submission, labels: pa.Table
) -> Asked:
    """Return differences from the expected requests and labels of a cascade with near copies. See NEAR_CASCADE.

    The model answers the leaders, and the oracle four of them and an audit at once; then the leaders at or below the
    threshold; then all other copies, if more audited copies differ from the final labels of their leaders than allowed.
    """
    levels = levels_of(payloads, submission)
    assert levels is not None
    shards = ledger.shards.of_submission(submission.submission_id)
    of = {
        (is_oracle, wave): [s for s in shards if (s.asked_of == levels.oracle) is is_oracle and s.wave == wave]
        for is_oracle in (False, True)
        for wave in (1, 2, 3)
    }
    manifest = payloads.read_table(submission.manifest).to_pylist()
    subjects: dict[int, list[str]] = defaultdict(list)
    for row in manifest:
        subjects[int(row["ticket_id"][1:]) % 8].append(row["llm_request_id"])
    leader_of = {one: min(group) for group in subjects.values() for one in group}
    leaders, copies = {*leader_of.values()}, {one for one, leader in leader_of.items() if one != leader}
    cheap, oracles = (_topics(payloads, of[level, 1] + of[level, 2] + of[level, 3]) for level in (False, True))
    risk = 1 - look_confidence(0.9, 1)
    # All scores are equal, so a digest orders the rows.
    place = {one: int(digest_requests([one], levels.seed)[0]) for one in leaders}
    sampled = {*(levels.sampled or ())}
    may = max(n for n in range(5) if scipy.stats.hypergeom.cdf(n, 8, 5, 4) <= risk)
    wrong = sorted((place[one] for one in sampled if cheap[one] != oracles[one]), reverse=True)
    threshold = wrong[may] if may < len(wrong) else -1
    rest = {one for one in leaders - sampled if place[one] <= threshold}
    final = {one: oracles[one] if one in rest | sampled else cheap[one] for one in leaders}
    audited = {*_ids(payloads, of[True, 1])} - leaders
    differ = sum(oracles[one] != final[leader_of[one]] for one in audited)
    sample = near.sample
    assert sample != "auto"
    # The cascade's half, and what sharing may take from it
    too_many = int((0.5 + near.error) * len(copies)) + 1
    allowed = [n for n in range(sample + 1) if scipy.stats.hypergeom.cdf(n, len(copies), too_many, sample) <= risk]
    is_shared = bool(allowed) and differ <= max(allowed)
    last = set() if is_shared else copies - audited
    held = of[True, 3] if rest else of[True, 2]
    second = of[True, 2] if rest else []
    delivered = {row["ticket_id"]: row["llm_request_id"] for row in labels.to_pylist()}
    requests_of = {row["ticket_id"]: row["llm_request_id"] for row in manifest}
    asked = leaders | audited | last
    expected = {key: one if one in asked else leader_of[one] for key, one in requests_of.items()}
    checks = {
        "the model is not asked the leaders alone": _ids(payloads, of[False, 1]) == sorted(leaders),
        "the model is asked again": not of[False, 2] + of[False, 3],
        f"sampled: {len(sampled)}, audited: {len(audited)}": (len(sampled), len(audited)) == (4, sample),
        "the sample is of copies": sampled <= leaders,
        "the oracle is not asked the rest of the leaders": _ids(payloads, second) == sorted(rest),
        f"the oracle is not asked the copies: {len(last)}": _ids(payloads, held) == sorted(last),
        "labels are not the expected ones": delivered == expected,
    }
    requests = len(leaders) + len(sampled) + len(audited) + len(rest) + len(last)
    waves = (2, *([1] if rest else []), *([1] if last else []))
    return Asked(requests, waves, [what for what, is_right in checks.items() if not is_right])


def _topics(payloads: PayloadStore, shards: Iterable[Shard]) -> dict[str, str]:
    rows = [row for shard in shards for row in payloads.read_table(shard.results_path or "").to_pylist()]
    return {row["llm_request_id"]: row["topic"] for row in rows if row["llm_outcome"] == "succeeded"}


def _ids(payloads: PayloadStore, shards: Iterable[Shard]) -> list[str]:
    return sorted(one for shard in shards for one in request_ids(payloads, shard))


def _jaccard(one: str, other: str) -> float:
    ones, others = ({text[at : at + 5] for at in range(len(text) - 4)} for text in (one.lower(), other.lower()))
    return len(ones & others) / len(ones | others)
