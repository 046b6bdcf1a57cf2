"""The shared state of the emulated vendors: clock, mover, faults, books, ids, keys, and the answer function."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dagster_llm_batch.testing.emulator.answers import AnswerFunction, Reply, as_reply
from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import Books
from dagster_llm_batch.testing.emulator.faults import FaultScript
from dagster_llm_batch.testing.emulator.flex import FlexTier
from dagster_llm_batch.testing.emulator.lifecycle import Clock, Mover
from dagster_llm_batch.testing.emulator.uploads import FindDocument, StoredDocument

Keys = Collection[str] | Mapping[str, str] | None


@dataclass(frozen=True)
class VendorLimits:
    """Limits of the vendors; None means unlimited.

    `enqueued_tokens` is per account and model, at OpenAI and the Gemini API. Gemini refuses a batch above it at once;
    OpenAI accepts it and fails it in validation, or, with `fails_fast`, refuses it too, like Azure in places.
    `queued_requests` is Anthropic's, per account. `inline_requests`, `inline_results` and `results_page` are
    OpenRouter's: a batch of up to `inline_results` rows has them itself, and a larger one has pages of at most
    `results_page`. `others` has limits by the names that a vendor's folder gives them.
    """

    batch_requests: int = 50_000
    file_bytes: int = 200_000_000
    message_batch_requests: int = 100_000
    message_batch_bytes: int = 256_000_000
    gemini_file_bytes: int = 2_000_000_000
    bedrock_file_bytes: int = 1_000_000_000
    bedrock_min_records: int = 100
    bedrock_jobs: int | None = None  # submitted and in progress, of one account
    bedrock_quotas: Mapping[str, float] = field(default_factory=dict)  # Service Quotas, by name
    embedding_inputs: int = 50_000
    enqueued_tokens: int | None = None
    fails_fast: bool = False
    queued_requests: int | None = None
    known_models: Collection[str] | None = None
    window_seconds: float = 86_400.0
    inline_requests: int = 5_000
    inline_results: int = 2
    results_page: int = 5
    others: Mapping[str, int] = field(default_factory=dict)


class SharedState:
    """The shared state of one emulator."""

    def __init__(
        self,
        *,
        answer: AnswerFunction,
        clock: Clock,
        mover: Mover,
        faults: FaultScript,
        keys: Keys,
        limits: VendorLimits,
        seed: int,
        work_steps: int,
        gcs_url: str | None = None,
        s3_url: str | None = None,
    ) -> None:
        self._answer = answer
        self.clock = clock
        self.mover = mover
        self.faults = faults
        self.limits = limits
        self.seed = seed
        self.work_steps = work_steps
        self.gcs_url = gcs_url
        self.s3_url = s3_url
        self.books = Books()
        self.flex = FlexTier()
        # By vendor: how a stored document is found by its account and id.
        self.documents: dict[str, Callable[[str, str], StoredDocument | None]] = {}
        self._keys = {keys: keys} if isinstance(keys, str) else keys
        self._randoms: dict[str, random.Random] = {}
        self._lock = threading.Lock()
        self._blobs: list[Blob] = []

    def account(self, key: str | None) -> str | None:
        """Return the account that the key opens; None for an unknown key. Without a list each key is an account."""
        if not key or (self._keys is not None and key not in self._keys):
            return None
        return self._keys[key] if isinstance(self._keys, Mapping) else key

    def new_id(self, prefix: str, kind: str = "") -> str:
        """Return an id that was not given before. The same sequence for the same seed, prefix and kind."""
        stream = f"{self.seed}:{prefix}:{kind}"
        with self._lock:
            if stream not in self._randoms:
                self._randoms[stream] = random.Random(stream)  # noqa: S311  (reproducible ids, not secrets)
            return f"{prefix}{self._randoms[stream].getrandbits(96):024x}"

    def keep(self, blob: Blob) -> Blob:
        """Close this blob with the emulator, and not before: a batch may still read a deleted file."""
        with self._lock:
            self._blobs.append(blob)
        return blob

    def documents_of(self, vendor: str, account: str) -> FindDocument:
        """Return the function that finds an account's documents in the vendor's storage."""
        return partial(self.documents.get(vendor, lambda _account, _id: None), account)

    def close(self) -> None:
        """Give back all files."""
        with self._lock:
            for blob in self._blobs:
                blob.close()
            self._blobs.clear()

    def answer(self, body: dict[str, Any], endpoint: str) -> Reply:
        """Return the answer function's reply; its exceptions are kept in the books and answered as an HTTP 500."""
        try:
            return as_reply(self._answer(body, endpoint))
        except Exception as error:  # noqa: BLE001  (the caller's function: anything may come)
            self.books.write(error)
            return Reply(status_code=500, code="server_error", message=f"The answer function raised {error!r}.")
