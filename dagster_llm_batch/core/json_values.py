"""Values of this package as plain JSON, for the command line and for exports. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any

__all__ = ["BESIDE", "as_json"]

BESIDE = MappingProxyType({"beside": True})
"""The metadata of a field whose value is a dataclass, which has its fields beside the others in JSON."""


def as_json(value: Any) -> Any:
    """Return plain JSON: money as exact text, days and times in ISO 8601, lengths of time in seconds."""
    if is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {}
        for field in fields(value):
            plain = as_json(getattr(value, field.name))
            found |= plain if field.metadata == BESIDE else {field.name: plain}
        return found
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(as_json(key)): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(each) for each in value]
    return value
