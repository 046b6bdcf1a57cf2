"""A deployment over one ledger, whose every step is by an engine of another process, as cascades need several."""

from __future__ import annotations

import pyarrow as pa

from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.files.request_files import levels_of
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator


class CascadeSite:
    """A deployment over a ledger, and the emulator."""

    def __init__(self, url: str, folder: str, emulator: Emulator) -> None:
        self.url, self.folder, self.emulator = url, folder, emulator

    def engine(self) -> Engine:
        """Return an engine of another process, which has only the ledger and the files."""
        provider = OpenAIProvider(DEFAULT_KEY, self.emulator.openai_base_url, timeout_seconds=5.0)
        ledger, payloads = Ledger(self.url), PayloadStore(self.folder)
        return Engine(Deployment({"openai": provider}, ledger, payloads, "test", sleep=lambda _: None))

    def label(self, asked_for: Labeling, cases: pa.Table) -> tuple[Levels, str]:
        """Label the rows to the end, and return the calibrated levels and the submission's id."""
        engine = self.engine()
        submission_id = engine.plan(asked_for, cases).submission_id
        engine.submit(asked_for, submission_id)
        is_settled = False
        while not is_settled:
            self.emulator.settle()
            is_settled = self.engine().advance(asked_for, submission_id).is_settled
        levels = levels_of(engine.payloads, self.engine().ledger.submissions.get(submission_id))
        assert levels is not None
        return levels, submission_id
