"""Any files of a settled partition may be lost: plans work, rows have one outcome each, stored answers cost nothing."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Limits, Resend
from dagster_llm_batch.engine.recovery import Recovery
from dagster_llm_batch.errors import LLMBatchError, PayloadError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, RowFault, WireFault

ROWS = 9
GONE = WireFault(kind="status", route="GET /v1/files/*", status=404, times=None)


def rows(count: int = ROWS) -> pa.Table:
    return pa.table({"id": [f"t{n}" for n in range(count)], "text": [f"Ticket number {n}." for n in range(count)]})


LABELS = Labeling(
    asset="labels",
    model="openai/gpt-4o",
    key="id",
    prompt=Prompt(user="{{ text }}"),
    response=None,
    limits=Limits(max_requests_per_batch=3),
    resend=Resend(max_waves=2),
)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "a flipped bit": flip,
}


class Place:
    def __init__(self, url: str, root: Path, emulator: Emulator, namespace: str = "n") -> None:
        self.root, self.emulator = root, emulator
        self.skipped = timedelta()
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=5.0)
        ledger = Ledger(url, clock=self.now)
        self.payloads = PayloadStore(str(root))
        self.engine = Engine(
            Deployment({"openai": provider}, ledger, self.payloads, namespace, clock=self.now, sleep=lambda _: None)
        )

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skipped

    def finish(self, submission_id: str) -> None:
        while not self.engine.advance(LABELS, submission_id).is_settled:
            self.emulator.settle()
            self.skipped += timedelta(hours=1)

    def land(self) -> str:
        """Make a settled submission of two waves."""
        self.emulator.inject(RowFault(status_code=500, containing="number 3.", times=1))
        submission_id = self.engine.plan(LABELS, rows()).submission_id
        self.finish(submission_id)
        assert self.engine.ledger.submissions.get(submission_id).outcomes == {"succeeded": ROWS}
        return submission_id

    def outcomes(self, submission_id: str) -> dict[str, str]:
        """Return the outcome of each row, and check that it has exactly one."""
        labeled = self.engine.labels(LABELS, submission_id)
        found = dict.fromkeys(labeled.labels["id"].to_pylist(), "succeeded")
        rejects = dict(zip(*(labeled.rejects[name].to_pylist() for name in ("id", "llm_outcome")), strict=True))
        assert len(labeled.labels) + len(labeled.rejects) == len(found | rejects) == ROWS
        submission = self.engine.ledger.submissions.get(submission_id)
        assert sum(submission.outcomes.values()) == submission.requests
        return found | rejects

    @property
    def billed(self) -> int:
        return sum(execution.billed for execution in self.emulator.books.executions)

    def surviving(self, submission_id: str) -> int:
        """Count the requests with a good result that is free while the provider is away."""
        found: set[str] = set()
        for shard in self.engine.ledger.shards.of_submission(submission_id):
            for path in (shard.results_path or "", shard.raw_path or ""):
                if self.payloads.is_whole(path):
                    # Each shard has its own requests; one of three failed in the first wave.
                    answered = shard.requests - (1 if shard.wave == 1 and shard.number == 1 else 0)
                    found |= {f"{shard.shard_id}:{number}" for number in range(answered)}
        return len(found)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


# Each seed, since only some lose a file that a later step reads.
@pytest.mark.sample(8)
@pytest.mark.parametrize("seed", range(8))
def test_any_files_of_a_settled_partition_may_be_lost(
    ledger_url: str, tmp_path: Path, emulator: Emulator, seed: int
) -> None:
    chance, place = random.Random(seed), Place(ledger_url, tmp_path / "payloads", emulator)
    submission_id = place.land()
    files = sorted(path for path in place.root.rglob("*") if path.is_file())
    # All of them, or some.
    harmed = files if seed == 0 else chance.sample(files, chance.randint(len(files) // 2, len(files)))
    for path in harmed:
        HARMS["missing" if seed == 0 else chance.choice(sorted(HARMS))](path)
    has_vendor = bool(seed % 2)
    if not has_vendor:
        emulator.inject(GONE)
    paid, kept = place.billed, ROWS if has_vendor else place.surviving(submission_id)
    # Plans of the same rows, and of more rows, work; their preview bills no request.
    preview = place.engine.preview(LABELS, rows())
    assert preview.known is not None
    assert (preview.known.submission_id, preview.lost >= ROWS - kept) == (submission_id, True)
    assert place.engine.preview(LABELS, rows(ROWS + 1)).to_send <= ROWS + 1 - kept
    assert place.engine.plan(LABELS, rows()).submission_id == submission_id
    outcomes = place.outcomes(submission_id)
    assert sorted(outcomes.values()) == ["missing"] * (ROWS - kept) + ["succeeded"] * kept
    assert place.billed == paid
    # A person asks for the lost rows: only they are paid again.
    emulator.clear_faults()
    assert place.engine.preview(LABELS, rows(), again=True).to_send == ROWS - kept
    again = place.engine.plan(LABELS, rows(), again=True)
    place.finish(again.submission_id)
    assert set(place.outcomes(again.submission_id).values()) == {"succeeded"}
    assert place.billed == paid + ROWS - kept


def test_with_a_batch_in_flight_whose_requests_are_unknown_a_plan_stops_and_says_what_to_do(
    ledger_url: str, tmp_path: Path, emulator: Emulator
) -> None:
    place = Place(ledger_url, tmp_path / "payloads", emulator)
    submission_id = place.engine.plan(LABELS, rows()).submission_id
    place.engine.submit(LABELS, submission_id)
    for path in place.root.rglob("*.lz4"):
        path.unlink()
    for act in (place.engine.preview, place.engine.plan):
        with pytest.raises(PayloadError, match=r"unknown which requests batch .* has.*resolve .* --lost"):
            act(LABELS, rows(ROWS + 1))
    # When it has ended, its answers become labels by their own ids, and planning continues.
    place.finish(submission_id)
    assert set(place.outcomes(submission_id).values()) == {"succeeded"}
    assert place.engine.preview(LABELS, rows(ROWS + 1)).to_send == 1
    assert place.billed == ROWS


ARGUMENTS: dict[str, Callable[[Place, str], tuple[Any, ...]]] = {
    "check": lambda _, __: (LABELS,),
    "plan": lambda _, __: (LABELS, rows(ROWS + 1)),
    "preview": lambda _, __: (LABELS, rows(ROWS + 1)),
    "submit": lambda _, key: (LABELS, key),
    "submit_together": lambda _, key: (LABELS, [key]),
    "advance": lambda _, key: (LABELS, key),
    "collect": lambda _, key: (LABELS, key),
    "collect_together": lambda _, key: (LABELS, [key]),
    "labels": lambda _, key: (LABELS, key),
    "label_batches": lambda _, key: (LABELS, key),
    "write_labels": lambda place, key: (LABELS, key, f"{place.root}-labels", f"{place.root}-rejects"),
    "left_out_rows": lambda place, key: (place.engine.ledger.submissions.get(key),),
    "masked_values": lambda place, key: (place.engine.ledger.submissions.get(key),),
    "recovery.recover": lambda _, __: ("labels",),
    "recovery.recover_all": lambda _, __: (),
    "recovery.find_unrecorded": lambda _, __: (),
    "recover_batches": lambda _, key: (key,),
    "cancel": lambda _, key: (key,),
    "prune": lambda _, __: (timedelta(days=1), timedelta(days=1)),
    "status": lambda _, key: (key,),
    "take_over": lambda _, __: (LABELS,),
}
# These read no stored file; nor does `Engine.activity`.
LEDGER_ALONE = {
    "assembler", "give_up", "give_up_forgotten", "having_unsent", "latest", "now", "poll",
    "poll_awaited", "poll_beside", "provider", "recovery.newest_hold", "rename", "resolve", "stop_late", "unsent",
}  # fmt: skip


@pytest.mark.parametrize("state", ["planned", "in flight", "settled"])
@pytest.mark.parametrize("how", [*HARMS, "a folder"])
def test_no_builtin_exception_leaves_a_verb(tmp_path: Path, emulator: Emulator, how: str, state: str) -> None:
    harm = {**HARMS, "a folder": become_folder}[how]
    place = Place(str(tmp_path / "ledger.sqlite"), tmp_path / "payloads", emulator)
    verbs = {name for name, _ in inspect.getmembers(Engine, inspect.isfunction) if not name.startswith("_")}
    verbs |= {f"recovery.{name}" for name, _ in inspect.getmembers(Recovery, inspect.isfunction) if name[0] != "_"}
    assert verbs == ARGUMENTS.keys() | LEDGER_ALONE
    if state == "settled":
        submission_id = place.land()
    else:
        submission_id = place.engine.plan(LABELS, rows()).submission_id
        if state == "in flight":
            place.engine.submit(LABELS, submission_id)
            emulator.settle()
    for path in sorted(place.root.rglob("*")):
        if path.is_file():
            harm(path)
    emulator.inject(GONE)
    refused = set()
    # `cancel` comes last, since it ends all work.
    for name in sorted(ARGUMENTS, key=lambda name: (name == "cancel", name)):
        try:
            done = attrgetter(name)(place.engine)(*ARGUMENTS[name](place, submission_id))
            if inspect.isgenerator(done):
                list(done)
        except LLMBatchError:
            refused.add(name)
    assert "left_out_rows" in refused
