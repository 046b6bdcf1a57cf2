"""What all providers do alike: say whose answers they give, read reports, poll, and cancel.

    BaseProvider     of every provider: its names, and verbs that need none of a vendor's own words
    VendorProvider   of one behind an API that bills: reports by the batch's id, from a list or one by one
    OwnMachines      of one on the user's own machines: OpenAI's lines, and nobody bills
    checked_key, address_of     what the settings of several vendors have in common

A provider's own modules say the rest. What its API answers is read by `answers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from urllib.parse import SplitResult

from dagster_llm_batch.errors import ConfigError, ProviderError
from dagster_llm_batch.providers.answers import UnknownIdError
from dagster_llm_batch.providers.openai.requests import OpenAILines
from dagster_llm_batch.providers.paging import poll_batches
from dagster_llm_batch.types import BatchReport, BatchStatus, Limits, RequestSpec

__all__ = ["BaseProvider", "OwnMachines", "VendorProvider", "address_of", "checked_key"]


def checked_key(api_key: str, name: str) -> str:
    """The API key of the provider `name`. Raises ConfigError, without it, for one that no vendor gives out.

    A line break at its end, as of a file, would be an error of the transport, which shows the whole header.
    """
    if not api_key or not api_key.isascii() or any(char.isspace() for char in api_key):
        what = "is empty" if not api_key else "holds a space, a line break or a letter that no key has"
        raise ConfigError(f"The API key of provider '{name}' {what}. Check where it comes from.")
    return api_key


def address_of(parts: SplitResult, scope: str = "") -> str:
    """Whose answers come from this address: host, port and path, and the `scope` within it as a query.

    It is part of every fingerprint, so it must stay as it is: another one, and all rows would be asked again.
    """
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname}{port}{parts.path.rstrip('/')}{'?' if scope else ''}{scope}"


class BaseProvider:
    """What every provider says of itself. Building makes no call."""

    def __init__(self, name: str, account: str, price_book: str | None, settle_seconds: float) -> None:
        self._name = name
        self._account = account
        self._price_book = price_book
        self._settle_seconds = settle_seconds

    def __repr__(self) -> str:
        # names alone: settings may hold secrets, and a repr is in every traceback
        return f"{type(self).__name__}(name={self._name!r}, account={self._account!r})"

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

    def console_url(self, batch_id: str) -> str | None:
        """See Provider.console_url. There is none, unless a provider knows one."""
        del batch_id
        return None


class VendorProvider(BaseProvider, ABC):
    """A provider behind a vendor's API. A vendor says how one batch is read, how many are listed, how one is stopped.

    No vendor documents how long after a create call whose reply was lost a batch may still appear: that call may still
    be at work. So `settle_seconds` is a guess on the long side, which the user can change.
    """

    @abstractmethod
    def _read_report(self, batch_id: str) -> BatchReport:
        """Read this one batch. Raises UnknownIdError where the vendor has none of this id."""

    @abstractmethod
    def _list_reports(self, wanted: Collection[str]) -> Iterator[tuple[str, BatchReport]]:
        """Reports of the wanted batches as far as a few pages of the list have them."""

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
            return BatchReport(batch_id, BatchStatus.NOT_FOUND, reason=f"The provider knows no such batch. {error}")

    def cancel(self, batch_id: str) -> None:
        """See Provider.cancel."""
        try:
            self._stop(batch_id)
        except ProviderError:
            # vendors refuse to stop what has ended, each in its own words; the state tells, and not the refusal
            try:
                status = self._report(batch_id).status
            except ProviderError:
                status = BatchStatus.RUNNING
            if status.is_stoppable:
                raise


class OwnMachines(BaseProvider):
    """A provider on the user's own machines. It reads and writes OpenAI's lines, as the servers for open models do."""

    def __init__(self, name: str, account: str, limits: Limits, settle_seconds: float = 0.0) -> None:
        # starting is idempotent where settle_seconds is 0: sending again is always safe
        super().__init__(name, account, price_book=None, settle_seconds=settle_seconds)
        self._limits = limits

    def codec(self, spec: RequestSpec) -> OpenAILines:
        """See Provider.codec. The response schema goes out as it is: guided decoding takes more than strict mode."""
        return OpenAILines(spec, self._limits, schema_rules=None)
