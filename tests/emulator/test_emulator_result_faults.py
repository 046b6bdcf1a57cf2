"""Faults of batches, rows and results files, each through the unchanged SDK over a real socket."""

from __future__ import annotations

import json

import pytest

from dagster_llm_batch.testing.emulator import BatchFault, FileFault, RowFault


@pytest.mark.parametrize("status_code", [400, 429, 500])
def test_a_struck_row_is_in_the_error_file_with_error_null_and_is_not_billed(connect, status_code):
    client = connect(faults=[RowFault(custom_ids={"r1"}, status_code=status_code)])
    done = client.run(3)
    rows = client.rows(done.error_file_id)
    assert [(row["custom_id"], row["response"]["status_code"], row["error"]) for row in rows] == [
        ("r1", status_code, None)
    ]
    assert rows[0]["response"]["body"]["error"]["message"]
    assert sorted(client.ids(done.output_file_id)) == ["r0", "r2"]
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 1)
    assert sum(item.billed for item in client.emulator.books.executions) == 2


def test_a_fraction_of_rows_fails_the_same_ones_for_the_same_seed(connect):
    failed = []
    for seed in (3, 3, 4):
        client = connect(seed=seed, faults=[RowFault(fraction=0.3, status_code=500)])
        done = client.run(100)
        failed.append(sorted(client.ids(done.error_file_id)))
    assert failed[0] == failed[1] != failed[2]
    assert 10 < len(failed[0]) < 50


def test_rows_are_chosen_by_what_their_request_contains_and_only_so_often(connect):
    client = connect(faults=[RowFault(containing="text 1", times=1, batches={0})])
    first = client.run(3)
    assert client.ids(first.error_file_id) == ["r1"]
    assert client.run(3).error_file_id is None


def test_a_batch_of_which_all_rows_failed_is_completed_without_an_output_file(connect):
    client = connect(faults=[RowFault(status_code=400)])
    done = client.run(3)
    assert (done.status, done.output_file_id, done.request_counts.failed) == ("completed", None, 3)
    assert len(client.rows(done.error_file_id)) == 3
    assert client.emulator.books.billed_tokens().output_tokens == 0


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/responses"])
def test_refusals_and_truncations_are_billed_2xx_rows(connect, endpoint):
    client = connect(
        faults=[RowFault(kind="refusal", custom_ids={"no"}), RowFault(kind="truncated", custom_ids={"cut"})],
        answer=lambda body, endpoint: "0123456789",
    )
    done = client.run([client.line(name, url=endpoint) for name in ("no", "cut", "ok")], endpoint=endpoint)
    body = {row["custom_id"]: row["response"]["body"] for row in client.rows(done.output_file_id)}
    if endpoint == "/v1/responses":
        assert body["no"]["output"][0]["content"][0]["type"] == "refusal"
        assert body["cut"]["status"] == "incomplete"
        assert body["cut"]["incomplete_details"] == {"reason": "max_output_tokens"}
        assert body["cut"]["output"][0]["content"][0]["text"] == "01234"
        assert body["ok"]["status"] == "completed"
    else:
        assert body["no"]["choices"][0]["message"]["content"] is None
        assert body["no"]["choices"][0]["message"]["refusal"]
        assert body["cut"]["choices"][0]["finish_reason"] == "length"
        assert body["cut"]["choices"][0]["message"]["content"] == "01234"
        assert body["ok"]["choices"][0]["finish_reason"] == "stop"
    assert all(item.billed for item in client.emulator.books.executions)


def test_a_row_can_be_answered_under_another_models_name(connect):
    client = connect(faults=[RowFault(kind="model", custom_ids={"r0"}, model="m-2026-01-01")])
    rows = client.rows(client.run(2).output_file_id)
    assert {row["custom_id"]: row["response"]["body"]["model"] for row in rows} == {"r0": "m-2026-01-01", "r1": "m"}


def test_a_batch_that_expires_half_way_bills_what_ran_and_lists_the_rest(connect):
    client = connect(faults=[BatchFault(kind="expires", fraction=0.5)])
    done = client.run(10)
    assert done.status == "expired"
    assert done.expired_at is not None
    finished, rest = client.ids(done.output_file_id), client.rows(done.error_file_id)
    assert (len(finished), len(rest)) == (5, 5)
    assert {row["error"]["code"] for row in rest} == {"batch_expired"}
    assert {row["response"] for row in rest} == {None}
    assert len(client.emulator.books.executions) == 5


def test_a_batch_that_expires_before_any_row_has_no_output_file(connect):
    client = connect(faults=[BatchFault(kind="expires", fraction=0)])
    done = client.run(3)
    assert (done.status, done.output_file_id) == ("expired", None)
    assert len(client.rows(done.error_file_id)) == 3


def test_a_batch_canceled_by_the_service_while_running_keeps_what_ran(connect):
    client = connect(faults=[BatchFault(kind="cancels", fraction=0.25)])
    done = client.run(8)
    assert done.status == "cancelled"
    assert len(client.ids(done.output_file_id)) == 2
    assert {row["error"]["code"] for row in client.rows(done.error_file_id)} == {"batch_cancelled"}


def test_a_cancel_can_drop_a_row_that_was_already_counted(connect):
    client = connect(work_steps=2, faults=[BatchFault(kind="cancel_drops_row")])
    batch = client.create(6)
    client.emulator.tick(2)
    assert client.get(batch).request_counts.completed == 3
    client.sdk.batches.cancel(batch.id)
    client.emulator.settle()
    done = client.get(batch)
    assert done.request_counts.completed == 2
    named = client.ids(done.output_file_id) + client.ids(done.error_file_id)
    assert len(set(named)) == len(named) == 5
    assert sum(item.billed for item in client.emulator.books.executions) == 3


def test_a_batch_can_be_stuck_until_the_fault_is_cleared(connect):
    client = connect(faults=[BatchFault(kind="stuck", during="finalizing")])
    batch = client.create(1)
    client.emulator.settle()
    assert client.get(batch).status == "finalizing"
    client.emulator.clear_faults()
    client.emulator.settle()
    assert client.get(batch).status == "completed"


def test_an_unknown_status_is_reported_while_in_a_state_and_passes_through_the_sdk(connect):
    client = connect(faults=[BatchFault(kind="status", status="paused", during="in_progress")])
    batch = client.create(1)
    seen = []
    for _ in range(4):
        seen.append(client.get(batch).status)
        client.emulator.tick()
    assert seen == ["validating", "paused", "finalizing", "completed"]


def test_counts_can_contradict_the_rows(connect):
    client = connect(faults=[BatchFault(kind="miscounts")])
    done = client.run(3)
    assert (done.request_counts.completed, done.request_counts.total) == (4, 3)
    assert len(client.rows(done.output_file_id)) == 3


def test_an_output_file_can_be_absent_although_the_batch_completed(connect):
    client = connect(faults=[BatchFault(kind="no_output_file", batches={0})])
    done = client.run(3)
    assert (done.status, done.output_file_id, done.error_file_id) == ("completed", None, None)
    assert done.request_counts.completed == 3
    assert client.run(3).output_file_id is not None


def test_unknown_fields_in_the_batch_object_reach_the_client(connect):
    client = connect(faults=[BatchFault(kind="extra_fields")])
    assert client.run(1).model_extra["x_emulator_unknown"] == {"since": "later"}


def test_a_row_can_be_written_twice_or_not_at_all(connect):
    client = connect(
        faults=[FileFault(kind="duplicate", custom_ids={"r0"}), FileFault(kind="missing", custom_ids={"r1"})]
    )
    done = client.run(3)
    assert sorted(client.ids(done.output_file_id)) == ["r0", "r0", "r2"]
    assert done.request_counts.completed == 3


def test_a_row_of_an_unknown_custom_id_can_appear(connect):
    client = connect(faults=[FileFault(kind="foreign", custom_id="not-yours")])
    assert sorted(client.ids(client.run(2).output_file_id)) == ["not-yours", "r0", "r1"]


def test_a_line_can_be_malformed_among_good_ones(connect):
    client = connect(faults=[FileFault(kind="malformed", custom_ids={"r1"})])
    lines = client.raw(client.run(3).output_file_id).splitlines()
    good = []
    for line in lines:
        try:
            good.append(json.loads(line)["custom_id"])
        except ValueError:
            assert b"r1" in line
    assert (len(lines), sorted(good)) == (3, ["r0", "r2"])


def test_faults_of_files_apply_to_the_error_file_too(connect):
    client = connect(faults=[RowFault(custom_ids={"r0"}), FileFault(kind="duplicate", custom_ids={"r0"})])
    assert client.ids(client.run(2).error_file_id) == ["r0", "r0"]


def test_unknown_fields_in_rows_reach_the_client(connect):
    client = connect(faults=[FileFault(kind="extra_fields", times=None)])
    for row in client.rows(client.run(2).output_file_id):
        assert row["x_emulator_unknown"]
        assert row["response"]["x_emulator_unknown"]
        assert row["response"]["body"]["x_emulator_unknown"]


def test_bom_crlf_and_blank_lines_compose(connect):
    client = connect(faults=[FileFault(kind="bom"), FileFault(kind="crlf"), FileFault(kind="blank_lines")])
    data = client.raw(client.run(2).output_file_id)
    assert data.startswith(b"\xef\xbb\xbf{")
    assert data.count(b"\xef\xbb\xbf") == 1
    assert data.count(b"\r\n") == data.count(b"\n") == 4
    assert [bool(line) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\r\n")] == [
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("answer", ["some words here", {"label": "a", "why": "because it is so"}])
def test_a_raw_line_separator_stands_inside_the_content(connect, answer):
    client = connect(answer=lambda body, endpoint: answer, faults=[FileFault(kind="u2028", times=None)])
    done = client.run(2)
    data = client.raw(done.output_file_id)
    assert data.count("\u2028".encode()) == 2
    assert len(data.decode().splitlines()) > 2
    for row in client.rows(done.output_file_id):
        content = row["response"]["body"]["choices"][0]["message"]["content"]
        assert "\u2028" in content
        if isinstance(answer, dict):
            assert json.loads(content) == {"label": "a", "why": "because it is so\u2028"}
