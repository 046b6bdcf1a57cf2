"""The allowed destinations of a deployment: providers and regions. All others, and unknown ones, are refused.

A dataset is checked when its definitions load, when it is planned, and before each batch or call in real time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.types import Destination

__all__ = ["AllowedDestinations", "Reporter", "check_region"]

Reporter = Callable[[str, Mapping[str, Any]], Destination]
"""Returns the destination of a model with these parameters."""

_REGION = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")
_GROUP = "-*"
_UNREPORTED = Destination(None, "its provider does not report it")


def check_region(what: str, name: str, *, may_be_group: bool = False) -> None:
    """Raise ConfigError for a name that cannot be a region: lowercase letters and digits, with hyphens between."""
    plain = name.removesuffix(_GROUP) if may_be_group else name
    if _REGION.fullmatch(plain) is None:
        groups = ", or with -* at its end, as in 'eu-*'" if may_be_group else ""
        raise ConfigError(
            f"{what} has {name!r}, which cannot be the name of a region. Write it with lowercase letters, digits and "
            f"hyphens, as in 'eu-west-1'{groups}."
        )


@dataclass(frozen=True)
class AllowedDestinations:
    """The providers and regions to which a deployment may send rows. A field that is None allows all.

    Args:
        regions: Names of regions. A name that ends in "-*" allows all regions that begin with the part before the star.
        providers: Names of providers, as in the first part of a model.
        reporters: For each configured provider, the function that returns where a model runs.
    """

    regions: Sequence[str] | None = None
    providers: Sequence[str] | None = None
    reporters: Mapping[str, Reporter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, names in (("allowed_regions", self.regions), ("allowed_providers", self.providers)):
            if names is not None and not names:
                raise ConfigError(f"{what} is empty, and would allow nothing. List the allowed names, or leave it out.")
        for region in self.regions or ():
            check_region("allowed_regions", region, may_be_group=True)

    def check(self, what: str, model: str, params: Mapping[str, Any], *, may_be_pending: bool = False) -> None:
        """Raise ConfigError if `what` would send rows to a model in a region that is not allowed, or unknown.

        `may_be_pending`: before anything is sent, accept a region that only the run's process can determine. Then its
        environment variable is not set here, or its provider is configured at the launch.
        """
        provider = model.partition("/")[0]
        if self.providers is not None and provider not in self.providers:
            raise ConfigError(
                f"{what} would send rows to {model}, and the provider {provider!r} is not allowed. Allowed by "
                f"allowed_providers: {_list(self.providers)}. Name a model of these, or add {provider!r} to "
                "allowed_providers of the LLMBatchResource. Nothing was sent."
            )
        if self.regions is None:
            return
        found = self._find(model, params)
        if may_be_pending and (found is None or found.is_pending):
            return
        found = found or _UNREPORTED
        allowed = f"Allowed by allowed_regions: {_list(self.regions)}."
        if found.region is None:
            raise ConfigError(
                f"{what} would send rows to {model}, whose region is unknown: {found.reason}. {allowed} Name a model "
                f"in one of these, or, if you know the region, set it as runs_in of the provider {provider!r}. Nothing "
                "was sent."
            )
        if not self._is_allowed(found.region):
            raise ConfigError(
                f"{what} would send rows to {model}, which runs in {found.region!r}. {allowed} Name a model in one of "
                f"these, or add {found.region!r} to allowed_regions of the LLMBatchResource. Nothing was sent."
            )

    def describe(self, model: str, params: Mapping[str, Any]) -> str:
        """Return the region of a model in words."""
        found = self._find(model, params) or _UNREPORTED
        if found.region is None:
            return f"region: unknown, since {found.reason}"
        return f"region: {found.region}" + (" (the default: its settings lack a region)" if found.is_assumed else "")

    def _find(self, model: str, params: Mapping[str, Any]) -> Destination | None:
        """Return the destination of a model; None if its provider does not report it."""
        provider, _, name = model.partition("/")
        reporter = self.reporters.get(provider)
        return None if reporter is None else reporter(name, params)

    def _is_allowed(self, region: str) -> bool:
        assert self.regions is not None
        groups = tuple(each.removesuffix("*") for each in self.regions if each.endswith(_GROUP))
        return region in self.regions or region.startswith(groups)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
