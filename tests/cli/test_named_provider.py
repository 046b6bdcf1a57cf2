"""A provider with a name that the user chose, on the command line."""

from types import SimpleNamespace

from dagster_llm_batch.assets.dataset import dataset_of


def test_every_command_knows_a_provider_by_its_name(project):
    project.change("openai=OpenAIBatchResource(", 'providers={"eu": OpenAIBatchResource(')
    project.change("timeout_seconds=10\n            ),", "timeout_seconds=10\n            )},")
    project.change('"model": "openai/gpt-4o"', '"model": "eu/gpt-4o"')
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert plan["model"] == "eu/gpt-4o"
    module = project.module()
    engine, labeling = module["defs"].resources["llm_batch"].engine(), dataset_of(module["ticket_labels"]).labeling
    submission = engine.plan(labeling, module["rows"](SimpleNamespace(partition_key=None)))
    engine.submit(labeling, submission.submission_id)
    project.emulator.settle()
    engine.advance(labeling, submission.submission_id)
    engine.ledger.submissions.mark_delivered(submission.submission_id)
    engine.ledger.close()
    assert "eu/gpt-4o, account 127.0.0.1" in project.on_file("show", submission.submission_id).stdout
    [group] = project.json("cost", "--by", "provider")["groups"]
    assert group["provider"] == "eu"
    found = {one["check"]: one["verdict"] for one in project.json("doctor")["findings"]}
    assert (found["provider eu"], found["dataset ticket_labels"]) == ("ok", "ok")
