"""Uploaded documents are deleted by the sensor's ticks and by the schedule, once nothing needs them."""

from __future__ import annotations

import polars as pl
from code_location import labeled
from pdfs import pdf
from test_batch_sensor import tick
from test_jobs import retained

from dagster_llm_batch import Prompt, build_llm_batch_retention
from dagster_llm_batch.sensors.request_files import _left_until
from dagster_llm_batch.testing.emulator import WireFault


def papers(_context):
    return pl.DataFrame({"ticket_id": ["a", "b"], "paper": [pdf(1, mark="a"), pdf(1, mark="b")]})


def location_with_papers(make):
    prompt = Prompt("What is it?", documents=["paper"], documents_as="upload")
    location = make(*labeled(rows=papers, prompt=prompt))
    assert location.land().success
    return location


def deleted(emulator):
    names = {file.id for file in emulator.books.files if file.filename.endswith(".pdf")}
    calls = [call.path for call in emulator.books.calls if call.method == "DELETE"]
    return sum(path.rpartition("/")[2] in names for path in calls)


def age(location):
    import sqlalchemy as sa

    with location.engine().ledger._database.write() as connection:
        connection.execute(sa.text("UPDATE upload SET needed_at = '2020-01-01 00:00:00.000000'"))


def test_documents_of_complete_submissions_are_deleted_by_ticks_after_a_day(make, emulator):
    location = location_with_papers(make)
    tick(location)
    assert deleted(emulator) == 0
    age(location)
    emulator.inject(WireFault(kind="status", status=403, route="DELETE /v1/files/*"))
    tick(location)
    tick(location)
    # One deletion is refused, and tried again after an hour.
    assert deleted(emulator) == 2
    _left_until.clear()
    tick(location)
    assert deleted(emulator) == 3
    tick(location)
    assert deleted(emulator) == 3


def test_the_schedule_deletes_documents_too(make, emulator):
    location = location_with_papers(make)
    schedule = build_llm_batch_retention()
    assert retained(location, schedule)["llm_batch/documents_found"] == 0
    age(location)
    looked = retained(location, schedule, delete=False)
    assert (looked["llm_batch/documents_found"], looked["llm_batch/documents_deleted"]) == (2, 0)
    assert retained(location, schedule)["llm_batch/documents_deleted"] == 2
    assert deleted(emulator) == 2
