"""Commands that run as batches, with real processes: started once, found again, and never left behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sample_batches import SPEC, batch_file, labeler, until

from dagster_llm_batch.errors import ConfigError, RefusedError
from dagster_llm_batch.providers.command.batches import CommandBatch
from dagster_llm_batch.providers.command.provider import CommandProvider
from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchStatus,
    FindHints,
    Found,
    Outcome,
    RequestSpec,
    ResponseFormat,
    ResponseKind,
)

HINTS = FindHints(datetime.now(UTC), 3, "n")
TAG = "tag-1"


def submit(provider: CommandProvider, spec: RequestSpec = SPEC, tag: str = TAG) -> str:
    return provider.submit(batch_file(provider.codec(SPEC)), spec, tag)


def report(provider: CommandProvider, tag: str = TAG):
    return provider.poll([tag])[tag]


def wait_for_end(provider: CommandProvider, tag: str = TAG):
    until(lambda: report(provider, tag).status.is_terminal)
    return report(provider, tag)


def texts(provider: CommandProvider, tag: str = TAG):
    results = [provider.codec(SPEC).decode(line) for line in provider.fetch(tag)]
    return {result.custom_id: result.text for result in results}


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not count as running."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def group(workdir: Path, tag: str = TAG) -> dict[str, int]:
    path = workdir / tag / "group.json"
    until(path.exists)
    return json.loads(path.read_text())


def test_a_batch_runs_to_its_end_and_gives_every_row(tmp_path):
    provider = labeler(tmp_path)
    assert submit(provider) == TAG
    ended = wait_for_end(provider)
    assert (ended.status, ended.done, ended.total, ended.reason) == (BatchStatus.ENDED, 3, 3, None)
    assert ended.created_at is not None
    assert ended.ended_at is not None
    assert ended.created_at <= ended.ended_at
    assert texts(provider) == {"n-0": "ONE", "n-1": "TWO", "n-2": "THREE"}


def test_rows_that_failed_are_rows_of_a_batch_that_ended(tmp_path):
    provider = labeler(tmp_path, "--model", "other")  # the last --model wins, and the requests ask for "m"
    submit(provider)
    assert wait_for_end(provider).status is BatchStatus.ENDED
    results = [provider.codec(SPEC).decode(line) for line in provider.fetch(TAG)]
    assert [(r.custom_id, r.outcome, r.retryable) for r in results] == [
        (f"n-{i}", Outcome.ERRORED, False) for i in range(3)
    ]


def test_only_the_owner_can_read_a_batch(tmp_path):
    provider = labeler(tmp_path)
    submit(provider)
    wait_for_end(provider)
    assert stat.S_IMODE((tmp_path / TAG).stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / TAG / "out.jsonl").stat().st_mode) == 0o600


def test_a_second_submit_with_the_same_tag_runs_nothing_again(tmp_path):
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    provider = labeler(tmp_path / "work", "--runs", str(runs), "--gate", str(gate))
    submit(provider)
    until(runs.exists)
    assert submit(labeler(tmp_path / "work", "--runs", str(runs), "--gate", str(gate))) == TAG  # while it runs
    gate.touch()
    wait_for_end(provider)
    assert submit(provider) == TAG  # after it ended
    assert wait_for_end(provider).status is BatchStatus.ENDED
    assert len(runs.read_text().splitlines()) == 1


def test_submits_of_one_tag_at_the_same_time_start_it_once(tmp_path):
    runs = tmp_path / "runs"
    provider = labeler(tmp_path / "work", "--runs", str(runs))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: submit(provider), range(8))) == {TAG}
    assert wait_for_end(provider).status is BatchStatus.ENDED
    assert len(runs.read_text().splitlines()) == 1
    assert len(texts(provider)) == 3


def test_looking_at_a_batch_while_it_is_started_never_keeps_it_from_starting(tmp_path):
    provider = labeler(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        polls = pool.submit(lambda: [report(provider) for _ in range(300)])
        submit(provider)
        polls.result()
    assert wait_for_end(provider).status is BatchStatus.ENDED


def test_a_batch_is_absent_before_and_found_after_its_start(tmp_path):
    provider = labeler(tmp_path)
    assert provider.find(TAG, HINTS) == Absent()
    submit(provider)
    assert labeler(tmp_path).find(TAG, HINTS) == Found(TAG)
    wait_for_end(provider)
    assert provider.find(TAG, HINTS) == Found(TAG)


def test_a_batch_whose_starter_died_with_nothing_but_the_plan_written_is_absent_and_starts_again(tmp_path):
    provider = labeler(tmp_path)
    job = CommandBatch.of(tmp_path, TAG)
    with job.locked():
        job.prepare(batch_file(provider.codec(SPEC)), ["never", "started"], 1.0)
    assert provider.find(TAG, HINTS) == Absent()
    submit(provider)
    assert wait_for_end(provider).status is BatchStatus.ENDED
    assert provider.find(TAG, HINTS) == Found(TAG)


STARTER = """
import sys
from pathlib import Path
from sample_batches import SPEC, batch_file, labeler
provider = labeler(Path(sys.argv[1]), "--gate", sys.argv[2])
provider.submit(batch_file(provider.codec(SPEC)), SPEC, "tag-1")
print("started", flush=True)
sys.stdin.read()
"""


def test_a_batch_survives_the_death_of_its_starter_and_is_found_again(tmp_path):
    gate = tmp_path / "gate"
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path / "work"), str(gate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"started\n"
        starter.kill()
    assert starter.returncode == -signal.SIGKILL
    provider = labeler(tmp_path / "work")
    assert provider.find(TAG, HINTS) == Found(TAG)
    assert report(provider).status is BatchStatus.RUNNING
    gate.touch()
    assert wait_for_end(provider).status is BatchStatus.ENDED
    assert texts(provider) == {"n-0": "ONE", "n-1": "TWO", "n-2": "THREE"}


def test_the_supervisor_leads_a_session_of_its_own_and_holds_nothing_of_the_starter(tmp_path):
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    gate = tmp_path / "gate"
    provider = labeler(tmp_path / "work", "--gate", str(gate))
    submit(provider)
    os.close(writing)
    assert os.read(reading, 1) == b""  # the end: the last holder of the pipe is gone
    os.close(reading)
    assert os.getsid(group(tmp_path / "work")["supervisor"]) != os.getsid(0)
    gate.touch()
    wait_for_end(provider)


def test_a_killed_supervisor_is_a_retryable_failure_and_its_command_is_cleared(tmp_path):
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    provider = labeler(tmp_path / "work", "--runs", str(runs), "--gate", str(gate))
    submit(provider)
    until(runs.exists)
    pids = group(tmp_path / "work")
    os.kill(pids["supervisor"], signal.SIGKILL)
    failed = wait_for_end(provider)
    assert (failed.status, failed.retryable) == (BatchStatus.FAILED, True)
    assert "process is gone" in (failed.reason or "")
    until(lambda: not alive(pids["group"]))
    gate.touch()
    assert submit(provider) == TAG  # it never ended, so it may run again
    assert wait_for_end(provider).status is BatchStatus.ENDED
    assert len(runs.read_text().splitlines()) == 2


def test_a_supervisor_that_is_told_to_end_takes_its_command_along(tmp_path):
    provider = labeler(tmp_path, "--gate", str(tmp_path / "never"))
    submit(provider)
    pids = group(tmp_path)
    os.kill(pids["supervisor"], signal.SIGTERM)
    until(lambda: not alive(pids["group"]))
    failed = wait_for_end(provider)
    assert (failed.status, failed.retryable) == (BatchStatus.FAILED, True)


def test_rows_written_before_a_batch_died_are_kept(tmp_path):
    provider = labeler(tmp_path, "--gate", str(tmp_path / "never"))
    submit(provider)
    until(lambda: report(provider).done == 2)
    os.kill(group(tmp_path)["supervisor"], signal.SIGKILL)
    wait_for_end(provider)
    assert texts(provider) == {"n-0": "ONE", "n-1": "TWO"}


@pytest.mark.parametrize("options", [(), ("--deaf",)])
def test_canceling_kills_the_whole_group_and_keeps_finished_rows(tmp_path, options):
    worker = tmp_path / "worker.pid"
    provider = labeler(
        tmp_path, "--gate", str(tmp_path / "never"), "--worker", str(worker), *options, grace_seconds=0.2
    )
    submit(provider)
    until(lambda: worker.exists() and report(provider).done == 2)
    provider.cancel(TAG)
    canceled = wait_for_end(provider)
    assert (canceled.status, canceled.retryable) == (BatchStatus.CANCELED, False)
    assert texts(provider) == {"n-0": "ONE", "n-1": "TWO"}
    until(lambda: not alive(int(worker.read_text())))


def test_canceling_an_ended_batch_does_nothing(tmp_path):
    provider = labeler(tmp_path)
    submit(provider)
    wait_for_end(provider)
    provider.cancel(TAG)
    assert report(provider).status is BatchStatus.ENDED


def test_workers_that_a_command_leaves_behind_are_killed(tmp_path):
    worker = tmp_path / "worker.pid"
    provider = labeler(tmp_path, "--worker", str(worker))
    submit(provider)
    assert wait_for_end(provider).status is BatchStatus.ENDED
    # A killed process needs a moment to end.
    until(lambda: not alive(int(worker.read_text())))


def test_progress_is_counted_from_the_lines_written(tmp_path):
    gate = tmp_path / "gate"
    provider = labeler(tmp_path, "--gate", str(gate))
    submit(provider)
    until(lambda: report(provider).done == 2)
    running = report(provider)
    assert (running.status, running.total) == (BatchStatus.RUNNING, 3)
    gate.touch()
    wait_for_end(provider)


def test_progress_is_what_the_command_says_of_itself(tmp_path):
    gate = tmp_path / "gate"
    provider = labeler(tmp_path, "--gate", str(gate), "--progress")
    submit(provider)
    until(lambda: report(provider).total == 99)
    assert report(provider).done == 2
    gate.touch()
    wait_for_end(provider)


def test_a_command_that_fails_without_output_is_a_failed_batch_with_the_end_of_its_log(tmp_path):
    provider = labeler(tmp_path, "--no-output", "--code", "3", "--say", "no such model")
    submit(provider)
    failed = wait_for_end(provider)
    assert (failed.status, failed.retryable) == (BatchStatus.FAILED, False)
    assert failed.reason == "The command ended with code 3. no such model"
    assert list(provider.fetch(TAG)) == []


def test_a_command_that_fails_with_output_has_ended_with_a_reason(tmp_path):
    provider = labeler(tmp_path, "--code", "3")
    submit(provider)
    ended = wait_for_end(provider)
    assert ended.status is BatchStatus.ENDED
    assert "ended with code 3" in (ended.reason or "")
    assert len(texts(provider)) == 3


def test_a_command_that_writes_no_output_has_failed(tmp_path):
    provider = labeler(tmp_path, "--no-output")
    submit(provider)
    failed = wait_for_end(provider)
    assert failed.status is BatchStatus.FAILED
    assert "wrote no output" in (failed.reason or "")


def test_a_command_that_cannot_be_started_has_failed_with_the_reason(tmp_path):
    provider = CommandProvider([str(tmp_path / "missing"), "{input}", "{output}"], str(tmp_path))
    submit(provider)
    failed = wait_for_end(provider)
    assert failed.status is BatchStatus.FAILED
    assert "No such file" in (failed.reason or "")


def test_an_unknown_batch_is_not_found(tmp_path):
    unknown = report(labeler(tmp_path), "never-seen")
    assert unknown.status is BatchStatus.NOT_FOUND
    assert "There is no batch 'never-seen'" in (unknown.reason or "")
    with pytest.raises(RefusedError):
        labeler(tmp_path).cancel("never-seen")
    assert not (tmp_path / "never-seen").exists()


def test_an_answer_in_real_time_is_a_result_line_and_leaves_nothing(tmp_path):
    provider = labeler(tmp_path)
    line = batch_file(provider.codec(SPEC), ["hello"]).read()
    answer = provider.respond(line)
    assert answer.endswith(b"\n")
    assert provider.codec(SPEC).decode(answer).text == "HELLO"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RefusedError, match=r"code 5\. broken"):
        labeler(tmp_path, "--no-output", "--code", "5", "--say", "broken").respond(line)


def test_another_command_is_another_account_and_another_workdir_is_not(tmp_path):
    assert labeler(tmp_path).account == labeler(tmp_path / "elsewhere").account
    assert labeler(tmp_path).account != labeler(tmp_path, "--progress").account
    assert labeler(tmp_path, account="box").account == "box"
    assert labeler(tmp_path).price_book is None


def test_the_environment_is_added_to_and_not_shown(tmp_path):
    script = "import os,sys; open(sys.argv[1],'w').write(os.environ['TOKEN']); assert os.environ['PATH']"
    command = [sys.executable, "-S", "-c", script, "{output}", "{input}"]
    provider = CommandProvider(command, str(tmp_path), env={"TOKEN": "secret-token"})
    submit(provider)
    assert wait_for_end(provider).status is BatchStatus.ENDED
    assert list(provider.fetch(TAG)) == [b"secret-token\n"]
    assert "secret-token" not in repr(provider) + provider.account + (tmp_path / TAG / "job.json").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [("vllm {input} {output}", "list of words"), ([], "list of words"), (["x", "{input}"], "{output}")],
)
def test_a_command_that_cannot_work_is_refused(tmp_path, command, message):
    with pytest.raises(ConfigError, match=message):
        CommandProvider(command, str(tmp_path))


@pytest.mark.parametrize("tag", ["", "../up", "a/b", ".hidden", "x" * 300])
def test_a_tag_that_is_no_plain_name_is_refused(tmp_path, tag):
    with pytest.raises(ConfigError, match="cannot name a folder"):
        submit(labeler(tmp_path), tag=tag)


def test_the_codec_takes_schemas_that_strict_mode_does_not(tmp_path):
    free = {"type": "object", "properties": {"m": {"type": "object"}}}
    codec = labeler(tmp_path, limits=BatchLimits(7, 700)).codec(
        RequestSpec("m", ResponseFormat(ResponseKind.JSON, "m", free))
    )
    assert codec.limits == BatchLimits(7, 700)


def test_an_ended_batch_is_deleted_while_its_supervisor_still_has_the_lock(tmp_path):
    provider = labeler(tmp_path)
    submit(provider)
    wait_for_end(provider)
    batch = CommandBatch.of(tmp_path, TAG)
    until(lambda: not batch.is_alive())
    with (batch.path / "lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert provider.poll([TAG])[TAG].status is BatchStatus.ENDED
        assert provider.delete(TAG) is None
    assert not batch.input.exists()
