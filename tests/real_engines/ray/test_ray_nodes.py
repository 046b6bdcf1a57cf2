"""A Ray of two nodes: a shard's rows are answered on both, and a lost node costs only time."""

from __future__ import annotations

from cluster import Cluster, family, kill_node
from ray_batches import asked, results, shouting, submit, until, wait_for_end

from dagster_llm_batch.types import BatchStatus


def test_rows_are_answered_on_all_nodes_and_a_node_that_dies_loses_none(cluster: Cluster, tmp_path):
    node = cluster.add_node()
    provider = shouting(tmp_path / "s", "shouting:Slow", workers=4, rows=1, at_once=1)  # a node has two CPUs
    texts = [f"wait {n}" for n in range(12)]
    batch_id = submit(provider, texts, "nodes")
    until(lambda: len(found := {pid for pid, _ in asked(tmp_path)}) > 2 and found & set(family(node.pid)))
    there = set(family(node.pid))
    lost = {text for pid, text in asked(tmp_path) if pid in there}
    kill_node(node)
    (tmp_path / "gate").touch()
    ended = wait_for_end(provider, batch_id)
    assert (ended.status, ended.done) == (BatchStatus.ENDED, 12)
    assert {result.text for result in results(provider, batch_id).values()} == {text.upper() for text in texts}
    again = [text for pid, text in asked(tmp_path) if pid not in there]
    assert sorted(again) == sorted(texts)  # rows of the dead node once more, other rows only once
    assert lost
    assert lost <= set(again)
