"""Do the work that all providers share: name the account that answers, read reports, poll, and cancel.

    BaseProvider     for every provider: its names and figures
    VendorProvider   for one behind an API that bills: reports by the batch's id, from a list or one by one
    StainlessProvider   for one whose SDK Stainless has generated: OpenAI's and Anthropic's
    AccessTokens     for a function that returns a token for each call
    check_key, address_of     for the settings that several vendors share

A provider's own modules do the rest. `answers` reads the answers of its API.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.errors import (
    CannotStopError,
    ConfigError,
    CredentialsError,
    LLMBatchError,
    ProviderError,
    TransientError,
)
from dagster_llm_batch.protocols import DEFAULT_WINDOW
from dagster_llm_batch.providers.answers import (
    UnknownIdError,
    answer_of,
    check_listed,
    is_answer,
    json_or_text,
    odd_answer,
    parse_reply,
    sdk_calls,
    time_of,
    words_of,
)
from dagster_llm_batch.providers.http import check_address
from dagster_llm_batch.providers.paging import poll_batches, unrepeated
from dagster_llm_batch.text import is_id, plain_words
from dagster_llm_batch.types import BatchReport, BatchStatus, UploadedFile

__all__ = [
    "DOCUMENT_SECONDS",
    "FLEX_SECONDS",
    "AccessTokens",
    "BaseProvider",
    "StainlessProvider",
    "VendorProvider",
    "address_of",
    "check_key",
    "uploaded_file",
]


def check_key(api_key: str, name: str) -> str:
    """Check the API key of the provider `name`. Raises ConfigError, without the key in it, for an impossible key.

    With a line break at its end, as read from a file, the transport would fail with an error that shows the header.
    """
    if not api_key or not api_key.isascii() or any(char.isspace() for char in api_key):
        what = "is empty" if not api_key else "holds a space, a line break or a letter that no key has"
        raise ConfigError(f"The API key of provider '{name}' {what}. Check where it comes from.")
    return api_key


DOCUMENT_SECONDS = 2_592_000
"""The life of an uploaded document, in seconds, where the vendor takes one: a document that is lost goes by itself."""

FLEX_SECONDS = 900.0
"""The least time limit of a call in the tier "flex", in seconds. OpenAI and Google recommend 10 to 15 minutes."""


class AccessTokens:
    """Access tokens from a function of the user's, called for each request: Entra ID's tokens live an hour.

    The latest ones are remembered, to be masked in messages.
    """

    def __init__(self, make_token: Callable[[], str], name: str) -> None:
        self._make_token = make_token
        self._name = name
        self.known: tuple[str, ...] = ()

    def __call__(self) -> str:
        """Return a token. Raises CredentialsError if the function fails: nothing was sent."""
        try:
            token = check_key(self._make_token(), self._name)
        except Exception as error:  # noqa: BLE001 - the user's function: anything may come
            reason = plain_words(words_of(error))
            raise CredentialsError(f"The token provider of '{self._name}' gave no token: {reason}") from None
        if token not in self.known:
            self.known = (*self.known[-2:], token)
        return token


def address_of(parts: SplitResult, scope: str = "") -> str:
    """Name the source of the answers of this address: host, port and path, and the `scope` within it as a query.

    The name is part of every fingerprint, so its form must never change: all rows would be sent, and paid for, again.
    """
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname}{port}{parts.path.rstrip('/')}{'?' if scope else ''}{scope}"


class BaseProvider:
    """Names and figures of a provider. The constructor makes no call."""

    window: timedelta = DEFAULT_WINDOW
    """See Provider.window. A vendor's own where it documents another."""

    default_output_tokens: int | None = None
    """See Provider.default_output_tokens. A server's own where it documents one."""

    def __init__(self, name: str, account: str, price_book: str | None, settle_seconds: float) -> None:
        self._name = name
        self._account = account
        self._price_book = price_book
        self._settle_seconds = settle_seconds

    def __repr__(self) -> str:
        # names alone: settings may hold secrets, and a repr is in every traceback
        return f"{type(self).__name__}(name={self._name!r}, account={hide_secrets(self._account)!r})"

    @property
    def _place(self) -> str:
        """The address of a call, for messages: with the provider's name, since two providers may share one address."""
        return f"provider '{self._name}' ({self._account})"

    @property
    def name(self) -> str:
        """See Provider.name."""
        return self._name

    @property
    def account(self) -> str:
        """See Provider.account."""
        return self._account

    @property
    def price_book(self) -> str | None:
        """See Provider.price_book."""
        return self._price_book

    @property
    def settle_seconds(self) -> float:
        """See Provider.settle_seconds."""
        return self._settle_seconds


class VendorProvider(BaseProvider, ABC):
    """A provider behind a vendor's API. A subclass defines how to read and stop a batch, and how to list batches.

    The vendors do not document for how long after a lost reply to a create call a batch may still appear: the call may
    still be at work. So `settle_seconds` is a long guess, which the user can change.
    """

    @abstractmethod
    def _read_report(self, batch_id: str) -> BatchReport:
        """Read this one batch. Raises UnknownIdError if the vendor has no batch of this id."""

    @abstractmethod
    def _list_reports(self, wanted: Collection[str]) -> Iterator[tuple[str, BatchReport]]:
        """Yield reports of the wanted batches as far as a few pages of the list have them."""

    @abstractmethod
    def _stop(self, batch_id: str) -> None:
        """Ask the vendor to stop the batch."""

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        """See Provider.poll. A few are read one by one; of many, as many as possible from list pages."""
        return poll_batches(batch_ids, self._list_reports, self._report)

    def _report(self, batch_id: str) -> BatchReport:
        try:
            return self._read_report(batch_id)
        except UnknownIdError as error:
            return BatchReport(
                batch_id, BatchStatus.NOT_FOUND, reason=f"The provider does not find this batch. {error}"
            )

    def cancel(self, batch_id: str) -> None:
        """See CancelsBatches."""
        try:
            self._stop(batch_id)
        except CannotStopError:
            # the batch was looked at already
            raise
        except ProviderError:
            # each vendor refuses in its own words to stop an ended batch; the state decides, not the refusal
            try:
                status = self._report(batch_id).status
            except ProviderError:
                status = BatchStatus.RUNNING
            if status.is_stoppable:
                raise


def _is_file(value: Any) -> bool:
    return is_id(getattr(value, "id", None)) and isinstance(getattr(value, "filename", None), str)


def uploaded_file(file: Any) -> UploadedFile:
    """Return a stored file as an SDK gives it. Raises TransientError for an answer that names none."""
    if not is_id(getattr(file, "id", None)):
        raise TransientError("Could not upload a document: the answer names no file.")
    return UploadedFile(file.id, time_of(getattr(file, "expires_at", None)))


class StainlessProvider(VendorProvider):
    """A provider by an SDK that Stainless has generated: OpenAI's and Anthropic's are alike but for names.

    Each call takes the raw reply first, and then makes the object of it by `parse_reply`: these SDKs make an object of
    any answer, without a check.
    """

    _public_url: str
    _page_after: str
    """Name of the argument for the batch after which a page of the list begins."""

    _page_size: int
    """Largest number of batches in the reply to one list call."""

    _has_pages = True
    """Whether the list has pages; otherwise it is one page, even if its reply reports more."""

    def __init__(
        self,
        name: str,
        api_key: str,
        base_url: str | None,
        scope: Mapping[str, str | None],
        account: str | None,
        price_book: str | None,
        settle_seconds: float,
    ) -> None:
        self._api_key = check_key(api_key, name)
        # an empty address is a variable that is not set, and is refused: it would send key and rows to the vendor
        self._base_url = self._public_url if base_url is None else base_url
        parts = check_address(self._base_url, "base_url", self._public_url)
        address = address_of(parts, urlencode([(word, value) for word, value in scope.items() if value]))
        super().__init__(name, address if account is None else account, price_book, settle_seconds)
        self._public = parts.hostname == urlsplit(self._public_url).hostname

    @abstractmethod
    def _client(self, *, retries: int) -> Any:
        """Return the SDK's client, which repeats a call up to this many times."""

    @abstractmethod
    def _batches(self, retries: int) -> Any:
        """Return the SDK's calls about batches."""

    @abstractmethod
    def _is_batch(self, value: Any) -> bool:
        """Return whether an answer is a batch."""

    @abstractmethod
    def _read(self, batch: Any) -> BatchReport:
        """Read a batch as the SDK gives it."""

    @abstractmethod
    def _translated(self, error: Exception, doing: str, *, creating: bool = False) -> ProviderError:
        """Return an exception of the SDK as one of our errors."""

    def _calls(self, doing: str, *, creating: bool = False) -> AbstractContextManager[None]:
        """Turn exceptions of the SDK into our errors. While creating, no error proves that nothing was created."""
        return sdk_calls(lambda error: self._translated(error, doing, creating=creating))

    def _page(self, after: str | None) -> tuple[dict[str, Any], bool]:
        """Return the batches of a page of the list, by id, and whether more follow."""
        start: dict[str, Any] = {} if after is None else {self._page_after: after}
        with self._calls("list the batches"):
            page = parse_reply(self._batches(retries=0).with_raw_response.list(limit=self._page_size, **start))
            has_more = self._has_pages and page.has_next_page()
            return {batch.id: batch for batch in self._listed(page)}, has_more

    def _pages(self, first: Any) -> Iterator[list[Any]]:
        """Yield the batches of this page of the list and of all that follow. Raises RepeatedListError."""
        pages = first.iter_pages() if self._has_pages else [first]
        return unrepeated(map(self._listed, pages), lambda batch: str(batch.id))

    def _listed(self, page: Any) -> list[Any]:
        return check_listed(page.data, self._is_batch, has_more=self._has_pages and page.has_more)

    def _documents(self, first: Any, names: Collection[str]) -> dict[str, list[UploadedFile]]:
        """Return the files with these names on this page of a list of documents, and on all that follow."""
        found: dict[str, list[UploadedFile]] = {}
        pages = ([*page.data] if isinstance(page.data, list) else page.data for page in first.iter_pages())
        for files in unrepeated((check_listed(one, _is_file, noun="file") for one in pages), lambda file: str(file.id)):
            for file in files:
                if file.filename in names:
                    found.setdefault(file.filename, []).append(uploaded_file(file))
        return found

    def _read_report(self, batch_id: str) -> BatchReport:
        # under the requested id, whatever the answer contains: the ledger has this id
        return replace(self._read(self._batch(batch_id)), batch_id=batch_id)

    def _batch(self, batch_id: str, retries: int = 0) -> Any:
        """Return the batch of this id. Raises TransientError where the answer is another object."""
        doing = f"read the batch '{batch_id}'"
        with self._calls(doing):
            batch = parse_reply(self._batches(retries).with_raw_response.retrieve(batch_id))
        return self._checked(batch, doing)

    def _stop(self, batch_id: str) -> None:
        doing = f"cancel the batch '{batch_id}'"
        with self._calls(doing):
            batch = parse_reply(self._batches(retries=0).with_raw_response.cancel(batch_id))
        self._checked(batch, doing)

    def _checked(self, batch: Any, doing: str) -> Any:
        if not self._is_batch(batch):
            raise TransientError(f"Could not {doing}: the answer is no batch; it has no id or no status.")
        return batch

    def _answer(self, path: str, body: Any, seconds: float | None = None) -> tuple[int, Any, ProviderError | None]:
        """Make one request in real time. An HTTP error of the API's own is an answer, equal to the result in a batch.

        Args:
            path: The path below the base address.
            body: The JSON to send.
            seconds: The time limit of the call, if the client's own is shorter. Default: the client's own.

        Returns:
            The status; the JSON object, or the body of an error status, as JSON or else as text; and that error as
            ours.

        Raises:
            ProviderError: The credentials are bad, there is no answer, or the answer is not the API's.
        """
        client = self._client(retries=0)
        if seconds is not None and isinstance(client.timeout, int | float):
            client = client.with_options(timeout=max(seconds, client.timeout))
        try:
            answer = client.post(path, body=body, cast_to=object)
            if not isinstance(answer, dict):
                raise odd_answer({}, answer if isinstance(answer, str) else json.dumps(answer))
        except LLMBatchError:
            raise
        except Exception as error:  # noqa: BLE001 -- the SDK raises what it likes
            failure = self._translated(error, "get an answer")
            status, (headers, content) = getattr(error, "status_code", 0), answer_of(error)
            if not is_answer(status, headers, content) or isinstance(failure, CredentialsError):
                raise failure from None
            return status, json_or_text(content), failure
        return 200, answer, None
