"""The labelings that run when the process dies, and their required results.

A new way through the engine is a new Scenario in SCENARIOS, and points on its way in `points.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, Field

from dagster_llm_batch.core.cascade import Cascade, Precision, Recall, Rolling
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.reuse import Near, Relabel, Reuse
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Labeling, Limits, Realtime, Resend
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.testing.emulator import BatchFault, Fault, RowFault, WireFault, lost_create_reply
from tests.crash.clouds import CLOUDS, Cloud
from tests.folder_servers import routes_of
from tests.pdfs import pdf

ANSWER = {"topic": "billing", "urgency": 3}
"""The answer of every emulated model. Some providers take schemas only without bounds, which simulation would need."""

_CREATES = (
    "POST /v1/batches",
    "POST /v1/messages/batches",
    "POST /bedrock/model-invocation-job",
    "POST /vertex/*/batchPredictionJobs",
    "POST /gemini/*:batchGenerateContent",
    "POST /api/v1/batches",
    *(routes_of(name)["create"] for name in SERVER_FOLDERS),
)
_EMULATED = frozenset(CLOUDS) - {"command"}
# The clouds on which a batch can be stopped.
_STOPPABLE = _EMULATED - {"openrouter"}
RUNNING = ("in_progress", "InProgress", "JOB_STATE_RUNNING", "BATCH_STATE_RUNNING", "RUNNING")
"""The providers' words for a running batch."""
DEADLINE = timedelta(minutes=5)


class TicketLabel(BaseModel):
    """The response."""

    topic: Literal["billing", "bug", "how_to"]
    urgency: Annotated[int, Field(ge=1, le=5)]


class BillingLabel(BaseModel):
    """The response of a filter: yes is "billing"."""

    topic: Literal["billing", "bug"]
    urgency: Annotated[int, Field(ge=1, le=5)]


def _always(_body: Any, _url: str) -> Any:
    """Return ANSWER. It is a named function, since scenarios are pickled to the processes that are killed."""
    return ANSWER


@dataclass(frozen=True, eq=False)
class Scenario:
    """One labeling.

    - waves: batches of each retry round in the end; the most of them for a cascade.
    - faults, command_options: faults at the emulator, and options of the command.
    - in_turn: a partition is planned once the one before it is complete.
    - changes: changes of the labeling.
    - cascade: source of the threshold of a cascade of two models.
    - guarantee: of this cascade; agreement of a half by default.
    - sample: the cascade's sampled rows.
    - near: near copies of rows' texts.
    - subjects: number of different subjects. Default: each row has its own.
    - urgent: number of rows that are answered in real time.
    - runs_on: batches run until they are stopped.
    - is_given_up: a person abandons unreadable results.
    - outcomes: the possible outcomes of rows.
    - billed: the least and the most requests that may be billed. Default: each row once, or `judge_oracle`'s count.
    - at_once: number of batches that are sent or downloaded at once.
    - answer: the emulated models' answers; always ANSWER by default.
    - spare_batches: batches at the provider that ran nothing and belong to no shard.
    - enqueued_tokens: the most tokens that the provider's queue takes.
    - flex_refusals: number of the first calls in the tier "flex" that are turned away.
    - changes_model: another model has labeled the rows before, and these labels may stay. It is the cloud's other one;
      before a cascade, the model of the cascade.
    - documents: number of different documents that rows name, and that are uploaded once. They are deleted at the end.
    """

    name: str
    waves: tuple[int, ...] = (3,)
    faults: tuple[Fault, ...] = ()
    command_options: tuple[str, ...] = ()
    clouds: frozenset[str] = frozenset(CLOUDS)
    rows: int = 9
    partitions: int = 1
    in_turn: bool = False
    changes: tuple[tuple[str, Any], ...] = ()
    falls_back: bool = False
    cascade: Literal["partition"] | Rolling | None = None
    guarantee: Precision | Recall | None = None
    sample: int = 4
    near: Near | None = None
    subjects: int | None = None
    urgent: int = 0
    queue_limit: QueueLimit | None = None
    runs_on: bool = False
    is_late: bool = False
    is_canceled: bool = False
    is_given_up: bool = False
    outcomes: frozenset[str] = frozenset({"succeeded"})
    billed: tuple[int, int] | None = None
    at_once: int = 1
    answer: Callable[[Any, str], Any] = _always
    spare_batches: int = 0
    enqueued_tokens: int | None = None
    flex_refusals: int = 0
    changes_model: bool = False
    documents: int = 0

    def with_changes(self, *changes: tuple[str, Any]) -> Scenario:
        """Return the same scenario with more changes of the labeling."""
        return replace(self, changes=(*self.changes, *changes))

    def labeling(self, cloud: Cloud) -> Labeling:
        oracle = f"{cloud.name}/{cloud.other_model}"
        realtime = dict(self.changes).get("realtime")
        is_flex = isinstance(realtime, Realtime) and realtime.tier == "flex"
        model, params = (is_flex and cloud.in_flex) or (cloud.model, cloud.params)
        usual: dict[str, Any] = {
            "cascade": self.cascade and self._cascade(oracle, self.cascade),
            "asset": "ticket_labels",
            "model": f"{cloud.name}/{model}",
            "key": "ticket_id",
            "prompt": Prompt(system="You label support tickets.", user="{{ subject }}\n\n{{ body }}"),
            "response": TicketLabel,
            "params": params,
            "spend": cloud.spend,
            "limits": Limits(max_requests_per_batch=3),
            "realtime": Realtime(
                deadline=DEADLINE if self.is_late else None, urgent="now" if self.urgent else None, concurrency=1
            ),
            "resend": Resend(
                fallback=(oracle,) if self.falls_back else (), reuse=Reuse(self.near) if self.near else Reuse()
            ),
        }
        return Labeling(**{**usual, **dict(self.changes)})

    def _cascade(self, oracle: str, calibrate: Literal["partition"] | Rolling) -> Cascade:
        agreement = Cascade.agreement if self.guarantee else 0.5
        return Cascade(oracle, "topic", agreement, 0.9, "urgency", self.sample, calibrate, guarantee=self.guarantee)

    def older_labeling(self, cloud: Cloud) -> Labeling:
        """Return the definition before the model was changed."""
        if self.cascade is not None:
            return replace(self.labeling(cloud), cascade=None)
        return replace(self.labeling(cloud), model=f"{cloud.name}/{cloud.other_model}")

    def tickets(self, partition: int) -> Iterator[Any]:
        """Yield a partition's rows in two pieces, so that planning can be interrupted between them."""
        rows = self.rows // self.partitions
        numbers = range(partition * rows, (partition + 1) * rows)
        columns: dict[str, list[Any]] = {
            "ticket_id": [f"t{n}" for n in numbers],
            "subject": [f"Subject {n % (self.subjects or self.rows)}" for n in numbers],
            "body": [f"Where is my invoice number {n}?" for n in numbers],
            "now": [n < self.urgent for n in numbers],
        }
        if self.documents:
            columns["paper"] = [pdf(1, mark=str(n % self.documents)) for n in numbers]
        [batch] = pa.table(columns).to_batches()
        yield batch.slice(0, rows // 2)
        yield batch.slice(rows // 2)


PLAIN = Scenario("nothing goes wrong")
AT_ONCE = Scenario("batches are sent and fetched at once", at_once=3)
TWO_WAVES = Scenario(
    "a row fails at first",
    waves=(3, 1),
    faults=(RowFault(containing="number 1?", status_code=503, times=1),),
    command_options=("number 1?",),
)
DOUBT = Scenario(
    "a create call's reply is lost",
    faults=tuple(lost_create_reply("500", route=route) for route in _CREATES),
    clouds=_EMULATED,
)
BUSY = Scenario(
    "the provider is busy",
    faults=tuple(WireFault(kind="status", status=429, route=route) for route in _CREATES),
    clouds=_EMULATED,
)
REFUSED = Scenario(
    "the provider refuses",
    waves=(),
    faults=tuple(WireFault(kind="status", status=400, route=route, times=None) for route in _CREATES),
    clouds=frozenset({"openai", "anthropic", "vertex"}),
    outcomes=frozenset({"errored"}),
    billed=(0, 0),
)
EXPIRED = Scenario(
    "a batch expires",
    waves=(3, 1),
    faults=(BatchFault(kind="expires", batches=[0], fraction=0.4),),
    clouds=frozenset({"openai", "anthropic", "bedrock", *SERVER_FOLDERS}),
)
PUT_BACK = Scenario(
    "the provider's queue is full",
    faults=(BatchFault(kind="fails", batches=[1]),),
    clouds=frozenset({"openai"}),
    spare_batches=1,
)
TOO_LARGE = Scenario(
    "a batch is too large for the provider's queue",
    waves=(2,),
    changes=(("limits", Limits(max_requests_per_batch=9)),),
    clouds=frozenset({"openai"}),
    spare_batches=1,
    enqueued_tokens=100,
)
LIMITED = Scenario(
    "a limit lets out a sample first",
    waves=(2,),
    # Below the most that nine requests can cost, 0.0186.
    changes=(("limits", Limits(max_requests_per_batch=9)), ("max_cost_usd", "0.0114")),
    clouds=frozenset({"openai"}),
)
OWN_QUEUE = Scenario("batches wait for their turn", queue_limit=QueueLimit(max_batches=1), clouds=frozenset({"openai"}))
SHARED = Scenario(
    "partitions share a batch", waves=(1,), partitions=3, changes=(("limits", Limits(max_requests_per_batch=9)),)
)
URGENT = Scenario("some rows are urgent", waves=(2,), urgent=3, clouds=_EMULATED, billed=(9, 12))
TURNED_AWAY = Scenario(
    "calls in real time are turned away for an hour",
    waves=(2,),
    urgent=3,
    faults=tuple(
        WireFault(kind="status", status=429, retry_after="3600", route=route, skip=2)
        for route in ("POST *v1/chat/completions", "POST /v1/messages", "POST /*:generateContent")
    ),
    clouds=_EMULATED - {"bedrock"},  # its batches show no time
    billed=(9, 12),
)
FLEX = replace(
    URGENT.with_changes(("realtime", Realtime(urgent="now", concurrency=1, tier="flex"))),
    name="the tier flex turns a row away, and the standard tier answers it",
    clouds=frozenset({"openai", "bedrock", "vertex", "gemini"}),
    flex_refusals=1,
)
FLEX_OR_BATCH = replace(
    FLEX.with_changes(("realtime", Realtime(urgent="now", concurrency=1, tier="flex", otherwise="batch"))),
    name="the tier flex turns a row away, and a batch answers it",
    waves=(2, 1),
    billed=(9, 9),
)
FALLBACK = Scenario(
    "a model refuses a row",
    waves=(3, 1),
    faults=(RowFault(containing="number 1?", status_code=400, times=1),),
    falls_back=True,
    clouds=_EMULATED,
)


def _disagree(body: Any, _endpoint: str) -> Any:
    """Let the two models give different answers, at providers whose requests name the model."""
    is_oracle = body.get("model") in {cloud.other_model for cloud in CLOUDS.values()}
    return {**ANSWER, "topic": "bug"} if is_oracle else ANSWER


def _refused_by_model(*numbers: int) -> tuple[RowFault, ...]:
    """Return faults that refuse each of these rows once: the model, which is asked first, and not the oracle."""
    return tuple(RowFault(containing=f"number {number}?", status_code=400, times=1) for number in numbers)


CASCADE = Scenario(
    "an oracle answers what a model is not sure of",
    # The model, and the oracle for four sampled rows; then the oracle for rows that are not accepted.
    waves=(2, 1),
    # The four drawn rows depend on the models. At least one of the five that the model refuses is not drawn.
    faults=_refused_by_model(1, 3, 5, 6, 8),
    changes=(("limits", Limits(max_requests_per_batch=9)),),
    cascade="partition",
    answer=_disagree,
    clouds=_EMULATED,
)
CAPPED = replace(
    CASCADE.with_changes(("max_cost_usd", "5")),
    name="a limit of money keeps what a sample and its model may cost",
    # The sample goes first, and would be refused in place of the model.
    faults=(),
    clouds=frozenset({"openai"}),
)
ROLLING = Scenario(
    "the sample of one partition sets the threshold of the next",
    # In each partition: the model, and the oracle for drawn rows; then the oracle for rows that are not accepted.
    waves=(4, 2),
    rows=18,
    partitions=2,
    in_turn=True,
    faults=_refused_by_model(1, 3, 5, 6, 8, 10, 12, 14, 15, 17),
    changes=(("limits", Limits(max_requests_per_batch=9)),),
    cascade=Rolling(rows=4, audit=0.2),
    answer=_disagree,
    clouds=_EMULATED,
)


def _number_in(body: Any) -> int:
    """Return the number of the row in a request of any provider."""
    return int(re.findall(r"number (\d+)\?", str(body))[-1])


def _judge_billing(body: Any, _endpoint: str) -> Any:
    """Let both models call other rows billing, with scores that show nothing: each score has true and false yes."""
    number = _number_in(body)
    is_oracle = body.get("model") in {cloud.other_model for cloud in CLOUDS.values()}
    is_billing = number % 5 > 1 if is_oracle else number % 3 > 0
    return {"topic": "billing" if is_billing else "bug", "urgency": 1 + number % 4}


PRECISION = Scenario(
    "an oracle answers the yes that a filter is not sure of",
    # The model, and the oracle for eight sampled rows; then the oracle for rows that are not accepted.
    waves=(2, 1),
    rows=36,
    # At least one of the nine that the model refuses is not drawn.
    faults=_refused_by_model(0, 3, 7, 12, 16, 20, 25, 30, 34),
    changes=(("limits", Limits(max_requests_per_batch=36)), ("response", BillingLabel)),
    cascade="partition",
    guarantee=Precision(0.3, yes="billing"),
    sample=8,
    answer=_judge_billing,
    clouds=_EMULATED,
)
RECALL = replace(
    PRECISION,
    name="an oracle answers the no that a filter is not sure of",
    guarantee=Recall(0.3, yes="billing"),
)
NEAR = Scenario(
    "near copies share the answer of their leader",
    # The leader, and an audit of four copies. The other four share an answer.
    waves=(2,),
    changes=(("prompt", Prompt(system="You label support tickets.", user="{{ body }}")),),
    near=Near("body", "topic", similarity=0.6, error=0.5, confidence=0.9, sample=4),
    billed=(5, 5),
)


def _differ(body: Any, _endpoint: str) -> Any:
    """Give a third of the rows each topic."""
    return {**ANSWER, "topic": ("billing", "bug", "how_to")[_number_in(body) % 3]}


NEAR_DIFFER = replace(
    NEAR,
    name="near copies differ in an audit, and all are asked",
    waves=(2, 2),
    billed=None,
    answer=_differ,
    clouds=_EMULATED,
)
NEAR_CASCADE = Scenario(
    "near copies share the labels of a cascade",
    rows=24,
    # Eight leaders are a cascade with a sample of four; the oracle answers an audit of eight of their sixteen copies.
    subjects=8,
    changes=(
        ("prompt", Prompt(user="{{ subject }}: {{ body }}")),
        ("limits", Limits(max_requests_per_batch=36)),
    ),
    cascade="partition",
    near=Near("body", "topic", similarity=0.6, error=0.3, confidence=0.9, sample=8),
    answer=_disagree,
    clouds=_EMULATED,
)


def _differ_at_oracle(body: Any, _endpoint: str) -> Any:
    """Let the oracle give each copy of a leader another topic."""
    is_oracle = body.get("model") in {cloud.other_model for cloud in CLOUDS.values()}
    return {**ANSWER, "topic": ("bug", "how_to", "billing")[_number_in(body) % 3]} if is_oracle else ANSWER


NEAR_CASCADE_DIFFER = replace(
    NEAR_CASCADE,
    name="near copies of a cascade differ in an audit, and the oracle answers all",
    answer=_differ_at_oracle,
    # The requests of others do not name the model.
    clouds=frozenset({"openai", "anthropic"}),
)
LATE = Scenario("the deadline passes", runs_on=True, is_late=True, clouds=_STOPPABLE, billed=(9, 18))
CANCELED = Scenario(
    "somebody cancels",
    runs_on=True,
    is_canceled=True,
    clouds=_STOPPABLE,
    outcomes=frozenset({"canceled", "missing"}),
    billed=(0, 0),
)
UNREAD = Scenario(
    "results cannot be read, and a person gives them up",
    faults=(WireFault(kind="status", status=503, retry_after="0.01", route="GET /v1/files/*/content", times=None),),
    is_given_up=True,
    clouds=frozenset({"openai"}),
    outcomes=frozenset({"missing"}),
    # All requests ran, but their results are never read.
    billed=(9, 9),
)
_SAMPLED = Resend(reuse=Reuse(relabel=Relabel("topic", share=0.5, confidence=0.9, sample=4)))
RELABELED = Scenario(
    "a new model changes the labels of a sample",
    # Each model's first round, and the rows that wait for the sample.
    waves=(2, 1),
    changes=(("limits", Limits(max_requests_per_batch=9)), ("resend", _SAMPLED)),
    changes_model=True,
    answer=_disagree,
    clouds=frozenset({"openai"}),
    billed=(18, 18),
)
KEPT = replace(
    RELABELED,
    name="labels stay as a new model gives a sample the same",
    waves=(2,),
    answer=_always,
    billed=(13, 13),
)
RELABELED_CASCADE = replace(
    RELABELED,
    name="the oracle of a new cascade changes the labels of a sample",
    cascade="partition",
    changes=(
        ("limits", Limits(max_requests_per_batch=9)),
        ("resend", Resend(reuse=Reuse(relabel=Relabel("topic", share=0.45, confidence=0.9, sample=4)))),
    ),
)
KEPT_CASCADE = replace(
    RELABELED_CASCADE,
    name="labels stay as the oracle of a new cascade gives a sample the same",
    waves=(2,),
    answer=_always,
    billed=(13, 13),
)
UPLOADS = Scenario(
    "documents are uploaded once, and deleted at the end",
    changes=(("prompt", Prompt(user="{{ body }}", documents=["paper"], documents_as="upload")),),
    clouds=frozenset({"openai", "anthropic", "gemini"}),
    documents=3,
)
SCENARIOS = (
    PLAIN,
    AT_ONCE,
    TWO_WAVES,
    DOUBT,
    BUSY,
    REFUSED,
    EXPIRED,
    PUT_BACK,
    TOO_LARGE,
    LIMITED,
    OWN_QUEUE,
    SHARED,
    URGENT,
    FLEX,
    FLEX_OR_BATCH,
    FALLBACK,
    CASCADE,
    CAPPED,
    ROLLING,
    PRECISION,
    RECALL,
    NEAR,
    NEAR_DIFFER,
    NEAR_CASCADE,
    NEAR_CASCADE_DIFFER,
    LATE,
    CANCELED,
    UNREAD,
    RELABELED,
    KEPT,
    RELABELED_CASCADE,
    KEPT_CASCADE,
    UPLOADS,
)
