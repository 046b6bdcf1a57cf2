"""A deployment's AWS settings also serve Bedrock, and remain secret."""

from __future__ import annotations

import warnings

import dagster as dg
import pytest

from dagster_llm_batch import BedrockBatchResource
from dagster_llm_batch.errors import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # dagster-aws warns when its patch version is not Dagster's
    from dagster_aws.s3 import S3Resource
    from dagster_aws.utils import ResourceWithBoto3Configuration

PLACE = {"role_arn": "arn:aws:iam::123456789012:role/x", "s3_uri": "s3://bucket/x"}


def test_it_has_every_setting_that_dagster_aws_has():
    assert set(ResourceWithBoto3Configuration.model_fields) <= set(BedrockBatchResource.model_fields)


def test_it_takes_over_the_settings_of_another_aws_resource(monkeypatch):
    monkeypatch.setenv("A_SECRET", "secret-value")
    secret = dg.EnvVar("A_SECRET")
    s3 = S3Resource(region_name="eu-west-1", max_attempts=7, aws_access_key_id="a", aws_secret_access_key=secret)
    bedrock = BedrockBatchResource.like(s3, **PLACE)
    assert (bedrock.region_name, bedrock.max_attempts) == ("eu-west-1", 7)
    assert "secret-value" not in repr(bedrock)
    provider = bedrock.process_config_and_initialize().provider()
    assert provider.account == "bedrock.eu-west-1.amazonaws.com/123456789012"
    assert "secret-value" not in repr(provider)


def test_a_region_may_come_from_the_environment_and_must_come_from_somewhere(monkeypatch, tmp_path):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="needs a region"):
        BedrockBatchResource(**PLACE).provider()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert "us-west-2" in BedrockBatchResource(**PLACE).provider().account
