"""Which requests of a shard no result line has named yet: 37 bytes for each, a quarter of what a set of texts takes.

Lines are looked up some hundred at once. Only where one of them is not as it should be, each is looked up by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, custom_id, unpacked

__all__ = ["Expected"]

_ID = np.dtype([("head", "u8"), ("tail", f"V{REQUEST_ID_BYTES - 8}")])


class Expected:
    """The requests of a shard, by their packed ids, and which of them are open."""

    def __init__(self, nonce: str, ids: bytes) -> None:
        self._start = custom_id(nonce, "").encode()
        self._line = np.dtype([("start", f"V{len(self._start)}"), ("id", f"V{2 * REQUEST_ID_BYTES}"), ("end", "V1")])
        self._ids = np.frombuffer(ids, _ID)
        heads = self._ids["head"].copy()  # side by side they are sorted sooner
        self._order = heads.argsort()
        self._heads = heads[self._order]
        self._open = np.ones(len(self._ids), bool)

    def take(self, custom_ids: Sequence[str | None]) -> bytes | None:
        """The ids of the requests that these name, which are no longer open.

        None, and nothing changes, unless each names an open one, and another than the rest.
        """
        count = len(custom_ids)
        if count > len(self._ids) or len(set(custom_ids)) < count or (ids := self._named(custom_ids)) is None:
            return None
        places = self._order.take(self._heads.searchsorted(np.frombuffer(ids, _ID)["head"]), mode="clip")
        if self._ids.take(places).tobytes() != ids or not self._open[places].all():
            return None
        self._open[places] = False
        return ids

    def _named(self, custom_ids: Sequence[str | None]) -> bytes | None:
        """The ids in custom_ids of this shard; None where one is of another, or none at all."""
        try:
            lines = np.frombuffer("\n".join([*custom_ids, ""]).encode(), self._line)  # type: ignore[list-item]  # as said
            text = lines["id"].tobytes()
            ids = bytes.fromhex(text.decode())
        except (TypeError, ValueError):
            return None
        # Capitals and spaces are read too. Line ends, of which each has one, are where they should be if not elsewhere.
        is_exact = ids.hex().encode() == text and lines["start"].tobytes() == self._start * len(custom_ids)
        return ids if is_exact else None

    def take_one(self, request_id: str) -> bool:
        """Whether this is an open request, which it is no longer."""
        at = self._places.get(request_id)
        if at is None or not self._open[at]:
            return False
        self._open[at] = False
        return True

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._places

    @cached_property
    def _places(self) -> dict[str, int]:
        return {request_id: at for at, request_id in enumerate(unpacked(self._ids.tobytes()))}

    def left(self) -> bytes:
        """The ids of those that are open, in their order."""
        return self._ids[self._open].tobytes()
