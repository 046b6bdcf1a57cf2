"""The calls about batches of a server whose paths are not OpenAI's, in the form of the SDK's `batches`.

`OpenAIProvider` makes its calls about batches through the SDK's `batches`, or through a subclass of OwnCalls, which
`Server.calls` names. Files and answers in real time are OpenAI's in both cases. The SDK's client makes each call, with
its headers, timeouts, retries and errors. The subclass provides the path and the body, and reads the answer as the
batch that OpenAI would show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Self

from dagster_llm_batch.providers.answers import RAW_ANSWER

__all__ = ["Batch", "OwnCalls", "Page", "Reply"]


class Batch(SimpleNamespace):
    """A batch with the names of OpenAI's batch object; see `batches.read_batch` for those that are read."""

    model_fields: Mapping[str, Any] = {}


class Page:
    """A page of a list of batches. `next_reply` gives the next one; None: this page is the last."""

    model_fields: Mapping[str, Any] = {}

    def __init__(self, data: Any, next_reply: Callable[[], Reply] | None) -> None:
        self.data = data
        self._next_reply = next_reply

    @property
    def has_more(self) -> bool:
        """Whether more pages follow this one."""
        return self._next_reply is not None

    def has_next_page(self) -> bool:
        """Return whether more pages follow."""
        return self.has_more

    def iter_pages(self) -> Iterator[Page]:
        """Yield this page, and those that follow."""
        page = self
        yield page
        while page._next_reply is not None:
            page = page._next_reply().parse()
            yield page


class Reply:
    """An answer, as the SDK's raw ones: with its headers, and its content, read when asked for."""

    def __init__(self, raw: Any, read: Callable[[Any], Any]) -> None:
        self._raw = raw
        self._read = read
        self.http_response = raw.http_response
        self.headers = raw.headers

    def parse(self) -> Any:
        """Return the batch, or the page of them."""
        return self._read(self._raw.parse())


class OwnCalls(ABC):
    """The calls about batches. `client` is the SDK's, whose transport makes them."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> Self:
        """These calls: each of them gives a raw answer."""
        return self

    @abstractmethod
    def create(
        self, *, model: str, input_file_id: str, endpoint: str, completion_window: str, metadata: Mapping[str, str]
    ) -> Reply:
        """Create a batch of an uploaded request file. Attaches the metadata that identify the batch later."""

    @abstractmethod
    def retrieve(self, batch_id: str) -> Reply:
        """Read a batch."""

    @abstractmethod
    def cancel(self, batch_id: str) -> Reply:
        """Ask for a batch to be stopped."""

    @abstractmethod
    def list(self, *, limit: int) -> Reply:
        """Read the first page of the list of batches, newest first; its reply reads as a Page."""

    @abstractmethod
    def _batch(self, data: Any) -> Batch:
        """Return a batch as OpenAI would show it. A missing or odd field goes in unchanged."""

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        read: Callable[[Any], Any] | None = None,
        **more: Any,
    ) -> Reply:
        """Make one call. `read` turns the JSON into the content of the reply; by default one batch."""
        options = {"headers": RAW_ANSWER, **({} if params is None else {"params": params})}
        raw = getattr(self._client, method)(path, cast_to=object, options=options, **more)
        return Reply(raw, read or self._batch)
