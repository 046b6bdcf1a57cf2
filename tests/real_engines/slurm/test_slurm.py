"""Batches on a real Slurm: found again after any crash, reported with their real ending, and run once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sample_batches import until
from slurm_batches import before_real, provider_on, report, submit, tag_of, texts, wait_for_end

from dagster_llm_batch.errors import AmbiguousError, RefusedError, TransientError
from dagster_llm_batch.providers.slurm.options import SlurmOptions
from dagster_llm_batch.types import Absent, BatchStatus, FindHints, Found

BOTH = pytest.mark.parametrize("cluster", ["plain", "accounted"], indirect=True)
ACCOUNTED = pytest.mark.parametrize("cluster", ["accounted"], indirect=True)
ALL = {"n-0": "ONE", "n-1": "TWO", "n-2": "THREE"}


def hints(known=()) -> FindHints:
    return FindHints(datetime.now(UTC) - timedelta(seconds=30), 3, "n", frozenset(known))


def wait_for_rows(provider, batch_id: str, count: int = 2) -> None:
    until(lambda: report(provider, batch_id).done == count)


def test_the_tag_is_in_the_jobs_name_and_comment(cluster, tmp_path):
    provider = provider_on(tmp_path, "--gate", str(tmp_path / "never"))
    batch_id = submit(provider)
    tag = tag_of(provider)
    shown = cluster.call("squeue", "-h", f"--name={batch_id}", "-o", "%j|%k")
    assert shown == f"{tag}.1|dagster-llm-batch {tag}.1"
    provider.cancel(batch_id)


def test_a_batch_of_many_requests_is_one_array_of_which_only_so_many_run_at_once(cluster, tmp_path):
    gate = tmp_path / "gate"
    provider = provider_on(tmp_path / "w", "--gate", str(gate), requests_per_task=1, max_running_tasks=2)
    batch_id = submit(provider, ["one", "two", "three", "four"])

    def states() -> list[str]:
        return sorted(cluster.call("squeue", "-h", "-r", f"--name={batch_id}", "-o", "%F %T %r").splitlines())

    until(lambda: sum("RUNNING" in state for state in states()) == 2)
    assert sum("JobArrayTaskLimit" in state for state in states()) == 2
    assert len({state.split()[0] for state in states()}) == 1
    assert report(provider, batch_id).status is BatchStatus.RUNNING
    gate.touch()
    ended = wait_for_end(provider, batch_id)
    assert (ended.status, ended.total, ended.done) == (BatchStatus.ENDED, 4, 4)
    assert [json.loads(line)["custom_id"] for line in provider.fetch(batch_id)] == [f"n-{i}" for i in range(4)]


STARTER = """
import sys
from pathlib import Path
from slurm_batches import before_real, provider_on, submit
submit(provider_on(Path(sys.argv[1]), *sys.argv[2:]))
"""


@BOTH
def test_a_batch_whose_submitter_was_killed_before_it_knew_is_found_also_when_slurm_forgot_it(
    cluster, tmp_path, monkeypatch
):
    before_real(tmp_path / "bin", monkeypatch, "sbatch", '"$REAL" "$@" > /dev/null; kill -9 $PPID')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", STARTER, str(tmp_path / "w"), "--runs", str(tmp_path / "runs")]
    assert subprocess.run(words, env=environment, check=False).returncode == -signal.SIGKILL
    provider = provider_on(tmp_path / "w", "--runs", str(tmp_path / "runs"))
    assert not (tmp_path / "w" / f"{tag_of(provider)}.1" / "job.json").exists()
    found = provider.find(tag_of(provider), hints())
    assert found == Found(f"{tag_of(provider)}.1")
    assert wait_for_end(provider, found.batch_id).status is BatchStatus.ENDED
    cluster.forget_jobs()
    assert cluster.call("squeue", "-h", "--states=all") == ""
    assert provider.find(tag_of(provider), hints()) == found
    assert provider.find(tag_of(provider), hints({found.batch_id})) == Absent()
    assert texts(provider, found.batch_id) == ALL
    assert len((tmp_path / "runs").read_text().splitlines()) == 1


@ACCOUNTED
def test_the_accounting_finds_a_batch_of_which_neither_controller_nor_folder_tell(cluster, tmp_path):
    provider = provider_on(tmp_path)
    batch_id = submit(provider)
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    until(lambda: "COMPLETED" in cluster.call("sacct", "-X", "-n", f"--name={batch_id}", "-o", "State"))
    cluster.forget_jobs()
    for path in (tmp_path / batch_id).glob("[ejs]*.json"):  # exit, job, started
        path.unlink()
    assert provider.find(tag_of(provider), hints()) == Found(batch_id)


def test_what_was_never_submitted_is_absent_and_never_runs_once_it_was_tried_again(cluster, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        before_real(tmp_path / "bin", patch, "sbatch", "kill -9 $PPID")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", STARTER, str(tmp_path / "w")], env=environment, check=False)
    provider = provider_on(tmp_path / "w")
    first = tmp_path / "w" / f"{tag_of(provider)}.1"
    assert (first / "plan.json").exists()
    assert provider.find(tag_of(provider), hints()) == Absent()
    assert report(provider, first.name).status is BatchStatus.NOT_FOUND
    second = submit(provider)
    assert second == f"{tag_of(provider)}.2"
    assert provider.find(tag_of(provider), hints()) == Found(second)
    # and now the first one's request comes through, late
    cluster.call(
        "sbatch", "--parsable", f"--job-name={first.name}", f"--output={first}/log", f"{first}/job.py", str(first)
    )
    until(lambda: not cluster.call("squeue", "-h", f"--name={first.name}"))
    assert not list(first.glob("started-*"))
    assert wait_for_end(provider, second).status is BatchStatus.ENDED


@pytest.mark.parametrize(
    "script",
    [
        '"$REAL" "$@" > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1',
        '"$REAL" "$@" > /dev/null; exec sleep 60',
    ],
    ids=["timed out", "hangs"],
)
def test_a_submit_without_a_trustworthy_reply_is_ambiguous_and_the_batch_is_found(
    cluster, tmp_path, monkeypatch, script
):
    before_real(tmp_path / "bin", monkeypatch, "sbatch", script)
    provider = provider_on(tmp_path / "w", timeout_seconds=3.0)
    with pytest.raises(AmbiguousError):
        submit(provider)
    assert provider.find(tag_of(provider), hints()) == Found(f"{tag_of(provider)}.1")
    assert wait_for_end(provider, f"{tag_of(provider)}.1").status is BatchStatus.ENDED


def test_a_controller_that_is_down_is_told_from_a_batch_that_is_gone(cluster, tmp_path):
    provider = provider_on(tmp_path, "--gate", str(tmp_path / "gate"))
    batch_id = submit(provider)
    wait_for_rows(provider, batch_id)
    cluster.kill_controller(signal.SIGTERM)
    try:
        with pytest.raises(TransientError):
            report(provider, batch_id)
        with pytest.raises(TransientError, match="contact slurm controller"):
            submit(provider, tag=f"{tag_of(provider)}-b")
        with pytest.raises(TransientError):
            provider.find(f"{tag_of(provider)}-b", hints())
    finally:
        cluster.start_controller(idle=False)
    (tmp_path / "gate").touch()
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    assert [path.name for path in tmp_path.glob(f"{tag_of(provider)}*")] == [batch_id]


@pytest.mark.parametrize("row_by_row", [False, True])
def test_a_job_that_is_started_again_gives_every_row_once_and_keeps_rows_where_it_may(cluster, tmp_path, row_by_row):
    gate, runs = tmp_path / "gate", tmp_path / "runs"
    provider = provider_on(tmp_path / "w", "--gate", str(gate), "--runs", str(runs), row_by_row=row_by_row)
    batch_id = submit(provider)
    wait_for_rows(provider, batch_id)
    cluster.call("scontrol", "requeue", cluster.call("squeue", "-h", f"--name={batch_id}", "-o", "%A"))
    cluster.wait_for_requeue(batch_id)
    gate.touch()
    ended = wait_for_end(provider, batch_id)
    assert (ended.status, ended.done) == (BatchStatus.ENDED, 3)
    assert texts(provider, batch_id) == ALL
    assert len(list(provider.fetch(batch_id))) == 3
    assert len(runs.read_text().splitlines()) == 2
    asked_again = (tmp_path / "w" / batch_id / "out-0.1.rest").exists()
    assert asked_again is row_by_row


def test_a_node_that_dies_costs_time_and_no_row(cluster, tmp_path):
    gate = tmp_path / "gate"
    provider = provider_on(tmp_path / "w", "--gate", str(gate))
    batch_id = submit(provider)
    wait_for_rows(provider, batch_id)
    node = cluster.call("squeue", "-h", f"--name={batch_id}", "-o", "%N")
    cluster.kill_node(node)
    cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")  # sooner than SlurmdTimeout
    cluster.start_node(node)
    cluster.wait_for_requeue(batch_id)
    gate.touch()
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    assert texts(provider, batch_id) == ALL
    started = json.loads((tmp_path / "w" / batch_id / "started-0.json").read_text())
    assert started["start"] >= 1


def test_a_node_that_dies_is_a_retryable_failure_where_nothing_is_started_again_and_its_rows_are_kept(
    cluster, tmp_path
):
    provider = provider_on(tmp_path, "--gate", str(tmp_path / "never"), requeue=False)
    batch_id = submit(provider)
    wait_for_rows(provider, batch_id)
    node = cluster.call("squeue", "-h", f"--name={batch_id}", "-o", "%N")
    cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    failed = wait_for_end(provider, batch_id)
    # A node that has come back alone does not need to be resumed.
    cluster.call("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    assert (failed.status, failed.retryable, failed.done) == (BatchStatus.FAILED, True, 2)
    assert "NODE_FAIL" in (failed.reason or "")
    assert texts(provider, batch_id) == {"n-0": "ONE", "n-1": "TWO"}
    cluster.forget_jobs()
    later = report(provider, batch_id)  # Slurm's reason was noted; the log, whose end is reported too, may have grown
    assert "NODE_FAIL" in (later.reason or "")
    assert replace(later, reason=None) == replace(failed, reason=None)


@pytest.mark.slow  # Slurm looks at time limits every 30 seconds
def test_a_job_over_its_time_limit_has_expired_and_its_rows_are_kept(cluster, tmp_path):
    provider = provider_on(tmp_path, "--gate", str(tmp_path / "never"), options=SlurmOptions(time_limit="1"))
    batch_id = submit(provider)
    wait_for_rows(provider, batch_id)
    job_id = cluster.call("squeue", "-h", f"--name={batch_id}", "-o", "%A")
    cluster.call("scontrol", "update", f"jobid={job_id}", "EndTime=now+1")
    expired = wait_for_end(provider, batch_id)
    assert (expired.status, expired.done) == (BatchStatus.EXPIRED, 2)
    assert "time limit" in (expired.reason or "")
    assert texts(provider, batch_id) == {"n-0": "ONE", "n-1": "TWO"}


@pytest.mark.slow  # the controller clears jobs away every minute
def test_a_batch_is_reported_as_it_ended_when_the_controller_has_cleared_it_away(cluster, tmp_path):
    provider = provider_on(tmp_path)
    batch_id = submit(provider)
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    until(lambda: not cluster.call("squeue", "-h", "--states=all", f"--name={batch_id}"), seconds=150)
    assert report(provider, batch_id).status is BatchStatus.ENDED
    assert provider.find(tag_of(provider), hints()) == Found(batch_id)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_canceled_batch_keeps_its_finished_rows(cluster, tmp_path, deaf):
    flags = ["--deaf"] if deaf else []
    worker = tmp_path / "worker.pid"
    provider = provider_on(
        tmp_path / "w", "--gate", str(tmp_path / "never"), "--worker", str(worker), *flags, grace_seconds=0.5
    )
    batch_id = submit(provider)
    wait_for_rows(provider, batch_id)
    provider.cancel(batch_id)
    canceled = wait_for_end(provider, batch_id)
    assert (canceled.status, canceled.done) == (BatchStatus.CANCELED, 2)
    assert texts(provider, batch_id) == {"n-0": "ONE", "n-1": "TWO"}
    until(lambda: not Path(f"/proc/{worker.read_text()}").exists())
    provider.cancel(batch_id)  # it has ended: nothing


def test_a_job_that_somebody_else_canceled_is_canceled(cluster, tmp_path):
    provider = provider_on(tmp_path, "--gate", str(tmp_path / "never"))
    batch_id = submit(provider)
    wait_for_rows(provider, batch_id)
    cluster.call("scancel", f"--name={batch_id}")
    assert wait_for_end(provider, batch_id).status is BatchStatus.CANCELED
    assert texts(provider, batch_id) == {"n-0": "ONE", "n-1": "TWO"}


def test_a_batch_that_waits_is_pending_with_slurms_reason_and_can_be_canceled(cluster, tmp_path):
    provider = provider_on(tmp_path, options=SlurmOptions(extra=["--begin=now+1hour"]))
    batch_id = submit(provider)
    until(lambda: "BeginTime" in (report(provider, batch_id).reason or ""))
    assert report(provider, batch_id).status is BatchStatus.PENDING
    provider.cancel(batch_id)
    assert wait_for_end(provider, batch_id).status is BatchStatus.CANCELED
    cluster.forget_jobs()
    assert report(provider, batch_id).status is BatchStatus.CANCELED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SlurmOptions(partition="nowhere"), "Invalid partition name"),
        (SlurmOptions(mem="900G"), "node configuration is not available"),
        (SlurmOptions(gres="gpu:1"), "generic resource"),
        (SlurmOptions(extra=["--dependency=afterok:99999"]), "dependency problem"),
        (SlurmOptions(extra=["--no-such-option=1"]), "unrecognized option"),
    ],
)
def test_what_slurm_will_never_take_is_refused_and_leaves_nothing(cluster, tmp_path, options, message):
    with pytest.raises(RefusedError, match=message):
        submit(provider_on(tmp_path, options=options))
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_more_tasks_than_the_cluster_takes_is_refused_with_what_to_change(cluster, tmp_path):
    provider = provider_on(tmp_path, requests_per_task=1)
    with pytest.raises(RefusedError, match=r"Invalid job array.*raise requests_per_task.*MaxArraySize"):
        submit(provider, [f"text {n}" for n in range(10)])
    assert list(tmp_path.iterdir()) == []
    batch_id = submit(provider, [f"text {n}" for n in range(9)])
    assert wait_for_end(provider, batch_id).done == 9


def test_a_dependency_that_fails_later_ends_the_batch(cluster, tmp_path):
    bad = cluster.call("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 1; exit 3")
    provider = provider_on(tmp_path, options=SlurmOptions(extra=[f"--dependency=afterok:{bad}"]))
    failed = wait_for_end(provider, submit(provider))
    assert (failed.status, failed.retryable) == (BatchStatus.FAILED, False)
    assert "dependency can never be satisfied" in (failed.reason or "")


@ACCOUNTED
def test_a_full_queue_is_tried_again_later(cluster, tmp_path):
    provider = provider_on(tmp_path, "--gate", str(tmp_path / "gate"))
    cluster.call("sacctmgr", "--immediate", "modify", "user", "root", "set", "MaxSubmitJobs=1")
    try:
        batch_id = submit(provider)
        with pytest.raises(TransientError, match=r"MaxSubmitJob.*queue is full"):
            submit(provider, tag=f"{tag_of(provider)}-b")
        assert provider.find(f"{tag_of(provider)}-b", hints()) == Absent()
    finally:
        cluster.call("sacctmgr", "--immediate", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
    (tmp_path / "gate").touch()
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    assert wait_for_end(provider, submit(provider, tag=f"{tag_of(provider)}-b")).status is BatchStatus.ENDED


def test_a_job_that_runs_out_of_memory_has_failed_for_good_and_says_so(cluster, tmp_path):
    eater = ["-c", "import time; x = b'x' * (400 << 20); time.sleep(60)", "{input}", "{output}"]
    provider = provider_on(tmp_path, command=[sys.executable, *eater], options=SlurmOptions(mem="60M"), lag_seconds=0.0)
    failed = wait_for_end(provider, submit(provider))
    assert (failed.status, failed.retryable) == (BatchStatus.FAILED, False)
    assert "out of memory; raise mem" in (failed.reason or "")


@pytest.mark.parametrize(
    ("flags", "status", "reason"),
    [
        (["--code", "3"], BatchStatus.ENDED, "ended with code 3"),
        (["--code", "3", "--no-output", "--say", "no such model"], BatchStatus.FAILED, "code 3. no such model"),
        (["--no-output"], BatchStatus.FAILED, "wrote no output"),
    ],
)
def test_a_command_that_goes_wrong_is_told_as_it_went(cluster, tmp_path, flags, status, reason):
    provider = provider_on(tmp_path, *flags)
    ended = wait_for_end(provider, submit(provider))
    assert (ended.status, ended.retryable) == (status, False)
    assert reason in (ended.reason or "")


def test_a_task_that_goes_wrong_does_not_take_the_others_along(cluster, tmp_path):
    script = "import sys, shutil; s = open(sys.argv[1]).read(); 'two' in s and sys.exit(4); "
    script += "open(sys.argv[2], 'w').write(s)"
    command = [sys.executable, "-c", script, "{input}", "{output}"]
    provider = provider_on(tmp_path, command=command, requests_per_task=1)
    batch_id = submit(provider)
    ended = wait_for_end(provider, batch_id)
    assert ended.status is BatchStatus.ENDED
    assert "task 1: The command ended with code 4" in (ended.reason or "")
    assert [json.loads(line)["custom_id"] for line in provider.fetch(batch_id)] == ["n-0", "n-2"]


def test_a_job_gets_of_the_environment_what_is_exported_by_name_and_nothing_else(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", "secret, token")
    monkeypatch.setenv("OTHER_SECRET", "not-for-you")
    script = "import os, sys, json; open(sys.argv[1], 'w').write(json.dumps(dict(os.environ)))"
    command = [sys.executable, "-c", script, "{output}", "{input}"]
    provider = provider_on(tmp_path, command=command, export=["TOKEN"])
    batch_id = submit(provider)
    shown = cluster.call("scontrol", "show", "job", check=False)
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    (line,) = provider.fetch(batch_id)
    given = json.loads(line)
    assert given["TOKEN"] == "secret, token"
    assert "OTHER_SECRET" not in given
    written = "".join(path.read_text() for path in (tmp_path / batch_id).iterdir() if "out-" not in path.name)
    assert "secret, token" not in shown + written
    monkeypatch.delenv("TOKEN")
    with pytest.raises(RefusedError, match="not set here: TOKEN"):
        submit(provider)


def test_an_answer_in_real_time_tells_what_went_wrong_and_leaves_nothing(cluster, tmp_path):
    provider = provider_on(tmp_path, "--no-output", "--code", "5", "--say", "broken")
    line = b'{"custom_id": "n-0", "body": {"model": "m", "messages": [{"content": "x"}]}}\n'
    with pytest.raises(RefusedError, match=r"code 5\..*broken"):
        provider.respond(line)
    assert list(tmp_path.iterdir()) == []


def holding(folder: Path, *words: bytes) -> list[str]:
    """Return the files that hold one of these words."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in files if any(word in path.read_bytes() for word in words))


@BOTH
def test_what_is_stored_of_a_running_batch_stays_and_of_an_ended_one_the_rows_go(cluster, tmp_path):
    gate = tmp_path / "gate"
    provider = provider_on(tmp_path / "w", "--gate", str(gate))
    batch_id = submit(provider, ["secret one", "secret two"])
    assert provider.delete(batch_id) == f"the batch '{batch_id}' still runs"
    gate.touch()
    ended = wait_for_end(provider, batch_id)
    assert texts(provider, batch_id) == {"n-0": "SECRET ONE", "n-1": "SECRET TWO"}
    assert holding(tmp_path / "w", b"secret", b"SECRET")
    assert provider.delete(batch_id) is None
    assert holding(tmp_path / "w", b"secret", b"SECRET") == []
    assert report(provider, batch_id).status is ended.status is BatchStatus.ENDED
    assert provider.delete(batch_id) is None
