"""The student as assets: its training labels, its automation, and its allowed stores."""

from __future__ import annotations

from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from code_location import LABELS, labeled
from pydantic import BaseModel

from dagster_llm_batch import Cascade, HiveParquetIOManager, Prompt, student_assets, student_of
from dagster_llm_batch.errors import ConfigError, InputError


class Topic(BaseModel):
    topic: Literal["bug", "bill"]
    confidence: float


def of_cascade() -> list[dg.AssetsDefinition]:
    cascade = Cascade(oracle="openai/gpt-5", target="topic")
    return labeled(keep=["body"], response=Topic, cascade=cascade)


def learning(labels: list[dg.AssetsDefinition], **changes: Any) -> list[dg.AssetsDefinition]:
    usual: dict[str, Any] = {"name": "student", "labels": labels, "text": "body", "target": "topic", "min_rows": 30}
    return student_assets(**{**usual, **changes})


def rows(topics: list[str], **more: list[Any]) -> pa.Table:
    says = {"bug": "it crashes with an error", "bill": "the invoice is too high", "odd": "it crashes with an error"}
    ids = [f"t-{n}" for n in range(len(topics))]
    bodies = [f"{says[topic]} number{n}" for n, topic in enumerate(topics)]
    return pa.table({"ticket_id": ids, "body": bodies, "topic": topics, **more})


def run(table: pa.Table, assets: list[dg.AssetsDefinition], manager: Any) -> dg.ExecuteInProcessResult:
    @dg.asset(name=LABELS)
    def produced() -> pa.Table:
        return table

    return dg.materialize([produced, *assets], resources={"io_manager": manager})


def test_a_student_of_a_cascade_learns_what_the_oracle_said_alone(tmp_path):
    """Leave out labels of the cheap model, which may be the student's own. Here they are wrong wherever they are
    delivered.
    """
    oracle, cheap = ["bug", "bill"] * 20, ["odd"] * 40
    table = rows([*oracle, *cheap], llm_level=["oracle"] * 40 + ["cheap"] * 40)
    run(table, learning(of_cascade()), HiveParquetIOManager(root=str(tmp_path)))
    student = student_of(pq.read_table(tmp_path / "student"))
    assert (student.classes, student.rows) == (("bill", "bug"), 40)
    assert len(pq.read_table(tmp_path / "student_labels")) == 40
    [answer] = student.answers(["it crashes with an error"])
    assert answer.label == "bug"


def test_rows_without_a_label_or_a_text_teach_nothing(tmp_path):
    table = rows(["bug", "bill"] * 20)
    without = table.set_column(1, "body", pa.array([None, *table["body"].to_pylist()[1:]], pa.string()))
    run(without, learning(labeled(keep=["body"])), HiveParquetIOManager(root=str(tmp_path)))
    assert student_of(pq.read_table(tmp_path / "student")).rows == 39
    with pytest.raises(InputError, match="has 40 labels; min_rows=50"):
        run(table, learning(labeled(keep=["body"]), min_rows=50), HiveParquetIOManager(root=str(tmp_path)))


def test_a_store_of_pickles_is_refused_before_a_student_learns(tmp_path):
    """Refuse it: Dagster's own IO manager, and the ones of its cloud packages, unpickle values when they load them."""
    with pytest.raises(ConfigError, match=r"'io_manager' stores pickles.*HiveParquetIOManager"):
        run(
            rows(["bug", "bill"] * 20), learning(labeled(keep=["body"])), dg.FilesystemIOManager(base_dir=str(tmp_path))
        )
    assert not (tmp_path / "student").exists()


def test_a_student_learns_anew_whenever_labels_have_landed():
    """Learn after each partition: there is one student of all of them."""
    labels = labeled(keep=["body"], partitions_def=dg.StaticPartitionsDefinition(["mon", "tue"]))
    defs = dg.Definitions(assets=[*labels, *learning(labels)], resources={"llm_batch": None})
    instance = dg.DagsterInstance.ephemeral()
    learned: list[int] = []
    cursor = None
    for landed in (None, "mon", None, "tue"):
        if landed is not None:
            instance.report_runless_asset_event(dg.AssetMaterialization(LABELS, partition=landed))
        result = dg.evaluate_automation_conditions(defs, instance, cursor=cursor)
        cursor = result.cursor
        learned.append(result.get_num_requested(dg.AssetKey("student")))
        if learned[-1]:
            for name in ("student", "student_labels"):
                instance.report_runless_asset_event(dg.AssetMaterialization(name))
    assert learned == [0, 1, 0, 1]


def test_a_student_of_columns_that_are_not_there_is_refused():
    with pytest.raises(ConfigError, match="must be one of the columns that "):
        learning(labeled())


def test_the_model_of_a_cascade_learns_from_just_what_it_is_shown():
    """Refuse other words, among which it would not recognize a text that it has learned."""

    def labels(user, model="student/student", **changes):
        promise = Cascade(oracle="openai/gpt-5", target="topic")
        usual = {"keep": ["body"], "model": model, "cascade": promise, "response": Topic, "params": {}}
        return labeled(**{**usual, "prompt": Prompt(system="Label it.", user=user), **changes})

    for user in ("{{ body }}", "\n{{- body | trim -}}\n", "{{ row['body'] }}"):
        assert learning(labels(user))
    for user in ("{{ subject }}\n\n{{ body }}", "Label: {{ body }}", "{{ subject }}", "{{ body | upper }}"):
        with pytest.raises(ConfigError, match="learns from text='body', but the prompt's user= is another text"):
            learning(labels(user))
        # A student that does not answer in the cascade may learn from any text.
        assert learning(labels(user, model="openai/gpt-4o-mini"))
        assert learning(labels(user, cascade=None))
