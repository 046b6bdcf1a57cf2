"""The policies in docs/policies allow exactly the calls that the providers make."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from bedrock_emulator import BUCKET as S3_BUCKET
from bedrock_emulator import SPECS, batch_file, emulator_over, over
from google_emulator import BUCKET, vertex

from dagster_llm_batch import preset
from dagster_llm_batch.errors import RefusedError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.capabilities import count_files
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, WireFault, local_gcs, local_s3
from dagster_llm_batch.types import FindHints, RequestSpec

POLICIES = Path(__file__).resolve().parents[2] / "docs" / "policies"
PAGE = POLICIES.parent / "how-to" / "permissions.md"


def live(provider: Provider, spec: RequestSpec, emulator: Emulator, word: str, create: str) -> None:
    """Use all abilities of a provider: two batches (one canceled), a refused one, an answer in real time, a deletion.

    `create` is the route of the create call.
    """
    codec = provider.codec(spec)
    first = provider.submit(batch_file(codec), spec, f"dlb-0011-{word}1")
    provider.find(f"dlb-0011-{word}1", FindHints(datetime.now(UTC), 3, "n"))
    second = provider.submit(batch_file(codec), spec, f"dlb-0012-{word}2")
    provider.cancel(second)
    emulator.settle()
    # Of many, all are listed; of one, it is read.
    provider.poll([first])
    provider.poll([first, second])
    assert len([*provider.fetch(first)]) == 3
    provider.respond(batch_file(codec, 1).readline())
    emulator.inject(WireFault(kind="status", status=400, route=create))
    # Its request file is deleted again.
    with pytest.raises(RefusedError):
        provider.submit(batch_file(codec), spec, f"dlb-0013-{word}3")
    count_files(provider)
    provider.delete_request_file(second)
    provider.delete(first)


# https://docs.aws.amazon.com/service-authorization/latest/reference/: an operation mostly needs the action of its name
_AWS = {
    ("s3", "ListObjectsV2"): {"s3:ListBucket"},
    ("bedrock", "CreateModelInvocationJob"): {
        "bedrock:CreateModelInvocationJob",
        # It passes on the role, and sets tags.
        "iam:PassRole",
        "bedrock:TagResource",
    },
    ("bedrock-runtime", "Converse"): {"bedrock:InvokeModel"},
    ("bedrock-runtime", "InvokeModel"): {"bedrock:InvokeModel"},
    ("service-quotas", "ListServiceQuotas"): {"servicequotas:ListServiceQuotas"},
}


def test_bedrocks_policy_allows_what_the_sdk_is_asked_for_and_nothing_else() -> None:
    called: set[tuple[str, str]] = set()
    with local_s3(S3_BUCKET) as s3_url, emulator_over(s3_url) as emulator:
        for family in ("claude", "converse"):
            session = botocore.session.Session()
            session.register(
                "before-call", lambda model, **_: called.add((model.service_model.service_name, model.name))
            )
            keys = {"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "a-secret-access-key"}
            provider = over(emulator, s3_url, session_options={**keys, "botocore_session": session}, tags={"team": "x"})
            live(provider, SPECS[family], emulator, family[:2], "POST /bedrock/model-invocation-job")
    assert {("bedrock-runtime", "Converse"), ("bedrock-runtime", "InvokeModel")} <= called
    needed = set().union(*(_AWS.get(call, {":".join(call)}) for call in called))
    statements = json.loads((POLICIES / "bedrock-caller.json").read_text())["Statement"]
    assert {action for one in statements for action in _listed(one["Action"])} == needed
    assert all("*" not in action for action in needed)


def test_bedrocks_role_is_bedrocks_alone_and_reaches_the_prefix_alone() -> None:
    [trust] = json.loads((POLICIES / "bedrock-role-trust.json").read_text())["Statement"]
    assert trust["Principal"] == {"Service": "bedrock.amazonaws.com"}
    assert set(trust["Condition"]) == {"StringEquals", "ArnEquals"}
    role = json.loads((POLICIES / "bedrock-role.json").read_text())["Statement"]
    reached = {(act, at) for one in role for act in _listed(one["Action"]) for at in _listed(one["Resource"])}
    files, bucket = "arn:aws:s3:::BUCKET/llm-batch/*", "arn:aws:s3:::BUCKET"
    asked = {("bedrock:InvokeModel", at) for at in _PROFILES_AND_MODELS}
    assert reached == {("s3:GetObject", files), ("s3:PutObject", files), ("s3:ListBucket", bucket), *asked}


# https://docs.aws.amazon.com/bedrock/latest/userguide/batch-iam-sr.html and inference-profiles-prereq.html
_PROFILES_AND_MODELS = {
    "arn:aws:bedrock:*::foundation-model/*",
    "arn:aws:bedrock:*:ACCOUNT:inference-profile/*",
    "arn:aws:bedrock:*:ACCOUNT:application-inference-profile/*",
}


@pytest.mark.parametrize("action", ["bedrock:CreateModelInvocationJob", "bedrock:InvokeModel"])
def test_bedrocks_caller_may_use_a_model_by_its_name_and_by_profiles_of_both_kinds(action: str) -> None:
    statements = json.loads((POLICIES / "bedrock-caller.json").read_text())["Statement"]
    [statement] = [one for one in statements if action in _listed(one["Action"])]
    assert set(_listed(statement["Resource"])) >= _PROFILES_AND_MODELS


# https://cloud.google.com/iam/docs/permissions-reference; the first that matches holds
_GOOGLE = (
    (r"POST /vertex/.*/batchPredictionJobs", "aiplatform.batchPredictionJobs.create"),
    (r"GET /vertex/.*/batchPredictionJobs", "aiplatform.batchPredictionJobs.list"),
    (r"GET /vertex/.*/batchPredictionJobs/[^/]+", "aiplatform.batchPredictionJobs.get"),
    (r"POST /vertex/.*/batchPredictionJobs/[^/]+:cancel", "aiplatform.batchPredictionJobs.cancel"),
    (r"POST /vertex/.*:(generateContent|rawPredict)", "aiplatform.endpoints.predict"),
    (r"(POST|PUT) /gcs/upload/.*", "storage.objects.create"),
    (r"GET /gcs/storage/v1/b/[^/]+/o", "storage.objects.list"),
    (r"GET /gcs/(download/)?storage/v1/b/[^/]+/o/.+", "storage.objects.get"),
    (r"DELETE /gcs/storage/v1/b/[^/]+/o/.+", "storage.objects.delete"),
)


def test_vertex_roles_allow_what_is_called_and_nothing_else() -> None:
    with local_gcs(BUCKET) as storage_url, Emulator(gcs_url=storage_url) as emulator:
        provider = vertex(emulator, emulator.gcs_relay_url)
        # The SDK reads the bucket in the background, for its tracing, which works without this permission, too.
        look = f"GET /gcs/storage/v1/b/{BUCKET}"
        emulator.inject(WireFault(kind="status", status=403, route=look, times=None))
        live(provider, RequestSpec("gemini-2.5-flash"), emulator, "v", "POST /vertex/*/batchPredictionJobs")
        calls = {f"{call.method} {call.path}" for call in emulator.books.calls} - {look}
    files = ("vertex-role.yaml", "vertex-bucket-role.yaml")
    roles = [set(yaml.safe_load((POLICIES / name).read_text())["includedPermissions"]) for name in files]
    assert set().union(*roles) == _permissions(calls, _GOOGLE)
    assert all(permission.startswith("storage.") for permission in roles[1])


# Microsoft Foundry's documents of roles, and published templates (docs/how-to/permissions.md)
_ACCOUNT = "Microsoft.CognitiveServices/accounts/OpenAI/"
_AZURE = (
    (r"POST /v1/batches", f"{_ACCOUNT}batch-jobs/write"),
    (r"POST /v1/batches/[^/]+/cancel", f"{_ACCOUNT}batches/cancel/action"),
    (r"GET /v1/batches(/[^/]+)?", f"{_ACCOUNT}batches/read"),
    (r"POST /v1/files", f"{_ACCOUNT}files/write"),
    (r"GET /v1/files(/[^/]+(/content)?)?", f"{_ACCOUNT}files/read"),
    (r"DELETE /v1/files/[^/]+", f"{_ACCOUNT}files/delete"),
    (r"POST /v1/chat/completions", f"{_ACCOUNT}deployments/chat/completions/action"),
)


def test_azures_role_allows_what_is_called_and_nothing_else() -> None:
    with Emulator() as emulator:
        provider = preset("azure", api_key=DEFAULT_KEY, base_url=emulator.azure_base_url).provider()
        live(provider, RequestSpec("gpt-x"), emulator, "a", "POST /v1/batches")
        calls = {f"{call.method} {call.path.removeprefix('/openai')}" for call in emulator.books.calls}
    role = json.loads((POLICIES / "azure-role.json").read_text())
    assert set(role["DataActions"]) == _permissions(calls, _AZURE)
    assert role["Actions"] == []


def test_the_page_names_every_policy() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert {path.name for path in POLICIES.iterdir()} == set(re.findall(r"\(\.\./policies/([^)]+)\)", page))


def _permissions(calls: Iterable[str], table: Iterable[tuple[str, str]]) -> set[str]:
    """Return the permissions that these calls need. A call that the table lacks is an error."""
    found = {call: next((name for form, name in table if re.fullmatch(form, call)), None) for call in calls}
    assert None not in found.values(), [call for call, name in found.items() if name is None]
    return {name for name in found.values() if name is not None}


def _listed(actions: Any) -> list[str]:
    return [actions] if isinstance(actions, str) else actions
