"""JSON calls through google-genai's own transport: its addresses, credentials and headers, and the unchanged answer.

The SDK's typed methods drop fields that are needed here (an operation's `error` and `batchStats`) and reshape request
bodies (`generationConfig` is flattened). So calls go through the one method that they themselves use.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from dagster_llm_batch.errors import CredentialsError, ProviderError, TransientError
from dagster_llm_batch.providers import answers
from dagster_llm_batch.providers.answers import check_listed, is_answer, json_object
from dagster_llm_batch.providers.base import VendorProvider
from dagster_llm_batch.providers.google.errors import google_answer_of, google_calls, http_status
from dagster_llm_batch.providers.http import Origin, guard_client
from dagster_llm_batch.providers.paging import RepeatedListError, unrepeated
from dagster_llm_batch.text import is_id
from dagster_llm_batch.types import BatchReport

if TYPE_CHECKING:
    from google.genai import Client
    from google.genai.types import HttpOptionsDict

__all__ = ["GoogleApi", "GoogleProvider", "count", "next_page", "page_batches", "time_of"]

_PAGE = 100


class GoogleApi:
    """The calls of one provider; the client is built on the first. SDK retries are off: each call is made once.

    `secret` returns the current key or token, for masking in messages. `is_gemini` is true for the Gemini API, and
    false for Vertex AI.
    """

    def __init__(
        self,
        client: Callable[[], Client],
        where: str,
        secret: Callable[[], str | None],
        timeout_seconds: float,
        *,
        is_gemini: bool,
    ) -> None:
        self._make = client
        self._made: Client | None = None
        self._where = where
        self._secret = secret
        self._timeout_seconds = timeout_seconds
        self._is_gemini = is_gemini

    @property
    def client(self) -> Client:
        """The SDK's client."""
        if self._made is None:
            made = self._make()
            api = made._api_client  # noqa: SLF001 -- the SDK takes no hooks for a client that it makes by itself
            # The reply that begins an upload contains the address for the file, which may be another host of Google's.
            origin = Origin(str(api._http_options.base_url), takes_uploads=True)  # noqa: SLF001 -- as above
            guard_client(api._httpx_client, origin, self._timeout_seconds)  # noqa: SLF001 -- as above
            self._made = made
        return self._made

    def calls(self, doing: str, *, creating: bool = False) -> Any:
        """Return a context that turns the SDK's exceptions into ours."""
        secret = self._secret() or ""
        return google_calls(f"{doing} at {self._where}", secret, is_gemini=self._is_gemini, creating=creating)

    def call(
        self,
        method: str,
        path: str,
        doing: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        *,
        creating: bool = False,
    ) -> dict[str, Any]:
        """Return the JSON object of the answer. While creating, any other answer is an AmbiguousError."""
        client = self.client
        full = f"{path}?{urlencode(query)}" if query else path
        with self.calls(doing, creating=creating):
            # no public method returns the unchanged body; all of the SDK's methods use this one
            response = client._api_client.request(method, full, dict(body or {}))  # noqa: SLF001
            return json_object(response.headers, response.body)

    def pages(
        self,
        path: str,
        doing: str,
        lists: Sequence[str],
        query: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the batches of a list, page after page.

        Args:
            path: The list's.
            doing: The step that failed, for an error.
            lists: Names under which a page may hold its batches.
            query: Parameters in addition to size and token of a page.
            most: The most pages to read. Default: all, since neither API documents an order, and the wanted batch may
                be on the last.
        """
        for page in islice(unrepeated(self._pages(path, doing, lists, query), lambda batch: str(batch["name"])), most):
            yield from page

    def _pages(
        self, path: str, doing: str, lists: Sequence[str], query: Mapping[str, Any] | None
    ) -> Iterator[list[dict[str, Any]]]:
        token = ""
        seen: set[str] = set()
        while True:
            more = {"pageToken": token} if token else {}
            page = self.call("get", path, doing, query={"pageSize": _PAGE, **(query or {}), **more})
            yield page_batches(page, *lists)
            token = next_page(page)
            if not token:
                return
            if token in seen:
                raise RepeatedListError
            seen.add(token)

    def order(self, path: str, doing: str) -> None:
        """Make a call whose answer is an empty object."""
        if self.call("post", path, doing):
            raise TransientError(f"Could not {doing}, or perhaps did: the answer is not empty, as it should be.")

    def answer(
        self, path: str, body: Mapping[str, Any], options: HttpOptionsDict | None = None
    ) -> tuple[int, Any, ProviderError | None]:
        """Make one request in real time. An HTTP error is an answer, equal to the result in a batch.

        Args:
            path: The path below the API's version.
            body: The JSON to send.
            options: The SDK's HttpOptions for this call: headers, and the time limit in milliseconds.

        Returns:
            The status, the JSON that came with it, and an HTTP error as ours.

        Raises:
            ProviderError: The credentials are bad, there is no answer, or the answer is not the API's.
        """
        client = self.client
        details: Any = None
        status: int | None = HTTPStatus.OK
        try:
            with self.calls("get an answer"):
                try:
                    # as in `call`
                    response = client._api_client.request("post", path, dict(body), options)  # noqa: SLF001
                    return HTTPStatus.OK, json_object(response.headers, response.body), None
                except Exception as error:
                    status, details = http_status(error), getattr(error, "details", None)
                    status = status if is_answer(status, *google_answer_of(error)) else None
                    raise
        except CredentialsError:
            raise
        except ProviderError as failure:
            if status is None:
                raise
            return status, details, failure


FLEX_WITHOUT_EMBEDDINGS = "Google has the tier 'flex' for generateContent, not for embeddings."


class GoogleProvider(VendorProvider):
    """A provider by calls of `GoogleApi`. Each API has a list of its batches at one address, and a batch below it."""

    _api: GoogleApi
    _batches_path: str
    _list_names: tuple[str, ...]
    """Names under which a page may hold its batches."""

    @abstractmethod
    def _is_batch(self, answer: Mapping[str, Any]) -> bool:
        """Return whether an answer is a batch."""

    @abstractmethod
    def _read(self, batch_id: str, batch: Mapping[str, Any]) -> BatchReport:
        """Read a batch as the API gives it."""

    @abstractmethod
    def _path(self, batch_id: str) -> str:
        """Return the address of a batch, by its id or by its whole name."""

    def _list_reports(self, wanted: Collection[str]) -> Iterator[tuple[str, BatchReport]]:
        # Neither API documents the order of its list, so a page does not show where the next wanted batch is. From one
        # page for ten batches on, single calls are fewer.
        most = len(wanted) // 10 + 1
        for batch in self._api.pages(self._batches_path, "list the batches", self._list_names, most=most):
            if batch["name"] in wanted:
                yield batch["name"], self._read(batch["name"], batch)

    def _read_report(self, batch_id: str) -> BatchReport:
        return self._read(batch_id, self._batch(batch_id))

    def _batch(self, batch_id: str) -> dict[str, Any]:
        """Return the batch of this id. Raises TransientError where the answer is another object."""
        batch = self._api.call("get", self._path(batch_id), f"read the batch '{batch_id}'")
        if not self._is_batch(batch):
            raise TransientError(f"Could not read the batch '{batch_id}': the answer is no batch; it has no state.")
        return batch

    def _stop(self, batch_id: str) -> None:
        self._api.order(f"{self._path(batch_id)}:cancel", f"cancel the batch '{batch_id}'")


def page_batches(page: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
    """Return the batches on a page; Google omits the field of an empty list.

    An answer that is not a list must not read as one without our batch: it is a TransientError.
    """
    if page and not {*names, "nextPageToken"} & page.keys():
        raise TransientError(f"Could not list the batches: the answer holds {sorted(page)} and no list.")
    batches: object = next((page[name] for name in names if page.get(name) is not None), [])
    return check_listed(batches, lambda batch: isinstance(batch, dict) and is_id(batch.get("name")))


def next_page(page: Mapping[str, Any]) -> str:
    """Return the token of the page after this one; empty where it is the last."""
    token = page.get("nextPageToken") or ""
    if not isinstance(token, str):
        raise TransientError("Could not list the batches: the answer names a next page that can be none.")
    return token


def count(value: Any) -> int | None:
    """Return a count, which Google writes as a string; None where it is absent or -1, which means unknown."""
    return answers.count_of(value)


def time_of(value: Any) -> datetime | None:
    """Return a time in RFC 3339, with up to nanoseconds."""
    if not isinstance(value, str):
        return None
    head, dot, tail = value.removesuffix("Z").partition(".")
    return answers.time_of(f"{head}{dot}{tail[:6].ljust(6, '0') if dot else ''}+00:00")
