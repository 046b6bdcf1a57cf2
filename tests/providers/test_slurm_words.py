"""Slurm without Slurm: accepted options, the meaning of its words, and the script on the nodes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dagster_llm_batch.errors import AmbiguousError, ConfigError, CredentialsError, RefusedError, TransientError
from dagster_llm_batch.providers.slurm import job_body
from dagster_llm_batch.providers.slurm.client import submit_error
from dagster_llm_batch.providers.slurm.options import SlurmOptions
from dagster_llm_batch.providers.slurm.provider import SlurmProvider
from dagster_llm_batch.providers.slurm.states import Standing, of_all, of_state
from dagster_llm_batch.types import BatchStatus
from tests.tables import table

BODY = Path(job_body.__file__)
COMMAND = ["run", "{input}", "{output}"]


def test_options_become_words_of_an_argument_list():
    options = SlurmOptions("gpu", "nlp", "high", "1-12", "gpu:a100:2", "64G", 8, ["--constraint=a b;c", "--exclusive"])
    assert options.words() == [
        "--partition=gpu",
        "--account=nlp",
        "--qos=high",
        "--time=1-12",
        "--gres=gpu:a100:2",
        "--mem=64G",
        "--cpus-per-task=8",
        "--constraint=a b;c",
        "--exclusive",
    ]


@pytest.mark.parametrize("time_limit", ["90", "90:30", "2:30:00", "1-12", "1-12:30", "1-12:30:15"])
def test_every_form_of_a_time_limit_is_taken(time_limit):
    assert SlurmOptions(time_limit=time_limit).words() == [f"--time={time_limit}"]


@table(
    ("options", "message"),
    [
        ({"partition": "a b"}, "partition='a b'"),
        ({"account": "--wrap=x"}, "slurm_account="),
        ({"time_limit": "two hours"}, "90, 2:30:00 or 1-12"),
        ({"mem": "64 GB"}, "mem="),
        ({"gres": "gpu:1;rm"}, "gres="),
        ({"cpus_per_task": 0}, "at least 1"),
        ({"extra": "--exclusive"}, "are a list"),
        ({"extra": ["-n", "4"]}, "--name=value"),
        ({"extra": ["--comment=x\n#SBATCH"]}, "--name=value"),
        ({"extra": ["--job-name=mine"]}, "sets --job-name itself"),
        ({"extra": ["--job=mine"]}, "sets --job-name itself"),
        ({"extra": ["--array=0-3"]}, "sets --array itself"),
        ({"extra": ["--partition=gpu"]}, "given as partition="),
        ({"extra": ["--clusters=other"]}, "this one cluster"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_submitted(options, message):
    with pytest.raises(ConfigError, match=message):
        SlurmOptions(**options)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"command": ["run"]}, "placeholder"),
        ({"requests_per_task": 0}, "at least 1"),
        ({"max_running_tasks": 0}, "at least 1"),
    ],
)
def test_a_provider_that_cannot_work_is_refused(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        SlurmProvider(**{"command": COMMAND, "workdir": str(tmp_path), **more})


def test_another_command_is_another_account_and_other_resources_are_not(tmp_path):
    one = SlurmProvider(COMMAND, str(tmp_path))
    assert one.account == SlurmProvider(COMMAND, "/elsewhere", SlurmOptions(partition="gpu")).account
    assert one.account != SlurmProvider([*COMMAND, "--more"], str(tmp_path)).account


FAILED = "sbatch: error: Batch job submission failed: "


@table(
    ("code", "said", "kind"),
    [
        (1, FAILED + "Invalid partition name specified", RefusedError),
        (1, FAILED + "Invalid account or account/partition combination specified", RefusedError),
        (1, FAILED + "Requested node configuration is not available", RefusedError),
        (1, FAILED + "a site's own words", RefusedError),
        (255, "sbatch: error: Invalid --time specification", RefusedError),
        (1, FAILED + "Access/permission denied", CredentialsError),
        (
            1,
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\n" + FAILED + "Job violates accounting/QOS policy",
            TransientError,
        ),
        (
            1,
            "sbatch: error: QOSMaxWallDurationPerJobLimit\n" + FAILED + "Job violates accounting/QOS policy",
            RefusedError,
        ),
        (1, FAILED + "Unable to contact slurm controller (connect failure)", TransientError),
        (1, FAILED + "Socket timed out on send/recv operation", AmbiguousError),
        (1, FAILED + "Zero Bytes were transmitted or received", AmbiguousError),
        (-9, "", AmbiguousError),
        (0, "not a number", AmbiguousError),
    ],
)
def test_what_sbatch_says_tells_whether_a_job_exists(code, said, kind):
    assert type(submit_error(code, said)) is kind


@table(
    ("state", "status", "retryable"),
    [
        ("PENDING", BatchStatus.PENDING, False),
        ("REQUEUE_HOLD", BatchStatus.PENDING, False),
        ("RUNNING", BatchStatus.RUNNING, False),
        ("COMPLETING", BatchStatus.RUNNING, False),
        ("A_WORD_OF_NEXT_YEAR", BatchStatus.RUNNING, False),
        ("TIMEOUT", BatchStatus.EXPIRED, False),
        ("DEADLINE", BatchStatus.EXPIRED, False),
        ("CANCELLED+", BatchStatus.CANCELED, False),
        ("OUT_OF_MEMORY", BatchStatus.FAILED, False),
        ("FAILED", BatchStatus.FAILED, False),
        ("NODE_FAIL", BatchStatus.FAILED, True),
        ("PREEMPTED", BatchStatus.FAILED, True),
    ],
)
def test_every_word_of_slurm_is_one_of_ours(state, status, retryable):
    standing = of_state(state, "", "")
    assert (standing.status, standing.retryable) == (status, retryable)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (["ended", "ended"], "ended"),
        (["ended", "running"], "running"),
        (["ended", "pending"], "running"),
        (["pending", "pending"], "pending"),
        (["ended", "failed"], "ended"),
        (["ended", "expired"], "ended"),
        (["expired", "failed"], "expired"),
        (["ended", "canceled"], "canceled"),
        (["failed", "failed"], "failed"),
        (["failed", None], None),
        (["running", None], "running"),
    ],
)
def test_a_batch_is_over_when_its_last_task_is_and_good_once_one_is(statuses, status):
    tasks = {n: Standing(None if one is None else BatchStatus(one)) for n, one in enumerate(statuses)}
    assert of_all(tasks, ()).status == status


def test_the_script_for_the_nodes_is_python_3_6():
    ast.parse(BODY.read_text(encoding="utf-8"), feature_version=(3, 6))


def task(folder: Path, *, row_by_row: bool, start: int = 0, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run one task alone; its command answers the requests row by row."""
    script = (
        "import json, sys\n"
        "out = open(sys.argv[2], 'w')\n"
        "for line in open(sys.argv[1]):\n"
        "    row = {'custom_id': json.loads(line)['custom_id'], 'response': {'status_code': 200}}\n"
        "    print(json.dumps({**row, 'error': None}), file=out)\n"
        f"sys.exit({code})"
    )
    plan = {"command": [sys.executable, "-c", script, "{input}", "{output}"], "model": "m"}
    (folder / "plan.json").write_text(json.dumps({**plan, "row_by_row": row_by_row, "grace_seconds": 1.0}))
    environment = {"SLURM_RESTART_COUNT": str(start)}
    return subprocess.run([sys.executable, "-I", "-S", str(BODY), str(folder)], env=environment, check=False)


def row(number: int, **more: object) -> str:
    return json.dumps({"custom_id": f"n-{number}", "response": {"status_code": 200}, "error": None, **more}) + "\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in-0.jsonl").write_text("".join(json.dumps({"custom_id": f"n-{n}"}) + "\n" for n in range(4)))
    return tmp_path


def test_a_task_that_starts_again_keeps_good_rows_asks_the_others_and_has_each_once(folder):
    failed, cut = row(1, error={"message": "killed"}), row(3)[:-9]
    (folder / "out-0.0.part").write_text(row(0) + failed + row(2) + cut)
    assert task(folder, row_by_row=True, start=1).returncode == 0
    asked = [json.loads(line)["custom_id"] for line in (folder / "out-0.1.rest").read_text().splitlines()]
    assert asked == ["n-1", "n-3"]
    whole = [json.loads(line)["custom_id"] for line in (folder / "out-0.jsonl").read_text().splitlines()]
    assert whole == ["n-0", "n-2", "n-1", "n-3"]


def test_a_task_whose_rows_were_all_kept_runs_no_command(folder):
    (folder / "out-0.0.part").write_text("".join(row(n) for n in range(4)))
    assert task(folder, row_by_row=True, start=1, code=9).returncode == 0
    assert len((folder / "out-0.jsonl").read_text().splitlines()) == 4


def test_a_second_copy_of_a_task_changes_nothing_that_the_first_has_ended(folder):
    (folder / "out-0.jsonl").write_text(row(0))  # a copy on a lost node was quicker
    assert task(folder, row_by_row=False).returncode == 0
    assert (folder / "out-0.jsonl").read_text() == row(0)
    ended = (folder / "exit-0.json").read_text()
    assert task(folder, row_by_row=False, start=1, code=9).returncode == 0
    assert (folder / "exit-0.json").read_text() == ended
    assert not (folder / "out-0.1.part").exists()


def test_a_batch_that_was_withdrawn_or_canceled_before_it_started_does_not_run(folder):
    (folder / "withdrawn").touch()
    assert task(folder, row_by_row=False).returncode == 0
    assert not list(folder.glob("started-*"))
    (folder / "withdrawn").unlink()
    (folder / "cancel").touch()
    assert task(folder, row_by_row=False).returncode == 0
    assert json.loads((folder / "exit-0.json").read_text())["canceled"] is True
    assert not list(folder.glob("started-*"))
