"""From rows to labels with payloads in an object store; each step has an engine with its own connections."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from dagster_llm_batch import Limits
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Status
from dagster_llm_batch.engine.label_files import write_labels
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.files.merged_results import FEWEST_MERGED
from dagster_llm_batch.files.ownership import owned_copies
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore, StoredFile
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, FileFault, WireFault

ROWS = pa.table({"id": [f"t{n}" for n in range(9)], "text": [f"Ticket number {n}." for n in range(9)]})


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_a_journey_with_payloads_in_an_object_store(request, tmp_path, kind):
    url, options = request.getfixturevalue(kind)
    root = f"{url}/{uuid.uuid4().hex}"
    definition = Labeling(
        asset="labels",
        model="openai/gpt-4o",
        key="id",
        prompt=Prompt(user="{{ text }}"),
        response=None,
        limits=Limits(max_requests_per_batch=3),
    )
    with Emulator() as emulator:
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
        emulator.inject(
            FileFault(kind="missing", batches=[0]),
            WireFault(kind="cut", route="GET /v1/files/*/content", after_lines=1, framing="chunked"),
        )

        skipped = timedelta()

        def now() -> datetime:
            return datetime.now(UTC) + skipped

        def engine() -> Engine:
            payloads = PayloadStore(root, skip_instance_cache=True, **options)
            ledger = Ledger(tmp_path / "ledger.db", clock=now)
            return Engine(Deployment({"openai": provider}, ledger, payloads, "test", clock=now, sleep=lambda _: None))

        submission = engine().plan(definition, ROWS)
        engine().submit(definition, submission.submission_id)
        emulator.settle()
        with pytest.raises(TransientError, match="2 result lines came of 3"):  # the third may still come
            engine().advance(definition, submission.submission_id)
        skipped = timedelta(hours=1)
        assert not engine().advance(definition, submission.submission_id).is_settled  # the missing row is sent again
        emulator.settle()
        status = engine().advance(definition, submission.submission_id)
        assert status.submission.outcomes == {"succeeded": 9}
        labels = engine().labels(definition, submission.submission_id, reread=True).labels
        assert sorted(labels["id"].to_pylist()) == ROWS["id"].to_pylist()
        assert engine().plan(definition, ROWS).submission_id == submission.submission_id
        assert len(emulator.books.batches) == 4
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("ledger.db")] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_in_an_object_store_days_are_settled_together_merged_and_erased(request, tmp_path, kind):
    """Label many days, since results are merged only after these; each day calls a store over HTTP."""
    url, options = request.getfixturevalue(kind)
    root = f"{url}/{uuid.uuid4().hex}"
    definition = Labeling(
        asset="labels", model="openai/gpt-4o", key="id", prompt=Prompt(user="{{ text }}"), response=None
    )
    days = [
        pa.table({"id": [f"t{n}" for n in range(day + 1)], "text": [f"Ticket {n}." for n in range(day + 1)]})
        for day in range(FEWEST_MERGED + 1)
    ]
    with Emulator() as emulator:
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)

        def engine() -> Engine:
            payloads = PayloadStore(root, skip_instance_cache=True, **options)
            ledger = Ledger(tmp_path / "ledger.db")
            return Engine(Deployment({"openai": provider}, ledger, payloads, "test", sleep=lambda _: None))

        def copies() -> list[StoredFile]:
            return [*owned_copies(engine().payloads, {s.folder for s in engine().ledger.submissions.list_all("test")})]

        for rows in days:
            ids = [engine().plan(definition, rows, partition=name).submission_id for name in ("a", "b")]
            engine().submit_together(definition, ids)
            emulator.settle()
            outcomes = engine().collect_together(definition, ids)
            assert all(isinstance(each, Status) and each.is_settled for each in outcomes.values()), outcomes
            for submission_id in ids:
                labels = engine().labels(definition, submission_id).labels
                assert sorted(labels["id"].to_pylist()) == sorted(rows["id"].to_pylist())
        assert len(copies()) == len(ids)
        erasing = engine()
        erasing.eraser.add_tombstones("labels", ["t0"], None)
        assert erasing.eraser.erase("labels") == []
        assert copies() == []
        for submission_id in ids:
            labels = engine().labels(definition, submission_id).labels
            assert sorted(labels["id"].to_pylist()) == sorted(days[-1]["id"].to_pylist()[1:])
        assert not emulator.books.billed_twice()
        tables = [PayloadStore(f"{root}/tables/{name}", **options) for name in ("labels", "rejects")]
        for run_id in ("first", "second"):
            write_labels(engine()._assembler(definition, ids[0], reread=False), *tables, run_id)
            [stored] = tables[0].files("")
            written = tables[0].read_table(stored.path)
            assert set(written["llm_run_id"].to_pylist()) == {run_id}
            assert sorted(written["id"].to_pylist()) == sorted(days[-1]["id"].to_pylist()[1:])
