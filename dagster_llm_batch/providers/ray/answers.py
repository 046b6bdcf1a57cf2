"""The way to answer a shard on Ray, and the number of workers, as written into the job's plan. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.http import check_address
from dagster_llm_batch.providers.openai_api.own_machines import check_command
from dagster_llm_batch.providers.ray.ray_shard.vllm_processor import SAMPLING
from dagster_llm_batch.types import Endpoint, RequestSpec

__all__ = ["RayAnswers"]

_SAMPLING = frozenset({*SAMPLING, "max_tokens", "max_completion_tokens"})
_WAYS = "base_url, call, command, vllm"


@dataclass(frozen=True, kw_only=True)
class RayAnswers:
    """The way to answer the lines of a shard: give exactly one of the first four.

    `api_key_env` names the environment variable that holds the server's key on the workers: the key itself never leaves
    them. A worker answers `rows_per_file` rows at a time. If it is killed, these rows are lost.
    """

    base_url: str | None = None
    call: str | None = None
    command: Sequence[str] | None = None
    vllm: Mapping[str, Any] | None = None
    api_key_env: str | None = None
    requests_at_once: int = 16
    max_retries: int = 5
    timeout_seconds: float = 600.0
    rows_per_file: int = 64
    workers: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        given = [name for name in _WAYS.split(", ") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"A shard on Ray is answered in one way: give one of {_WAYS}; got {given or 'none'}.")
        if self.base_url is not None:
            check_address(self.base_url, "base_url", "http://llm.internal:8000/v1")
        if self.call is not None and not all(self.call.partition(":")[::2]):
            raise ConfigError(f"call is an import path, as in 'package.module:name'; got {self.call!r}.")
        if self.command is not None:
            check_command(self.command)
        for name in ("requests_at_once", "rows_per_file", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is at least 1.")

    def described(self) -> str:
        """Return whose answers these are, without secrets."""
        if self.base_url is not None:
            return self.base_url
        if self.command is not None:
            return shlex.join(self.command)
        return self.call or f"vllm {json.dumps(self.vllm, sort_keys=True, default=str)}"

    def check(self, spec: RequestSpec) -> None:
        """Reject settings that cannot be answered in this way, with ConfigError."""
        if self.vllm is None:
            return
        if spec.endpoint is not Endpoint.CHAT:
            raise ConfigError(f"vllm= on Ray answers chat requests only; got the endpoint '{spec.endpoint.value}'.")
        if unknown := sorted(set(spec.params) - _SAMPLING):
            known = ", ".join(sorted(_SAMPLING))
            raise ConfigError(f"vllm= on Ray does not know the parameters {', '.join(unknown)}; it knows {known}.")

    def plan(self, model: str) -> dict[str, Any]:
        """Return the plan for the job: the way to answer, and the pool of workers."""
        pool = {name: getattr(self, name) for name in ("rows_per_file", "workers", "num_cpus", "num_gpus")}
        return {"answer": self._way(model), "pool": pool}

    def _way(self, model: str) -> dict[str, Any]:
        if self.base_url is not None:
            return {
                "kind": "server",
                "base_url": self.base_url,
                "api_key_env": self.api_key_env,
                "at_once": self.requests_at_once,
                "max_retries": self.max_retries,
                "timeout_seconds": self.timeout_seconds,
            }
        if self.call is not None:
            return {"kind": "call", "path": self.call, "rows": self.requests_at_once}
        if self.command is not None:
            return {"kind": "command", "words": list(self.command), "model": model}
        return {"kind": "vllm", "processor": {"model_source": model, **(self.vllm or {})}}
