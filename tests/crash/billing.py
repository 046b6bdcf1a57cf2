"""The providers' books: existing batches, answered requests and payments. Tests judge by them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dagster_llm_batch.testing.emulator import Emulator
from tests.crash.clouds import Cloud


class Answered(NamedTuple):
    """One request that reached the model. `body` identifies it, whatever its custom_id."""

    batch_id: str | None
    custom_id: str
    body: str
    is_billed: bool


def read_billing(cloud: Cloud, emulator: Emulator, folder: Path) -> tuple[set[str], list[Answered]]:
    """Return the provider's batches and answered requests. The command of the command provider records them itself."""
    if cloud.name == "command":
        jobs = {path.parent.name for path in folder.glob("jobs/*/job.json")}
        file = folder / "answers.jsonl"
        return jobs, [Answered(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    answered = [
        Answered(one.batch_id, one.custom_id or "", one.body_digest, one.billed) for one in emulator.books.executions
    ]
    return {batch.id for batch in emulator.books.batches}, answered


class Money(NamedTuple):
    """Payments in the provider's books."""

    billed: int
    twice: int
    in_two_batches: set[str]


def money_of(answered: Iterable[Answered], waves: Mapping[str, int], most_waves: int) -> Money:
    """Count billed requests, and those billed twice.

    A request may be billed once in its batch in each retry round, and at most `most_waves` times in all.

    `waves`: the retry round of each shard, by its nonce. A request whose custom_id belongs to no shard counts as billed
    twice. Requests in real time have no custom_id.
    """
    in_batches: Counter[tuple[int, str]] = Counter()
    in_all: Counter[str] = Counter()
    batches_of: dict[str, set[str]] = defaultdict(set)
    for one in answered:
        nonce = one.custom_id.partition("-")[0]
        if one.batch_id is not None:
            batches_of[nonce].add(one.batch_id)
        if one.is_billed:
            in_all[one.body] += 1
            if one.batch_id is not None:
                in_batches[waves.get(nonce, 0), one.body] += 1
    in_a_wave = sum(count - (wave != 0) for (wave, _), count in in_batches.items())
    too_often = sum(max(0, count - most_waves) for count in in_all.values())
    return Money(
        in_all.total(), max(in_a_wave, too_often), {nonce for nonce, ids in batches_of.items() if len(ids) > 1}
    )
