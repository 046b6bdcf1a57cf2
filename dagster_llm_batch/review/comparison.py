"""The gold label of a mistake, and each candidate's label with its basis.

The columns of a table of mistakes are known by their roles: `gold`, and for each candidate `<candidate>_label` and
`<candidate>_reason`. The same label has another column in the candidate's own table, which the target names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dagster_llm_batch.addresses import Filter, row_path, table_path
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.evidence import Attempt
from dagster_llm_batch.review.quote_marks import (
    DocumentQuote,
    QuotePlace,
    document_quotes,
    place_columns,
    quote_places,
)
from dagster_llm_batch.review.tables import PARTITION, StoredAsset, StoredRow, View

__all__ = [
    "ComparedLabel",
    "Comparison",
    "Neighbors",
    "compare_row",
    "find_neighbors",
    "group_path",
    "is_mistake",
    "plain_values",
]

_LABEL, _REASON = "_label", "_reason"
_CONFIDENCE = "confidence"
_Quote = TypeVar("_Quote", QuotePlace, DocumentQuote)


@dataclass(frozen=True)
class ComparedLabel:
    """One candidate's answer. `reason` is set if there is no label; `basis` has the other fields of the answer.

    `places` are the places of its quotes in the texts of the mistake's row, by column, and `quotes` its quotes of the
    documents there.
    """

    candidate: str
    label: Any
    is_right: bool
    reason: str | None
    confidence: float | None
    basis: Mapping[str, Any]
    url: str | None
    attempts: Sequence[Attempt]
    places: Mapping[str, Sequence[QuotePlace]]
    quotes: Mapping[str, Sequence[DocumentQuote]]


@dataclass(frozen=True)
class Comparison:
    """Gold for one target of one row, with the candidates' labels.

    `plain` is the row without these columns, and with columns that the candidates keep of their rows.
    """

    target: str
    gold: Any
    labels: Sequence[ComparedLabel]
    plain: Mapping[str, Any]


@dataclass(frozen=True)
class Neighbors:
    """The place of a row among `count` mistakes, from 1, with the addresses of the list and of the rows beside it."""

    number: int
    count: int
    table: str
    before: str | None
    after: str | None


def find_neighbors(
    deployment: ReviewedDeployment, asset: StoredAsset, row: StoredRow, column: str, asked: Sequence[tuple[str, str]]
) -> Neighbors | None:
    """Return the mistakes before and after a row in a list of mistakes; None for a row that is not in the list.

    `asked` is the query of the list's address. Raises InputError if it names no column of the table.
    """
    view, partition = View.of(asked), dict(asked).get("in")
    addresses = deployment.browser.list_addresses(asset, column, view, partition)
    if (row.partition, row.key) not in addresses:
        return None
    place = addresses.index((row.partition, row.key))
    table = table_path(asset.key, partition, view.filters, search=view.search, order=view.order)

    def path(at: int) -> str | None:
        if not 0 <= at < len(addresses):
            return None
        inside, key = addresses[at]
        return row_path(asset.key, column, key, inside or None, table)

    return Neighbors(place + 1, len(addresses), table, path(place - 1), path(place + 1))


def is_mistake(row: Mapping[str, Any]) -> bool:
    """Return whether a row belongs to a table of mistakes."""
    return {"target", "gold"} <= set(row) and bool(_candidates(row))


def compare_row(deployment: ReviewedDeployment, row: StoredRow, key: str, partition: str | None) -> Comparison:
    """Return the labels that a row of a table of mistakes is about."""
    target, gold = row["target"], row["gold"]
    plain = plain_values(row)
    found = {name: _find(deployment, name, key, partition) for name in _candidates(row)}
    for own, other in found.values():
        kept = _kept_values(deployment, own, other) if own and other else {}
        plain |= {name: value for name, value in kept.items() if name not in plain}
    labels = []
    for candidate, (own, other) in found.items():
        label, reason = row[f"{candidate}{_LABEL}"], row[f"{candidate}{_REASON}"]
        values: Mapping[str, Any] = other or {}
        quotes = own.quotes if own else {}
        sure = next((n for n, v in values.items() if _CONFIDENCE in n and isinstance(v, float)), "")
        hidden = {target, own.row_key if own else "", "partition", sure, *row, *plain, *place_columns(quotes)}
        labels.append(
            ComparedLabel(
                candidate,
                label,
                reason is None and label == gold,
                reason,
                values.get(sure),
                {n: v for n, v in values.items() if not n.startswith("llm_") and n not in hidden and v is not None},
                row_path(own.key, own.row_key, key, partition or (other.partition if other else None)) if own else None,
                deployment.attempts_of(own, other, partition) if own and other else (),
                _of_candidate(candidate, other, plain, quote_places(other, quotes)) if other else {},
                _of_candidate(candidate, other, plain, document_quotes(other, quotes)) if other else {},
            )
        )
    return Comparison(target, gold, labels, plain)


def group_path(key: str, group: Mapping[str, Any], partition: str | None) -> str:
    """Return the address of the rows of a group of failures, in the table of mistakes with this key."""
    name, reason = group["candidate"], group["reason"]
    cause = Filter.of("gold", group["gold"]) if reason is None else Filter.of(f"{name}{_REASON}", reason)
    filters = [Filter.of("target", group["target"]), Filter.of(f"{name}{_LABEL}", group["label"]), cause]
    return table_path(key, partition, filters)


def plain_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table of mistakes without the columns that the evaluation made."""
    roles = {"target", "gold", *(f"{name}{end}" for name in _candidates(row) for end in (_LABEL, _REASON))}
    return {name: value for name, value in row.items() if name not in roles}


def _kept_values(deployment: ReviewedDeployment, own: StoredAsset, row: StoredRow) -> dict[str, Any]:
    """Return the columns that a dataset keeps of its rows; empty for a dataset whose response is not known."""
    form = next((form for form in deployment.forms if form.dataset == own.dataset), None)
    if form is None:
        return {}
    hidden = {*form.hidden, PARTITION, own.row_key}
    return {name: value for name, value in row.items() if name not in hidden and not name.startswith("llm_")}


def _of_candidate(
    candidate: str, found: StoredRow, plain: Mapping[str, Any], quotes: Mapping[str, Sequence[_Quote]]
) -> dict[str, list[_Quote]]:
    """Return a candidate's quotes, named by it, of the texts and documents that are shown of the mistake's row."""
    return {
        column: [replace(quote, field=f"{candidate}: {quote.field}") for quote in quoted]
        for column, quoted in quotes.items()
        if plain.get(column) == found[column]
    }


def _candidates(row: Mapping[str, Any]) -> list[str]:
    named = [name.removesuffix(_LABEL) for name in row if name.endswith(_LABEL)]
    return [name for name in named if f"{name}{_REASON}" in row]


def _find(
    deployment: ReviewedDeployment, candidate: str, key: str, partition: str | None
) -> tuple[StoredAsset | None, StoredRow | None]:
    """Return the table in which a candidate has this row, of labels or of rejects, and the row."""
    labels = deployment.labels_of(candidate)
    if labels is None:
        return None, None
    for asset in (labels, *(each for each in deployment.assets() if each.dataset == labels.dataset)):
        inside = partition if partition in asset.partitions else None
        try:
            rows = deployment.browser.find(asset, labels.row_key, key, inside)
        except LLMBatchError:
            continue
        if rows:
            return asset, rows[0]
    return None, None
