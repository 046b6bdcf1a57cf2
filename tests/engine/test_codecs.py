"""The codec of a labeling, which each step asks for, is made once."""

from __future__ import annotations

from workspace import Workspace, labeling

from dagster_llm_batch.engine import Deployment


def _deployment(workspace: Workspace) -> Deployment:
    return workspace.engine().deployment


def test_each_step_gets_the_same_codec_of_a_labeling(workspace: Workspace) -> None:
    deployment, definition = _deployment(workspace), labeling()
    assert deployment.codec(definition) is deployment.codec(definition)


def test_another_definition_gets_a_codec_of_its_own(workspace: Workspace) -> None:
    deployment, definition = _deployment(workspace), labeling()
    assert deployment.codec(definition) is not deployment.codec(labeling(params={"max_tokens": 60}))


def test_another_provider_of_the_same_name_gets_a_codec_of_its_own(workspace: Workspace) -> None:
    definition = labeling()
    mine = _deployment(workspace)
    workspace.providers["openai"] = workspace.openai()
    assert mine.codec(definition) is not _deployment(workspace).codec(definition)


def test_codecs_that_were_not_asked_for_lately_are_let_go(workspace: Workspace) -> None:
    deployment = _deployment(workspace)
    kept = [deployment.codec(labeling()) for _ in range(100)]
    assert len(deployment.codecs) < len(kept)
