"""What resources and run configurations of this package are: Dagster's, but an unknown field is an error.

Dagster's `Config` drops such a field in silence: with `base_ulr=` in place of `base_url=`, a key and all rows would go
to the vendor's own address.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from dagster_llm_batch.arguments import refuse_unknown

__all__ = ["CheckedConfig", "CheckedIOManager", "CheckedResource"]


class CheckedConfig(dg.Config):
    """A Dagster configuration that refuses unknown fields, also where it is given as a mapping within another."""

    def __init__(self, **given: Any) -> None:
        refuse_unknown(type(self).__name__, given, type(self).model_fields)
        super().__init__(**given)


class CheckedResource(CheckedConfig, dg.ConfigurableResource[Any]):
    """A Dagster resource that refuses unknown fields, also of one that is configured at the launch."""

    @classmethod
    def configure_at_launch(cls, **given: Any) -> Any:
        """See ConfigurableResource; raises ConfigError for an unknown field."""
        refuse_unknown(cls.__name__, given, cls.model_fields)
        return super().configure_at_launch(**given)


class CheckedIOManager(CheckedConfig, dg.ConfigurableIOManager):
    """A Dagster IO manager that refuses them alike."""

    @classmethod
    def configure_at_launch(cls, **given: Any) -> Any:
        """See ConfigurableIOManager; raises ConfigError for an unknown field."""
        refuse_unknown(cls.__name__, given, cls.model_fields)
        return super().configure_at_launch(**given)
