"""The vendors that the emulator serves, as data: a line each. A folder is imported when an emulator is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

from dagster_llm_batch.testing.emulator.lifecycle import Lifecycle
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.wire import App

_PACKAGE = "dagster_llm_batch.testing.emulator"

VENDORS: dict[str, str] = {
    "openai": f"{_PACKAGE}.openai.routes:OpenAIRoutes",
    "anthropic": f"{_PACKAGE}.anthropic.routes:AnthropicRoutes",
    "openrouter": f"{_PACKAGE}.openrouter.routes:OpenRouterRoutes",
    "mistral": f"{_PACKAGE}.mistral.routes:MistralRoutes",
    "gemini": f"{_PACKAGE}.google.gemini_routes:GeminiRoutes",
    "vertex": f"{_PACKAGE}.google.vertex_routes:VertexRoutes",
    "bedrock": f"{_PACKAGE}.bedrock.routes:BedrockRoutes",
}
"""The class of each vendor's routes, as `package.module:Class`."""


class VendorRoutes(ABC):
    """The routes of one vendor, on the state that all vendors share."""

    title: ClassVar[str]
    """The vendor's name, for people."""
    base_path: ClassVar[str]
    """The path in the address that the vendor's client is given."""
    lifecycle: ClassVar[Lifecycle]
    """The states of its batches."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared

    @abstractmethod
    def apps(self) -> Mapping[str, App]:
        """Return ASGI apps by the start of their paths. An empty start is for all paths that match no other start."""

    @abstractmethod
    def error_body(self, status: int, message: str | None, *, code: str | None) -> dict[str, Any]:
        """Return the body of an error in the vendor's shape."""

    @abstractmethod
    def exports(self, url: str, key: str) -> Mapping[str, str]:
        """Return the variables by which the vendor's own SDK finds the emulator at `url`, without a path."""

    def remark(self, url: str) -> str:
        """Return a remark on the address of this vendor's emulator, for people."""
        del url
        return ""

    @abstractmethod
    def close(self) -> None:
        """Release the results of unfinished batches."""


def routes_class(vendor: str) -> type[VendorRoutes]:
    """Import the class of a vendor's routes."""
    module, _, name = VENDORS[vendor].partition(":")
    found: type[VendorRoutes] = getattr(import_module(module), name)
    return found
