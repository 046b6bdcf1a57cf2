"""docs/how-to/move-the-ledger.md moves a ledger from SQLite to PostgreSQL: nothing is lost or paid twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from labelings import LABELS

from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from tests.page import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "move-the-ledger.md"

pytestmark = pytest.mark.slow


def _script() -> dict[str, Any]:
    [script] = [block for block in blocks(PAGE, "python") if block.title == "move_ledger.py"]
    names: dict[str, Any] = {"__name__": "move_ledger"}
    exec(compile(script.content, str(PAGE), "exec"), names)
    return names


def _rows(engine: sa.Engine, table: str) -> list[dict[str, Any]]:
    tables = sa.MetaData()
    tables.reflect(engine)
    in_utc = _script()["in_utc"]
    with engine.connect() as connection:
        rows = connection.execute(sa.select(tables.tables[table])).mappings().all()
    return sorted(({name: in_utc(one) for name, one in row.items()} for row in rows), key=repr)


def test_the_page_names_the_places_of_a_ledger_and_of_files_below_the_dagster_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dagster_llm_batch import LLMBatchResource

    tmp_path.joinpath("dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    ledger, payloads = LLMBatchResource().places()
    text = PAGE.read_text(encoding="utf-8")
    for place in (ledger.removeprefix("sqlite:///"), payloads):
        assert f'"{place.replace(str(tmp_path), "$DAGSTER_HOME")}"' in text


def test_the_page_moves_batches_in_flight_and_answers_and_later_work_goes_on(
    postgres_cluster: Any, tmp_path: Path
) -> None:
    target = postgres_cluster.new_database()
    with Emulator() as emulator:

        def engine(url: str) -> Engine:
            provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=5.0)
            return Engine(Deployment({"openai": provider}, Ledger(url), PayloadStore(str(tmp_path / "payloads")), "n"))

        def submit(site: Engine, partition: str) -> str:
            rows = [{"id": str(n), "text": f"Ticket {n} of {partition}"} for n in range(4)]
            planned = site.plan(LABELS, rows, partition=partition)
            site.submit(LABELS, planned.submission_id)
            return planned.submission_id

        before = engine(f"sqlite:///{tmp_path}/ledger.sqlite")
        answered = submit(before, "1")
        emulator.settle()
        assert before.advance(LABELS, answered).is_settled
        in_flight = submit(before, "2")
        sent = len(emulator.books.batches)
        before.ledger.close()
        empty = Ledger(target)
        assert empty.submissions.list_all("n") == []
        empty.close()

        _script()["move"](tmp_path / "ledger.sqlite", target)

        old = sa.create_engine(f"sqlite:///{tmp_path}/ledger.sqlite")
        new = sa.create_engine(sa.make_url(target).set(drivername="postgresql+psycopg2"))
        names = set(sa.inspect(old).get_table_names()) - {"lease"}
        assert names == set(sa.inspect(new).get_table_names()) - {"lease"}
        assert {name for name in names if _rows(old, name) != _rows(new, name)} == set()
        old.dispose()
        new.dispose()

        after = engine(target)
        assert submit(after, "1") == answered
        assert submit(after, "2") == in_flight
        assert len(emulator.books.batches) == sent
        emulator.settle()
        assert after.advance(LABELS, in_flight).submission.outcomes == {"succeeded": 4}
        assert emulator.books.billed_twice() == {}
        assert submit(after, "3") not in {answered, in_flight}  # its events get new numbers
        after.ledger.close()

    with pytest.raises(SystemExit, match="has rows"):
        _script()["move"](tmp_path / "ledger.sqlite", target)
