"""The pages: tables of rows, and all that is known of one row. On loopback, for who may see them (`access.py`)."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dagster_llm_batch.addresses import FILTERS, Filter, label_path, row_path, table_path
from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.core.split import PART_KEY
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError
from dagster_llm_batch.review.access import AccessGate, Door
from dagster_llm_batch.review.binary_values import describe_bytes, read_bytes
from dagster_llm_batch.review.comparison import compare_row, find_neighbors, is_mistake
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.evaluation_page import EVALUATION_COLUMNS, EvaluationPage, evaluation_of
from dagster_llm_batch.review.evidence import Attempt
from dagster_llm_batch.review.label_pages import LabelPages, escape_address
from dagster_llm_batch.review.note_pages import GROUP_COLUMNS, NotePages
from dagster_llm_batch.review.overview import OverviewPage
from dagster_llm_batch.review.prompts import read_body, read_prompt, read_texts
from dagster_llm_batch.review.queue import answer_text
from dagster_llm_batch.review.quote_marks import document_quotes, marked_texts, quote_places
from dagster_llm_batch.review.samples import with_texts
from dagster_llm_batch.review.tables import PARTITION, Page, StoredAsset, StoredRow, View, status_of
from dagster_llm_batch.text import money_text
from dagster_llm_batch.types import Outcome

__all__ = ["HOSTS", "review_app", "serve"]

HOSTS = ("127.0.0.1", "localhost")
"""Names by which a browser may ask. A page with another name that leads here tries to read rows."""

_PORT = re.compile(r":\d+$")
_MOST_CELL = 160
_MOST_TEXT = 20_000
_MOST_SAME = 50
"""So many rows of one key are compared: a table of mistakes has one for each target."""
_PROVENANCE = "llm_"
_PARTS = "llm_parts"
_LEAST_POINTS = 0.05
"""The smallest change in percentage points that has one decimal."""

# Bytes that no text of a person has, as the signs that stand for them.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {0x7F: "\u2421"}


def review_app(
    deployment: ReviewedDeployment, door: Door, hosts: Sequence[str] = HOSTS, overlap: float = 0.0
) -> Starlette:
    """Return the pages as an ASGI application. `overlap` is the share of rows that everybody is asked to judge."""
    pages = _Pages(deployment)
    labels, notes = LabelPages(deployment, pages.show, overlap), NotePages(deployment, pages.show)
    return Starlette(
        routes=[
            Route("/", OverviewPage(deployment, pages.show, labels).overview),
            Route("/evaluation/{key:path}", EvaluationPage(deployment, pages.show).evaluation),
            Route("/table/{key:path}", pages.table),
            Route("/row/{key:path}", pages.row),
            Route("/label/{key:path}", labels.ask),
            Route("/label/{key:path}", labels.take, methods=["POST"]),
            Route("/failures/{key:path}", notes.groups),
            Route("/failures/{key:path}", notes.take, methods=["POST"]),
            Route("/prompts/{dataset:path}", notes.changelog),
            Mount("/static", StaticFiles(packages=[("dagster_llm_batch.review", "static")])),
        ],
        exception_handlers={LLMBatchError: pages.failed},
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=[_PORT.sub("", host) for host in hosts]),
            Middleware(AccessGate, door=door),
        ],
    )


def serve(app: Starlette, port: int, tell: Callable[[str], None]) -> None:
    """Serve on loopback until interrupted. `tell` is given the address when the port is open.

    Raises ConfigError if the port is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOSTS[0], port))
        except OSError as error:
            raise ConfigError(f"Port {port} cannot be had: {error.strerror}. Give another --port, or 0.") from error
        listener.listen()
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
        server = _Server(config, lambda: tell(f"http://{HOSTS[0]}:{listener.getsockname()[1]}"))
        # It ends by Ctrl-C, which is no error.
        with suppress(KeyboardInterrupt):
            server.run([listener])


class _Server(uvicorn.Server):
    """Says that it is there once it hears Ctrl-C: an interrupt that Python gets while it loads modules can be lost."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()


class _Pages:
    def __init__(self, deployment: ReviewedDeployment) -> None:
        self._deployment = deployment
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("dagster_llm_batch.review"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"cell": _cell, "whole": _whole, "pretty": _pretty, "money": money_text}
        self._templates.filters |= {"escaped": escape_address, "file": read_bytes}
        self._templates.tests["binary"] = lambda value: isinstance(value, bytes)
        self._templates.filters |= {"percent": _percent, "measure": _measure, "rows": _counted}
        self._templates.filters |= {"change": _change, "hundredths": _hundredths, "answer": answer_text}
        self._templates.globals |= {
            "table_url": table_path,
            "row_url": row_path,
            "deployment": deployment.name,
            "label_url": label_path,
            "evaluation_of": partial(evaluation_of, deployment),
        }

    def table(self, request: Request) -> Response:
        """Show the rows of one table."""
        asset = self._deployment.asset(request.path_params["key"])
        if asset is None:
            return self._nothing(request, f"There is no table {request.path_params['key']!r}.")
        asked = request.query_params
        try:
            view = View.of(asked.multi_items())
            # A column that is called like the key of a stranger's rows may hold personal data.
            keys = asset.keys if asset.hide else [each.row_key for each in self._deployment.assets()]
            page = self._deployment.browser.read(asset, view, asked.get("in"), keys)
        except LLMBatchError as error:
            return self._nothing(request, str(error), status_of(error))
        page, added = with_texts(self._deployment, page)
        columns = _ordered(page)
        columns[1:1] = added
        address = _Address(asset.key, asked.get("in"), view)
        return self.show(
            request,
            "table.html",
            asset=asset,
            view=view,
            page=page,
            inside=asked.get("in"),
            columns=columns,
            kinds=FILTERS,
            address=address,
            listed=address.page(1) if is_mistake(dict.fromkeys(page.columns)) else None,
            forms=self._deployment.forms_offered(asset, page.key),
            has_groups=set(page.columns) >= GROUP_COLUMNS,
            is_evaluation=set(page.columns) >= EVALUATION_COLUMNS,
        )

    def row(self, request: Request) -> Response:
        """Show all that is known of one row."""
        asset = self._deployment.asset(request.path_params["key"])
        asked = request.query_params
        column, value = asked.get("by", ""), asked.get("key")
        if asset is None or not column or value is None:
            return self._nothing(request, "The address names no row.")
        partition = asked.get("in")
        neighbors = None
        try:
            rows = self._deployment.browser.find(asset, column, value, partition, _MOST_SAME)
            if rows and is_mistake(rows[0]):
                listed = asked.get("from", urlencode({"in": partition} if partition else {}))
                neighbors = find_neighbors(self._deployment, asset, rows[0], column, parse_qsl(listed))
            elsewhere = self._elsewhere(asset, column, value, partition)
        except LLMBatchError as error:
            return self._nothing(request, str(error), status_of(error))
        if not rows:
            return self._nothing(request, f"{asset.key} has no row {value}.")
        row = rows[0]
        # Another target of the same row is another mistake.
        comparisons = [compare_row(self._deployment, each, value, partition) for each in rows if is_mistake(each)]
        comparison = next(iter(comparisons), None)
        sent = [("", [self._shown(asset, each) for each in self._deployment.attempts_of(asset, row, partition)])]
        for each in comparison.labels if comparison else ():
            labels = self._deployment.labels_of(each.candidate)
            sent.append((each.candidate, [self._shown(labels, one) for one in each.attempts]))
        own = comparison.plain if comparison else row
        most = None if asked.get("whole") else _MOST_TEXT
        parts = self._parts(asset, row, partition)
        places, quotes = quote_places(row, asset.quotes), document_quotes(row, asset.quotes)
        for each in comparison.labels if comparison else ():
            for name, found in each.places.items():
                places.setdefault(name, []).extend(found)
            for name, quoted in each.quotes.items():
                quotes.setdefault(name, []).extend(quoted)
        return self.show(
            request,
            "row.html",
            asset=asset,
            column=column,
            value=value,
            inside=partition,
            row=row,
            comparisons=comparisons,
            neighbors=neighbors,
            count=len(rows),
            answers=_compared(asset, row, elsewhere, column),
            own={name: value for name, value in own.items() if not name.startswith(_PROVENANCE)},
            provenance={n: v for n, v in row.items() if n.startswith(_PROVENANCE) and not (parts and n == _PARTS)},
            parts=parts,
            sent=sent,
            judgments=self._deployment.judgments(column, value, partition),
            marked=marked_texts(own, places, most),
            quotes=quotes,
            most=most,
            whole_url=f"?{urlencode([*asked.multi_items(), ('whole', '1')])}",
        )

    def _parts(self, asset: StoredAsset, row: StoredRow, partition: str | None) -> list[Mapping[str, Any]]:
        """Return the parts of a gathered row, each with the address of its own row; empty for other rows."""
        if asset.gathers is None or not isinstance(row.get(_PARTS), list):
            return []
        tables = {each.role: each for each in self._deployment.assets() if each.dataset == asset.gathers}
        inside = partition or row.partition or None
        parts: list[Mapping[str, Any]] = []
        for part in row[_PARTS]:
            table = tables.get("labels" if part["llm_outcome"] == Outcome.SUCCEEDED else "rejects")
            url = row_path(table.key, table.row_key, part[PART_KEY], inside) if table else None
            parts.append({"key": part[PART_KEY], "url": url, **part})
        return parts

    def _elsewhere(
        self, asset: StoredAsset, column: str, key: str, partition: str | None
    ) -> list[tuple[StoredAsset, str | None, Mapping[str, Any]]]:
        """Return the same row in the other tables that lie in Parquet: candidates, gold, mistakes."""
        found: list[tuple[StoredAsset, str | None, Mapping[str, Any]]] = []
        for other in self._deployment.assets():
            if other.key == asset.key or not other.files:
                continue
            part = partition if partition in other.files else None
            try:
                rows = self._deployment.browser.find(other, column, key, part, most=1)
            # One missing or damaged table must not hide the others.
            except LLMBatchError:
                continue
            found += [(other, part, row) for row in rows]
        return found

    def _shown(self, asset: StoredAsset | None, attempt: Attempt) -> Mapping[str, Any]:
        body = None if attempt.request is None else read_body(attempt.request)
        replies = [read_body(line) for line in attempt.replies]
        shard = attempt.shard
        hidden = partial(self._deployment.hidden, asset.dataset if asset else None)
        return {
            "shard": shard,
            "submission": attempt.submission,
            "lost": attempt.lost,
            "body": hidden(body),
            # Images stay: their letters may look like a value.
            "prompt": [replace(part, text=hidden(part.text)) for part in read_prompt(body)],
            "replies": [(hidden(read_texts(reply)), hidden(reply)) for reply in replies],
            "results": [{**result, "llm_reason": hidden(result["llm_reason"])} for result in attempt.results],
            "console": shard.batch.batch_id and self._deployment.console_url(shard.provider, shard.batch.batch_id),
        }

    def show(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Return a template as a page."""
        text = self._templates.get_template(template).render(person=request.state.person, **values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def failed(self, request: Request, error: Exception) -> Response:
        """Show why a page cannot be shown, as when the ledger cannot be read."""
        code = status_of(error) if isinstance(error, InputError) else 500
        return self._nothing(request, str(error), code)

    def _nothing(self, request: Request, words: str, status: int = 404) -> Response:
        return self.show(request, "nothing.html", status, words=words)


@dataclass(frozen=True)
class _Address:
    """The address of the table that is shown, with one thing changed."""

    key: str
    inside: str | None
    view: View

    def _with(self, filters: Sequence[Filter], *, order: str | None = None, page: int = 1) -> str:
        order = self.view.order if order is None else order
        return table_path(self.key, self.inside, filters, search=self.view.search, order=order, page=page)

    def page(self, number: int) -> str:
        return self._with(self.view.filters, page=number)

    def order(self, column: str) -> str:
        return self._with(self.view.filters, order=f"-{column}" if self.view.order == column else column)

    def without(self, which: Filter) -> str:
        return self._with([each for each in self.view.filters if each != which])

    def toggle(self, column: str, value: str | None) -> str:
        """Return the address with a filter on a facet's value, or without it if it is active."""
        wanted = Filter.of(column, value)
        if wanted in self.view.filters:
            return self.without(wanted)
        others = [each for each in self.view.filters if each.column != column or each.kind not in ("is", "null")]
        return self._with([*others, wanted])

    def has(self, column: str, value: str | None) -> bool:
        return Filter.of(column, value) in self.view.filters


def _ordered(page: Page) -> list[str]:
    """Return the columns in the order of the page: key first, provenance last, and without ids."""
    hidden = {"llm_run_id", "llm_batch_id", "llm_request_id", "llm_prompt_version", "llm_price_basis"}
    first = [*([page.key] if page.key else []), *([PARTITION] if PARTITION in page.columns else [])]
    rest = [name for name in page.columns if name not in first and name not in hidden]
    return [*first, *sorted(rest, key=lambda name: name.startswith(_PROVENANCE))]


def _compared(
    asset: StoredAsset,
    row: Mapping[str, Any],
    elsewhere: Sequence[tuple[StoredAsset, str | None, Mapping[str, Any]]],
    key: str,
) -> Mapping[str, Any]:
    """Return the fields that this row has in common with it elsewhere, and whether their values differ."""
    others = list(elsewhere)

    def rows_with(name: str) -> Iterator[Mapping[str, Any]]:
        return (each for _, _, each in others if name in each)

    fields = [
        name
        for name in row
        if name not in (key, PARTITION)
        and not name.startswith(_PROVENANCE)
        and any(name in each for _, _, each in others)
    ]
    return {
        "tables": [(asset, None, row), *others],
        "fields": fields,
        "differs": {
            name
            for name in fields
            if len({_text(each[name]) for _, _, each in [(0, 0, row), *others] if name in each}) > 1
        },
    }


def _percent(share: float) -> str:
    """Return a share in percent, with two decimals if it is close to 0 or 100 %."""
    # An end of an interval can miss 0 by the last digit of a float.
    return f"{share:z.0%}" if round(share, 9) in (0, 1) or 0.01 <= share <= 0.99 else f"{share:.2%}"  # noqa: PLR2004


def _measure(value: float, is_error: bool) -> str:
    return f"{value:.3g}" if is_error else _percent(value)


def _change(value: float, is_error: bool = False) -> str:
    """Return a change with its sign: of a share in percentage points, of a mean error in its unit."""
    shown = value if is_error else 100 * value
    if round(shown, 9) == 0:
        return "0"
    # The sign shows whether an interval contains 0, so a small end keeps a digit.
    return f"{shown:+.3g}" if is_error else f"{shown:+.1f}" if abs(shown) >= _LEAST_POINTS else f"{shown:+.1g}"


def _hundredths(value: float) -> str:
    """Return a number with two decimals, and 0 without a sign."""
    return f"{value:z.2f}"


def _counted(count: int, noun: str) -> str:
    """Return a number of things in words: 1 row, 2 rows."""
    return f"{count:,} {noun if count == 1 else f'{noun}s'}"


def _text(value: Any) -> str:
    """Return a value as text: plain types like DuckDB's cast, nested ones as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value else "0"
    if isinstance(value, bytes):
        return describe_bytes(value)
    plain = as_json(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, default=str)


def _cell(value: Any) -> str:
    """Return the beginning of a value in one line."""
    text = " ".join(_text(value)[: 4 * _MOST_CELL].split()).translate(_CONTROLS)
    return text if len(text) <= _MOST_CELL else text[:_MOST_CELL] + "…"


def _whole(value: Any, most: int | None = None) -> str:
    """Return a value's text, or so much of it."""
    return _text(value)[:most].translate(_CONTROLS)


def _pretty(value: Any) -> str:
    if isinstance(value, str):
        return value.translate(_CONTROLS)
    return json.dumps(as_json(value), ensure_ascii=False, indent=2, default=str).translate(_CONTROLS)
