"""Mistakes in groups, with people's notes on them; and the changelog of a prompt, which contains these notes.

A note is about the definition by which the group's rows were asked. It is an event of a submission with this
definition, so that it stays with it permanently.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dagster_llm_batch.addresses import row_path
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.files.request_files import definition_in
from dagster_llm_batch.review.comparison import group_path, is_mistake, plain_values
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.label_pages import ShowPage, read_form, with_nul
from dagster_llm_batch.review.tables import PARTITION, StoredAsset, View, status_of
from dagster_llm_batch.storage.ledger.judgments import MOST_NOTE, Note
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.text import plain_text

__all__ = ["GROUP_COLUMNS", "NotePages"]

GROUP_COLUMNS = {"candidate", "target", "gold", "label", "reason", "n", "share", "words", "examples"}
"""Columns that identify a table of failures in groups."""

_NAMES = ("candidate", "target", "gold", "label", "reason")
_FAILURES, _MISTAKES = "failures", "mistakes"
_LARGEST_FIRST = "-n"
_MOST_SUBMISSIONS = 500
_LONGEST_NAME = 300
_ROUNDING = 1e-9


@dataclass
class _Version:
    """One definition of a prompt: the submissions that were sent by it, the newest last, and the notes on it."""

    definition: Mapping[str, Any] | None
    submissions: list[Submission] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def begun(self) -> datetime:
        return self.submissions[0].created_at

    @property
    def last(self) -> datetime:
        return self.submissions[-1].created_at


class NotePages:
    """Show groups of failures, take notes on them, and show the changelog of a prompt."""

    def __init__(self, deployment: ReviewedDeployment, show: ShowPage) -> None:
        self._deployment = deployment
        self._show = show

    def groups(self, request: Request) -> Response:
        """Show all groups of one table of failures."""
        return self._groups(request)

    async def take(self, request: Request) -> Response:
        """Record a note, then show the groups."""
        return await run_in_threadpool(self._take, request, await read_form(request))

    def changelog(self, request: Request) -> Response:
        """Show the definitions of a dataset's prompt, the newest first, each with its notes."""
        dataset = request.path_params["dataset"]
        versions = [] if "\0" in dataset else self._versions(dataset)
        if not versions:
            return self._show(request, "nothing.html", 404, words=f"Nothing was submitted for {dataset!r}.")
        return self._show(request, "prompts.html", dataset=dataset, versions=versions)

    def _groups(self, request: Request, wrong: str | None = None) -> Response:
        asset = self._deployment.asset(request.path_params["key"])
        if asset is None:
            return self._show(request, "nothing.html", 404, words="The address names no table of failures.")
        asked = request.query_params
        partition = asked.get("in")
        try:
            view = View.of(asked.multi_items())
            page = self._deployment.browser.read(asset, replace(view, order=view.order or _LARGEST_FIRST), partition)
        except LLMBatchError as error:
            return self._show(request, "nothing.html", status_of(error), words=str(error))
        if not set(page.columns) >= GROUP_COLUMNS:
            return self._show(request, "nothing.html", 404, words=f"{asset.key} holds no groups of failures.")
        groups = [self._shown(asset, row, partition or _text(row.get("partition"))) for row in page.rows]

        def path(number: int) -> str:
            others = [each for each in asked.multi_items() if each[0] != "page"]
            return f"?{urlencode([*others, ('page', str(number))])}"

        code = 200 if wrong is None else 400
        return self._show(request, "failures.html", code, asset=asset, groups=groups, page=page, path=path, wrong=wrong)

    def _shown(self, asset: StoredAsset, row: Mapping[str, Any], partition: str) -> Mapping[str, Any]:
        labels = self._deployment.labels_of(str(row["candidate"]))
        mistakes = self._deployment.asset(asset.key.removesuffix(_FAILURES) + _MISTAKES)
        rows: str | None = None
        example: Mapping[str, Any] = {}
        examples: list[tuple[str, str | None]] = []
        if mistakes is not None and labels is not None:
            rows = group_path(mistakes.key, row, partition or None)
            examples = [
                (key, row_path(mistakes.key, labels.row_key, key, partition or None, rows))
                for key in row["examples"] or []
            ]
            if examples:
                tables = [mistakes, labels]
                example = self._example(tables, labels.row_key, examples[0][0], partition, str(row["target"]))
        notes: Sequence[Note] = []
        if labels is not None and labels.asked is not None:
            group = _group(asset.key, partition, row)
            known = self._deployment.ledger.notes.read(self._deployment.namespace, labels.asked)
            notes = [note for note in known if note.group == group]
        return {
            "row": row,
            "partition": partition,
            "rows": rows,
            "text": example,
            "is_weighted": abs(row["share"] - row["n"] / max(row["n_gold"], 1)) > _ROUNDING,
            "examples": examples or [(key, None) for key in row["examples"] or []],
            "dataset": labels.asked if labels is not None else None,
            "notes": notes,
            "form_id": secrets.token_urlsafe(12),
        }

    def _example(
        self, tables: Sequence[StoredAsset], key: str, example: str, partition: str, target: str
    ) -> Mapping[str, Any]:
        """Return the texts of a row, from the first table that has some, without labels."""
        for table in tables:
            inside = partition if partition in table.partitions else None
            try:
                rows = self._deployment.browser.find(table, key, example, inside, most=1)
            except LLMBatchError:
                continue
            hidden = {key, target, PARTITION}
            plain = plain_values(rows[0]) if rows and is_mistake(rows[0]) else rows[0] if rows else {}
            texts = {
                n: v for n, v in plain.items() if isinstance(v, str) and n not in hidden and not n.startswith("llm_")
            }
            if texts:
                return texts
        return {}

    def _take(self, request: Request, given: Mapping[str, str]) -> Response:
        text, form_id = given.get("text", "").replace("\r\n", "\n").strip(), given.get("form_id", "")
        if (nul := with_nul(given)) is not None:
            return self._groups(request, nul)
        labels = self._deployment.labels_of(given.get("candidate", ""))
        if not text or len(text) > MOST_NOTE or not form_id or labels is None or labels.asked is None:
            return self._groups(
                request, f"A note has 1 to {MOST_NOTE:,} characters, and is of labels of this deployment."
            )
        row = {name: given.get(name) or None for name in _NAMES}
        partition = given.get("partition", "")
        submission = self._asked_by(labels, partition, given.get("example", ""))
        if submission is None:
            return self._groups(request, f"Nothing was submitted for '{labels.asked}': there is no definition to note.")
        try:
            self._deployment.ledger.notes.add(
                submission.submission_id,
                form_id=form_id,
                annotator=plain_text(request.state.person, _LONGEST_NAME),
                group=_group(request.path_params["key"], partition, row),
                text=text,
            )
        except LLMBatchError as error:
            return self._groups(request, str(error))
        # A page that is loaded again must not send the form again.
        query = request.url.query
        return RedirectResponse(f"?{query}" if query else request.url.path, 303)

    def _asked_by(self, labels: StoredAsset, partition: str, example: str) -> Submission | None:
        """Return a submission with the definition by which a row was asked; the newest one if there is none."""
        assert labels.asked is not None
        version = None
        # Rejects have the version, too; a row that a person erased does not.
        for asset in self._deployment.assets():
            if asset.dataset == labels.dataset and version is None:
                inside = partition if partition in asset.partitions else None
                found = self._deployment.browser.find(asset, labels.row_key, example, inside, most=1)
                version = next((row.get("llm_prompt_version") for row in found), None)
        versions = self._versions(labels.asked)
        same = [each for each in versions if (each.definition or {}).get("prompt_version") == version]
        chosen = same or versions
        return chosen[0].submissions[-1] if chosen else None

    def _versions(self, dataset: str) -> list[_Version]:
        """Return the definitions of a dataset, the newest first."""
        ledger, namespace = self._deployment.ledger, self._deployment.namespace
        by_content: dict[str, _Version] = {}
        of: dict[str, _Version] = {}
        for submission in ledger.submissions.list_all(namespace, assets=[dataset])[-_MOST_SUBMISSIONS:]:
            definition = definition_in(self._deployment.payloads, submission.manifest_path)
            version = by_content.setdefault(repr(definition), _Version(definition))
            version.submissions.append(submission)
            of[submission.submission_id] = version
        for note in ledger.notes.read(namespace, dataset):
            if note.submission_id in of:
                of[note.submission_id].notes.append(note)
        return sorted(by_content.values(), key=lambda version: version.last, reverse=True)


def _group(asset: str, partition: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of a group, cut to a length: reasons may be long, and the size of an event is limited."""
    named = {name: None if row.get(name) is None else plain_text(row[name], _LONGEST_NAME) for name in _NAMES}
    return {"failures": asset, "partition": partition, **named}


def _text(value: Any) -> str:
    return "" if value is None else str(value)
