"""AWS clients, made when first needed, and what they raise as errors of ours. Imports no SDK."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from dagster_llm_batch.errors import LLMBatchError, ProviderError
from dagster_llm_batch.providers.bedrock_errors import aws_error, is_aws

__all__ = ["Clients"]


class Clients:
    """One client for each service and number of attempts; `make(service, attempts)` builds it."""

    def __init__(
        self, make: Callable[[str, int], Any], max_attempts: int, account: str, secrets: Collection[str]
    ) -> None:
        self._make = make
        self._attempts = max_attempts
        self._account = account
        self._secrets = tuple(secrets)
        self._lock = threading.Lock()
        self._made: dict[tuple[str, int], Any] = {}

    def of(self, service: str, attempts: int | None = None) -> Any:
        """The client of a service."""
        key = (service, attempts or self._attempts)
        with self._lock:  # making clients is not thread-safe in boto3; using them is
            if key not in self._made:
                with self.calls(f"set up the client of '{service}'"):
                    self._made[key] = self._make(*key)
            return self._made[key]

    @contextmanager
    def calls(self, doing: str, *, creating: bool = False) -> Iterator[None]:
        """Turns what the SDK raises into our errors. While creating, nothing that was raised is trusted to be a no."""
        try:
            yield
        except LLMBatchError:
            raise
        except Exception as error:
            if not creating and not is_aws(error):
                raise
            raise self.translated(error, doing, creating=creating) from None

    def translated(self, error: Exception, doing: str, *, creating: bool = False) -> ProviderError:
        """What the SDK raised, as ours."""
        return aws_error(error, f"{doing} at {self._account}", self._secrets, creating=creating)
