"""A kept store with batches of every kind: shared, padded, sent twice, split, abandoned, in doubt, or waiting.

    python -m tests.golden.kept_batches COMMIT

This makes `stores/batches-<version>.tar.gz` with the code of a commit, in a work tree of that commit. The store of
0.1.0 is made with 777d705d: its package is the one that made `stores/0.1.0.tar.gz`. The same commit gives the same
bytes. Never rewrite the store of a released version to make a test pass (`kept_stores`).

Requests go through the vendors' SDKs to the commit's own emulator. The archive holds the ledger, the payload store, and
the emulator's journal. It also has the labels that the commit's code gets from a copy of the store.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pyarrow as pa

from dagster_llm_batch import Budget, QueueLimit
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    Emulator,
    Reply,
    VendorLimits,
    WireFault,
    local_s3,
    simulated_answer,
)
from dagster_llm_batch.testing.emulator.answers import last_user_text
from tests.golden.filed import KilledError
from tests.golden.fixed_workspace import FixedWorkspace
from tests.golden.journal import Journal
from tests.golden.old_ledgers import mark_delivered
from tests.golden.package import Engine, Labeling, LeaseError, Limits, Prompt, Realtime, __version__, provider_class

STORES = Path(__file__).with_name("stores")
STORE = "batches-0.1.0"
_NAME = "tests.golden.kept_batches"
KINDS: dict[str, tuple[str, int, int]] = {
    "shared, landed": ("labels", 2, 2),
    "shared, one landed": ("labels", 3, 2),
    "shared, ended": ("labels", 2, 2),
    "shared, second wave planned": ("labels", 2, 2),
    "shared, second wave running": ("labels", 2, 2),
    "shared, running": ("labels", 3, 2),
    "shared, given up": ("labels", 2, 2),
    "shared, given up and landed": ("labels", 2, 2),
    "shared, in doubt, arrived": ("labels", 2, 2),
    "shared, in doubt, lost": ("labels", 2, 2),
    "canceled": ("labels", 1, 2),
    "planned": ("labels", 1, 2),
    "queue, landed": ("queue_labels", 1, 4),  # it fills the queue
    "put back, sent again, landed": ("queue_labels", 2, 2),
    "put back, sent again, running": ("queue_labels", 2, 2),
    "put back, without room": ("queue_labels", 2, 2),
    "put back, sent again, in doubt": ("queue_labels", 2, 2),
    "split, landed": ("split_labels", 1, 8),
    "split, half sent": ("split_labels", 1, 8),
    "too large": ("large_labels", 1, 8),  # put back, and about to be split
    "its turn, running": ("turn_labels", 1, 2),
    "its turn, waiting": ("turn_labels", 1, 2),
    "sample, running": ("money_labels", 1, 9),  # the rest waits for the sample's cost
    "budget, running": ("budget_labels", 1, 2),
    "budget, waiting": ("budget_labels", 1, 2),
    "real time, landed": ("urgent_labels", 1, 4),
    "real time, ended": ("urgent_labels", 1, 4),
    "real time, turned away": ("urgent_labels", 1, 4),
    "real time, in doubt": ("urgent_labels", 1, 4),
    "padded, landed": ("padded_labels", 1, 4),
    "padded, ended": ("padded_labels", 1, 4),
    "padded, shared, running": ("padded_labels", 2, 2),
    "padded, in doubt": ("padded_labels", 1, 4),
}
"""Each kind of shards, named after its final state: its dataset, partitions, and rows in each."""

_HAIKU = "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0"
_MODELS = {
    "labels": "openai/gpt-4o",
    "queue_labels": "openai/gpt-4o-mini",
    "split_labels": "openai/gpt-4.1-mini",
    "large_labels": "openai/gpt-4.1-nano",
    "turn_labels": "openai/gpt-4o",
    "money_labels": "openai/gpt-4-turbo",
    "budget_labels": "openai/gpt-4-turbo",
    "urgent_labels": "openai/gpt-4.1",
    "padded_labels": _HAIKU,
}
"""At OpenAI, each model has its own queue."""
_CHANGES: dict[str, dict[str, Any]] = {
    "money_labels": {"max_cost_usd": "0.02"},
    "urgent_labels": {"realtime": Realtime(urgent="urgent", concurrency=1)},
    "padded_labels": {"limits": Limits(below_minimum="pad")},
}
_RESPONSE = {
    "title": "Label",
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["billing", "bug", "how_to"]}},
    "required": ["topic"],
    "additionalProperties": False,
}
_LARGE = ("queue_labels", "split_labels", "large_labels")
_BUSY = "[busy]"
_BUCKET = "kept-batches"
_LEAST, _MOST_TOKENS = 6, 2_000
_BUDGET_USD = 0.016  # room for one request at a time, of two at their highest cost
_HOUR, _STEPS = 3600.0, 10


@cache
def labeling(asset: str) -> Labeling:
    """Return the definition of a dataset. It must never change, since the store holds its fingerprint."""
    return Labeling(
        asset,
        _MODELS[asset],
        key="id",
        prompt=Prompt(system="You label support tickets.", user="{{ body }}"),
        response=_RESPONSE,
        params={"max_tokens": 40},
        keep=["body"],
        **_CHANGES.get(asset, {}),
    )


def partitions(kind: str) -> list[str]:
    return [f"{kind} {number}" for number in range(1, KINDS[kind][1] + 1)]


def rows(kind: str, partition: str) -> pa.Table:
    """Return the rows of a partition. The first row of a second round fails once; large rows have 300 tokens."""
    asset, _, count = KINDS[kind]
    text = " Nothing works." * 80 if asset in _LARGE else ""
    bodies = [f"Ticket {number} of {partition}.{text}" for number in range(count)]
    if "second wave" in kind:
        bodies[0] += f" {_BUSY}"
    urgent = [number != count - 1 for number in range(count)]  # the last one goes in a batch
    return pa.table({"id": [f"{partition}-{n}" for n in range(count)], "body": bodies, "urgent": urgent})


class _Answers:
    """Answer with a simulated label, and the first request of a busy row with an error."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, body: Any, endpoint: str) -> Any:
        text = last_user_text(body)
        if _BUSY in text and text not in self._seen:
            self._seen.add(text)
            return Reply(status_code=503, message="The server is overloaded.")
        return simulated_answer(body, endpoint)


class Mortal:
    """A provider whose process can die after the next create call, or freeze after the next call in real time."""

    def __init__(self, provider: Any, workspace: FixedWorkspace) -> None:
        self._provider = provider
        self._workspace = workspace
        self.is_killed = self.is_frozen = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def submit(self, lines: Any, spec: Any, tag: str) -> str:
        batch_id: str = self._provider.submit(lines, spec, tag)
        if self.is_killed:
            self.is_killed = False
            raise KilledError
        return batch_id

    def respond(self, line: bytes) -> bytes:
        answer: bytes = self._provider.respond(line)
        if self.is_frozen:  # for longer than its lease
            self.is_frozen = False
            self._workspace.clock.advance(_HOUR)
        return answer


@contextmanager
def open_vendors(workspace: FixedWorkspace) -> Iterator[Emulator]:
    """Give the workspace its providers, and their emulator."""
    with local_s3(_BUCKET) as s3_url:
        _empty(s3_url)  # all servers of a process have the same buckets
        with Emulator(
            answer=_Answers(),
            clock=workspace.clock,
            limits=VendorLimits(bedrock_min_records=_LEAST, enqueued_tokens=_MOST_TOKENS),
            s3_url=s3_url,
        ) as emulator:
            openai = provider_class("openai")(DEFAULT_KEY, emulator.openai_base_url, account="the openai account")
            bedrock = provider_class("bedrock")(
                "us-east-1",
                "arn:aws:iam::123456789012:role/batch",
                f"s3://{_BUCKET}/llm",
                session_options={"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x"},
                endpoint_url=emulator.bedrock_url,
                s3_endpoint_url=emulator.s3_relay_url,
                read_quotas=False,
                min_requests=_LEAST,
                account="the aws account",
            )
            workspace.providers |= {
                name: Mortal(one, workspace) for name, one in (("openai", openai), ("bedrock", bedrock))
            }
            yield emulator


def _empty(s3_url: str) -> None:
    # The vendor's own client: the emulator of another commit shares no module with this one.
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    client = boto3.client("s3", endpoint_url=s3_url, region_name="us-east-1", **keys)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET):
        for item in page.get("Contents", ()):
            client.delete_object(Bucket=_BUCKET, Key=item["Key"])


class Maker:
    """Bring each kind into its state. Batches that have to end come first, running ones last."""

    def __init__(self, workspace: FixedWorkspace, emulator: Emulator) -> None:
        self._workspace = workspace
        self._emulator = emulator
        self._engine = workspace.engine()
        self._ids: dict[str, str] = {}
        self.journal = Journal()
        self.journal.keep(emulator, workspace.clock)

    def leave_all(self) -> None:
        self._leave_shared()
        self._leave_split()
        self._leave_real_time()
        self._leave_queued()
        self._leave_padded()
        self._leave_running()

    def _leave_shared(self) -> None:
        landed, one_landed, ended = "shared, landed", "shared, one landed", "shared, ended"
        again, running, late = (
            "shared, second wave planned",
            "shared, second wave running",
            "shared, given up and landed",
        )
        for kind in (landed, one_landed, ended, again, running, late):
            self._submit(kind)
        self._give_up(late)
        self._land(late)
        self._end()
        for kind in (one_landed, ended, again, running):
            self._poll(kind)
        self._land(landed)
        self._land(one_landed, partitions(one_landed)[:1])
        self._collect(again)
        self._collect(running)

    def _leave_queued(self) -> None:
        full, again = "queue, landed", "put back, sent again"
        landed, running, doubtful = f"{again}, landed", f"{again}, running", f"{again}, in doubt"
        self._submit(full)
        self._tick()
        for kind in (landed, running, doubtful):
            self._submit(kind)
        self._tick()
        # The last one put back is the only one that has to go alone, since by then all batches have ended.
        for kind in (doubtful, landed, running):
            self._poll(kind)
        self._end()
        self._land(full)
        self._submit(landed)
        self._end()
        self._land(landed)
        self._submit(running)
        self._tick()
        self._submit("put back, without room")
        self._tick()
        self._poll("put back, without room")
        self._pass_time()
        self._die_in_create(doubtful, "openai")

    def _leave_split(self) -> None:
        for kind in ("split, landed", "split, half sent", "too large"):
            self._submit(kind)
            self._tick()
            self._poll(kind)
            if kind == "split, landed":
                for _ in range(4):
                    self._pass_time()
                    self._submit(kind)
                    self._end()
                    self._collect(kind)
                self._land(kind)
        self._pass_time()
        self._submit("split, half sent")

    def _leave_real_time(self) -> None:
        self._submit("real time, landed")
        self._end()
        self._land("real time, landed")
        self._submit("real time, ended")
        self._emulator.inject(
            WireFault(
                kind="status", status=429, retry_after="3600", route="POST *v1/chat/completions", skip=1, times=None
            )
        )
        self._submit("real time, turned away")
        self._emulator.clear_faults()
        self._pass_time()
        self._workspace.providers["openai"].is_frozen = True
        with suppress(LeaseError):
            self._submit("real time, in doubt")

    def _leave_padded(self) -> None:
        self._submit("padded, landed")
        self._submit("padded, ended")
        self._end()
        self._land("padded, landed")
        self._poll("padded, ended")
        self._submit("padded, shared, running")
        self._die_in_create("padded, in doubt", "bedrock")

    def _leave_running(self) -> None:
        self._submit("shared, second wave running")
        self._submit("its turn, running")
        self._submit("its turn, waiting", queue_limits={_MODELS["turn_labels"]: QueueLimit(max_batches=1).rule()})
        self._submit("sample, running")
        self._submit("sample, running")  # the rest of it
        budget = Budget(max_usd=_BUDGET_USD, period="ever", asset="budget_labels")
        for kind in ("budget, running", "budget, waiting"):
            self._submit(kind, budgets=[budget.rule()])
        self._submit("canceled")
        self._engine.cancel(self._plan("canceled")[0])
        self._submit("shared, running")
        self._submit("shared, given up")
        self._give_up("shared, given up")
        self._die_in_create("shared, in doubt, arrived", "openai")
        self._emulator.inject(
            WireFault(kind="close", route="POST /v1/batches", times=None),
            WireFault(kind="status", status=503, retry_after="0.01", route="GET /v1/batches", times=None),
        )
        self._submit("shared, in doubt, lost")
        self._emulator.clear_faults()
        self._plan("planned")

    def _plan(self, kind: str, only: list[str] | None = None) -> list[str]:
        asset, *_ = KINDS[kind]
        for partition in partitions(kind):
            if partition not in self._ids:
                submission = self._engine.plan(
                    labeling(asset), rows(kind, partition), partition=partition, run_id=f"run {partition}"
                )
                self._ids[partition] = submission.submission_id
        return [self._ids[partition] for partition in only or partitions(kind)]

    def _submit(self, kind: str, **rules: Any) -> None:
        """Send a kind, with these `rules` of the deployment."""
        engine = Engine(replace(self._engine.deployment, **rules)) if rules else self._engine
        engine.submit_together(labeling(KINDS[kind][0]), self._plan(kind))

    def _die_in_create(self, kind: str, provider: str) -> None:
        self._workspace.providers[provider].is_killed = True
        with suppress(KilledError):
            self._submit(kind)
        assert not self._workspace.providers[provider].is_killed, f"'{kind}' was not sent"

    def _poll(self, kind: str) -> None:
        self._engine.poll([shard for one in self._plan(kind) for shard in self._engine.status(one).shards])

    def _give_up(self, kind: str) -> None:
        self._engine.give_up(self._engine.status(self._plan(kind)[0]).shards[0].shard_id)

    def _collect(self, kind: str, only: list[str] | None = None) -> None:
        for submission_id in self._plan(kind, only):
            self._engine.collect(labeling(KINDS[kind][0]), submission_id)

    def _land(self, kind: str, only: list[str] | None = None) -> None:
        self._collect(kind, only)
        for submission_id in self._plan(kind, only):
            self._engine.labels(labeling(KINDS[kind][0]), submission_id)
            mark_delivered(self._engine.ledger, submission_id)

    def _tick(self) -> None:
        self.journal.tick(self._emulator, self._workspace.clock, 1)

    def _end(self) -> None:
        self.journal.tick(self._emulator, self._workspace.clock)
        self._pass_time()

    def _pass_time(self) -> None:
        self._workspace.clock.advance(_HOUR)


class Landed(NamedTuple):
    """The result of a partition: its labels and rejects as rows, the outcomes of its requests, and its cost."""

    labels: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    outcomes: dict[str, int]
    cost_usd: str


def go_on(engine: Engine, emulator: Emulator, workspace: FixedWorkspace) -> dict[str, Landed]:
    """Take every partition to its labels, like the sensor, and return them by partition."""
    ids, before = {}, list[tuple[str, str]]()
    for kind, (asset, *_) in KINDS.items():
        for partition in partitions(kind):
            submission = engine.plan(labeling(asset), rows(kind, partition), partition=partition)
            ids[partition] = submission.submission_id
            before += [(asset, source) for source in submission.reused_from]
    for _ in range(_STEPS):
        engine.poll_awaited(sorted(_MODELS), engine.now())
        for asset in _MODELS:
            kinds = [kind for kind, (its_asset, *_) in KINDS.items() if its_asset == asset]
            own = [ids[partition] for kind in kinds for partition in partitions(kind)]
            own += [source for its_asset, source in before if its_asset == asset]
            for submission_id in own:
                if not engine.status(submission_id).is_done:
                    engine.collect(labeling(asset), submission_id)
            engine.submit_together(labeling(asset), [one for one in own if not engine.status(one).is_done])
        emulator.settle()
        workspace.clock.advance(_HOUR)
    landed = {}
    for kind, (asset, *_) in KINDS.items():
        for partition in partitions(kind):
            labeled = engine.labels(labeling(asset), ids[partition])
            submission = engine.status(ids[partition]).submission
            landed[partition] = Landed(
                labeled.labels.to_pylist(),
                labeled.rejects.to_pylist(),
                dict(submission.outcomes),
                str(submission.cost_usd),
            )
    return landed


def billed(emulator: Emulator) -> dict[str, int]:
    """Return how often each request was billed, in a batch or in real time, by the digest of its body."""
    return dict(sorted(emulator.books.billed_counts().items()))


@contextmanager
def reopened(folder: Path, ledger_url: str | None = None) -> Iterator[tuple[FixedWorkspace, Emulator]]:
    """Open an unpacked store, with an emulator that has its batches."""
    made, journal = json.loads((folder / "made.json").read_text()), Journal.read(folder / "journal.jsonl")
    workspace = FixedWorkspace(folder, ledger_url, start=journal.entries[0][0], ids="new")
    with open_vendors(workspace) as emulator:
        journal.replay(emulator, workspace.clock)
        has = [batch.id for batch in emulator.books.batches]
        assert has == made["batches"], "the emulator makes other ids of these calls than that of the commit"
        workspace.clock.advance(made["at"] - workspace.clock())
        yield workspace, emulator
        workspace.close()


def make(commit: str, stores: Path) -> None:
    """Make the store with the code that runs here, and its expected labels from a copy in another process."""
    with tempfile.TemporaryDirectory() as name:
        folder, copy = Path(name) / "store", Path(name) / "copy"
        folder.mkdir()
        workspace = FixedWorkspace(folder)
        with open_vendors(workspace) as emulator:
            maker = Maker(workspace, emulator)
            maker.leave_all()
            workspace.close()
            maker.journal.write(folder / "journal.jsonl")
            made = {"commit": commit, "at": workspace.clock(), "batches": [one.id for one in emulator.books.batches]}
        (folder / "made.json").write_text(json.dumps(made))
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:  # a lease names the machine
            ledger.execute("DELETE FROM lease")
            ledger.commit()
        shutil.copytree(folder, copy)
        subprocess.run([sys.executable, "-m", _NAME, "--go-on", str(copy)], check=True)
        shutil.copy(copy / "expected.json", folder)
        _pack(folder, stores / f"batches-{__version__}.tar.gz")


def _go_on_with(folder: Path) -> None:
    with reopened(folder) as (workspace, emulator):
        landed = go_on(workspace.engine(), emulator, workspace)
        expected = {
            "landed": {partition: one._asdict() for partition, one in landed.items()},
            "batches": len(emulator.books.batches),
            "billed": billed(emulator),
        }
    (folder / "expected.json").write_text(json.dumps(expected, default=str, indent=0))


def _pack(folder: Path, store: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as files:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                member = tarfile.TarInfo(str(path.relative_to(folder)))
                member.size = len(content)
                files.addfile(member, io.BytesIO(content))
    store.write_bytes(gzip.compress(packed.getvalue(), mtime=0))
    print(f"{store}: {store.stat().st_size:,} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="the commit whose code makes the store")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # with the code that runs here
    parser.add_argument("--go-on", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.go_on:
        _go_on_with(given.go_on)
    elif given.into:
        make(given.commit, given.into)
    else:
        _make_with_code_of(given.commit)
    return 0


def _make_with_code_of(commit: str) -> None:
    from tests.golden.mixed import tree_of

    with tree_of(commit) as tree:
        for name in ("journal.py", "kept_batches.py"):
            shutil.copy(Path(__file__).with_name(name), tree / "tests" / "golden")
        words = ["git", "-C", str(tree), "rev-parse", "HEAD"]
        full = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        command = [sys.executable, "-m", _NAME, full, "--into", str(STORES)]
        subprocess.run(command, check=True, cwd=tree, env=environment)


if __name__ == "__main__":
    sys.exit(main())
