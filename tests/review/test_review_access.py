"""Access to the pages, and the information that a browser gets about them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.review.access import SESSION_PATH, Door, link_to, linkable
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import HOSTS, review_app
from dagster_llm_batch.review.tables import StoredAsset

TABLE = StoredAsset("labels", row_key="id", others=("",), load=lambda _partition: pa.table({"id": ["a"]}))


def app(door: Door, *hosts: str):
    nothing = SimpleNamespace()  # the pages of a table read neither ledger nor payloads
    return review_app(ReviewedDeployment("here", nothing, nothing, "test", lambda: [TABLE]), door, [*HOSTS, *hosts])


NAVIGATION = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}


def open_session(client, token: str):
    return client.ask("POST", SESSION_PATH, token, Origin=f"http://127.0.0.1:{client.port}")


def test_a_token_opens_once_and_becomes_a_secret_that_only_a_header_carries(serve):
    door = Door()
    client = serve(app(door))
    token = door.token()
    assert client.get("/table/labels").status == 403
    opened = open_session(client, token)
    secret = json.loads(opened.text)["secret"]
    assert opened.status == 200
    assert "set-cookie" not in opened.headers
    assert client.get("/table/labels", X_Review_Secret=secret).status == 200
    assert client.get("/table/labels", Cookie=f"llm_batch_review={secret}; x-review-secret={secret}").status == 403
    assert client.get(f"/table/labels?secret={secret}&token={token}").status == 403
    again = open_session(client, token)
    assert again.status == 403
    assert "was used before" in again.text
    assert f"dagster-llm-batch review --link --port {client.port}" in again.text
    assert open_session(client, door.token()).status == 200


@pytest.mark.parametrize(
    "change", [lambda _: "", lambda t: "." + t.partition(".")[2], lambda t: t[:-1], lambda t: f"{t}0"]
)
def test_another_token_opens_nothing(serve, change):
    door = Door()
    client = serve(app(door))
    for token in (change(door.token()), change(Door().token()), Door().token(), "x" * 100_000, "\u00fc."):
        assert open_session(client, token.encode().decode("latin-1")).status == 403


@pytest.mark.parametrize("secret", ["", "x", "\u00fc", "x" * 8_000])
def test_another_secret_opens_nothing(serve, secret):
    door = Door()
    client = serve(app(door))
    client.come_in(door.token())
    client.secret = ""
    assert client.get("/", X_Review_Secret=secret.encode().decode("latin-1")).status == 403


def test_a_session_lasts_for_a_day_after_its_last_use(serve):
    hours = [0]
    door = Door(now=lambda: hours[0] * 3600.0)
    client = serve(app(door))
    client.come_in(door.token())
    for hour in (23, 46, 69):
        hours[0] = hour
        assert client.get("/").status == 200
    hours[0] += 25
    assert client.get("/").status == 403


def test_a_link_to_a_page_that_is_served_is_made_by_its_user_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    door = Door()
    with linkable(door, 8800):
        [file] = (tmp_path / "state").rglob("*.json")
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        link = link_to(8800)
        assert link.startswith("http://127.0.0.1:8800/#token=")
        assert door.open(link.partition("#token=")[2])
        assert Door().open(link_to(8800).partition("#token=")[2]) is None
        with pytest.raises(ConfigError, match="No page of yours is served on port 8801"):
            link_to(8801)
    with pytest.raises(ConfigError, match="No page of yours"):
        link_to(8800)
    (tmp_path / "state").rename(tmp_path / "old")
    (tmp_path / "state").write_text("no folder")
    with linkable(door, 8800), pytest.raises(ConfigError, match="No page of yours"):
        link_to(8800)


def test_a_page_without_its_secret_is_a_shell_that_holds_nothing(serve):
    door = Door()
    client = serve(app(door))
    shells = [client.get(path, **NAVIGATION).text for path in ("/", "/table/labels", "/table/none", "//evil.example")]
    assert len(set(shells)) == 1
    assert "labels" not in shells[0]
    for dest in ("iframe", "image", "empty", "script"):
        assert client.get("/", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest=dest).status == 403
    assert client.ask("POST", "/", "x=1", Origin=f"http://127.0.0.1:{client.port}", **NAVIGATION).status == 403


def test_every_answer_keeps_rows_from_being_more_than_text(serve):
    door = Door()
    client = serve(app(door))
    refused = client.get("/")
    client.come_in(door.token())
    for answer in (refused, client.get("/"), client.get("/table/none"), client.get("/static/review.js")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_another_name_that_leads_here_is_refused(serve):
    door = Door()
    client = serve(app(door, "labels.team.example"))
    client.come_in(door.token())
    assert client.get("/", Host="evil.example").status == 400
    assert client.get("/", Host="labels.team.example").status == 200


def test_a_form_of_another_site_does_nothing(serve):
    door = Door()
    client = serve(app(door))
    client.come_in(door.token())
    for origin in ("http://evil.example", "null", "", f"http://127.0.0.1:{client.port + 1}"):
        for path in ("/table/labels", SESSION_PATH):
            refused = client.ask("POST", path, "x=1", Origin=origin)
            assert (refused.status, "another site" in refused.text) == (403, True)
    own = client.ask("POST", "/table/labels", "x=1", Origin=f"http://127.0.0.1:{client.port}")
    assert own.status == 405  # the page takes no form, but the gate lets it through


def test_a_proxy_says_who_is_there_and_only_by_the_header_that_was_named(serve):
    client = serve(app(Door(user_header="X-Forwarded-User")))
    assert client.get("/", X_Other="ada").status == 403
    assert client.get("/", X_Forwarded_User="  ").status == 403
    shown = client.get("/", X_Forwarded_User="<b>ada</b>")
    assert shown.status == 200
    assert "&lt;b&gt;ada&lt;/b&gt;" in shown.text
    nobody = serve(app(Door()))
    assert nobody.get("/", X_Forwarded_User="ada").status == 403


def test_a_page_behind_a_proxy_takes_forms_by_the_name_that_people_know(serve):
    """Use the proxy of docs/how-to/look-at-rows.md: it signs people in, and calls this machine by its address."""
    door = Door("X-Forwarded-User", ["labels.example.com"])
    client = serve(app(door, "labels.example.com"))
    for host in ("labels.example.com", f"127.0.0.1:{client.port}"):
        sent = {"X_Forwarded_User": "ada", "Host": host}
        assert client.get("/table/labels", **sent).status == 200
        # The page takes no form, but the gate lets it through.
        assert client.ask("POST", "/table/labels", "x=1", Origin="https://labels.example.com", **sent).status == 405
        for origin in (
            "https://evil.example",
            "https://labels.example.com.evil.example",
            "https://labels.example.com:9999",
            "ftp://labels.example.com",
            "null",
        ):
            assert client.ask("POST", "/table/labels", "x=1", Origin=origin, **sent).status == 403


def test_a_form_behind_a_proxy_is_of_the_port_that_was_allowed_and_of_the_scheme_that_the_proxy_names(serve):
    client = serve(app(Door("X-Forwarded-User", ["labels.example.com:8443"]), "labels.example.com:8443"))

    def send(origin: str, host: str, **more: str) -> int:
        return client.ask(
            "POST", "/table/labels", "x=1", Origin=origin, Host=host, X_Forwarded_User="ada", **more
        ).status

    for host in ("labels.example.com:8443", f"127.0.0.1:{client.port}"):
        assert send("https://labels.example.com:8443", host) == 405
        assert send("https://labels.example.com:8443", host, X_Forwarded_Proto="https") == 405
        assert send("http://labels.example.com:8443", host, X_Forwarded_Proto="https") == 403
        for origin in ("https://labels.example.com", "https://labels.example.com:8444"):
            assert send(origin, host) == 403
