"""The page of `review` and `export-tasks` hide values that a mask finds, unless the mask has "original"."""

from __future__ import annotations

import html
import json
import re
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import dagster as dg
import polars as pl
import pytest
from code_location import LABELS, CodeLocation
from starlette.testclient import TestClient
from test_restored_values import answer, mask, replies, tickets

from dagster_llm_batch import HiveParquetIOManager, Mask, Prompt, evaluation_assets
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.cli import code_location as cli
from dagster_llm_batch.cli.review import _forms, _stored_assets
from dagster_llm_batch.cli.tasks import _form, _tasks
from dagster_llm_batch.review.access import SECRET_HEADER, SESSION_PATH, Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.masked_rows import hidden_row, hidden_text, row_keys, row_masks
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text

VALUE = "@x.org"
BODIES = ("number 1 of ann@x.org", "number 2 of bob@x.org or cleo@x.org", "number 3 of ann@x.org")


@dg.asset
def mails() -> pl.DataFrame:
    return tickets(*BODIES)


@dg.asset
def gold() -> pl.DataFrame:
    topics = ["bug", "billing", "billing"]
    return pl.DataFrame({"ticket_id": ["t0", "t1", "t2"], "topic": topics, "seen": ["dan@x.org", "", "dan@x.org"]})


@dg.asset(deps=[LABELS])
def other_names() -> pl.DataFrame:
    return pl.DataFrame({"ticket_id": ["t0"], "renamed": ["dan@x.org"], "nested": [{"a": ["dan@x.org"]}]})


@dg.asset
def unconnected() -> pl.DataFrame:
    return pl.DataFrame({"ticket_id": ["t9"], "own": ["dan@example.com"]})


def echo(body: Any, endpoint: str) -> Any:
    """Answer with the text of the row, too."""
    return {**answer(body, endpoint), "note": last_user_text(body)}


@pytest.fixture
def landed(instance: dg.DagsterInstance, tmp_path: Any) -> Any:
    """Return a function that materializes a dataset with this mask, and returns the deployment that commands see."""
    with ExitStack() as stack:

        def land(review: str) -> Any:
            emulator = stack.enter_context(Emulator(answer=echo))
            dataset = replies("mails", replace(mask(), review=review))
            judged = evaluation_assets(
                name="judged", gold="gold", candidates=[dataset], key="ticket_id", target="topic", keep=["reply"]
            )
            plain = replies("mails", name="plain", prompt=Prompt(user="{{ body }}"))
            # Its key has the name of a column of other_names, but the two are not connected.
            strangers = replies(lambda _context: None, name="strangers", key="renamed")
            location = CodeLocation(
                emulator,
                instance,
                *(mails, gold, other_names, unconnected, *dataset, *judged, *plain, *strangers),
                resources={"io_manager": HiveParquetIOManager(root=str(tmp_path / "tables"))},
                payload_root=str(tmp_path / "payloads"),
                ledger_url=str(tmp_path / "ledger.db"),
            )
            assert location.run("mails", "gold", "unconnected").success
            assert location.land().success
            assert location.run("plain_batch").success
            emulator.settle()
            assert location.run("plain", "plain_rejects").success
            keys = [spec.key.to_user_string() for assets in judged for spec in assets.specs]
            assert location.run("other_names", *keys).success
            engine = location.engine()
            stack.callback(engine.ledger.close)
            code = cli.CodeLocation(SimpleNamespace(), location.repository, instance)
            return SimpleNamespace(
                code=code, engine=engine, ledger=engine.ledger, payloads=engine.payloads, namespace="default"
            )

        yield land


def read_all(deployment: Any) -> dict[str, str]:
    """Return all pages that links lead to, by their addresses."""
    door = Door()
    reviewed = ReviewedDeployment(
        "here", deployment.ledger, deployment.payloads, "default", lambda: list(_stored_assets(deployment))
    )
    reviewed = replace(reviewed, forms=_forms(deployment))
    client = TestClient(review_app(reviewed, door, ["testserver"]), base_url="http://testserver")
    opened = client.post(SESSION_PATH, content=door.token(), headers={"Origin": "http://testserver"})
    headers = {SECRET_HEADER: opened.json()["secret"]}
    pages: dict[str, str] = {}
    waiting = ["/"]
    while waiting and len(pages) < 150:
        path = waiting.pop(0)
        if path in pages or path.startswith("/static"):
            continue
        pages[path] = client.get(path, headers=headers).text
        found = re.findall(r'href="([^"#]+)"', pages[path])
        waiting += [html.unescape(each) for each in found if each.startswith("/")]
    return pages


@pytest.mark.slow
def test_no_page_has_a_value_of_a_table_that_is_connected_with_a_masked_dataset(landed):
    """Run a Dagster, and read all pages that links lead to."""
    deployment = landed("masked")
    pages = read_all(deployment)
    kinds = {path.split("/")[1] for path in pages}
    assert kinds >= {"table", "row", "label", "evaluation", "failures"}
    assert not [path for path, text in pages.items() if VALUE in text]
    row = next(text for path, text in pages.items() if path.startswith(f"/row/{LABELS}?") and "key=t1" in path)
    assert "number 2 of [EMAIL_1] or [EMAIL_2]" in row
    assert any("dan@example.com" in text for path, text in pages.items() if "unconnected" in path)
    # The second dataset of the same rows has no mask: its requests and replies have the values.
    sent = [text for path, text in pages.items() if path.startswith("/row/plain?")]
    assert sent
    assert all("As it was sent" in text and "[EMAIL" in text for text in sent)
    assert any(path.startswith("/label/") and "as=plain" in path for path in pages)
    for name in (LABELS, "plain"):
        assert VALUE not in exported(deployment, name)
    assert "number 1 of [EMAIL" in exported(deployment, "plain")


def test_only_keys_and_columns_of_this_package_that_no_mask_names_stay():
    value = "dan@x.org"
    names = ("id", "partition", "case_id", "examples", "llm_model", "llm_reply", "llm_reason", "email", "other")
    row = dict.fromkeys(names, value)

    def staying(mask: Mask, key: str, *, is_ours: bool) -> set[str]:
        hidden = hidden_row(mask, is_ours=is_ours)(row, key)
        return {name for name, shown in hidden.items() if shown == value}

    named = Mask(columns=["body"])
    assert staying(named, "id", is_ours=True) == {"id", "partition", "case_id", "examples", "llm_model"}
    assert staying(named, "id", is_ours=False) == {"id"}
    assert staying(Mask(columns=["email", "case_id"]), "email", is_ours=True) == {"partition", "examples", "llm_model"}


def test_only_datasets_that_a_table_is_connected_with_have_keys_of_its_rows():
    dataset, plain = replies("mails"), replies("mails", name="plain", prompt=Prompt(user="{{ body }}"), key="subject")
    strangers = replies("others", name="strangers", key="email", prompt=Prompt(user="{{ body }}"))
    specs = [dg.AssetSpec("mails"), *(spec for each in (*dataset, *plain, *strangers) for spec in each.specs)]
    datasets = [dataset_of(each) for each in (dataset, plain, strangers)]
    keys, masks = row_keys(specs, datasets), row_masks(specs, datasets)
    assert keys[dg.AssetKey("mails")] == ("ticket_id", "subject")
    assert keys[dg.AssetKey("strangers")] == ("email",)
    assert {dg.AssetKey("plain"), dg.AssetKey("mails"), dg.AssetKey(LABELS)} <= masks.keys()
    assert dg.AssetKey("strangers") not in masks


def test_requests_of_a_dataset_are_hidden_unless_its_own_mask_finds_all_values():
    both, emails = Mask(columns=["body"], what=["email", "ip"]), Mask(columns=["body"], what=["email"])
    assert hidden_text(both, both) is None
    for own in (None, emails):
        hide = hidden_text(both, own)
        assert hide is not None
        assert not re.search("x.org|10.0", str(hide({"messages": [{"ann@x.org": "10.0.0.1"}]})))


def exported(deployment: Any, name: str = LABELS) -> str:
    dataset = deployment.code.datasets[name]
    tasks = _tasks(deployment, dataset, _form(dataset), None, (), predictions=True)
    return json.dumps([str(task) for task in tasks])


@pytest.mark.slow
def test_a_mask_that_says_original_shows_tables_as_they_are_stored(landed):
    """Run a Dagster, and read all pages that links lead to."""
    deployment = landed("original")
    pages = read_all(deployment)
    for table in ("mails", LABELS, "other_names"):
        assert any(VALUE in text for path, text in pages.items() if path.startswith(f"/table/{table}")), table
    assert VALUE in exported(deployment)
