"""Every construct of a response schema, at every provider: it works over a socket, or is refused with its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from schema_matrix import CONSTRUCTS, REQUEST, TARGETS, Construct, Target

from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.errors import ResponseSchemaError
from dagster_llm_batch.testing.emulator import Emulator, simulated_answer
from dagster_llm_batch.types import Outcome


class Answers:
    """The emulated models' answers: `reply`, or else a value that fits the schema."""

    reply: Any = None

    def __call__(self, body: Any, endpoint: str) -> Any:
        return simulated_answer(body, endpoint) if self.reply is None else self.reply


ANSWERS = Answers()


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(answer=ANSWERS) as one:
        yield one


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("construct", CONSTRUCTS, ids=lambda construct: construct.name)
def test_a_construct_works_or_is_refused_here_with_its_name(
    construct: Construct, target: Target, emulator: Emulator
) -> None:
    provider = target.provider(emulator)
    spec = target.spec(construct.response)
    if refusal := construct.refusal(target):
        with pytest.raises(ResponseSchemaError, match=refusal):
            provider.codec(spec)
        return
    codec = provider.codec(spec)
    ANSWERS.reply = construct.reply
    answer = provider.respond(codec.encode(REQUEST, "r-1"))  # the emulator checks the schema as the vendor does
    result = codec.decode(answer)
    assert (result.outcome, result.custom_id) == (Outcome.SUCCEEDED, "r-1"), result.reason
    reading = Reader(construct.response).read([result.text], [None])
    assert reading.reasons == [None]
