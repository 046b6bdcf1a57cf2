"""AWS clients, made when first needed; their exceptions become our errors. Imports no SDK."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

from dagster_llm_batch.errors import ProviderError
from dagster_llm_batch.providers.answers import WEB_PAGE, OddAnswerError, is_page, sdk_calls
from dagster_llm_batch.providers.bedrock.errors import aws_error

__all__ = ["Clients", "found_secrets"]


class Clients:
    """One client for each service and number of attempts; `make(service, attempts)` builds it."""

    def __init__(
        self, make: Callable[[str, int], Any], max_attempts: int, place: str, secrets: Callable[[], Collection[str]]
    ) -> None:
        self._make = make
        self._attempts = max_attempts
        self._place = place
        self._secrets = secrets
        self._lock = threading.Lock()
        self._made: dict[tuple[str, int], Any] = {}

    def of(self, service: str, attempts: int | None = None) -> Any:
        """Return the client of a service."""
        key = (service, attempts or self._attempts)
        # making clients is not thread-safe in boto3; using them is
        with self._lock:
            if key not in self._made:
                with self.calls(f"set up the client of '{service}'"):
                    client = self._make(*key)
                    client.meta.events.register("after-call", _refuse_page)
                    self._made[key] = client
            return self._made[key]

    def calls(self, doing: str, *, creating: bool = False) -> AbstractContextManager[None]:
        """Turn exceptions of the SDK into our errors. While creating, no error proves that nothing was created."""
        return sdk_calls(lambda error: self.translated(error, doing, creating=creating))

    def translated(self, error: Exception, doing: str, *, creating: bool = False) -> ProviderError:
        """Return an exception of the SDK as one of our errors."""
        return aws_error(error, f"{doing} at {self._place}", self._secrets(), creating=creating)


def found_secrets(session: Any) -> list[str]:
    """Return the credentials that a session of boto3 found without arguments, as in the environment. Makes no call."""
    found = getattr(getattr(session, "_session", None), "_credentials", None)
    # For renewable credentials, a public attribute would renew them.
    found = getattr(found, "_frozen_credentials", found)
    return [value for name in ("access_key", "secret_key", "token") if (value := getattr(found, name, None))]


def _refuse_page(http_response: Any, model: Any, **_more: Any) -> None:
    """Raise OddAnswerError if the answer is a web page, which botocore would take for an answer without fields.

    Files are not checked here: their reader checks the content. The type is not checked either: S3 servers send one
    with an empty body.
    """
    is_error = http_response.status_code >= 300  # noqa: PLR2004 -- HTTP; botocore raises those itself
    if not is_error and not model.has_streaming_output and is_page({}, http_response.content):
        raise OddAnswerError(WEB_PAGE)
