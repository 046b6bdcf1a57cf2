"""From rows to labels with the payloads in an object store, each step by an engine with connections of its own."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from dagster_llm_batch import Limits
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
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
