"""Planning, collecting and labeling by workers equal the work of one process, for any rows and definition."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from comparison import (
    PIXEL,
    SMALL,
    TARGETS,
    Pickled,
    assert_same_plan,
    assert_same_report,
    by_key,
    labeling,
    stored,
    tickets,
    with_gold,
)
from workspace import TicketLabel, Workspace

from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.core.masks import Mask
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.distributed import compare_spread
from dagster_llm_batch.engine import Labeling, Limits, Realtime, Resend
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics import compare
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
from dagster_llm_batch.providers.command.provider import CommandProvider
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider

WORKERS = Pickled()


def planned(tmp_path: Any, workspace: Workspace, definition: Labeling, rows: Any) -> dict[str, Any]:
    own = Workspace(tmp_path, workspace.emulator)
    own.providers |= workspace.providers
    engine = own.engine()
    return stored(own, engine.plan(definition, rows))


def test_workers_mask_what_one_process_masks(tmp_path: Any, workspace: Workspace) -> None:
    rows = tickets(401)
    texts = [f"{text} Write to n{at}@x.org or 10.0.0.{at % 9}." for at, text in enumerate(rows["body"].to_pylist())]
    rows = rows.set_column(rows.schema.get_field_index("body"), "body", pa.array(texts))
    prompt, found = Prompt(user="{{ body }}", mask=Mask(columns=["body"])), []
    for name, workers in (("here", None), ("there", WORKERS)):
        engine = Workspace(tmp_path / name, workspace.emulator).engine()
        submission = engine.plan(labeling(prompt=prompt, workers=workers), rows)
        assert engine.masked_values(submission) == {"email": 401, "ip": 401}
        paths = [file.path for file in engine.payloads.files("") if not file.path.endswith(".parquet")]
        assert b"@x.org" not in b"".join(line for path in paths for line in engine.payloads.lines(path))
        found.append(submission.fingerprint)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"realtime": Realtime(urgent="urgent")},
        {"limits": Limits(max_bytes_per_batch=40_000)},
        {"prompt": Prompt(user="{{ body }}", images=["picture"]), "limits": Limits(max_requests_per_batch=1000)},
        {"resend": Resend(fallback=["openai/gpt-4o-mini"])},
        {"model": "command/own", "realtime": Realtime(urgent="urgent")},
        {"keep": [], "response": None},
    ],
    ids=["plain", "urgent", "by bytes", "images", "fallback", "least number", "free text"],
)
def test_request_files_are_the_same_byte_for_byte(tmp_path: Any, workspace: Workspace, changes: dict[str, Any]) -> None:
    command = [sys.executable, "-c", "", "{input}", "{output}"]
    workspace.providers["command"] = CommandProvider(command, str(tmp_path / "jobs"), limits=SMALL)
    rows = tickets(2_401).append_column("picture", pa.array([PIXEL, None, PIXEL + b"x"] * 800 + [None], pa.binary()))
    definition = labeling(**changes)
    here = planned(tmp_path / "here", workspace, definition, rows)
    there = planned(tmp_path / "there", workspace, replace(definition, workers=WORKERS), rows)
    assert_same_plan(here, there)
    assert len(here) > 10


def with_blanks(rows: pa.Table) -> pa.Table:
    """Return the rows with empty ones in the middle of a part, and one whole chunk of empty rows."""
    empty = {3, 4, 499, 500, *range(1_024, 1_280)}
    texts = [" " if number in empty else text for number, text in enumerate(rows["body"].to_pylist())]
    return rows.set_column(rows.schema.get_field_index("body"), "body", pa.array(texts))


@pytest.mark.slow
def test_empty_rows_are_the_same_too(tmp_path: Any, workspace: Workspace) -> None:
    rows = with_blanks(tickets(1_501))
    here = planned(tmp_path / "here", workspace, labeling(realtime=Realtime(urgent="urgent")), rows)
    there = planned(tmp_path / "there", workspace, labeling(realtime=Realtime(urgent="urgent"), workers=WORKERS), rows)
    assert_same_plan(here, there)
    own = Workspace(tmp_path / "labels", workspace.emulator)
    own.bounds["part_rows"] = 200
    definition = labeling(workers=WORKERS)
    submission_id = own.run(definition, rows).submission.submission_id
    written = own.engine().write_labels(
        definition, submission_id, f"{tmp_path}/table", f"{tmp_path}/rejects", run_id="r"
    )
    assert (written.labels, written.rejects) == (1_241, 260)
    assert set(pq.read_table(f"{tmp_path}/rejects")["llm_outcome"].to_pylist()) == {"skipped"}


def test_no_rows_are_the_same_too(tmp_path: Any, workspace: Workspace) -> None:
    for number, rows in enumerate([tickets(0), []]):
        here = planned(tmp_path / f"here-{number}", workspace, labeling(), rows)
        there = planned(tmp_path / f"there-{number}", workspace, labeling(workers=WORKERS), rows)
        assert_same_plan(here, there)


def test_answered_rows_are_not_asked_again_by_workers(workspace: Workspace) -> None:
    definition = labeling(workers=WORKERS)
    workspace.run(definition, tickets(500))
    engine = workspace.engine()
    submission = engine.plan(definition, tickets(600))
    alone = engine.plan(replace(definition, workers=None), tickets(600))
    assert submission.reused > 400
    assert alone.submission_id == submission.submission_id  # the same rows are the same submission, however planned


@pytest.mark.parametrize(
    ("rows", "changes", "error", "told"),
    [
        (tickets(900).append_column("other", pa.array(["t1"] * 900)), {"key": "other"}, InputError, "duplicate"),
        (pa.concat_tables([tickets(900), tickets(10)]), {}, InputError, "'t0', 't1'"),
        (tickets(900), {"key": "nobody"}, InputError, "no key column 'nobody'"),
        (tickets(900), {"keep": ["nothing"]}, InputError, "keep names"),
        (tickets(900), {"prompt": Prompt(user="{{ nothing }}")}, ConfigError, "names 'nothing'"),
        (tickets(900), {"limits": Limits(max_bytes_per_batch=10)}, InputError, "'t0' makes a request of"),
        (tickets(900), {"max_cost_usd": "0.0001"}, Exception, "max_cost_usd"),
    ],
)
def test_what_one_process_refuses_workers_refuse_and_leave_nothing(
    workspace: Workspace, rows: Any, changes: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as alone:
        workspace.engine().plan(labeling(**changes), rows)
    with pytest.raises(error, match=told) as spread:
        workspace.engine().plan(labeling(**changes, workers=WORKERS), rows)
    assert type(spread.value) is type(alone.value)
    assert workspace.files() == set()


def test_a_definition_travels_without_its_workers_and_reads_as_before() -> None:
    definition = labeling(workers=WORKERS)
    assert definition.reader.fields  # derived values are not pickled
    came = pickle.loads(pickle.dumps(definition))
    assert came.workers is None
    assert came == replace(definition, workers=None)
    assert came.code_version == definition.code_version
    assert came.reader.read(['{"topic":"bug","urgency":1}'], [None]).columns["topic"].to_pylist() == ["bug"]
    assert came.response is TicketLabel


@pytest.mark.parametrize("urgent", [None, "urgent"])
def test_labels_are_the_same_row_for_row(tmp_path: Any, workspace: Workspace, urgent: str | None) -> None:
    found = []
    for name, workers in (("here", None), ("there", WORKERS)):
        own = Workspace(tmp_path / name, workspace.emulator)
        definition = labeling(realtime=Realtime(urgent=urgent), workers=workers)
        status = own.run(definition, tickets(1_000))
        assert status.submission.outcomes == {"succeeded": status.submission.requests}
        labeled = own.engine().labels(definition, status.submission.submission_id)
        assert len(labeled.labels) == 1_000
        found.append(labeled)
    assert by_key(found[0].labels) == by_key(found[1].labels)
    assert by_key(found[0].rejects) == by_key(found[1].rejects)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 10])
@pytest.mark.parametrize("workers", [None, WORKERS], ids=["here", "workers"])
def test_written_labels_are_the_same_rows_and_replace_the_older_ones(
    tmp_path: Any, workspace: Workspace, workers: Pickled | None, parts: int
) -> None:
    workspace.bounds["part_rows"] = 1_000 // parts
    definition = labeling(workers=workers)
    submission_id = workspace.run(definition, tickets(1_000)).submission.submission_id
    folders = [f"{tmp_path}/table/region=1", f"{tmp_path}/rejects/region=1"]
    for _ in range(2):  # the second time over the first
        written = workspace.engine().write_labels(definition, submission_id, *folders, run_id="r")
        assert (written.labels, written.rejects) == (1_000, 0)
        read = pq.read_table(f"{tmp_path}/table")
        whole = workspace.engine().labels(definition, submission_id, run_id="r").labels
        assert by_key(read.drop_columns(["region"])) == by_key(whole)
        assert len(list((tmp_path / "table" / "region=1").iterdir())) == parts
    assert not [name for name in workspace.files() if "apart" in name]


@pytest.mark.slow
def test_figures_against_gold_are_the_same_to_the_last_digit(workspace: Workspace) -> None:
    labels = (
        workspace.engine().labels(labeling(), workspace.run(labeling(), tickets(3_000)).submission.submission_id).labels
    )
    gold, said = with_gold(labels)
    candidates = {"first": said, "half": said.slice(1_500), "none": said.slice(0, 0)}
    here = compare(gold, candidates, key="ticket_id", targets=TARGETS)
    for at_once in (200_000, 500):
        there = compare_spread(WORKERS, gold, candidates, key="ticket_id", targets=TARGETS, rows_at_once=at_once)
        assert_same_report(here, there)
    topic, stars, numbers = (evaluation for evaluation in there.evaluations if evaluation.candidate == "first")
    assert topic.n_gold_null > 0 < topic.n_absent < topic.n_labeled > topic.n_correct > 0 < topic.n_ignored
    assert topic.n_labeled > topic.n_confident > 0
    assert topic.cost_usd is not None
    assert topic.latency_p95_seconds is not None
    assert stars.kappa_low is not None
    assert numbers.spearman is not None


@pytest.mark.slow
def test_what_cannot_be_measured_is_told_as_one_process_tells_it(workspace: Workspace) -> None:
    labels = (
        workspace.engine().labels(labeling(), workspace.run(labeling(), tickets(1_000)).submission.submission_id).labels
    )
    gold, said = with_gold(labels)
    usual: dict[str, Any] = {"key": "ticket_id", "targets": ["topic"]}
    with pytest.raises(InputError, match=r"'c' is not unique: 1 values with gold stand in more than one part.* 't0'"):
        compare_spread(WORKERS, gold, {"c": pa.concat_tables([said, said.slice(0, 1)])}, **usual)
    with pytest.raises(ConfigError, match="has no column 'mood'"):
        compare_spread(WORKERS, gold, {"c": said}, **{**usual, "targets": ["mood"]})
    with pytest.raises(ConfigError, match="Nothing to evaluate"):
        compare_spread(WORKERS, gold, {}, **usual)


def test_a_codec_travels_without_the_providers_secrets(tmp_path: Any) -> None:
    secret = "sk-planted-in-the-codec"
    providers = [
        OpenAIProvider(secret, base_url="http://127.0.0.1:9"),
        AnthropicProvider(secret, base_url="http://127.0.0.1:9"),
        GeminiProvider(secret, base_url="http://127.0.0.1:9"),
        BedrockProvider(
            "us-east-1",
            "arn:aws:iam::123456789012:role/batch",
            "s3://bucket/folder",
            session_options={"aws_access_key_id": secret, "aws_secret_access_key": secret},
            read_quotas=False,
        ),
        CommandProvider([sys.executable, "{input}", "{output}"], str(tmp_path), env={"KEY": secret}),
    ]
    models = ["gpt-4o", "claude-haiku-4-5", "gemini-2.5-flash", "anthropic.claude-haiku-4-5-20251001-v1:0", "own"]
    request = make_request("You label.", "Where is it?")
    for provider, model in zip(providers, models, strict=True):
        params = {"max_output_tokens" if "gemini" in model else "max_tokens": 50}
        codec = provider.codec(replace(labeling().spec, model=model, params=params))
        sent = pickle.dumps(codec)
        assert secret.encode() not in sent
        came = pickle.loads(sent)
        assert came.encode(request, "r0-1") == codec.encode(request, "r0-1")
        assert came.limits == codec.limits
