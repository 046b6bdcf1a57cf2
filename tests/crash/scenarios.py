"""The labelings that run when the process dies, and their required results.

A new way through the engine is a new Scenario in SCENARIOS, and points on its way in `points.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, Field

from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Labeling, Limits, Realtime, Resend
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.testing.emulator import BatchFault, Fault, RowFault, WireFault, lost_create_reply
from tests.crash.clouds import CLOUDS, Cloud
from tests.folder_servers import routes_of

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

    def with_changes(self, *changes: tuple[str, Any]) -> Scenario:
        """Return the same scenario with more changes of the labeling."""
        return replace(self, changes=(*self.changes, *changes))

    def labeling(self, cloud: Cloud) -> Labeling:
        oracle = f"{cloud.name}/{cloud.other_model}"
        usual: dict[str, Any] = {
            "cascade": self.cascade and Cascade(oracle, "topic", 0.5, 0.9, "urgency", 4, self.cascade),
            "asset": "ticket_labels",
            "model": f"{cloud.name}/{cloud.model}",
            "key": "ticket_id",
            "prompt": Prompt(system="You label support tickets.", user="{{ subject }}\n\n{{ body }}"),
            "response": TicketLabel,
            "params": cloud.params,
            "spend": cloud.spend,
            "limits": Limits(max_requests_per_batch=3),
            "realtime": Realtime(
                deadline=DEADLINE if self.is_late else None, urgent="now" if self.urgent else None, concurrency=1
            ),
            "resend": Resend(fallback=(oracle,) if self.falls_back else ()),
        }
        return Labeling(**{**usual, **dict(self.changes)})

    def tickets(self, partition: int) -> Iterator[Any]:
        """Yield a partition's rows in two pieces, so that planning can be interrupted between them."""
        rows = self.rows // self.partitions
        numbers = range(partition * rows, (partition + 1) * rows)
        columns = {
            "ticket_id": [f"t{n}" for n in numbers],
            "subject": [f"Subject {n}" for n in numbers],
            "body": [f"Where is my invoice number {n}?" for n in numbers],
            "now": [n < self.urgent for n in numbers],
        }
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
    URGENT.with_changes(
        ("model", "openai/gpt-5-nano"),
        ("params", {"max_completion_tokens": 50}),
        ("realtime", Realtime(urgent="now", concurrency=1, tier="flex")),
    ),
    name="the tier flex turns a row away, and the standard tier answers it",
    clouds=frozenset({"openai"}),
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
    LATE,
    CANCELED,
    UNREAD,
)
