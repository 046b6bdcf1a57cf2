"""One platform as a value: frozen, printed as its differences from the plain one, and parsed from that text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tests.platforms.factors import DATASET, STOPPING, datasets_of, defaults, is_stopped, names, void

__all__ = ["Platform"]


@dataclass(frozen=True)
class Platform:
    """The value of every factor."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, changes: Mapping[str, str]) -> Platform:
        """Return the plain platform with these changes. Raises ValueError for impossible changes."""
        known = names()
        for name, value in changes.items():
            if value not in known.get(name, ()):
                raise ValueError(f"{name}={value}: the values of {name} are {known.get(name, 'not known')}")
        made = cls(MappingProxyType({**defaults(), **changes}))
        if (reason := void(made.values)) is not None:
            raise ValueError(f"no platform: {reason}")
        return made

    @classmethod
    def unchecked(cls, text: str) -> Platform:
        """Return the platform of a text from `str`, even if its values do not go together."""
        changes = dict(part.split("=") for part in text.split())
        return cls(MappingProxyType({**defaults(), **changes}))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Return the platform of a text from `str`."""
        pairs = (part.partition("=") for part in text.split())
        return cls.of({name: value for name, _, value in pairs})

    def __str__(self) -> str:
        plain = defaults()
        there = {f"{slot}." for slot in self.slots}
        changed = {name: value for name, value in self.values.items() if value != plain[name]}
        return " ".join(f"{name}={value}" for name, value in changed.items() if "." not in name or name[:2] in there)

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots of its datasets."""
        return datasets_of(self.values)

    def of_dataset(self, slot: str) -> dict[str, str]:
        """Return the factors of one dataset, without its slot."""
        return {name: self.values[f"{slot}.{name}"] for name in DATASET}

    def stopped_by(self, slot: str) -> str | None:
        """Return the value that stops a dataset before it sends, as in "key=wrong", or None if it is materialized."""
        own = [f"{name}={value}" for name, value in self.of_dataset(slot).items()]
        return next((value for value in own if value in STOPPING), None)

    @property
    def landing(self) -> tuple[str, ...]:
        """The datasets that are not stopped."""
        return tuple(slot for slot in self.slots if not is_stopped(self.values, slot))

    def described(self) -> str:
        """Return a text with one line per factor."""
        rows = [f"  {name}: {value}" for name, value in self.values.items() if "." not in name]
        rows += [f"  {slot}: {', '.join(f'{k}={v}' for k, v in self.of_dataset(slot).items())}" for slot in self.slots]
        return "\n".join(rows)
