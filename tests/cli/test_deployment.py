"""A command finds its deployment as `dagster` does, or by the ledger's address; otherwise it explains how."""

from __future__ import annotations

import json
import shutil

import pytest

from dagster_llm_batch.cli.deployment import shown_root
from dagster_llm_batch.testing.emulator import DEFAULT_KEY


def submissions(result):
    return [one["asset"] for one in json.loads(result.stdout)["submissions"]]


def dg_project(project, **options):
    """Turn the definitions into a project of `dg`."""
    lines = ["[tool.dg]", 'directory_type = "project"', "[tool.dg.project]", 'root_module = "support_project"']
    lines += [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    (project.folder / "pyproject.toml").write_text("\n".join(lines))
    package = project.folder / "support_project"
    package.mkdir()
    (package / "__init__.py").touch()
    return package


def test_pyproject_a_module_a_file_and_the_address_lead_to_the_same_submissions(project):
    project.submit()
    ways = [
        project.cli("list", "--json"),
        project.cli("list", "--json", "-m", "support"),
        project.cli("list", "--json", "-f", "support.py"),
        project.cli("list", "--json", "-f", "support.py", "-a", "defs", "-d", str(project.folder)),
        project.cli("list", "--json", *project.by_address),
    ]
    assert {way.stdout for way in ways} == {ways[0].stdout}
    assert submissions(ways[0]) == ["ticket_labels"]


def test_what_user_code_prints_is_not_part_of_the_output(project):
    project.submit()
    result = project.cli("list", "--json", "-f", "support.py")
    assert "user code prints" in result.stderr
    assert json.loads(result.stdout)


def test_the_environment_says_where_too_and_the_command_line_goes_before_it(project, monkeypatch, tmp_path):
    project.submit()
    (project.folder / "pyproject.toml").unlink()
    monkeypatch.setenv("DAGSTER_PYTHON_FILE", "support.py")
    assert submissions(project.cli("list", "--json")) == ["ticket_labels"]
    monkeypatch.delenv("DAGSTER_PYTHON_FILE")
    ledger, payloads, namespace = project.by_address[1::2]
    monkeypatch.setenv("DAGSTER_LLM_BATCH_LEDGER", ledger)
    monkeypatch.setenv("DAGSTER_LLM_BATCH_PAYLOADS", payloads)
    monkeypatch.setenv("DAGSTER_LLM_BATCH_NAMESPACE", namespace)
    assert submissions(project.cli("list", "--json")) == ["ticket_labels"]
    assert json.loads(project.cli("prune", "--json").stdout)["submissions_kept"] == 1
    monkeypatch.setenv("DAGSTER_LLM_BATCH_LEDGER", str(tmp_path / "nowhere.sqlite"))
    assert submissions(project.cli("list", "--json", "-f", "support.py")) == ["ticket_labels"]


def test_a_dg_project_is_found_by_its_root_module(project):
    package = dg_project(project)
    shutil.move(project.file, package / "definitions.py")
    assert "no ledger at" in project.cli("list", code=1).stderr
    assert "ticket_labels" in project.cli("doctor").stdout


@pytest.mark.slow
def test_a_dg_project_that_loads_its_definitions_from_a_folder_is_found(project):
    package = dg_project(project, autoload_defs=True)
    (package / "defs").mkdir()
    (package / "defs" / "__init__.py").touch()
    shutil.move(project.file, package / "defs" / "support.py")
    assert "ticket_labels" in project.cli("doctor").stdout


def test_variables_of_a_dotenv_file_are_those_of_the_resources(project, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    (project.folder / ".env").write_text(f"OPENAI_API_KEY={DEFAULT_KEY}\n")
    project.on_file("doctor")


def test_a_variable_of_the_deployment_that_is_not_set_is_named(project, monkeypatch):
    project.submit()
    project.change("**places,", "ledger_url=dg.EnvVar('LEDGER_OF_NOBODY'), payload_root=places['payload_root'],")
    monkeypatch.delenv("LEDGER_OF_NOBODY", raising=False)
    said = project.on_file("list", code=1).stderr
    assert 'the environment variable "LEDGER_OF_NOBODY" which is not set' in said
    assert "Stack Trace" not in said
    # Every check is tried, and has its own line.
    found = {one["check"] for one in json.loads(project.on_file("doctor", "--json", code=3).stdout)["findings"]}
    assert {"definitions", "ledger", "payload store", "dataset ticket_labels", "price book"} <= found


def test_what_is_submitted_can_be_looked_at_without_the_key_of_its_provider(project, monkeypatch):
    project.submit()
    monkeypatch.delenv("OPENAI_API_KEY")
    project.on_file("list")
    project.on_file("cost")
    project.on_file("show", "ticket_labels")
    said = project.on_file("watch", "--once", "--poll").output
    assert "1 batch is of an account not configured here" in said


@pytest.mark.parametrize(
    ("pyproject", "state"),
    [(None, "no such file"), ("[tool.ruff]\n", "has neither [tool.dagster] nor [tool.dg.project]")],
)
def test_without_a_deployment_it_says_what_was_looked_for_and_where(project, pyproject, state):
    path = project.folder / "pyproject.toml"
    path.unlink()
    if pyproject:
        path.write_text(pyproject)
    said = project.cli("list", code=2).stderr
    for part in ("-m or -f", "DAGSTER_MODULE_NAME", "--ledger", "DAGSTER_LLM_BATCH_LEDGER", str(path), state):
        assert part in said
    assert "--ledger" not in project.cli("plan", code=2).stderr  # an address does not help there


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-m", "support", "-f", "support.py"], 2, "either a module (-m) or a file (-f)"),
        (["-m", "support", "--ledger", "x.sqlite"], 2, "either a code location (-m, -f) or a ledger"),
        (["-f", "nothing.py"], 2, "There is no file"),
        (["-d", "/nope"], 2, "-d /nope belongs to a module (-m) or a file (-f), and neither is given"),
        (["-a", "defs", "--ledger", "x.sqlite"], 2, "-a defs belongs to a module (-m) or a file (-f)"),
        (["-d", "/nope", "-f", "support.py"], 2, "There is no folder /nope to import from (-d)"),
        (["-d", "/nope", "-m", "support"], 2, "There is no folder /nope to import from (-d)"),
        (["-m", "nothing.at_all"], 2, "There is no module nothing.at_all"),
        (["-f", "support.py", "--resource", "other"], 1, "no resource 'other' in the file support.py (-f)"),
        (["-f", "support.py", "--resource", "plain"], 1, "must be an LLMBatchResource"),
        (["--ledger", "x.sqlite"], 1, "There is no ledger at x.sqlite"),
        (["--ledger", "mysql://me:secret@host/db"], 1, "The ledger URL (of scheme 'mysql') is not one that works"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_by_name(project, arguments, code, said):
    result = project.cli("list", *arguments, code=code)
    assert said in result.stderr
    assert "secret" not in result.output
    assert not (project.folder / "x.sqlite").exists()


def test_an_error_of_the_definitions_is_shown_with_its_line(project):
    project.file.write_text("import dagster as dg\n\n1 / 0\n")
    said = project.cli("list", "-f", "support.py", code=1).stderr
    assert "Definitions cannot be loaded from the file support.py (-f)" in said
    assert "support.py" in said
    assert "ZeroDivisionError" in said


def test_a_file_without_definitions_is_refused(project):
    project.file.write_text("nothing = 1\n")
    assert "No Definitions" in project.cli("list", "-f", "support.py", code=1).stderr


def test_without_the_dagster_home_it_says_what_needs_it(project):
    project.change("**places,", "")
    said = project.on_file("list", code=2).stderr
    assert "below the Dagster home, and DAGSTER_HOME is not set" in said


def test_a_dagster_home_that_is_not_there_is_named(project, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "/no/such/home")
    assert "/no/such/home" in project.on_file("list", code=2).stderr


@pytest.mark.slow
def test_ledger_and_payloads_below_the_dagster_home_are_found(project, home):
    project.change("**places,", "")
    project.batches = home / "storage" / "llm_batch"
    project.submit()
    assert submissions(project.on_file("list", "--json")) == ["ticket_labels"]


def test_errors_are_json_for_programs_with_their_exit_code(project):
    error = json.loads(project.cli("list", "--ledger", "x.sqlite", "--json", code=1).stderr)
    assert (error["error"], error["exit_code"]) == ("ConfigError", 1)
    assert "There is no ledger at x.sqlite" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["list", "--no-such-option"], 2, "UsageError"),
        (["list", "--limit", "many"], 2, "UsageError"),
        (["show"], 2, "UsageError"),
        (["export", "ticket_labels", "-o", "no/such/folder.csv"], 2, "UsageError"),
        (["retry", "no_such_asset"], 2, "UsageError"),
    ],
)
def test_a_wrong_command_line_is_json_for_programs_too(project, arguments, code, name):
    project.submit()
    # output of user code that is imported comes first
    error = json.loads(project.cli(*arguments, "--json", code=code).stderr.splitlines()[-1])
    assert (error["error"], error["exit_code"]) == (name, code)
    assert error["message"]


def test_the_namespace_that_is_given_goes_before_that_of_the_definitions(project, monkeypatch):
    project.land()
    assert submissions(project.on_file("list", "--all", "--namespace", "elsewhere", "--json")) == []
    pruned = project.json("prune", "--namespace", "elsewhere", "--older-than", "1")
    assert pruned["submissions_kept"] == 0
    assert project.json("prune", "--older-than", "1")["submissions_kept"] == 1
    monkeypatch.setenv("DAGSTER_LLM_BATCH_NAMESPACE", "elsewhere")
    assert submissions(project.cli("list", "--all", "--json")) == []
    # a code location on the command line precedes the environment's ledger and namespace
    monkeypatch.setenv("DAGSTER_LLM_BATCH_LEDGER", project.ledger)
    assert submissions(project.on_file("list", "--all", "--json")) == ["ticket_labels"]


def test_payloads_are_asked_for_where_they_are_needed(project):
    project.submit()
    ledger = [*project.by_address[:2], *project.by_address[4:]]
    project.cli("cost", *ledger)
    assert "--payloads (or DAGSTER_LLM_BATCH_PAYLOADS)" in project.cli("prune", *ledger, code=2).stderr


def test_a_name_that_the_definitions_lack_is_told_without_dagsters_own_calls_and_users_calls_are_shown(project):
    said = project.on_file("list", "-a", "nope", code=1).stderr
    assert "nope not found at module scope in file" in said
    assert "Traceback" not in said
    project.change("import os\n", "import os\n\n1 / 0\n")
    said = project.on_file("list", code=1).stderr
    assert "Traceback" in said
    assert "1 / 0" in said


def test_the_words_of_a_database_are_one_line_and_an_empty_ledger_is_told(project):
    said = project.cli("list", "--ledger", "postgresql://me:secret@127.0.0.1:1/db", code=4).stderr
    assert said.count("\n") == 1
    assert "?. " not in said
    assert "secret" not in said
    assert "--ledger (or DAGSTER_LLM_BATCH_LEDGER) is empty" in project.cli("list", "--ledger", " ", code=2).stderr


@pytest.mark.parametrize(
    ("root", "shown"),
    [
        ("abfs://raw@account.dfs.core.windows.net/llm", "abfs://raw@account.dfs.core.windows.net/llm"),
        (
            "abfss://raw:s3cret@account.dfs.core.windows.net/llm?sig=s3cret",
            "abfss://raw@account.dfs.core.windows.net/llm",
        ),
        ("sftp://me:s3cret@host/llm", "sftp://host/llm"),
        ("s3://bucket/a@b/llm", "s3://bucket/a@b/llm"),
        ("/data/me@host/llm", "/data/me@host/llm"),
    ],
)
def test_the_root_of_payloads_is_shown_with_its_container_and_without_secrets(root, shown):
    assert shown_root(root) == shown


def test_places_are_words_and_no_python(project):
    project.submit()
    told = str(project.json("doctor")["findings"]) + project.on_file("show", "ticket_labels").stdout
    assert f"sqlite:///{project.ledger}" in told
    for python in ("Ledger(", "PayloadStore(", "Decimal(", "datetime", "<"):
        assert python not in told


def test_the_examples_of_the_help_stay_as_they_are_typed(project):
    shown = project.cli("--help").stdout
    assert "\n    dagster-llm-batch watch                  show progress\n" in shown
    assert "\\b" not in shown


@pytest.mark.parametrize("broken", ["history", "history/runs.db"])
def test_a_dagster_home_that_cannot_be_opened_is_told_in_words(project, home, broken):
    place = home / broken
    place.parent.mkdir(exist_ok=True)
    place.write_text("neither a folder nor a database")
    said = project.on_file("list", code=1).stderr
    assert f"Dagster's home, {home} (DAGSTER_HOME), cannot be opened: " in said
    assert "Traceback" not in said
