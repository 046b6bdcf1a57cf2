"""A key that can be recognised is in no file, no message, no log and no repr, whatever goes wrong."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest
from house import House, labeling, tickets

from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.testing.emulator import Emulator, RowFault, WireFault

KEY = "sk-RECOGNISE-me-4242424242"


def everything_stored(house: House) -> bytes:
    """The ledger with its side files, and every payload, as it is and uncompressed."""
    payloads = house.engine().payloads
    parts = [path.read_bytes() for path in house.tmp_path.rglob("*") if path.is_file()]
    for name in house.files():
        if name.endswith((".zst", ".lz4")):
            parts.append(b"".join(payloads.lines(name)))
        else:
            parts.append(str(payloads.read_table(name).to_pylist()).encode())
    return b"\0".join(parts)


FAULTS: dict[str, list[Any]] = {
    "nothing": [],
    "wrong key": [
        WireFault(
            kind="status", route="POST /v1/batches", status=401, message=f"Incorrect API key provided: {KEY}.", times=1
        )
    ],
    "refused": [WireFault(kind="status", route="POST /v1/batches", status=400, message=f"bad header Bearer {KEY}")],
    "ambiguous": [WireFault(kind="status", route="POST /v1/batches", status=500, message=f"trace of {KEY}")],
    "busy": [WireFault(kind="status", route="POST /v1/batches", status=429, message=f"slow down, {KEY}", times=None)],
    "a row": [RowFault(status_code=500, times=1)],
    "a poll": [WireFault(kind="status", route="GET /v1/batches/*", status=500, message=KEY)],
    "a download": [WireFault(kind="status", route="GET /v1/files/*/content", status=500, message=KEY, times=None)],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_key_is_shown_nowhere(tmp_path: Any, caplog: Any, capfd: Any, fault: str) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    with Emulator(keys={KEY: "account"}, faults=FAULTS[fault]) as emulator:
        house = House(tmp_path, emulator)
        house.providers = {"openai": house.openai(api_key=KEY)}
        definition = labeling()
        submission = house.engine().plan(definition, tickets(3))
        for step in ("submit", "advance"):
            try:
                getattr(house.engine(), step)(definition, submission.submission_id)
            except LLMBatchError as error:
                shown.append("".join(traceback.format_exception(error)))
            emulator.settle()
        shown += [repr(house.providers), repr(house.engine().ledger), repr(definition)]
        shown += [str(event) for event in house.engine().ledger.events(submission.submission_id)]
        shown += [str(shard) for shard in house.engine().ledger.shards(submission.submission_id)]
        assert any(call.key == KEY for call in emulator.books.calls)  # it was sent, so it could be shown
        stored = everything_stored(house)
    said = "\n".join([*shown, caplog.text, *capfd.readouterr()])
    assert KEY not in said
    assert "RECOGNISE" not in said
    assert KEY.encode() not in stored
    assert b"RECOGNISE" not in stored


def test_payloads_and_ledger_are_readable_by_their_owner_alone(house: House) -> None:
    house.run(labeling(), tickets(2))
    for path in house.tmp_path.rglob("*"):
        if path.name.startswith("ledger.sqlite") or "payloads" in path.parts:
            assert path.stat().st_mode & 0o077 == 0, path
