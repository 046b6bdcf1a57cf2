"""A wait of the example that stalls ends, and prints its obstacle."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.error import SerializableErrorInfo

from dagster_llm_batch import CommandBatchResource, LLMBatchResource
from dagster_llm_batch.streams import labeling_of
from example_project import definitions
from example_project.dagster_dev import DagsterError, dagster
from example_project.journey import DATASETS, EVALUATIONS, JourneyState, stop_at_failures
from example_project.labelers.run_batch import Refusal
from example_project.labelers.smollm2 import asking
from example_project.settings import EXAMPLE_DAYS
from example_project.standstill import Patience, StandstillError, describe_dagster, describe_submissions

ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = datetime.fromtimestamp(0, UTC)


class TestPatience:
    @pytest.fixture
    def now(self):
        return [0.0]

    @pytest.fixture
    def said(self):
        return []

    @pytest.fixture
    def patience(self, now, said):
        return Patience(
            lambda: "  a run is QUEUED", said.append, tell_seconds=10, stop_seconds=30, clock=lambda: now[0]
        )

    def test_what_stands_in_the_way_is_told_again_and_again_and_ends_the_wait(self, patience, now, said):
        for now[0] in range(30):
            patience.look("nothing", "the labels")
        assert said == [f"Nothing has moved for {at} s. Waiting for the labels.\n  a run is QUEUED" for at in (10, 20)]
        now[0] = 30
        with pytest.raises(StandstillError, match=r"(?s)30 s.*the labels.*a run is QUEUED.*Nothing is lost"):
            patience.look("nothing", "the labels")

    def test_whatever_moves_begins_the_wait_anew(self, patience, now, said):
        for now[0] in range(200):
            patience.look(now[0] // 9, "the labels")
        assert said == []

    def test_what_may_take_long_is_told_and_does_not_end(self, patience, now, said):
        for now[0] in range(100):
            patience.look("at the vendor", "the labels", stop_seconds=1_000)
        assert len(said) == 9


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def run(instance, status):
    return instance.create_run_for_job(dg.job(name=f"job_{status.value.lower()}")(lambda: None), status=status)


def failed_tick(instance, name, error):
    """Store a failed tick of a sensor, as the daemon does."""
    code = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(python_file="x.py"), "x.py")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(code, "__repository__"), name)
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData())
    instance.add_instigator_state(state)
    which = (state.instigator_origin_id, name, InstigatorType.SENSOR, TickStatus.FAILURE, time.time())
    told = SerializableErrorInfo(error, [], "Error")
    instance.create_tick(TickData(*which, error=told, selector_id=state.selector_id))


class TestEvidence:
    def test_runs_failed_ticks_and_the_end_of_the_log_are_told(self, instance, tmp_path):
        states = dg.DagsterRunStatus
        stuck, canceled, _ = [run(instance, one) for one in (states.STARTING, states.CANCELED, states.SUCCESS)]
        failed_tick(instance, "automation", "deadline exceeded\n  after 60 s")
        log = tmp_path / "dagster.log"
        log.write_text("".join(f"line {number}\n" for number in range(100)))
        told = describe_dagster(instance, LONG_AGO, log)
        assert f"run {stuck.run_id[:8]} is STARTING" in told
        assert f"run {canceled.run_id[:8]} is CANCELED" in told
        assert "1 of the last 3 runs ended well" in told
        assert "UTC: FAILURE. deadline exceeded after 60 s" in told
        assert "line 99" in told
        assert "line 50" not in told

    def test_what_cannot_be_read_is_told_and_hides_nothing_else(self, instance, tmp_path):
        stuck = run(instance, dg.DagsterRunStatus.STARTED)
        for path in (tmp_path / "schedules").iterdir():
            path.write_bytes(b"no database")
        told = describe_dagster(instance, LONG_AGO, tmp_path / "none.log")
        assert f"run {stuck.run_id[:8]} is STARTED" in told
        assert "sensors cannot be read" in told
        assert "none.log cannot be read" in told

    def test_a_submission_that_waits_for_a_person_is_told_with_the_reason(self, tmp_path):
        resource = LLMBatchResource(
            ledger_url=f"sqlite:///{tmp_path / 'ledger.sqlite'}",
            payload_root=str(tmp_path / "payloads"),
            command=CommandBatchResource(command=["true", "{input}", "{output}"], workdir=str(tmp_path / "work")),
        )
        engine, day = resource.engine(), EXAMPLE_DAYS[0]
        rows = [{"text_id": "a", "text": "fine"}]
        submission = engine.plan(labeling_of(definitions.tweet_sentiment_lexicon), rows, partition=day)
        engine.activity.note_stranded(submission.submission_id, "run 1234, which should materialize them, was canceled")
        told = describe_submissions(engine)
        assert f"{submission.place}: 1 shard planned" in told
        assert f"the labels of {submission.place} wait: run 1234, which should materialize them, was canceled" in told
        assert "cannot be read" not in told


class TestJourney:
    @pytest.mark.parametrize("status", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
    def test_a_run_that_failed_or_was_canceled_ends_the_wait(self, instance, status):
        ended = run(instance, status)
        with pytest.raises(DagsterError, match=ended.run_id):
            stop_at_failures(instance, LONG_AGO)
        stop_at_failures(instance, datetime.now(UTC) + timedelta(seconds=1))

    @pytest.mark.slow
    def test_an_evaluation_that_began_before_the_last_labels_landed_is_not_the_last_word(self, instance):
        late = []

        @dg.multi_asset(specs=[dg.AssetSpec(name) for name in EVALUATIONS])
        def evaluate(context):
            for key in late:
                context.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=EXAMPLE_DAYS[0]))
            for name in EVALUATIONS:
                yield dg.MaterializeResult(name)

        for name in {name for read in EVALUATIONS.values() for name in read}:
            for day in EXAMPLE_DAYS:
                instance.report_runless_asset_event(dg.AssetMaterialization(name, partition=day))
        state = JourneyState(instance, definitions.llm_batch, DATASETS, EXAMPLE_DAYS, EVALUATIONS)
        assert not state.is_evaluated()
        late.append(DATASETS[0])
        dg.materialize([evaluate], instance=instance)
        assert not state.is_evaluated(), "labels came after it had begun"
        late.clear()
        dg.materialize([evaluate], instance=instance)
        assert state.is_evaluated()


class TestDagsterThatIsThere:
    """A home whose Dagster runs in another process."""

    @pytest.fixture
    def other(self):
        with subprocess.Popen(["sleep", "60"]) as other:
            yield other
            other.kill()

    def note(self, home, port, pid):
        written = {"url": f"http://127.0.0.1:{port}", "pid": pid, "owner": os.getpid()}
        (home / "dagster.json").write_text(json.dumps(written))

    def test_one_that_is_too_busy_to_answer_at_once_is_used_and_no_second_one_started(self, tmp_path, other):
        asked = threading.Semaphore(0)

        class Busy(http.server.BaseHTTPRequestHandler):
            calls = 0

            def do_GET(self):
                type(self).calls += 1
                if self.calls == 1:
                    asked.acquire(timeout=30)  # until the client has timed out and called again
                    return
                asked.release()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"dagster_version": "1"}')

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.note(tmp_path, server.server_port, other.pid)
            with dagster(tmp_path, ask_seconds=0.2) as running:
                assert running.found
                running.check()
            server.shutdown()
        other.kill()
        other.wait()
        with pytest.raises(DagsterError, match="has ended"):
            running.check()

    def test_one_that_never_answers_is_named_with_what_to_do(self, tmp_path, other):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            self.note(tmp_path, silent.getsockname()[1], other.pid)
            bounded = dagster(tmp_path, answer_seconds=0.3, ask_seconds=0.1)
            with pytest.raises(DagsterError, match=f"kill {other.pid}"), bounded:
                pass


class TestLabelers:
    def test_an_engine_that_answers_no_row_fails_it_and_the_next_ones_at_once(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            answer = asking(f"127.0.0.1:{silent.getsockname()[1]}", seconds=0.2)
            with pytest.raises(Refusal, match="503"):
                answer({})
        with pytest.raises(Refusal, match="503"):
            answer({})  # the server is gone: the labeler refuses without a call

    def test_an_engine_that_hangs_while_it_loads_ends_the_command_and_says_where_it_stood(self):
        code = (
            "from example_project.labelers.smollm2 import ending_after as e; import time\nwith e(0.2): time.sleep(60)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert 'File "<string>", line 2' in done.stderr
