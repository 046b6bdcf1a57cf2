"""Jobs that go wrong on a real Ray: rows, workers, jobs, and in the end the whole cluster."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster import ADDRESS, Cluster
from ray_batches import SPEC, asked, batch_file, report, results, shouting, submit, until, wait_for_end

from dagster_llm_batch.errors import RefusedError, TransientError
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.ray.provider import RayProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.testing.emulator.faults import rate_limited
from dagster_llm_batch.types import Absent, BatchStatus, FindHints, Found, Outcome

pytestmark = pytest.mark.usefixtures("cluster")
HINTS = FindHints(datetime.now(UTC), 3, "n")


def test_a_row_that_fails_is_a_row_and_takes_no_other_along(tmp_path):
    provider = shouting(tmp_path / "s", "shouting:Slow")
    batch_id = submit(provider, ["one", "bad", "three", "four"], "rows")
    ended = wait_for_end(provider, batch_id)
    assert (ended.status, ended.done, ended.total, ended.reason) == (BatchStatus.ENDED, 4, 4, None)
    read = results(provider, batch_id)
    assert {name: result.text for name, result in read.items()} == {
        "n-0": "ONE", "n-1": None, "n-2": "THREE", "n-3": "FOUR",
    }  # fmt: skip
    assert (read["n-1"].outcome, read["n-1"].reason) == (
        Outcome.ERRORED, "call_failed: ValueError: cannot answer that",
    )  # fmt: skip


def test_more_workers_than_the_cluster_has_cpus_for_only_take_longer(tmp_path):
    provider = shouting(tmp_path / "s", workers=8, rows=1)
    batch_id = submit(provider, [f"text {n}" for n in range(12)], "starved")
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    assert len(results(provider, batch_id)) == 12


def test_a_server_that_is_busy_once_is_asked_again_and_a_row_that_it_refuses_is_a_row(tmp_path):
    with Emulator() as emulator:
        emulator.inject(rate_limited("/v1/chat/completions"))
        answers = RayAnswers(base_url=emulator.openai_base_url, api_key_env="SERVER_KEY", rows_per_file=3)
        environment = {"env_vars": {"SERVER_KEY": DEFAULT_KEY}}
        provider = RayProvider(ADDRESS, str(tmp_path / "s"), answers, runtime_env=environment)
        lines = batch_file(provider, [f"text {n}" for n in range(6)]).read() + b'{"custom_id":"n-6","url":"/v1/x"}\n'
        batch_id = provider.submit(io.BytesIO(lines), SPEC, "busy")
        assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
        outcomes = {name: result.outcome for name, result in results(provider, batch_id).items()}
    assert outcomes == {**{f"n-{n}": Outcome.SUCCEEDED for n in range(6)}, "n-6": Outcome.ERRORED}


def test_a_worker_that_is_killed_loses_no_row_and_what_was_finished_is_not_asked_again(tmp_path):
    provider = shouting(tmp_path / "s", "shouting:Slow", rows=2, at_once=1)
    texts = ["a", "b", "c", "wait", "e", "f"]
    batch_id = submit(provider, texts, "killed")
    until(lambda: "wait" in [text for _, text in asked(tmp_path)])
    [worker] = {pid for pid, _ in asked(tmp_path)}
    os.kill(worker, signal.SIGKILL)
    (tmp_path / "gate").touch()
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    read = results(provider, batch_id)
    assert {name: result.text for name, result in read.items()} == {f"n-{i}": t.upper() for i, t in enumerate(texts)}
    times = [text for _, text in asked(tmp_path)]
    assert [text for text in texts if times.count(text) > 1] == ["c", "wait"]  # the run that was under way


def test_what_is_stored_of_a_running_job_stays_and_of_an_ended_one_the_rows_go(tmp_path):
    provider = shouting(tmp_path / "s", "shouting:Slow", rows=1, at_once=1)
    batch_id = submit(provider, ["secret one", "wait"], "erased")
    until(lambda: "wait" in [text for _, text in asked(tmp_path)])
    assert provider.delete(batch_id) == f"the job '{batch_id}' still runs"
    (tmp_path / "gate").touch()
    assert wait_for_end(provider, batch_id).status is BatchStatus.ENDED
    assert len(results(provider, batch_id)) == 2
    assert provider.delete(batch_id) is None
    left = [path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()]
    assert not any(b"secret" in file or b"SECRET" in file for file in left)
    assert report(provider, batch_id).status is BatchStatus.ENDED
    assert provider.delete(batch_id) is None


def test_a_second_submit_of_a_tag_runs_nothing_again(tmp_path):
    provider = shouting(tmp_path / "s", "shouting:Slow")
    assert provider.find("twice", HINTS) == Absent()
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: submit(provider, ["one", "two"], "twice"), range(4)))
    [batch_id] = ids
    assert provider.find("twice", HINTS) == Found(batch_id)
    wait_for_end(provider, batch_id)
    assert submit(provider, ["one", "two"], "twice") == batch_id
    assert [text for _, text in asked(tmp_path)] == ["one", "two"]
    assert shouting(tmp_path / "elsewhere").find("twice", HINTS) == Absent()


def test_a_job_that_is_stopped_keeps_what_is_finished(tmp_path):
    provider = shouting(tmp_path / "s", "shouting:Slow", rows=2, at_once=1)
    texts = ["later a", "b", "later c", "d"]
    batch_id = submit(provider, texts, "stopped")
    # An actor takes its runs in any order: one is answered to its end, the other waits at its first row.
    until(lambda: len(asked(tmp_path)) == 3 and report(provider, batch_id).done == 2)
    assert report(provider, batch_id).status is BatchStatus.RUNNING
    with pytest.raises(TransientError, match="still runs"):
        list(provider.fetch(batch_id))
    provider.cancel(batch_id)
    assert wait_for_end(provider, batch_id).status is BatchStatus.CANCELED
    finished = [text for _, text in asked(tmp_path)][:2]
    read = {name: result.text for name, result in results(provider, batch_id).items()}
    assert read == {f"n-{texts.index(text)}": text.upper() for text in finished}


def test_a_job_that_cannot_begin_has_failed_with_the_reason_and_the_next_one_of_its_tag_has_a_number(tmp_path):
    provider = shouting(tmp_path / "s", "shouting:missing")
    batch_id = submit(provider, ["one"], "hopeless")
    failed = wait_for_end(provider, batch_id)
    assert (failed.status, failed.done, failed.retryable) == (BatchStatus.FAILED, 0, False)
    assert "has no attribute 'missing'" in (failed.reason or "")
    mended = shouting(tmp_path / "s")
    again = submit(mended, ["one"], "hopeless")
    assert again == f"{batch_id}.2"
    assert mended.find("hopeless", HINTS) == Found(again)
    assert wait_for_end(mended, again).status is BatchStatus.ENDED


def test_a_job_without_the_key_of_its_server_fails_and_names_the_variable(tmp_path):
    answers = RayAnswers(base_url="http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY")
    provider = RayProvider(ADDRESS, str(tmp_path / "s"), answers)
    failed = wait_for_end(provider, submit(provider, ["one"], "keyless"))
    assert failed.status is BatchStatus.FAILED
    assert "NO_SUCH_KEY" in (failed.reason or "")


def test_an_answer_in_real_time_leaves_no_file(tmp_path):
    provider = shouting(tmp_path / "s")
    answer = provider.respond(batch_file(provider, ["hello"]).read())
    assert provider.codec(SPEC).decode(answer).text == "HELLO"
    assert list((tmp_path / "s").iterdir()) == []


def test_a_cluster_that_cannot_be_reached_is_a_passing_trouble_and_sends_nothing(tmp_path):
    provider = RayProvider("http://127.0.0.1:9", str(tmp_path / "s"), RayAnswers(call="shouting:shout"))
    with pytest.raises(TransientError, match="reach the cluster"):
        submit(provider, ["one"], "far")
    with pytest.raises(TransientError, match="reach the cluster"):
        provider.find("far", HINTS)
    assert not (tmp_path / "s").exists()


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from ray_engine import deployment, LABELING, ROWS
from dagster_llm_batch.providers.ray.provider import RayProvider

class Dies(RayProvider):
    def _start(self, files, submission_id):
        if sys.argv[3] == "after":
            super()._start(files, submission_id)  # the job exists, and nobody writes that down
        os.kill(os.getpid(), signal.SIGKILL)  # else there are its files only

engine = deployment(Path(sys.argv[1]), Dies)
engine.submit(LABELING, engine.plan(LABELING, ROWS).submission_id)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_as_it_submits_finds_its_job_again_if_there_is_one_and_every_row_is_labeled_once(
    tmp_path, when
):
    from ray_engine import LABELING, ROWS, deployment

    here = str(Path(__file__).parent)
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), here, when], check=False)
    assert child.returncode == -signal.SIGKILL
    engine = deployment(tmp_path)
    submission_id = engine.latest("shouts").submission_id
    until(lambda: engine.advance(LABELING, submission_id).is_settled)
    labeled = engine.labels(LABELING, submission_id)
    assert sorted(labeled.labels["text"].to_pylist()) == sorted(row["text"].upper() for row in ROWS)
    assert len(labeled.rejects) == 0
    assert sorted(text for _, text in asked(tmp_path)) == sorted(row["text"] for row in ROWS)


def test_a_cluster_whose_head_was_lost_leaves_what_was_finished(cluster: Cluster, tmp_path):
    done = shouting(tmp_path / "s")
    ended = submit(done, ["one", "two"], "ended")
    wait_for_end(done, ended)
    provider = shouting(tmp_path / "s", "shouting:Slow", rows=2, at_once=1)
    # Ray Data gives a worker its runs in no promised order, so the run that it takes second waits, whichever it is.
    running = submit(provider, ["later a", "b", "later c", "d"], "lost")
    until(lambda: len(asked(tmp_path)) == 3)  # by then the file of the first run is written
    cluster.kill()
    with pytest.raises(TransientError):
        report(provider, running)
    assert report(done, ended).status is BatchStatus.ENDED  # by its files
    assert len(results(done, ended)) == 2
    cluster.start()
    lost = report(provider, running)
    assert (lost.status, lost.done, lost.total) == (BatchStatus.NOT_FOUND, 2, 4)
    assert "2 rows are finished and kept" in (lost.reason or "")
    assert provider.find("lost", HINTS) == Found(running)
    [(_, first), *_] = asked(tmp_path)
    kept = {"n-0": "LATER A", "n-1": "B"} if first == "later a" else {"n-2": "LATER C", "n-3": "D"}
    assert {name: result.text for name, result in results(provider, running).items()} == kept
    with pytest.raises(RefusedError, match="cannot stop"):
        provider.cancel(running)
    provider.cancel(ended)
