"""Who may see the pages, and what a browser is told of them."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest

from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import HOSTS, review_app
from dagster_llm_batch.review.tables import StoredAsset

TABLE = StoredAsset("labels", row_key="id", others=("",), load=lambda _partition: pa.table({"id": ["a"]}))


def app(door: Door, *hosts: str):
    nothing = SimpleNamespace()  # neither ledger nor payloads are asked for a table
    return review_app(ReviewedDeployment("here", nothing, nothing, "test", lambda: [TABLE]), door, [*HOSTS, *hosts])


def test_the_token_opens_once_and_becomes_a_strict_cookie(serve):
    door = Door()
    client = serve(app(door))
    assert client.get("/").status == 403
    assert client.get("/?token=wrong").status == 403
    opened = client.get(f"/table/labels?q=x&token={door.token}")
    assert (opened.status, opened.headers["location"]) == (303, "/table/labels?q=x")
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert door.token not in cookie
    assert client.get("/").status == 200
    client.cookie = ""
    again = client.get(f"/?token={door.token}")
    assert again.status == 403
    assert "works once, and was used" in again.text


@pytest.mark.parametrize("path", ["//evil.example", "/%2F/evil.example", "/\\evil.example"])
def test_the_token_never_leads_to_another_host(serve, path):
    door = Door()
    opened = serve(app(door)).get(f"{path}?token={door.token}")
    assert opened.status == 303
    assert opened.headers["location"].startswith("/")
    assert not opened.headers["location"].startswith(("//", "/\\"))


@pytest.mark.parametrize("cookie", ["llm_batch_review=", "llm_batch_review=x", "llm_batch_review=ü", "a=b; ;;=", '"'])
def test_another_cookie_opens_nothing(serve, cookie):
    client = serve(app(Door()))
    client.cookie = cookie.encode().decode("latin-1")
    assert client.get("/").status == 403


def test_every_answer_keeps_rows_from_being_more_than_text(serve):
    door = Door()
    client = serve(app(door))
    refused = client.get("/")
    client.come_in(door.token)
    for answer in (refused, client.get("/"), client.get("/table/none"), client.get("/static/review.js")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_another_name_that_leads_here_is_refused(serve):
    door = Door()
    client = serve(app(door, "labels.team.example"))
    client.come_in(door.token)
    assert client.get("/", Host="evil.example").status == 400
    assert client.get("/", Host="labels.team.example").status == 200


def test_a_link_of_another_site_is_asked_once_more_and_then_answered_with_the_cookie(serve):
    door = Door()
    client = serve(app(door))
    navigation = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    # What a browser sends for a link on another site: no strict cookie.
    bounced = client.get("/table/labels", Sec_Fetch_Site="cross-site", **navigation)
    assert (bounced.status, 'http-equiv="refresh"' in bounced.text) == (200, True)
    assert "labels" not in bounced.text
    # And for the page's own second question: the cookie, where there is one.
    assert client.get("/table/labels", Sec_Fetch_Site="same-origin", **navigation).status == 403
    client.come_in(door.token)
    assert client.get("/table/labels", Sec_Fetch_Site="same-origin", **navigation).status == 200
    client.cookie = ""
    for dest in ("iframe", "image", "empty"):
        assert (
            client.get("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest=dest).status == 403
        )


def test_a_form_of_another_site_does_nothing(serve):
    door = Door()
    client = serve(app(door))
    client.come_in(door.token)
    for origin in ("http://evil.example", "null", "", f"http://127.0.0.1:{client.port + 1}"):
        refused = client.ask("POST", "/table/labels", "x=1", Origin=origin)
        assert (refused.status, "another site" in refused.text) == (403, True)
    own = client.ask("POST", "/table/labels", "x=1", Origin=f"http://127.0.0.1:{client.port}")
    assert own.status == 405  # the page takes no form; the gate let it through


def test_a_proxy_says_who_is_there_and_only_by_the_header_that_was_named(serve):
    client = serve(app(Door(user_header="X-Forwarded-User")))
    assert client.get("/", X_Other="ada").status == 403
    assert client.get("/", X_Forwarded_User="  ").status == 403
    shown = client.get("/", X_Forwarded_User="<b>ada</b>")
    assert shown.status == 200
    assert "&lt;b&gt;ada&lt;/b&gt;" in shown.text
    nobody = serve(app(Door()))
    assert nobody.get("/", X_Forwarded_User="ada").status == 403
