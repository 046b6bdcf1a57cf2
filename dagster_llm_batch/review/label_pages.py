"""The pages on which people give the right answers, a row at a time. Their answers are kept in the ledger."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dagster_llm_batch.addresses import table_path
from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.errors import InputError, LLMBatchError
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.prompts import Part, asked_last, read_body
from dagster_llm_batch.review.queue import ANSWERS, LabelQueue, RowAddress, StandingJudgments
from dagster_llm_batch.review.quote_marks import DocumentQuote, TextPart, document_quotes, marked_texts, quote_places
from dagster_llm_batch.review.tables import PARTITION, StoredAsset, View, status_of
from dagster_llm_batch.storage.ledger.judgments import standing_judgments
from dagster_llm_batch.storage.ledger.records import Judgment

__all__ = ["LabelPages", "ShowPage", "escape_address", "read_form", "with_nul"]

_KINDS = (*ANSWERS, "skip", "undo")
_BRING_BACK = "bring_back"
"""The kind of a form that undoes all skips of the rows that are asked."""
_SAMPLE = "sample_"
_ANSWER = "answer_"
"""Begins the names of questions in the form, so that a question called `kind` is not the form's own `kind`."""
_UNANSWERED = {"label": "", "undecidable": "not decidable", "skip": "skipped"}
_MOST_COMMENT = 5_000
_MOST_TEXT = 20_000
_LONGEST_SECONDS = 3_600.0


class ShowPage(Protocol):
    """Returns a template as a page."""

    def __call__(self, request: Request, template: str, status: int = 200, **values: Any) -> Response: ...


async def read_form(request: Request) -> dict[str, str]:
    """Return the values of a form; several values of one name become lines."""
    given: dict[str, str] = {}
    for name, value in (await request.form()).multi_items():
        given[name] = f"{given[name]}\n{value}" if name in given else str(value)
    return given


def with_nul(given: Mapping[str, str]) -> str | None:
    """Return the message for a form with a NUL character, which databases cannot keep; None for any other."""
    if not any("\0" in text for text in given.values()):
        return None
    return "The form has a NUL character. Nothing was stored; remove it."


@dataclass(frozen=True)
class _Asked:
    """The rows that one page asks a person, and the judgments so far. `second`: it asks for second opinions."""

    rows: Sequence[RowAddress]
    said: StandingJudgments
    queue: LabelQueue
    person: str
    drawn: bool
    second: bool

    def left(self, *, second: bool | None = None) -> list[RowAddress]:
        second = self.second if second is None else second
        return self.queue.left(self.rows, self.said, self.person, drawn=self.drawn, second=second)

    def skipped(self) -> list[RowAddress]:
        return self.queue.skipped(self.rows, self.said, self.person, drawn=self.drawn, second=self.second)


class LabelPages:
    """Ask for one row after the other, and take the answers."""

    def __init__(self, deployment: ReviewedDeployment, show: ShowPage, overlap: float) -> None:
        self._deployment = deployment
        self._show = show
        self._overlap = overlap
        self._queues: dict[tuple[str, str], LabelQueue] = {}
        self._said: dict[str, StandingJudgments] = {}

    def ask(self, request: Request) -> Response:
        """Show the next row, with its form."""
        return self._ask(request)

    async def take(self, request: Request) -> Response:
        """Record the answer in a form, then show the next row."""
        return await run_in_threadpool(self._take, request, await read_form(request))

    def _ask(self, request: Request, wrong: str | None = None, given: Mapping[str, str] | None = None) -> Response:
        found = self._find(request)
        if isinstance(found, Response):
            return found
        asset, form = found
        person = request.state.person
        view, partition = View.of(request.query_params.multi_items()), request.query_params.get("in")
        try:
            asked = self._asked(request, asset, form)
        except LLMBatchError as error:
            return self._show(request, "nothing.html", status_of(error), words=str(error))
        said, left = asked.said, asked.left()
        # A form that could not be taken is shown once more, with the row that it was of.
        again = None if given is None else _address(given)
        address = again if again in left else asked.queue.take(left, person)
        mine = said.of(person)
        last = next(reversed(mine), None)
        opinions = self._opinions(form, last, person) if last and said.has_several(last) else []
        return self._show(
            request,
            "label.html",
            200 if wrong is None else 400,
            asset=asset,
            form=form,
            address=address,
            left=len(left),
            done=sum(kind in ANSWERS for kind in mine.values()),
            last=last,
            n_rows=len(asked.rows),
            skipped=len(asked.skipped()),
            is_second=asked.second,
            second_url=_with_second(request),
            second=0 if asked.second or left else len(asked.left(second=True)),
            gold=self._deployment.judged.get(form.dataset),
            taken_back=(said.words(last, person) or _UNANSWERED[mine[last]]) if last else "",
            opinions=opinions,
            is_agreed=all((each.kind, each.answer) == (opinions[0].kind, opinions[0].answer) for each in opinions),
            here=_here(request),
            table=table_path(asset.key, partition, view.filters, search=view.search, order=view.order),
            shown=None if address is None else self._shown(form, address),
            form_id=secrets.token_urlsafe(12),
            begun=time.time(),
            wrong=wrong,
            given=_answers(given or {}),
            comment=(given or {}).get("comment", ""),
        )

    def count_left(self, asset: StoredAsset, form: LabelForm, person: str) -> tuple[int, int, int]:
        """Return how many rows of a table a person may still be asked, how many the person has skipped, and how many
        need a second opinion. Raises as TableBrowser.list_addresses.
        """
        asked = self._asked_of(asset, form, person, View(), None)
        return len(asked.left()), len(asked.skipped()), len(asked.left(second=True))

    def _asked(self, request: Request, asset: StoredAsset, form: LabelForm) -> _Asked:
        asked = request.query_params
        view = View.of(asked.multi_items())
        return self._asked_of(asset, form, request.state.person, view, asked.get("in"), asked.get("second") == "1")

    def _asked_of(
        self,
        asset: StoredAsset,
        form: LabelForm,
        person: str,
        view: View,
        partition: str | None,
        second: bool = False,
    ) -> _Asked:
        rows = self._deployment.browser.list_addresses(asset, form.key, view, partition)
        drawn = bool(rows) and _sample(self._row(asset, form, rows[0]) or {}) is not None
        queue = self._queues.setdefault((asset.key, form.dataset), LabelQueue(self._overlap))
        return _Asked(rows, self._judgments(form.dataset), queue, person, drawn, second)

    def _take(self, request: Request, given: Mapping[str, str]) -> Response:
        found = self._find(request)
        if isinstance(found, Response):
            return found
        asset, form = found
        if (nul := with_nul(given)) is not None:
            return self._ask(request, nul, {name: value.replace("\0", "") for name, value in given.items()})
        kind, address = given.get("kind", ""), _address(given)
        if kind == _BRING_BACK:
            return self._bring_back(request, asset, form)
        try:
            row = self._row(asset, form, address)
            if kind not in _KINDS or not given.get("form_id") or row is None or "\0" in address[1]:
                raise InputError("The form is of another page: judge the row that is shown now.")
            address = (address[0] or self._partition(form, address[1]), address[1])
            if self._deployment.is_erased(form.dataset, *address):
                raise InputError("This row was erased while its page was open. Nothing was stored; skip it.")
            judgment = Judgment(
                form_id=given["form_id"],
                namespace=self._deployment.namespace,
                dataset=form.dataset,
                partition=address[0],
                row_key=address[1],
                annotator=request.state.person,
                kind=kind,
                answer=form.answer(_answers(given)) if kind == "label" else None,
                comment=given.get("comment", "").strip()[:_MOST_COMMENT] or None,
                seconds=_seconds(given.get("begun", "")),
                sample=_sample(row),
                at=datetime.now(UTC),
            )
        except LLMBatchError as error:
            return self._ask(request, str(error), given)
        self._deployment.ledger.judgments.add(judgment)
        # A page that is loaded again must not send the form again.
        return RedirectResponse(_here(request), 303)

    def _bring_back(self, request: Request, asset: StoredAsset, form: LabelForm) -> Response:
        """Undo the person's skips of the rows that this page asks, then ask them again."""
        try:
            skipped = self._asked(request, asset, form).skipped()
        except LLMBatchError as error:
            return self._show(request, "nothing.html", status_of(error), words=str(error))
        undone = [
            Judgment(
                # A form that is sent twice finds no skipped rows the second time.
                form_id=secrets.token_urlsafe(12),
                namespace=self._deployment.namespace,
                dataset=form.dataset,
                partition=partition,
                row_key=row_key,
                annotator=request.state.person,
                kind="undo",
                at=datetime.now(UTC),
            )
            for partition, row_key in skipped
            # Nothing of an erased row is stored, its key included.
            if not self._deployment.is_erased(form.dataset, partition, row_key)
        ]
        self._deployment.ledger.judgments.add_all(undone)
        return RedirectResponse(_here(request), 303)

    def _opinions(self, form: LabelForm, address: RowAddress, person: str) -> list[Judgment]:
        """Return the answers of a person and of others for a row, the person's own first; empty until both have one."""
        ledger, namespace = self._deployment.ledger, self._deployment.namespace
        said = standing_judgments(ledger.judgments.of_row(namespace, form.dataset, address[1]))
        answers = [each for each in said if each.kind in ANSWERS and each.partition == address[0]]
        own = [each for each in answers if each.annotator == person]
        others = [each for each in answers if each.annotator != person]
        return [*own, *others] if own and others else []

    def _judgments(self, dataset: str) -> StandingJudgments:
        """Return people's present judgments of a dataset."""
        read = partial(self._deployment.ledger.judgments.read_after, self._deployment.namespace, dataset)
        said = self._said.setdefault(dataset, StandingJudgments(read))
        said.look()
        return said

    def _find(self, request: Request) -> tuple[StoredAsset, LabelForm] | Response:
        asset = self._deployment.asset(request.path_params["key"])
        dataset = request.query_params.get("as")
        form = next((form for form in self._deployment.forms if form.dataset == dataset), None)
        if asset is None or form is None:
            return self._show(request, "nothing.html", 404, words="The address names no table and dataset to judge.")
        return asset, form

    def _row(self, asset: StoredAsset, form: LabelForm, address: RowAddress) -> Mapping[str, Any] | None:
        """Return the row at an address; None if the table lacks it."""
        partition, key = address
        if asset.partitions == [""]:
            partition = ""
        elif not partition:
            return None
        return next(iter(self._deployment.browser.find(asset, form.key, key, partition or None, most=1)), None)

    def _partition(self, form: LabelForm, key: str) -> str:
        """Return the partition in which the dataset has a row that a table without partitions names; "" where that is
        not known.
        """
        for asset in self._deployment.assets():
            if asset.dataset == form.dataset and asset.partitions != [""]:
                rows = self._deployment.browser.find(asset, form.key, key, most=2)
                if len(rows) == 1:
                    return rows[0].partition
        return ""

    def _shown(self, form: LabelForm, address: RowAddress) -> Mapping[str, Any]:
        """Return the data that a person needs to judge a row: the model's last message, and kept columns; and texts
        and documents with the model's quotes for those who ask for them.

        The candidates' labels, and the reason of the proposal, are not shown: people should not follow them.
        """
        partition, key = address
        columns: dict[str, Any] = {}
        parts: list[Part] = []
        marked: dict[str, list[TextPart]] = {}
        quotes: dict[str, list[DocumentQuote]] = {}
        hidden = form.hidden | {PARTITION}
        for asset in self._deployment.assets():
            if asset.dataset != form.dataset:
                continue
            inside = partition if partition in asset.partitions else None
            for row in self._deployment.browser.find(asset, form.key, key, inside, most=1):
                columns |= {n: v for n, v in row.items() if n not in hidden and not n.startswith("llm_")}
                marked |= marked_texts(row, quote_places(row, asset.quotes), _MOST_TEXT)
                quotes |= document_quotes(row, asset.quotes)
                parts = parts or self._prompt(form, partition, row.get("llm_request_id"))
        return {"columns": columns, "parts": parts, "marked": marked, "quotes": quotes}

    def _prompt(self, form: LabelForm, partition: str, request_id: Any) -> list[Part]:
        if not isinstance(request_id, str):
            return []
        sent = next(
            (a.request for a in self._deployment.attempts(form.dataset, partition, request_id) if a.request), None
        )
        parts = [] if sent is None else asked_last(read_body(sent))
        return [replace(part, text=self._deployment.hidden(form.dataset, part.text)) for part in parts]


def escape_address(text: str) -> str:
    """Return a partition or a key as a form holds it: browsers change line breaks and NUL in the values of a form."""
    return quote(text, safe="")


def _address(given: Mapping[str, str]) -> RowAddress:
    """Return the address of the row in a form."""
    return unquote(given.get("partition", "")), unquote(given.get("row_key", ""))


def _answers(given: Mapping[str, str]) -> dict[str, str]:
    """Return the answers in a form, by names of questions."""
    return {name.removeprefix(_ANSWER): text for name, text in given.items() if name.startswith(_ANSWER)}


def _here(request: Request) -> str:
    """Return the address of this page: with its filters, so that the next row is of the same queue."""
    return f"/label/{quote(request.path_params['key'])}?{urlencode(request.query_params.multi_items())}"


def _with_second(request: Request) -> str:
    """Return the address at which this table's rows are judged for a second time."""
    asked = [each for each in request.query_params.multi_items() if each[0] != "second"]
    return f"/label/{quote(request.path_params['key'])}?{urlencode([*asked, ('second', '1')])}"


def _sample(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how the row was drawn: gold must keep it, so that its figures hold for all rows."""
    return {name: as_json(value) for name, value in row.items() if name.startswith(_SAMPLE)} or None


def _seconds(begun: str) -> float | None:
    """Return how long the page was looked at, as far as that can be believed."""
    try:
        passed = time.time() - float(begun)
    except ValueError:
        return None
    return round(passed, 3) if 0 <= passed <= _LONGEST_SECONDS else None
