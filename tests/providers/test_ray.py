"""A shard on Ray, without a cluster: settings, files, and a worker's answers. Jobs: tests/real_engines/ray."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from sample_batches import LABELER, SPEC, batch_file, until
from serving import served

from dagster_llm_batch import LLMBatchResource, RayBatchResource
from dagster_llm_batch.errors import AmbiguousError, ConfigError, CredentialsError, RefusedError, TransientError
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.ray.batches import read_job
from dagster_llm_batch.providers.ray.errors import UnknownJobError, provider_error
from dagster_llm_batch.providers.ray.provider import RayProvider
from dagster_llm_batch.providers.ray.ray_shard import answering
from dagster_llm_batch.providers.ray.ray_shard.answering import answerer
from dagster_llm_batch.providers.ray.ray_shard.files import Files
from dagster_llm_batch.types import BatchStatus, Endpoint, Outcome, RequestSpec, ResponseFormat, ResponseKind, Result

ADDRESS = "http://127.0.0.1:8265"


def provider(answers: RayAnswers | None = None, **more) -> RayProvider:
    return RayProvider(ADDRESS, more.pop("storage", "/tmp/none"), answers or RayAnswers(call="a:b"), **more)


def answered(answers: RayAnswers, lines: list[bytes], spec: RequestSpec = SPEC) -> list[Result]:
    """Return a worker's answers to the lines, decoded."""
    codec = provider(answers).codec(spec)
    given = answerer(answers.plan(spec.model)["answer"])(lines)
    assert not any(b"\n" in line for line in given)
    return [codec.decode(line) for line in given]


def lines_of(*texts: str) -> list[bytes]:
    return batch_file(provider().codec(SPEC), texts).read().splitlines()


class Scripted(BaseHTTPRequestHandler):
    """Answers in capitals. A text may ask for another reaction first: "429 twice", "500 always", "hang up"."""

    seen: ClassVar[Counter[str]] = Counter()
    keys: ClassVar[set[str | None]] = set()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        self.seen[text] += 1
        self.keys.add(self.headers["authorization"])
        status, times = 200, {"once": 1, "twice": 2, "always": 99}.get(text.split()[-1], 0)
        if self.seen[text] <= times:
            status = int(text.split()[0])
        if text == "hang up":
            self.close_connection = True
            self.connection.close()
            return
        message = {"role": "assistant", "content": text.upper()}
        reply = {"model": body["model"], "choices": [{"message": message, "finish_reason": "stop"}]}
        failure = {"error": {"message": f"status {status}", "type": "x", "code": None}}
        data = b"<html>" if text == "html" else json.dumps(reply if status == 200 else failure).encode()
        self.send_response(status)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Scripted.seen.clear()
    Scripted.keys.clear()
    with served(Scripted) as url:
        yield f"{url}/v1"


def test_every_line_to_a_server_gets_one_line_whatever_becomes_of_it(server):
    texts = ["plain", "429 twice", "500 always", "400 always", "hang up", "html"]
    read = answered(RayAnswers(base_url=server, max_retries=3), [*lines_of(*texts), b'{"custom_id":"n-6"}', b"{"])
    assert [(r.custom_id, r.outcome, r.retryable) for r in read] == [
        ("n-0", Outcome.SUCCEEDED, False),
        ("n-1", Outcome.SUCCEEDED, False),
        ("n-2", Outcome.ERRORED, True),  # the next retry round may have more luck
        ("n-3", Outcome.ERRORED, False),
        ("n-4", Outcome.ERRORED, True),
        ("n-5", Outcome.INVALID, True),
        ("n-6", Outcome.ERRORED, False),
        (None, Outcome.ERRORED, False),
    ]
    assert read[3].reason == "400 x: status 400"
    assert Scripted.seen == {"plain": 1, "429 twice": 3, "500 always": 4, "400 always": 1, "hang up": 1, "html": 1}


def test_what_never_reached_the_server_is_sent_again_and_then_is_a_row_that_failed():
    waits = []
    answers = RayAnswers(base_url="http://127.0.0.1:9/v1", max_retries=3)
    options = answers.plan(SPEC.model)["answer"]
    del options["kind"]
    [line] = answering.Server(**options, sleep=waits.append)(lines_of("one"))
    read = provider(answers).codec(SPEC).decode(line)
    assert (read.custom_id, read.outcome, read.retryable) == ("n-0", Outcome.ERRORED, True)
    assert len(waits) == 3
    assert waits[0] <= 1 <= waits[2]


def test_the_servers_key_comes_from_the_workers_environment_alone(server, monkeypatch):
    answers = RayAnswers(base_url=server, api_key_env="SERVER_KEY")
    with pytest.raises(RuntimeError, match="SERVER_KEY"):
        answered(answers, lines_of("one"))
    monkeypatch.setenv("SERVER_KEY", "secret")
    assert answered(answers, lines_of("one"))[0].text == "ONE"
    assert Scripted.keys == {"Bearer secret"}
    assert "secret" not in json.dumps(answers.plan("m"))


class Moody:
    """A callable that is built once. It fails for a batch with "bad" in it, and else answers as the text asks."""

    built = 0

    def __init__(self) -> None:
        type(self).built += 1

    def __call__(self, bodies: list[dict]) -> list[object]:
        texts = [body["messages"][-1]["content"] for body in bodies]
        if "bad" in texts:
            raise ValueError("bad batch")
        body = {"choices": [{"message": {"content": "as a body"}}], "usage": {"prompt_tokens": 3}}
        return [{"body": body, "number": 4}.get(text, text.upper()) for text in texts][: 0 if "few" in texts else None]


def test_a_callable_is_built_once_and_a_batch_of_it_that_fails_is_asked_row_by_row(monkeypatch):
    monkeypatch.setitem(sys.modules, "moody", sys.modules[__name__])
    read = answered(
        RayAnswers(call="moody:Moody", requests_at_once=3), lines_of("a", "bad", "c", "body", "number", "few")
    )
    assert [result.text for result in read] == ["A", None, "C", "as a body", None, None]
    assert [result.reason for result in read if result.outcome is Outcome.ERRORED] == [
        "call_failed: ValueError: bad batch",
        "call_failed: TypeError: a reply is a text or the body of a reply; got int",
        "call_failed: ValueError: it gave 0 replies to 1 requests",
    ]
    assert read[3].usage is not None
    assert Moody.built == 1


def command(*options: str) -> RayAnswers:
    words = [sys.executable, "-S", str(LABELER), "-i", "{input}", "-o", "{output}", "--model", "{model}", *options]
    return RayAnswers(command=words)


def test_a_command_answers_with_its_file_and_without_one_every_row_failed_with_its_last_words():
    assert [result.text for result in answered(command(), lines_of("one", "two"))] == ["ONE", "TWO"]
    read = answered(command("--no-output", "--code", "3", "--say", "out of memory"), lines_of("one", "two"))
    assert [(result.custom_id, result.outcome, result.retryable) for result in read] == [
        ("n-0", Outcome.ERRORED, True), ("n-1", Outcome.ERRORED, True),
    ]  # fmt: skip
    assert "ended with code 3" in (read[0].reason or "")
    assert "out of memory" in (read[0].reason or "")


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_worker_that_is_killed_takes_its_command_and_all_that_it_started_along(tmp_path):
    gate, child = tmp_path / "gate", tmp_path / "child"
    plan = command("--gate", str(gate), "--worker", str(child), "--deaf").plan("m")["answer"]
    script = "import json,sys; from dagster_llm_batch.providers.ray.ray_shard.answering import answerer; "
    script += "answerer(json.loads(sys.argv[1]))([sys.argv[2].encode()])"
    words = [sys.executable, "-c", script, json.dumps(plan), lines_of("one")[0].decode()]
    with subprocess.Popen(words, env={**os.environ, "TMPDIR": str(tmp_path)}) as worker:
        until(child.exists)
        engine = int(child.read_text())
        assert alive(engine)
        worker.send_signal(signal.SIGKILL)
    until(lambda: not alive(engine))


def test_a_command_that_ends_leaves_none_of_its_processes(tmp_path):
    child = tmp_path / "child"
    assert answered(command("--worker", str(child)), lines_of("one"))[0].text == "ONE"
    until(lambda: not alive(int(child.read_text())))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of base_url, call, command, vllm; got none"),
        ({"call": "a:b", "vllm": {}}, "got \\['call', 'vllm'\\]"),
        ({"call": "a.b"}, "import path"),
        ({"base_url": "http://u:p@h/v1"}, "user name or a password"),
        ({"command": ["x", "{input}"]}, "lacks the placeholder {output}"),
        ({"call": "a:b", "workers": 0}, "workers is 0"),
    ],
)
def test_answers_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        RayAnswers(**settings)


def test_a_request_that_vllm_would_answer_otherwise_than_asked_is_refused_before_anything_is_sent():
    on_vllm = provider(RayAnswers(vllm={}))
    on_vllm.codec(RequestSpec("m", params={"temperature": 0, "max_tokens": 5}))
    with pytest.raises(ConfigError, match="does not know the parameters logit_bias"):
        on_vllm.codec(RequestSpec("m", params={"logit_bias": {}}))
    embedding = RequestSpec("m", ResponseFormat(ResponseKind.EMBEDDING), Endpoint.EMBEDDINGS)
    with pytest.raises(ConfigError, match="chat requests only"):
        on_vllm.codec(embedding)


def test_the_account_is_what_answers_wherever_the_cluster_is():
    ways = [{"call": "a:b"}, {"base_url": "http://h/v1"}, {"vllm": {"a": 1}}, {"command": ["x", "{input}", "{output}"]}]
    accounts = [provider(RayAnswers(**way)).account for way in ways]
    assert accounts == ["a:b", "http://h/v1", 'vllm {"a": 1}', "x '{input}' '{output}'"]
    elsewhere = RayProvider("http://other:8265", "/elsewhere", RayAnswers(call="a:b"))
    assert elsewhere.account == provider().account
    assert provider(account="box").account == "box"


def test_an_address_in_the_environment_that_the_sdk_would_follow_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(ConfigError, match="RAY_ADDRESS is set"):
        provider().cancel("tag.00000000")


@pytest.mark.parametrize("tag", ["", "../up", "a/b", "a.b", "x" * 300])
def test_a_tag_that_cannot_name_a_job_is_refused(tag):
    with pytest.raises(ConfigError, match="cannot name a job"):
        provider().submit(io.BytesIO(), SPEC, tag)


def test_a_batch_of_other_files_is_not_found_without_a_call():
    report = provider().poll(["tag.00000000"])["tag.00000000"]
    assert report.status is BatchStatus.NOT_FOUND
    assert "/tmp/none" in (report.reason or "")


def test_the_provider_and_what_is_sent_to_the_cluster_import_no_ray():
    script = "import sys, dagster_llm_batch.providers.ray.provider; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_job_imports_nothing_of_this_package(tmp_path):
    folder = Path(answering.__file__).parent
    script = f"import sys; sys.path.insert(0, {str(folder.parent)!r}); import ray_shard.answering, ray_shard.files, "
    script += "ray_shard.vllm_processor; sys.exit(any(name.startswith('dagster') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0


def test_the_resource_passes_all_its_settings_on():
    settings = {"address": ADDRESS, "storage": "/s", "base_url": "http://h/v1", "workers": 3, "max_retries": 1}
    resource = LLMBatchResource(ray=RayBatchResource(**settings, token="secret-token"))
    made = resource.make_providers(Path())["ray"]
    assert made.account == "http://h/v1"
    assert made._answers == RayAnswers(base_url="http://h/v1", workers=3, max_retries=1)
    assert "secret-token" not in repr(made)


HTTP = "Request failed with status code {}: no secret-token-of-ray please"


@pytest.mark.parametrize(
    ("error", "creating", "expected"),
    [
        (RuntimeError(HTTP.format(404)), False, UnknownJobError),
        (RuntimeError(HTTP.format(400)), True, RefusedError),
        (RuntimeError(HTTP.format(403)), True, CredentialsError),
        (RuntimeError(HTTP.format(500)), False, TransientError),
        (RuntimeError(HTTP.format(500)), True, AmbiguousError),
        (TimeoutError("timed out"), True, AmbiguousError),
        (ConnectionRefusedError("refused"), True, TransientError),
    ],
)
def test_an_error_of_the_sdk_says_whether_a_job_may_exist_and_holds_no_secret(error, creating, expected):
    found = provider_error(error, "start the job", ["secret-token-of-ray"], creating=creating)
    assert type(found) is expected
    assert "secret-token-of-ray" not in str(found)


@pytest.mark.parametrize(
    ("status", "kind", "code", "expected"),
    [
        ("PENDING", None, None, (BatchStatus.PENDING, False)),
        ("STOPPED", None, None, (BatchStatus.CANCELED, False)),
        ("PAUSED_BY_MOONLIGHT", None, None, (BatchStatus.RUNNING, False)),
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 1, (BatchStatus.FAILED, False)),  # it would fail again
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", -9, (BatchStatus.FAILED, True)),  # it was killed
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 137, (BatchStatus.FAILED, True)),
        ("FAILED", "RUNTIME_ENV_SETUP_FAILURE", None, (BatchStatus.FAILED, False)),
        ("FAILED", "JOB_SUPERVISOR_ACTOR_DIED", None, (BatchStatus.FAILED, True)),  # its node is gone
    ],
)
def test_a_job_is_worth_another_try_where_it_was_not_its_own_fault(status, kind, code, expected):
    said = f"last logs:\n{'x' * 9_000}\nValueError: \x1b[31mno such thing\x1b[0m"
    job = SimpleNamespace(
        status=status, error_type=kind, driver_exit_code=code, message=said, start_time=1_000, end_time=2_000
    )
    found = read_job("id", job, 5, 2)
    assert (found.status, found.retryable) == expected
    assert (found.total, found.done, found.created_at) == (5, 2, datetime.fromtimestamp(1, UTC))
    assert (found.ended_at is not None) == found.status.is_terminal
    if found.reason is not None:
        assert len(found.reason) <= 500
        assert found.reason.endswith("ValueError: no such thing")


@pytest.fixture(params=["path", "s3"])
def files(request, tmp_path) -> Iterator[Files]:
    if request.param == "path":
        yield Files(f"{tmp_path}/folder/tag")
        return
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys).create_bucket(Bucket="bucket")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        yield Files(f"s3://bucket/folder/tag?endpoint_override={host}:{port}&scheme=http&region=us-east-1")
    server.stop()


def test_a_shards_files_are_the_same_on_a_path_and_on_s3(files):
    lines = [f"line {n} x\u2028y\n".encode() for n in range(5)]
    assert not files.exists("requests.jsonl")
    assert files.read_json("plan.json") is None
    assert files.results() == []
    assert files.write_requests(io.BytesIO(b"".join(lines))) == 5
    spans = list(files.spans(2))
    assert [files.requests(*span) for span in spans] == [
        [line.rstrip(b"\n") for line in run] for run in (lines[:2], lines[2:4], lines[4:])
    ]
    files.write_json("plan.json", {"a": 1})
    assert files.read_json("plan.json") == {"a": 1}
    for key, rows in ((b"one", 2), (b"two", 3), (b"one", 2)):
        files.write_results(files.result_name(key, rows), lines[:rows])
    assert len(files.results()) == 2
    assert files.rows_done() == 5
    assert [list(files.lines(name)) for name in files.results()] in ([lines[:2], lines[:3]], [lines[:3], lines[:2]])
    files.remove()
    assert files.results() == []
    files.remove()


def test_a_file_that_could_not_be_written_whole_is_not_there(tmp_path):
    def broken() -> Iterator[bytes]:
        yield b"half\n"
        raise OSError("no space")

    files = Files(str(tmp_path))
    with pytest.raises(OSError, match="no space"):
        files.write_results(files.result_name(b"k", 1), broken())
    assert files.results() == []
    assert files.rows_done() == 0
