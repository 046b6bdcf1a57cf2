"""The duties of `protocols.py` as tests, for every provider, also yours. Needs pytest.

    class TestMyProvider(ProviderContract):
        @pytest.fixture
        def subject(self): ...

Each test is named after the duty it holds the provider to. A test of a verb that the provider may have, and lacks, is
skipped. So is a test of a failure that the subject cannot cause; the reason names the argument to give.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self, cast

import pyarrow as pa
import pytest

from dagster_llm_batch.core.masks import Mask, Masker
from dagster_llm_batch.errors import CannotStopError, ProviderError
from dagster_llm_batch.protocols import (
    CAPABILITIES,
    AnswersInRealTime,
    CancelsBatches,
    Codec,
    ColumnCodec,
    DeletesBatches,
    DeletesRequestFiles,
)
from dagster_llm_batch.protocols import Provider as ProviderProtocol
from dagster_llm_batch.providers.capabilities import check_setup, console_url, count_files
from dagster_llm_batch.types import (
    Absent,
    BatchReport,
    BatchStatus,
    Destination,
    Endpoint,
    FindHints,
    Found,
    Outcome,
    Request,
    RequestSpec,
    Result,
    Undecided,
)

if TYPE_CHECKING:
    from dagster_llm_batch.testing.emulator import Emulator

__all__ = [
    "DestinationContract",
    "Failures",
    "MaskerContract",
    "OneWayStream",
    "ProviderContract",
    "ProviderUnderTest",
]

_AWKWARD = ('say "hi"', "a\\b\n\r\t", "x\u2028y\u2029z", "\U0001f600 é 中", '"},{"custom_id":"forged"', "\x00\x1f\x7f")
_NONCE = "n"
_THREADS = 4
_PATIENCE_SECONDS = 60.0
_REJECTION = "The contract rejects this batch."


class Finish(Protocol):
    """Lets every batch that was submitted come to its end."""

    def __call__(self) -> None: ...


@dataclass(frozen=True)
class Failures:
    """Ways to make the vendor fail. Each call is for the batches that are submitted after it.

    The contract skips the test of a way that is None.
    """

    reject_batch: Callable[[], str] | None = None
    """Make the vendor reject a batch as a whole. Returns words of the reason that the vendor gives."""
    expire_batch: Callable[[], object] | None = None
    """Make the vendor end a batch before each of its requests has an answer, as at the end of its window."""
    refuse_requests: Callable[[], object] | None = None
    """Make the vendor answer each request of a batch with an error."""


@dataclass(frozen=True)
class ProviderUnderTest:
    """A provider ready to be tested. `secrets` must never be shown; `finish` lets all its batches end.

    `unreported` names fields of BatchReport that the vendor does not have; the contract expects the others. Allowed:
    `total`, `done`, `failed`, `created_at`, `ended_at`, `reason`.
    """

    provider: ProviderProtocol
    spec: RequestSpec
    finish: Finish
    secrets: Sequence[str] = ()
    failures: Failures = field(default_factory=Failures)
    unreported: Collection[str] = ()

    @classmethod
    def at_emulator(
        cls,
        emulator: Emulator,
        provider: ProviderProtocol,
        spec: RequestSpec,
        secrets: Sequence[str] = (),
        unreported: Collection[str] = (),
        without: Collection[str] = (),
    ) -> Self:
        """Return a provider whose vendor is this emulator, with all kinds of failures but those in `without`."""
        from dagster_llm_batch.testing.emulator.faults import BatchFault, RowFault  # noqa: PLC0415 -- an extra

        def reject_batch() -> str:
            emulator.inject(BatchFault(kind="fails", code="invalid_request", message=_REJECTION))
            return _REJECTION

        failures = Failures(
            reject_batch,
            lambda: emulator.inject(BatchFault(kind="expires")),
            lambda: emulator.inject(RowFault(status_code=400)),
        )
        failures = replace(failures, **dict.fromkeys(without))
        return cls(provider, spec, emulator.settle, secrets, failures, unreported)

    def check_reported(self, report: BatchReport, **expected: object) -> None:
        """Assert that the report has these values in the fields that the vendor has."""
        reported = {name: getattr(report, name) for name in expected if name not in self.unreported}
        wanted = {name: value for name, value in expected.items() if name in reported}
        wrong = sorted(name for name in wanted if reported[name] != wanted[name])
        assert reported == wanted, (
            "Read these fields of BatchReport from the vendor's batch. For fields that the vendor does not have, "
            f"give ProviderUnderTest(…, unreported={wrong})."
        )

    @property
    def codec(self) -> Codec:
        """The codec of its spec."""
        return self.provider.codec(self.spec)

    def submit(self, texts: Sequence[str], tag: str) -> str:
        """Submit one batch of these texts, whose custom_ids are n-0, n-1, …"""
        return self.provider.submit(cast("BinaryIO", OneWayStream(self.lines(texts))), self.spec, tag)

    def lines(self, texts: Sequence[str]) -> bytes:
        """Return the request file of these texts."""
        codec = self.codec
        return b"".join(codec.encode(Request(f"r{i}", None, text), f"{_NONCE}-{i}") for i, text in enumerate(texts))

    def results(self, batch_id: str) -> list[Result]:
        """Return all results of a batch, read. Checks that a ColumnCodec reads the same from all lines at once."""
        codec, lines = self.codec, list(self.provider.fetch(batch_id))
        results = list(map(codec.decode, lines))
        if lines and isinstance(codec, ColumnCodec):
            columns = codec.decode_all(lines)
            assert [columns.result(at) for at in range(len(lines))] == results
        return results


class OneWayStream(io.BufferedIOBase):
    """Bytes that can be read once, without length or position, like a decompressed file."""

    def __init__(self, data: bytes) -> None:
        self._source = io.BytesIO(data)

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        return self._source.read(size)


def _hints(requests: int, nonce: str = _NONCE, known: Iterable[str] = ()) -> FindHints:
    return FindHints(datetime.now(UTC) - timedelta(seconds=1), requests, nonce, frozenset(known))


class ProviderContract:
    """Inherit, and give a fixture `subject` that returns a ProviderUnderTest."""

    @pytest.fixture
    def subject(self) -> ProviderUnderTest:
        """Return the provider under test."""
        raise NotImplementedError

    def test_it_is_a_provider_and_shows_no_secret(self, subject: ProviderUnderTest) -> None:
        assert isinstance(subject.provider, ProviderProtocol)
        provider = subject.provider
        shown = f"{provider!r} {provider.name} {provider.account} {console_url(provider, 'b')}"
        assert not [secret for secret in subject.secrets if secret in shown]
        assert subject.provider.settle_seconds >= 0
        assert subject.provider.window > timedelta()

    def test_the_engine_sees_each_verb_that_the_provider_has(self, subject: ProviderUnderTest) -> None:
        provider = subject.provider
        seen = {verb for verb, capability in CAPABILITIES.items() if isinstance(provider, capability)}
        assert seen == {verb for verb in CAPABILITIES if hasattr(provider, verb)}

    def test_check_setup_takes_a_provider_that_can_start_batches(self, subject: ProviderUnderTest) -> None:
        check_setup(subject.provider)

    def test_encode_1_equal_arguments_give_equal_bytes(self, subject: ProviderUnderTest) -> None:
        request = Request("r", None, "a text")
        assert subject.codec.encode(request, "n-0") == subject.codec.encode(request, "n-0")

    def test_encode_2_a_line_ends_once(self, subject: ProviderUnderTest) -> None:
        for text in _AWKWARD:
            line = subject.codec.encode(Request("r", None, text), "n-0")
            assert line.endswith(b"\n")
            assert line.count(b"\n") == 1
            assert len(line.decode().splitlines()) == 1

    def test_encode_3_row_data_stays_data(self, subject: ProviderUnderTest) -> None:
        plain = json.loads(subject.codec.encode(Request("r", None, "plain"), "n-0"))
        for text in _AWKWARD:
            line = json.loads(subject.codec.encode(Request("r", None, text), "n-0"))
            assert json.dumps(line).replace(json.dumps(text), '"plain"') == json.dumps(plain)

    def test_decode_1_never_raises(self, subject: ProviderUnderTest) -> None:
        for line in (b"", b"\n", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 100_000):
            result = subject.codec.decode(line)
            assert result.custom_id is None
            assert result.outcome is not Outcome.SUCCEEDED

    def test_submit_2_the_tag_is_attached_so_that_find_sees_it(self, subject: ProviderUnderTest) -> None:
        batch_id = subject.submit(["a", "b"], "tag-a")
        # a vendor without tags identifies a batch by its results: until it ends, "perhaps" is right, and "no" is always
        # wrong
        assert subject.provider.find("tag-a", _hints(2)) in (Found(batch_id), Undecided((batch_id,)))
        subject.finish()
        assert subject.provider.find("tag-a", _hints(2)) == Found(batch_id)

    def test_find_a_batch_that_was_never_created_is_absent(self, subject: ProviderUnderTest) -> None:
        batch_id = subject.submit(["a"], "tag-a")
        assert subject.provider.find("tag-b", _hints(1, "other")) in (Absent(), Undecided((batch_id,)))
        assert subject.provider.find("tag-b", _hints(1, "other", {batch_id})) == Absent()
        subject.finish()
        assert subject.provider.find("tag-b", _hints(1, "other")) == Absent()

    def test_find_a_batch_that_is_another_for_certain_is_not_found(self, subject: ProviderUnderTest) -> None:
        batch_id = subject.submit(["a", "b"], "tag-a")
        subject.finish()
        assert subject.provider.find("tag-a", _hints(2, known={batch_id})) == Absent()

    def test_poll_a_batch_is_reported_until_it_ends(self, subject: ProviderUnderTest) -> None:
        first, second = subject.submit(["a"], "tag-a"), subject.submit(["a", "b"], "tag-b")
        assert set(subject.provider.poll([first, second])) == {first, second}
        subject.finish()
        reports = subject.provider.poll([first, second])
        assert {report.status for report in reports.values()} == {BatchStatus.ENDED}
        assert [reports[batch_id].batch_id for batch_id in (first, second)] == [first, second]
        assert reports[second].total in (2, None)
        ended_at = reports[second].ended_at
        assert ended_at is None or ended_at.tzinfo is not None

    def test_poll_1_an_unknown_batch_is_not_found_with_a_reason(self, subject: ProviderUnderTest) -> None:
        known = subject.submit(["a"], "tag-a")
        reports = subject.provider.poll(["batch_unknown", known])
        assert reports["batch_unknown"].status is BatchStatus.NOT_FOUND
        assert reports["batch_unknown"].reason
        assert known in reports
        subject.finish()

    def test_poll_2_an_ended_batch_reports_its_counts_and_times(self, subject: ProviderUnderTest) -> None:
        batch_id = subject.submit(["a", "b", "c"], "tag-a")
        subject.finish()
        report = subject.provider.poll([batch_id])[batch_id]
        # Without counts, an empty download looks complete.
        subject.check_reported(report, total=3, done=3, failed=0)
        shown = {name: getattr(report, name) is not None for name in ("created_at", "ended_at")}
        missing = sorted(name for name, is_shown in shown.items() if not is_shown and name not in subject.unreported)
        assert not missing, f"Read the times of the batch, or give ProviderUnderTest(…, unreported={missing})."
        assert all(time is None or time.tzinfo is not None for time in (report.created_at, report.ended_at))

    def test_poll_3_a_rejected_batch_has_failed_for_the_vendors_reason(self, subject: ProviderUnderTest) -> None:
        if subject.failures.reject_batch is None:
            pytest.skip("Nothing here makes the vendor reject a batch: Failures(reject_batch=…).")
        words = subject.failures.reject_batch()
        batch_id = subject.submit(["a"], "tag-a")
        subject.finish()
        report = subject.provider.poll([batch_id])[batch_id]
        assert report.status is BatchStatus.FAILED
        assert report.reason
        if "reason" not in subject.unreported:
            assert words in report.reason, (
                "Read the vendor's errors, or give ProviderUnderTest(…, unreported={'reason'})."
            )

    def test_poll_4_a_batch_that_expired_ends_and_keeps_its_answers(self, subject: ProviderUnderTest) -> None:
        if subject.failures.expire_batch is None:
            pytest.skip("Nothing here makes a batch expire: Failures(expire_batch=…).")
        subject.failures.expire_batch()
        batch_id = subject.submit(["a", "b", "c", "d"], "tag-a")
        subject.finish()
        assert subject.provider.poll([batch_id])[batch_id].status is BatchStatus.EXPIRED
        outcomes = [result.outcome for result in subject.results(batch_id)]
        assert Outcome.SUCCEEDED in outcomes
        assert set(outcomes) <= {Outcome.SUCCEEDED, Outcome.EXPIRED}

    def test_poll_nothing_is_nothing(self, subject: ProviderUnderTest) -> None:
        assert dict(subject.provider.poll([])) == {}

    def test_fetch_every_request_has_one_line_and_one_outcome(self, subject: ProviderUnderTest) -> None:
        batch_id = subject.submit([f"text {i}" for i in range(20)], "tag-a")
        subject.finish()
        results = subject.results(batch_id)
        assert sorted(result.custom_id or "" for result in results) == sorted(f"n-{i}" for i in range(20))
        assert {result.outcome for result in results} == {Outcome.SUCCEEDED}
        assert all(result.text is not None or result.embedding for result in results)
        # A moderation is free, and its reply has no tokens.
        if subject.spec.endpoint is not Endpoint.MODERATIONS:
            assert all(result.usage is not None and result.usage.input_tokens > 0 for result in results)

    def test_fetch_1_lines_end_at_line_feeds_only(self, subject: ProviderUnderTest) -> None:
        batch_id = subject.submit(_AWKWARD, "tag-a")
        subject.finish()
        lines = list(subject.provider.fetch(batch_id))
        assert len(lines) == len(_AWKWARD)
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)

    def test_fetch_2_a_refused_request_has_one_line_with_its_error(self, subject: ProviderUnderTest) -> None:
        if subject.failures.refuse_requests is None:
            pytest.skip("Nothing here makes the vendor refuse requests: Failures(refuse_requests=…).")
        subject.failures.refuse_requests()
        batch_id = subject.submit(["a", "b", "c"], "tag-a")
        subject.finish()
        results = subject.results(batch_id)
        assert sorted(result.custom_id or "" for result in results) == ["n-0", "n-1", "n-2"]
        assert {result.outcome for result in results} == {Outcome.ERRORED}
        assert all(result.reason for result in results)
        subject.check_reported(subject.provider.poll([batch_id])[batch_id], total=3, done=3, failed=3)

    def test_fetch_can_be_started_over(self, subject: ProviderUnderTest) -> None:
        batch_id = subject.submit(["a", "b", "c"], "tag-a")
        subject.finish()
        broken_off = subject.provider.fetch(batch_id)
        next(broken_off)
        del broken_off
        assert list(subject.provider.fetch(batch_id)) == list(subject.provider.fetch(batch_id))

    def test_several_threads_submit_and_fetch_at_once(self, subject: ProviderUnderTest) -> None:
        sizes = range(1, _THREADS + 1)
        ready = Barrier(_THREADS)  # so that they also race for the objects that the provider makes at its first call

        def submitted(size: int) -> str:
            ready.wait(_PATIENCE_SECONDS)
            return subject.submit([f"text {i}" for i in range(size)], f"tag-{size}")

        def fetched(batch_id: str) -> list[str]:
            ready.wait(_PATIENCE_SECONDS)
            return sorted(result.custom_id or "" for result in subject.results(batch_id))

        with ThreadPoolExecutor(_THREADS) as pool:
            batch_ids = list(pool.map(submitted, sizes))
            subject.finish()
            assert list(pool.map(fetched, batch_ids)) == [[f"n-{i}" for i in range(size)] for size in sizes]

    def test_cancel_an_ended_batch_does_nothing(self, subject: ProviderUnderTest) -> None:
        provider = subject.provider
        if not isinstance(provider, CancelsBatches):
            pytest.skip("This provider cancels no batch.")
        batch_id = subject.submit(["a"], "tag-a")
        subject.finish()
        provider.cancel(batch_id)
        assert provider.poll([batch_id])[batch_id].status is BatchStatus.ENDED
        assert len(subject.results(batch_id)) == 1

    def test_cancel_leads_to_an_end_that_accounts_for_what_finished(self, subject: ProviderUnderTest) -> None:
        provider = subject.provider
        if not isinstance(provider, CancelsBatches):
            pytest.skip("This provider cancels no batch.")
        batch_id = subject.submit(["a", "b"], "tag-a")
        # if batches cannot be stopped, it runs to its end
        with suppress(CannotStopError):
            provider.cancel(batch_id)
        subject.finish()
        status = provider.poll([batch_id])[batch_id].status
        assert status in (BatchStatus.CANCELED, BatchStatus.ENDED)
        for result in subject.results(batch_id):
            assert result.outcome in (Outcome.SUCCEEDED, Outcome.CANCELED)

    def test_delete_leaves_nothing_of_an_ended_batch_and_can_be_repeated(self, subject: ProviderUnderTest) -> None:
        provider = subject.provider
        if not isinstance(provider, DeletesBatches):
            pytest.skip("This provider deletes no batch.")
        batch_id, other = subject.submit(["a", "b"], "tag-a"), subject.submit(["c"], "tag-b")
        subject.finish()
        assert len(subject.results(batch_id)) == 2  # noqa: PLR2004 -- as many as were sent
        assert provider.delete(batch_id) is None
        try:
            left = list(provider.fetch(batch_id))
        except ProviderError:
            left = []
        assert left == []
        assert provider.delete(batch_id) is None
        # It ended or is gone, but must not count as failed: a failed batch would be sent, and paid, once more.
        assert provider.poll([batch_id])[batch_id].status in (BatchStatus.ENDED, BatchStatus.NOT_FOUND)
        assert len(subject.results(other)) == 1

    def test_delete_request_file_leaves_results_and_can_be_repeated(self, subject: ProviderUnderTest) -> None:
        provider = subject.provider
        if not isinstance(provider, DeletesRequestFiles):
            pytest.skip("This provider deletes no request file.")
        batch_id = subject.submit(["a", "b"], "tag-a")
        subject.finish()
        for _ in range(2):
            provider.delete_request_file(batch_id)
            assert len(subject.results(batch_id)) == 2  # noqa: PLR2004 -- as many as were sent
        assert provider.poll([batch_id])[batch_id].status is BatchStatus.ENDED

    def test_count_files_counts_no_less_than_nothing(self, subject: ProviderUnderTest) -> None:
        subject.submit(["a"], "tag-a")
        assert all(count.used >= 0 for count in count_files(subject.provider))
        subject.finish()

    def test_respond_gives_the_result_line_that_a_batch_would(self, subject: ProviderUnderTest) -> None:
        provider = subject.provider
        if not isinstance(provider, AnswersInRealTime):
            pytest.skip("This provider answers nothing in real time.")
        answer = provider.respond(subject.codec.encode(Request("r", None, "a text"), "n-7"))
        assert answer.endswith(b"\n")
        assert answer.count(b"\n") == 1
        result = subject.codec.decode(answer)
        assert (result.custom_id, result.outcome) == ("n-7", Outcome.SUCCEEDED)
        batch_id = subject.submit(["a text"], "tag-a")
        subject.finish()
        (batched,) = subject.results(batch_id)
        assert (batched.text, batched.embedding) == (result.text, result.embedding)


class ReportsDestination(Protocol):
    """The settings of a provider, as `ProviderResource`."""

    def destination(self, model: str, params: Mapping[str, object]) -> Destination:
        """Return where the requests to this model run."""
        ...


class DestinationContract:
    """For the settings of a provider: inherit, and give a fixture `settings` that returns them without variables.

    `allowed_regions` of a deployment relies on this.
    """

    @pytest.fixture
    def settings(self) -> ReportsDestination:
        """Return the settings under test."""
        raise NotImplementedError

    def test_a_region_is_reported_or_the_reason_that_it_is_unknown(self, settings: ReportsDestination) -> None:
        found = settings.destination("a-model", {})
        assert not found.is_pending
        assert bool(found.region) != bool(found.reason)

    def test_the_same_settings_report_the_same(self, settings: ReportsDestination) -> None:
        assert settings.destination("a-model", {}) == settings.destination("a-model", {})


class MaskerContract:
    """For a masker of `Mask(by=[…])`: inherit, and give the fixtures `masker` and `planted`.

    Placeholders are part of requests. A masker that finds other values the next time would therefore ask rows again.
    """

    @pytest.fixture
    def masker(self) -> Masker:
        """Return the masker under test."""
        raise NotImplementedError

    @pytest.fixture
    def planted(self) -> Mapping[str, Sequence[str]]:
        """Return texts, and of each the values that the masker must find in it."""
        raise NotImplementedError

    def test_its_name_is_a_text_that_stays(self, masker: Masker) -> None:
        assert isinstance(masker.name, str)
        assert masker.name.strip()
        assert len({masker.name for _ in range(3)}) == 1

    def test_planted_values_are_masked(self, masker: Masker, planted: Mapping[str, Sequence[str]]) -> None:
        assert any(planted.values()), "Give at least one value that the masker must find."
        for text, values in planted.items():
            masked = _masked_text(masker, text)
            assert not [value for value in values if value in masked]

    def test_a_text_is_masked_alike_each_time(self, masker: Masker, planted: Mapping[str, Sequence[str]]) -> None:
        forward = [_masked_text(masker, text) for text in planted]
        backward = [_masked_text(masker, text) for text in [*planted][::-1]]
        assert forward == backward[::-1]

    def test_threads_share_a_masker(self, masker: Masker, planted: Mapping[str, Sequence[str]]) -> None:
        texts = [*planted] * _THREADS
        expected = [_masked_text(masker, text) for text in texts]
        with ThreadPoolExecutor(_THREADS) as pool:
            assert [*pool.map(lambda text: _masked_text(masker, text), texts)] == expected

    def test_any_text_can_be_masked(self, masker: Masker) -> None:
        for text in ("", " ", "[PERSON_1]", '{"to": "x"}', "x" * 20_000, *_AWKWARD):
            assert _masked_text(masker, text) == _masked_text(masker, text)

    def test_a_pickled_masker_finds_the_same(self, masker: Masker, planted: Mapping[str, Sequence[str]]) -> None:
        # Workers of a dataset get the masker in this way.
        copy = pickle.loads(pickle.dumps(masker))  # noqa: S301 - of this test alone
        assert copy.name == masker.name
        assert [_masked_text(copy, text) for text in planted] == [_masked_text(masker, text) for text in planted]


def _masked_text(masker: Masker, text: str) -> str:
    """Mask one text. Raises ConfigError where a place or a kind is not allowed."""
    rows, _ = Mask(columns=["text"], what=(), by=[masker]).apply(pa.RecordBatch.from_pylist([{"text": text}]))
    return str(rows["text"][0].as_py())
