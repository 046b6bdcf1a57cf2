"""One process of `mixed`: it runs commands, a line of JSON each, with the code of the tree in which it was started.

`mixed` puts this file into the tree of the older commit: it imports only from that tree's `package.py`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

import dagster_llm_batch
from dagster_llm_batch.storage.ledger.migrations import LATEST
from tests.golden import package
from tests.golden.old_ledgers import mark_delivered
from tests.golden.package import (
    Engine,
    Labeling,
    LeaseError,
    Ledger,
    PayloadStore,
    Prompt,
    TransientError,
    provider_class,
)

_MODELS = {
    "openai": ("openai/gpt-4o", {"max_tokens": 50}),
    "anthropic": ("anthropic/claude-haiku-4-5", {"max_tokens": 50}),
    "gemini": ("gemini/gemini-2.0-flash", {"max_output_tokens": 50}),
}
_SECONDS_A_PARTITION = 120.0


class Worker:
    """The verbs, each for one partition."""

    def __init__(self, ledger: str, payloads: str, urls: dict[str, str], key: str, rows: int) -> None:
        self._rows = rows
        providers = {
            name: provider_class(name)(key, url, account=name, settle_seconds=0.5) for name, url in urls.items()
        }
        own = (providers, Ledger(ledger), PayloadStore(payloads), "mixed")
        rules = {"sleep": lambda _: None, "lease_wait_seconds": 10.0}
        # An Engine from before 2026-11-27 takes these arguments itself, and its tree's package.py has no Deployment.
        deployment = getattr(package, "Deployment", None)
        self._engine = Engine(*own, **rules) if deployment is None else Engine(deployment(*own, **rules))

    def hello(self, _vendor: str, _partition: str) -> str:
        return str(Path(dagster_llm_batch.__file__).parents[1])

    def schema(self, _vendor: str, _partition: str) -> int:
        """Return the version of the ledger's schema that this code makes, and the newest that it opens."""
        return LATEST

    def plan(self, vendor: str, partition: str) -> str:
        numbers = range(self._rows)
        table = pa.table(
            {
                "ticket_id": [f"t{n}" for n in numbers],
                "body": [f"Where is invoice {n} of {partition}? {'[busy]' if n == 1 else ''}" for n in numbers],
            }
        )
        return self._engine.plan(_labeling(vendor), table, partition=partition).submission_id

    def submit(self, vendor: str, partition: str) -> bool:
        self._engine.submit(_labeling(vendor), self._id(vendor, partition))
        return True

    def poll(self, vendor: str, partition: str) -> int:
        return len(self._engine.poll(self._engine.status(self._id(vendor, partition)).shards))

    def collect(self, vendor: str, partition: str) -> bool:
        return self._engine.collect(_labeling(vendor), self._id(vendor, partition)).is_settled

    def advance(self, vendor: str, partition: str) -> bool:
        return self._engine.advance(_labeling(vendor), self._id(vendor, partition)).is_settled

    def land(self, vendor: str, partition: str) -> dict[str, Any]:
        """Return the number of rows, and a digest of all values that do not depend on the run."""
        labeled = self._engine.labels(_labeling(vendor), self._id(vendor, partition))
        mark_delivered(self._engine.ledger, self._id(vendor, partition))
        rows = [row for table in (labeled.labels, labeled.rejects) for row in table.to_pylist()]
        text = json.dumps(sorted(rows, key=lambda row: str(row["ticket_id"])), default=str, sort_keys=True)
        keys = {row["ticket_id"] for row in rows}
        return {
            "rows": len(rows),
            "keys": len(keys),
            "rejects": len(labeled.rejects),
            "digest": hashlib.sha256(text.encode()).hexdigest(),
        }

    def run(self, vendor: str, partition: str) -> dict[str, Any]:
        """Label a partition from rows to labels, possibly while another process does the same."""
        end = time.monotonic() + _SECONDS_A_PARTITION
        planned = False
        while time.monotonic() < end:
            with suppress(LeaseError, TransientError):
                if not planned:
                    self.plan(vendor, partition)
                    planned = True
                if self.advance(vendor, partition):
                    return self.land(vendor, partition)
            time.sleep(0.02)
        raise TimeoutError(f"{partition} was not settled within {_SECONDS_A_PARTITION} seconds")

    def _id(self, vendor: str, partition: str) -> str:
        known = self._engine.latest(_labeling(vendor).asset, partition)
        assert known is not None, f"no submission of {partition}"
        return str(known.submission_id)


def _labeling(vendor: str) -> Labeling:
    model, params = _MODELS[vendor]
    response = {"title": "Label", "type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
    return Labeling(
        f"labels_{vendor}",
        model,
        key="ticket_id",
        prompt=Prompt(system="You label support tickets.", user="{{ body }}"),
        response=response,
        params=params,
        keep=["body"],
        **_batches_of(4),
    )


def _batches_of(requests: int) -> dict[str, Any]:
    # A Labeling from before 2026-11-27 takes these arguments itself, and its tree's package.py has no Limits.
    limits = getattr(package, "Limits", None)
    given = {"max_requests_per_batch": requests}
    return given if limits is None else {"limits": limits(**given)}


def main() -> None:
    worker = Worker(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        verb, vendor, partition = json.loads(line)
        try:
            answer: dict[str, Any] = {"value": getattr(worker, verb)(vendor, partition)}
        except Exception as error:  # noqa: BLE001 -- any error is this code's reaction to the other's work
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
