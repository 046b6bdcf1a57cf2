"""What is being labeled when the process dies, and what must have come of it in the end.

A new way through the engine is a new Scenario in SCENARIOS, and points on its way in `points.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, Field

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.testing.emulator import Fault, RowFault, WireFault, lost_create_reply
from tests.crash.clouds import CLOUDS, Cloud

ANSWER = {"topic": "billing", "urgency": 3}
"""What every emulated model says; the schemas that some providers take have no bounds to simulate by."""

_CREATES = (
    "POST /v1/batches",
    "POST /v1/messages/batches",
    "POST /bedrock/model-invocation-job",
    "POST /vertex/*/batchPredictionJobs",
    "POST /gemini/*:batchGenerateContent",
)
_EMULATED = frozenset(CLOUDS) - {"command"}


class TicketLabel(BaseModel):
    """The response."""

    topic: Literal["billing", "bug", "how_to"]
    urgency: Annotated[int, Field(ge=1, le=5)]


@dataclass(frozen=True)
class Scenario:
    """One labeling. `waves`: how many batches each wave has in the end. Every row ends labeled."""

    name: str
    waves: tuple[int, ...] = (3,)
    faults: tuple[Fault, ...] = ()
    command_options: tuple[str, ...] = ()
    clouds: frozenset[str] = frozenset(CLOUDS)
    rows: int = 9

    def labeling(self, cloud: Cloud) -> Labeling:
        return Labeling(
            asset="ticket_labels",
            model=f"{cloud.name}/{cloud.model}",
            key="ticket_id",
            prompt=Prompt(system="You label support tickets.", user="{{ subject }}\n\n{{ body }}"),
            response=TicketLabel,
            params=cloud.params,
            max_requests_per_batch=3,
        )

    def tickets(self) -> Iterator[Any]:
        """Rows in two pieces: planning has a middle."""
        numbers = range(self.rows)
        columns = {
            "ticket_id": [f"t{n}" for n in numbers],
            "subject": [f"Subject {n}" for n in numbers],
            "body": [f"Where is my invoice number {n}?" for n in numbers],
        }
        [batch] = pa.table(columns).to_batches()
        yield batch.slice(0, 5)
        yield batch.slice(5)


PLAIN = Scenario("plain")
TWO_WAVES = Scenario(
    "two waves",
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
SCENARIOS = (PLAIN, TWO_WAVES, DOUBT, BUSY)
