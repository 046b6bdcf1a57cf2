"""The whole journey in a real Dagster: a backfill submits, the daemon's sensor collects, GraphQL shows everything."""

from pathlib import Path

import pytest
from dagster_dev import dagster_dev, emulator, marked

from tests.browser import chromium, pages, photograph

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]

BACKFILL = """
mutation($keys: [AssetKeyInput!]!, $partitions: [String!]) {
  launchPartitionBackfill(backfillParams: {assetSelection: $keys, partitionNames: $partitions}) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}"""

RUN = """
mutation($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, mode: "default"}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""

MATERIALIZATIONS = """
query($key: AssetKeyInput!) {
  assetOrError(assetKey: $key) {
    ... on Asset {
      assetMaterializations(limit: 50) {
        partition runId
        metadataEntries {
          label
          ... on IntMetadataEntry { intValue }
          ... on FloatMetadataEntry { floatValue }
          ... on TextMetadataEntry { text }
          ... on MarkdownMetadataEntry { mdStr }
          ... on TableMetadataEntry { table { records schema { columns { name } } } }
        }
      }
    }
  }
}"""

OBSERVATIONS = """
query($key: AssetKeyInput!) {
  assetOrError(assetKey: $key) {
    ... on Asset {
      assetObservations(limit: 50) {
        partition runId metadataEntries { label ... on TextMetadataEntry { text } }
      }
    }
  }
}"""

CHECKS = """
query($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetChecksOrError {
        ... on AssetChecks {
          checks { name blocking }
        }
      }
    }
  }
}"""

EXECUTIONS = """
query($key: AssetKeyInput!, $check: String!) {
  assetCheckExecutions(assetKey: $key, checkName: $check, limit: 20) {
    status partition evaluation { success description partition }
  }
}"""

TICKS = """
query($selector: SensorSelector!) {
  sensorOrError(sensorSelector: $selector) {
    ... on Sensor { sensorState { ticks(limit: 100) { status skipReason runIds error { message } } } }
  }
}"""


class Reader:
    """GraphQL's records of assets."""

    def __init__(self, dev):
        self.dev = dev
        [repository] = dev.ask(
            "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
        )["repositoriesOrError"]["nodes"]
        self.place = {"repositoryName": repository["name"], "repositoryLocationName": repository["location"]["name"]}

    def materializations(self, name):
        """Return metadata of the newest materialization of each partition."""
        asset = self.dev.ask(MATERIALIZATIONS, key={"path": [name]})["assetOrError"]
        found = {}
        for one in asset.get("assetMaterializations", []):
            values = {
                entry["label"]: next((v for k, v in entry.items() if k != "label"), None)
                for entry in one["metadataEntries"]
            }
            found.setdefault(one["partition"], values)
        return found

    def landings(self, name):
        """Return the partition of each materialization."""
        asset = self.dev.ask(MATERIALIZATIONS, key={"path": [name]})["assetOrError"]
        return [one["partition"] for one in asset["assetMaterializations"]]

    def observations(self, name):
        """Return (partition, progress) of observations without a run."""
        asset = self.dev.ask(OBSERVATIONS, key={"path": [name]})["assetOrError"]
        told = [one for one in asset["assetObservations"] if not one["runId"]]
        texts = [{entry["label"]: entry.get("text") for entry in one["metadataEntries"]} for one in told]
        return [(one["partition"], text["llm_batch/progress"]) for one, text in zip(told, texts, strict=True)]

    def checks(self, name):
        """Return check results by partition and check."""
        node = self.dev.ask(CHECKS, key={"path": [name]})["assetNodeOrError"]
        found = {}
        for check in node["assetChecksOrError"]["checks"]:
            for one in self.dev.ask(EXECUTIONS, key={"path": [name]}, check=check["name"])["assetCheckExecutions"]:
                if one["evaluation"]:
                    found[one["partition"], check["name"]] = one["evaluation"]["success"]
        return found

    def materialize(self, *names):
        selector = {**self.place, "pipelineName": "__ASSET_JOB", "assetSelection": [{"path": [name]} for name in names]}
        result = self.dev.ask(RUN, selector=selector)["launchRun"]
        assert result["__typename"] == "LaunchRunSuccess", result

    def backfill(self, name, partitions):
        result = self.dev.ask(BACKFILL, keys=[{"path": [name]}], partitions=partitions)["launchPartitionBackfill"]
        assert result["__typename"] == "LaunchBackfillSuccess", result

    def failed_runs(self):
        return self.dev.ask(
            "{ runsOrError(filter: {statuses: [FAILURE]}) { ... on Runs { results { runId jobName } } } }"
        )["runsOrError"]["results"]

    def ticks(self):
        selector = {**self.place, "sensorName": "llm_batch_sensor"}
        return self.dev.ask(TICKS, selector=selector)["sensorOrError"]["sensorState"]["ticks"]


@pytest.mark.journey
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_partitions_go_from_one_backfill_to_labels_checks_evaluation_and_pages_of_a_real_dagster(
    tmp_path,
):
    """Start a real Dagster, which takes half a minute, and then works at its daemon's pace."""
    definitions = Path(__file__).with_name("live_defs.py")
    with emulator(tmp_path) as env, dagster_dev(tmp_path, definitions, env) as dev:
        seen = Reader(dev)
        seen.materialize("ticket_gold")
        seen.backfill("ticket_labels_batch", DAYS)
        landed = dev.until(
            "three labeled partitions",
            lambda: len(found := seen.materializations("ticket_labels")) == len(DAYS) and found,
        )
        assert sorted(landed) == DAYS
        for day in DAYS:
            told = landed[day]
            assert told["dagster/partition_row_count"] == 4
            assert told["llm_batch/rows_succeeded"] == 4
            assert told["llm_batch/cost_usd"] == pytest.approx(told["llm_batch/realtime_cost_usd"] / 2)
            assert f"{day}-0" in str(told["llm_batch/preview"])
        assert len({told["llm_batch/submission_id"] for told in landed.values()}) == len(DAYS)
        expected = {(day, check): True for day in DAYS for check in ("coverage", "parse_rate", "spend")}
        assert dev.until("the checks", lambda: (found := seen.checks("ticket_labels")) == expected and found)
        assert sorted(seen.materializations("ticket_labels_rejects")) == DAYS

        evaluated = dev.until(
            "an evaluation of all partitions",
            lambda: (
                (found := seen.materializations("ticket_eval").get(None))
                and found["llm_batch/partitions"] == 3
                and found
            ),
        )
        assert evaluated["llm_batch/gold_rows"] == 12
        assert evaluated["llm_batch/coverage of ticket_labels"] == 1
        assert 0 <= evaluated["llm_batch/accuracy of ticket_labels"] <= 1
        assert "ticket" in evaluated["llm_batch/evaluation"]
        assert seen.failed_runs() == []
        ticks = seen.ticks()
        assert sorted(seen.landings("ticket_labels")) == DAYS  # each one once
        assert [tick["error"] for tick in ticks if tick["status"] == "FAILURE"] == []
        assert any("in flight" in (tick["skipReason"] or "") for tick in ticks)
        ended = {day for day, text in seen.observations("ticket_labels") if "4 of 4 requests done (100 %)" in text}
        assert ended == set(DAYS)
        if found := chromium():
            location = seen.place["repositoryLocationName"]
            wanted = pages(
                dev.ask, labels="ticket_labels", partition=DAYS[0], evaluation="ticket_eval", location=location
            )
            assert photograph(dev.url, wanted, tmp_path) == []
            assert {one.stem for one in tmp_path.glob("*.png")} == {page.name for page in wanted}
    assert marked(str(tmp_path)) == []
    if not found:
        pytest.skip("All but the pages was tested: there is no Chromium on this machine.")
