"""A student as the cheap model of a cascade: it answers batch files by a command, and the guarantee is kept."""

from __future__ import annotations

import json
import pickle
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner
from code_location import CodeLocation, labeled
from pydantic import BaseModel, Field

from dagster_llm_batch import Cascade, CommandBatchResource, HiveParquetIOManager, Prompt, student_assets, student_of
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.metrics.student import train
from dagster_llm_batch.testing.emulator import Emulator

HERE = Path(__file__).parent
LOCATION = HERE / "student_location.py"


class SureLabel(BaseModel):
    topic: Literal["bug", "bill"]
    confidence: float = Field(ge=0, le=1)


def rows(seed: int, count: int) -> pl.DataFrame:
    """Return texts of ten of 60 words; the label is the one of most of its words."""
    words = np.random.default_rng(seed).integers(0, 60, (count, 10))
    bodies = [" ".join(f"{'crash' if word % 2 else 'invoice'}{word}" for word in line) for line in words]
    return pl.DataFrame({"ticket_id": [f"{seed}-{n}" for n in range(count)], "subject": "", "body": bodies})


def topic_of(text: str) -> str:
    return "bug" if text.count("crash") > 5 else "bill"


def store(root: Path, table: pa.Table) -> None:
    """Store a student in the place of the asset `student`."""
    folder = root / "student"
    folder.mkdir(parents=True, exist_ok=True)
    pl.from_arrow(table).write_parquet(folder / "part-0.parquet")


def learned(labels: dict[str, str], target: str = "topic") -> pa.Table:
    texts = list(labels)
    return train(texts, list(labels.values()), code_version="c", target=target, trained_at=datetime.now(UTC)).to_arrow()


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the command on bodies. It returns exit code, output, and lines by custom_id."""
    monkeypatch.setenv("TABLES", str(tmp_path / "tables"))
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"

    def run(*bodies: Any, asked: str = "student", location: Path = LOCATION) -> tuple[int, str, dict[str, Any]]:
        lines = [json.dumps({"custom_id": f"r{n}", "body": body}) for n, body in enumerate(bodies)]
        requests.write_text("\n".join(lines))
        results.unlink(missing_ok=True)
        arguments = ["answer", asked, "-f", str(location), "-i", str(requests), "-o", str(results)]
        done = CliRunner().invoke(main, arguments)
        told = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        return done.exit_code, done.output, {line["custom_id"]: line["response"] for line in told}

    return run


def body(text: Any, schema: Any = None) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema or SureLabel.model_json_schema()}}
    return {"model": "student", "messages": [{"role": "user", "content": text}], "response_format": form}


def test_a_batch_file_is_answered_by_the_student_in_the_response_s_own_types(answer, tmp_path):
    known = dict.fromkeys([f"crash{n} now" for n in range(30)], "true")
    known |= dict.fromkeys([f"invoice{n} paid" for n in range(30)], "false")
    store(tmp_path / "tables", learned(known, "is_bug"))
    schema = {"type": "object", "properties": {"is_bug": {"type": "boolean"}, "confidence": {"type": "number"}}}
    parts = [{"type": "text", "text": "crash7 now"}, {"type": "image_url", "image_url": {"url": "x"}}]
    code, _, lines = answer(body("crash7 now", schema), body("invoice3 paid", schema), body(parts, schema))
    assert code == 0
    said = [json.loads(line["body"]["choices"][0]["message"]["content"]) for line in lines.values()]
    assert [one["is_bug"] for one in said] == [True, False, True]
    assert all(0.5 <= one["confidence"] <= 1 for one in said)
    assert lines["r0"]["body"]["model"].startswith("student ")
    code, _, lines = answer(body("crash7 now"), {"messages": 5}, {})
    assert (code, [line["status_code"] for line in lines.values()]) == (1, [])
    wants_more = {**schema, "required": ["is_bug", "confidence", "why"]}
    code, told, lines = answer(body("crash7 now", wants_more))
    assert (code, lines) == (1, {})
    assert "The response has 'why' beside 'is_bug' and 'confidence'" in told
    one_to_ten = {**schema, "properties": {**schema["properties"], "confidence": {"type": "integer"}}}
    _, _, lines = answer(body("crash7 now", one_to_ten))
    assert "does not fit the response" in lines["r0"]["body"]["error"]["message"]


def test_without_a_student_each_row_is_an_error_and_what_is_no_student_is_refused(answer, tmp_path):
    code, _, lines = answer(body("a"), body("b"))
    assert (code, [line["status_code"] for line in lines.values()]) == (0, [404, 404])
    assert "Materialize it first" in lines["r0"]["body"]["error"]["message"]
    store(tmp_path / "tables", pa.table({"a": [1]}))
    code, told, lines = answer(body("a"))
    assert (code, lines) == (1, {})
    assert "The table is no student" in told
    code, told, lines = answer(body("a"), asked="other")
    assert (code, lines) == (1, {})
    assert "The asset other is not in" in told


@pytest.mark.parametrize("is_learned", [True, False])
def test_a_student_is_asked_by_its_name_alone_by_which_prompts_are_checked(answer, tmp_path, is_learned):
    """Refuse other names: a command with the student's name instead of {model} let any unchecked prompt pass."""
    if is_learned:
        labels = dict.fromkeys([f"crash{n} now" for n in range(60)], "bug")
        store(tmp_path / "tables", learned(labels | dict.fromkeys([f"invoice{n} paid" for n in range(60)], "bill")))
    code, told, lines = answer(body("crash7 now"), body("crash8 now") | {"model": "any"})
    assert (code, lines) == (1, {})
    assert "asks the model 'any', and the student is 'student'" in " ".join(told.split())
    assert "end in '/student'" in " ".join(told.split())
    code, _, lines = answer(body("crash7 now"))
    assert (code, len(lines)) == (0, 1)


class _Hostile:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_where_a_student_is_stored_is_not_run(answer, tmp_path):
    """Refuse it: Dagster's own IO manager would unpickle it, and one of tables reports that it is not a table."""
    ran, tables = tmp_path / "ran", tmp_path / "tables"
    tables.mkdir()
    tables.joinpath("student").write_bytes(pickle.dumps(_Hostile(ran)))
    pickling = tmp_path / "pickling.py"
    pickling.write_text(LOCATION.read_text().replace("HiveParquetIOManager(root", "dg.FilesystemIOManager(base_dir"))
    code, told, lines = answer(body("a"), location=pickling)
    assert (code, lines, ran.exists()) == (1, {}, False)
    assert "The IO manager 'io_manager' stores pickles" in told
    tables.joinpath("student").rename(tmp_path / "pickle")
    tables.joinpath("student").mkdir()
    (tmp_path / "pickle").rename(tables / "student" / "part-0.parquet")
    code, _, lines = answer(body("a"))
    assert (code, lines, ran.exists()) == (1, {}, False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cascade_asks_the_oracle_alone_until_a_student_has_learned_and_then_saves(instance, tmp_path):
    """Let the oracle answer the first day, which has no student. The second day, a student of the first accepts most
    rows.
    """
    days = dg.StaticPartitionsDefinition(["1", "2"])
    tables = tmp_path / "tables"
    # The same as the script of an installed package.
    script = [sys.executable, "-c", "from dagster_llm_batch.cli.main import main; main()"]
    command = [*script, "answer", "{model}", "-f", str(LOCATION)]
    students = CommandBatchResource(
        command=[*command, "-i", "{input}", "-o", "{output}"], workdir=str(tmp_path / "batches")
    )
    labels = labeled(
        rows=lambda context: rows(int(context.partition_key), 400),
        keep=["body"],
        partitions_def=days,
        prompt=Prompt(user="{{ body }}"),
        response=SureLabel,
        model="student/student",
        params={},
        cascade=Cascade(oracle="openai/gpt-4o", target="topic", agreement=0.9, params={"max_tokens": 50}),
    )
    learning = student_assets(name="student", labels=labels, text="body", target="topic")
    asked: list[str] = []

    def oracle(request: Any, _url: str) -> Any:
        asked.append(request["messages"][-1]["content"])
        return {"topic": topic_of(asked[-1]), "confidence": 1.0}

    with pytest.MonkeyPatch.context() as patch, Emulator(answer=oracle) as emulator:
        patch.setenv("TABLES", str(tables))
        location = CodeLocation(
            emulator,
            instance,
            *labels,
            *learning,
            resources={"io_manager": HiveParquetIOManager(root=str(tables))},
            providers={"student": students},
        )
        told = {}
        for day in ("1", "2"):
            asked.clear()
            assert location.submit(partition=day).success
            for _ in range(600):
                emulator.settle()
                location.collect(partition=day)
                if day in location.materializations():
                    break
            told[day] = {name: value.value for name, value in location.materializations()[day].metadata.items()}
            assert told[day]["llm_batch/rows_sampled"] < 200
            assert sum(told[day].get(f"llm_batch/rows_{why}", 0) for why in ("sampled", "escalated", "invalid")) == len(
                asked
            )
            if day == "1":
                assert len(asked) == 400
                assert location.run("student", "student_labels").success
        assert told["2"]["llm_batch/rows_accepted"] > 100
        table = pl.read_parquet(tables / "ticket_labels" / "partition=2" / "*.parquet")
        accepted = table.filter(pl.col("llm_why") == "accepted")
        version = student_of(pl.read_parquet(tables / "student" / "*.parquet")).version
        assert accepted["llm_model"].unique().to_list() == [f"student {version}"]
        wrong = [topic_of(row["body"]) != row["topic"] for row in table.to_dicts()]
        assert sum(wrong) <= 40
        assert told["2"]["llm_batch/oracle_cost_avoided_usd"] > 0
