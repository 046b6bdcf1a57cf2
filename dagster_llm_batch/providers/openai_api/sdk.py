"""OpenAI's SDK: its client, made when it is first used, and its exceptions, read as ours: see `providers.errors`.

429 means two things here: too many requests, which passes, and a quota that is used up, which does not: RefusedError.
Where OpenAI takes a create call and fails the batch later, Azure refuses it with a 400 in some regions: QueueFullError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.errors import ProviderError, RefusedError
from dagster_llm_batch.providers.errors import FailureRules, read_failure, translate_failure
from dagster_llm_batch.providers.http import Origin, guard_client, importing_sdk, load_httpx

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["QUEUE_IS_FULL", "LazyClient", "provider_error"]

QUEUE_IS_FULL = "token_limit_exceeded"
"""The code for tokens of all running batches above the limit. Once one has ended, the file is accepted."""

_RULES = FailureRules()
_KEY = re.compile(r"\b((?:sk|sess|key)-)[\w*.\-]{4,}", re.IGNORECASE)


class LazyClient:
    """The SDK's client of one provider. The constructor makes no call and imports no SDK.

    Args:
        provider_name: The provider to name in the error if the SDK is not installed.
        api_key: A key, or a function that returns one for each call.
        base_url: The only address that gets secrets: redirects elsewhere are refused.
        timeout_seconds: For a whole answer.
        headers: Sent with each call. Those of the variable OPENAI_CUSTOM_HEADERS are not sent.
        http_client: A client of httpx2, for this provider alone; None: the SDK's own.
        organization: None: the header is not sent, whatever the environment contains.
        project: As `organization`.
    """

    def __init__(
        self,
        provider_name: str,
        *,
        api_key: str | Callable[[], str],
        base_url: str,
        timeout_seconds: float,
        headers: Mapping[str, str],
        http_client: Any,
        organization: str | None = None,
        project: str | None = None,
    ) -> None:
        self._provider_name = provider_name
        self._api_key = api_key
        self._base_url = base_url
        self._timeout_seconds = timeout_seconds
        self._headers = headers
        self._http_client = http_client
        self._organization = organization
        self._project = project
        self._sdk: OpenAI | None = None
        # The SDK needs a separate client for each number of retries. A provider uses two: zero, and `max_retries`.
        self.with_retries = cache(self._with_retries)
        """Returns the client that repeats a failed call up to this many times. Raises MissingExtraError without the
        SDK."""

    def _with_retries(self, retries: int) -> OpenAI:
        if self._sdk is None:
            self._sdk = self._make()
        client = self._sdk.with_options(max_retries=retries)
        # the SDK reads both from the environment where they are None, and would send them
        client.organization, client.project = self._organization, self._project
        client._custom_headers = self._headers  # noqa: SLF001 -- else those of the environment would be sent too
        return client

    def _make(self) -> OpenAI:
        with importing_sdk("openai", f"The provider '{self._provider_name}'"):
            from openai import DefaultHttpxClient, OpenAI  # noqa: PLC0415 -- an optional extra
        load_httpx()
        return OpenAI(
            api_key=self._api_key,
            base_url=self._base_url,
            timeout=self._timeout_seconds,
            default_headers=self._headers,
            http_client=guard_client(
                self._http_client or DefaultHttpxClient(), Origin(self._base_url), self._timeout_seconds
            ),
        )


def provider_error(error: Exception, doing: str, secrets: Collection[str], *, creating: bool = False) -> ProviderError:
    """Return `error`, raised while `doing` something, as one of ours. With `creating`, an unclear end is ambiguous."""
    failure = read_failure(error, doing, secrets, _KEY, creating=creating)
    if failure.is_busy and "insufficient_quota" in (getattr(error, "code", None), getattr(error, "type", None)):
        return RefusedError(f"Could not {doing}: the account has no quota left. {failure.reason}")
    # In the code, or only in the text; the text of a Failure is cut.
    is_full = failure.status is not None and QUEUE_IS_FULL in f"{getattr(error, 'code', None)} {error}"
    return translate_failure(replace(failure, has_no_room=is_full, smaller_helps=True), _RULES)
