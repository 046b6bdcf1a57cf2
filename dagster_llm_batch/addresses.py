"""Addresses of rows on the page of `dagster-llm-batch review`: of a table under filters, and of one row.

They hold names of columns and values of rows, percent-encoded, so that any value stays one value of the address. They
hold no token: the page must let in the user who follows one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

from dagster_llm_batch.errors import ConfigError

__all__ = ["FILTERS", "Filter", "Linked", "RowLinks", "check_review_url", "label_path", "row_path", "table_path"]

FILTERS = {
    "is": "is",
    "not": "is not",
    "has": "contains",
    "ge": "at least",
    "le": "at most",
    "null": "is empty",
    "some": "is not empty",
}
"""Questions about a column, as in addresses, and in words."""

_LONGEST_VALUE = 300
"""Characters of a value in a link. Browsers and proxies take addresses of some thousand bytes."""


@dataclass(frozen=True)
class Filter:
    """A question about one column; `kind` is one of FILTERS."""

    column: str
    kind: str
    value: str = ""

    @classmethod
    def of(cls, column: str, value: str | None) -> Filter:
        """Return the filter of the rows that have this value; of a very long one, those that contain its beginning."""
        if value is None:
            return cls(column, "null")
        if len(value) > _LONGEST_VALUE:
            return cls(column, "has", value[:_LONGEST_VALUE])
        return cls(column, "is", value)


@dataclass(frozen=True)
class Linked:
    """A text of a table's cell that leads somewhere; to nowhere where `url` is None."""

    text: object
    url: str | None


@dataclass(frozen=True)
class RowLinks:
    """Links to rows on the page at `review_url`; each is None if a deployment has no such page."""

    review_url: str | None = None

    def table(self, asset: str, *filters: Filter, partition: str | None = None, order: str = "") -> str | None:
        """Return the link to a table's rows that pass the filters."""
        if self.review_url is None:
            return None
        return self.review_url.rstrip("/") + table_path(asset, partition, filters, order=order)

    def row(self, asset: str, column: str, key: str, partition: str | None = None) -> str | None:
        """Return the link to the row of a table whose `column` holds `key`."""
        if self.review_url is None:
            return None
        return self.review_url.rstrip("/") + row_path(asset, column, key, partition)


def table_path(
    asset: str,
    partition: str | None = None,
    filters: Sequence[Filter] = (),
    *,
    search: str = "",
    order: str = "",
    page: int = 1,
) -> str:
    """Return the address of a table on the page's own server. `order`: a column; with a minus, the greatest first."""
    asked = [("in", partition)] if partition else []
    asked += [("q", search)] if search else []
    asked += [("where", f"{each.column}:{each.kind}:{each.value}") for each in filters]
    asked += [("order", order)] if order else []
    asked += [("page", str(page))] if page > 1 else []
    return f"/table/{quote(asset)}" + (f"?{_encoded(asked)}" if asked else "")


def row_path(asset: str, column: str, key: str, partition: str | None = None, listed: str | None = None) -> str:
    """Return the address of a row on the page's own server: the column that names it, and its value as text.

    `listed` is the address of the table in which the row is listed: the page leads to the rows before and after it.
    """
    asked = [("by", column), ("key", key), *([("in", partition)] if partition else [])]
    asked += [("from", urlsplit(listed).query)] if listed is not None else []
    return f"/row/{quote(asset)}?{_encoded(asked)}"


def label_path(
    asset: str, dataset: str, partition: str | None = None, filters: Sequence[Filter] = (), *, search: str = ""
) -> str:
    """Return the address for judging a table's rows, or the filtered ones, as rows of a dataset."""
    asked = [("as", dataset), *([("in", partition)] if partition else [])]
    asked += [("q", search)] if search else []
    asked += [("where", f"{each.column}:{each.kind}:{each.value}") for each in filters]
    return f"/label/{quote(asset)}?{_encoded(asked)}"


def check_review_url(url: str) -> None:
    """Raise ConfigError unless this can be the address of the page: it must be at the root of its host."""
    parts = urlsplit(url)
    is_whole = parts.scheme in ("http", "https") and parts.hostname and url.isprintable() and " " not in url
    # A token or a password would stay in Dagster's event log forever.
    if not is_whole or "@" in parts.netloc or parts.path not in ("", "/") or "?" in url or "#" in url:
        raise ConfigError(
            "review_url is the address of the page without path, token or password, such as http://127.0.0.1:8800; "
            f"got one of {len(url)} characters{f' on {parts.hostname}' if parts.hostname else ''}. Give "
            "`dagster-llm-batch review` a fixed --port, and name it here."
        )


def _encoded(asked: Sequence[tuple[str, str]]) -> str:
    return urlencode(asked, errors="replace")
