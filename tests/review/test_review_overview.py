"""The first page: the quality of the labels, and a person's next steps."""

from __future__ import annotations

import html
import re
import threading
import time
from collections import Counter, UserDict
from types import SimpleNamespace
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_dataset import BEFORE, FORM, GOLD, store_dataset

from dagster_llm_batch.metrics import Target, compare, evaluations_to_arrow
from dagster_llm_batch.metrics.failures import failures_to_arrow, find_failures
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore


@pytest.fixture
def desk(serve, tmp_path):
    """Serve a dataset of two days with an evaluation, and, on request, a sample to judge."""
    assets, sample = store_dataset(tmp_path)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")

    def open_page(*, with_sample: bool = False, waiting=()):
        more = [sample] if with_sample else []
        deployment = ReviewedDeployment(
            "here",
            ledger,
            PayloadStore(str(tmp_path / "p")),
            "test",
            lambda: [*assets, *more],
            forms=[FORM],
            judged={"tickets": "gold"},
            waiting=lambda: waiting,
        )
        return serve(review_app(deployment, Door(user_header="X-User")))

    yield open_page, tmp_path
    ledger.close()


def words_of(client, path: str = "/") -> str:
    answer = client.get(path, X_User="ada")
    assert answer.status == 200, answer.text
    spaced = re.sub(r"<(?!/?(bdi|span))[^>]+>", " ", answer.text.partition("<main")[2])
    return " ".join(html.unescape(re.sub("<[^>]+>", "", spaced)).split())


def acts_of(client) -> list[tuple[str, str]]:
    text = client.get("/", X_User="ada").text
    found = re.findall(r'<a class="button[^"]*" href="([^"]*)">([^<]*)<', text)
    return [(words, html.unescape(url)) for url, words in found]


def test_the_first_page_shows_quality_cost_counts_and_the_last_materialization(desk):
    open_page, _ = desk
    words = words_of(open_page())
    assert "92% right (80% to 98%) in column topic, by 40 gold rows in quality" in words
    assert "Labeled 40 of 42 rows" in words
    assert "Cost $0.00" in words
    assert "Last materialized 2026-05-04 03:02 UTC" in words
    assert "Waiting for a person nothing" in words
    assert "d1: 30 rows labeled, 0 without a label" in words
    assert "d2: 10 rows labeled, 2 without a label" in words


def test_the_first_button_is_the_next_useful_act_and_each_leads_somewhere(desk):
    open_page, _ = desk
    client = open_page(with_sample=True)
    acts = acts_of(client)
    assert [words for words, _ in acts[:3]] == ["Judge 5 rows", "See 3 mistakes", "See 2 rows without a label"]
    for words, url in acts:
        if words != "Prompt and notes":
            assert client.get(url, X_User="ada").status == 200
    form = {"form_id": "f", "partition": "", "row_key": "t0", "kind": "label", "answer_topic": '"bug"'}
    sent = {"Origin": f"http://127.0.0.1:{client.port}", "Content_Type": "application/x-www-form-urlencoded"}
    assert client.ask("POST", acts[0][1], urlencode(form), X_User="ada", **sent).status == 303
    assert acts_of(client)[0][0] == "Judge 4 rows"
    assert "Waiting for a person 4 rows to judge" in words_of(client)
    assert acts_of(open_page())[0][0] == "See 3 mistakes"
    for row in ("t1", "t2", "t3", "t4"):
        skip = {"form_id": row, "partition": "", "row_key": row, "kind": "skip"}
        assert client.ask("POST", acts[0][1], urlencode(skip), X_User="ada", **sent).status == 303
    words = [words for words, _ in acts_of(client)]
    assert words[:2] == ["See 3 mistakes", "Judge 4 rows that you skipped"]
    assert "your answers become gold in gold about half a minute after" in words_of(client, acts[0][1])


def test_buttons_for_the_mistakes_of_several_evaluations_name_them(serve, tmp_path):
    assets, _ = store_dataset(tmp_path)
    few = pq.read_table(tmp_path / "quality_mistakes.parquet").slice(0, 1)
    pq.write_table(few, tmp_path / "mine_mistakes.parquet")
    mine = StoredAsset("mine_mistakes", role="evaluation", files={"": str(tmp_path / "mine_mistakes.parquet")})
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    deployment = ReviewedDeployment("here", ledger, PayloadStore(str(tmp_path / "p")), "test", lambda: [*assets, mine])
    client = serve(review_app(deployment, Door(user_header="X-User")))
    words = [words for words, _ in acts_of(client)]
    ledger.close()
    assert {"See 3 mistakes by quality", "See 30 mistakes by quality", "See 1 mistake by mine"} <= set(words)


def test_rows_that_others_have_judged_are_offered_for_a_second_opinion_after_mistakes(desk):
    open_page, _ = desk
    client = open_page(with_sample=True)
    sent = {"Origin": f"http://127.0.0.1:{client.port}", "Content_Type": "application/x-www-form-urlencoded"}
    for number in range(5):
        form = {"form_id": f"f{number}", "partition": "", "row_key": f"t{number}", "kind": "undecidable"}
        assert client.ask("POST", "/label/to_judge?as=tickets", urlencode(form), X_User="bob", **sent).status == 303
    acts = acts_of(client)
    assert [words for words, _ in acts[:2]] == ["See 3 mistakes", "Give a second opinion on 5 rows"]
    assert "5 rows left for a second opinion" in words_of(client, acts[1][1])


def test_gold_and_the_people_who_made_it_are_called_so(serve, tmp_path):
    judged = pa.table({"id": ["t0"], "topic": ["bug"], "gold_outcome": ["agreed"], "agreement": [1.0]})
    raters = pa.table({"annotator": ["ada"], "target": ["topic"], "n_labels": [1], "agreement": [1.0]})
    for name, table in {"gold": judged, "gold_raters": raters}.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assets = [
        StoredAsset(name, role="annotation", files={"": str(tmp_path / f"{name}.parquet")})
        for name in ("gold", "gold_raters")
    ]
    ledger, payloads = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), PayloadStore(str(tmp_path / "p"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: assets)
    words = words_of(serve(review_app(deployment, Door(user_header="X-User"))))
    ledger.close()
    assert "gold gold by people" in words
    assert "gold_raters people who judged" in words


def test_a_table_is_called_what_it_is(desk):
    open_page, _ = desk
    words = words_of(open_page(with_sample=True)).partition("All tables")[2]
    assert "to_judge gold sample" in words
    assert "quality evaluation" in words
    assert "quality_mistakes mistakes" in words
    assert "quality_failures mistakes in groups" in words
    assert "shop/tickets_rejects rejects, 1 partition" in words


def test_what_waits_for_a_person_is_shown_with_its_advice(desk):
    open_page, _ = desk
    words = words_of(open_page(waiting=[("tickets", "A batch is in doubt <b>: run resolve."), ("other", "Not here.")]))
    assert "A batch is in doubt <b>: run resolve." in words
    assert "Waiting for a person 1 task" in words
    assert "Not here." not in words
    told = [("tickets", "A batch is in doubt."), ("tickets", "Its queue is full.")]
    assert "Waiting for a person 2 tasks, 5 rows to judge" in words_of(open_page(with_sample=True, waiting=told))


def test_the_evaluation_with_the_most_gold_rows_comes_first(serve, tmp_path):
    """An evaluation by two rows can be 100% by chance."""
    assets, _ = store_dataset(tmp_path)
    gold = pa.table({"id": ["t0", "t1"], "topic": ["bug", "bug"]})
    few = compare(gold, {"tickets": pq.read_table(tmp_path / "d1.parquet")}, key="id", targets=["topic"])
    pq.write_table(evaluations_to_arrow(few.evaluations), tmp_path / "few.parquet")
    first = StoredAsset("few", role="evaluation", files={"": str(tmp_path / "few.parquet")})
    ledger, payloads = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), PayloadStore(str(tmp_path / "p"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: [first, *assets])
    words = words_of(serve(review_app(deployment, Door(user_header="X-User"))))
    ledger.close()
    assert 0 < words.find("by 40 gold rows in quality") < words.find("by 2 gold rows in few")


def test_the_first_page_looks_once_for_all_datasets_for_what_waits_for_a_person(serve, tmp_path):
    assets, _ = store_dataset(tmp_path)
    ledger, asked = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), []

    def waiting():
        asked.append(1)
        return [("tickets", "A batch is in doubt."), ("rules", "The queue is full.")]

    payloads = PayloadStore(str(tmp_path / "p"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: assets, waiting=waiting)
    words = words_of(serve(review_app(deployment, Door(user_header="X-User"))))
    ledger.close()
    assert words.count("Waiting for a person 1 task") == 2
    assert asked == [1]


def test_a_page_does_not_wait_for_a_new_list_of_tables_while_it_is_in_use():
    released, calls, clock = threading.Event(), [], [0.0]

    def look():
        calls.append(clock[0])
        if len(calls) == 2:
            released.wait(20)
        return [StoredAsset(f"listed {len(calls)}")]

    nothing = SimpleNamespace()  # the list of tables needs neither ledger nor payloads
    deployment = ReviewedDeployment("here", nothing, nothing, "test", look, now=lambda: clock[0])

    def listed():
        return [asset.key for asset in deployment.assets()]

    assert listed() == listed() == ["listed 1"]
    clock[0] = 11.0
    assert listed() == listed() == ["listed 1"]
    released.set()
    for _ in range(1_000):
        if listed() == ["listed 2"]:
            break
        time.sleep(0.01)
    assert listed() == ["listed 2"]
    assert calls == [0.0, 11.0]
    # After a pause, an old list would surprise.
    clock[0] = 100.0
    assert listed() == ["listed 3"]


def test_damaged_tables_keep_nobody_from_the_first_page(desk):
    open_page, folder = desk
    for name in ("quality", "quality_mistakes", "rejects"):
        (folder / f"{name}.parquet").write_bytes(b"no Parquet")
    words = words_of(open_page())
    assert "No evaluation has measured these labels yet." in words
    assert "Labeled not counted" in words


def test_a_mistake_compares_gold_with_each_label_whatever_its_column_is_named(desk):
    open_page, _ = desk
    client = open_page()
    words = words_of(client, "/row/quality_mistakes?by=id&key=t28")
    assert "Gold and labels of topic" in words
    assert "Gold bug human label" in words
    assert "tickets billing wrong" in words
    assert "rules billing wrong Confidence: 25%" in words
    words = words_of(client, "/row/quality_mistakes?by=id&key=t3")
    assert "tickets bug right" in words
    assert "rules billing wrong" in words
    row, _, compared = words.partition("Gold and labels")
    assert "tickets_label" not in row
    # The table of mistakes does not keep the text, but the labels do.
    assert "body Text <i>t3" in row
    assert "body" not in compared
    assert "confidence:" not in compared


def test_an_evaluation_names_the_worst_class_of_each_candidate_and_leads_to_its_mistakes(desk):
    open_page, _ = desk
    client = open_page()
    words = words_of(client, "/evaluation/quality")
    assert "The worst class is bug : 90% (73% to 98%) of its 30 labeled gold rows have the right label." in words
    assert "The worst class is bug : 0% (0% to 12%) of its 30 labeled gold rows have the right label." in words
    links = re.findall(r'<a href="([^"]*)">See its mistakes', client.get("/evaluation/quality", X_User="ada").text)
    shown = [words_of(client, html.unescape(link)) for link in links]
    assert ["3 of 30 rows" in shown[0], "30 rows" in shown[1]] == [True, True]


def test_each_table_of_an_evaluation_and_each_mistake_lead_back_to_the_evaluation(desk):
    open_page, _ = desk
    client = open_page()

    def path_of(path: str) -> list[str]:
        text = client.get(path, X_User="ada").text.partition('aria-label="Breadcrumb"')[2].partition("</nav>")[0]
        return re.findall('href="([^"]*)"', text)

    for path in ("/table/quality_mistakes", "/row/quality_mistakes?by=id&key=t28"):
        assert path_of(path) == ["/", "/evaluation/quality", "/table/quality_mistakes"]
    assert path_of("/failures/quality_failures") == ["/", "/evaluation/quality", "/table/quality_failures"]
    assert path_of("/table/quality_per_class") == ["/", "/evaluation/quality", "/table/quality_per_class"]
    assert path_of("/table/quality") == ["/", "/evaluation/quality", "/table/quality"]
    assert path_of("/table/shop/tickets") == ["/", "/table/shop/tickets"]


def test_what_goes_wrong_reads_as_sentences_with_an_example_and_a_link(desk):
    open_page, _ = desk
    client = open_page()
    words = words_of(client, "/failures/quality_failures?where=candidate:is:tickets")
    assert "1 group in quality_failures" in words
    assert "tickets answered billing where people answered bug" in words
    assert "This happened in 3 rows of 40 gold rows (topic). That is 8%, and between 2% and 20%" in words
    assert "weights" not in words
    assert "Text <i>t27" in words
    facets = client.get("/table/quality_mistakes", X_User="ada").text.partition("<aside")[2].partition("</aside>")[0]
    assert "<summary>tickets_label</summary>" in facets
    assert "<summary>id</summary>" not in facets


def test_the_groups_of_all_candidates_are_sorted_by_size_and_those_of_further_pages_are_a_click_away(desk):
    open_page, folder = desk
    client = open_page()

    def counts_on(path):
        found = re.findall(r"This happened in <a[^>]*>(\d+) row", client.get(path, X_User="ada").text)
        return [int(count) for count in found]

    assert counts_on("/failures/quality_failures") == [30, 3]
    path = folder / "quality_failures.parquet"
    group = pq.read_table(path).slice(0, 1)
    numbers = range(1, 61)
    many = [group.set_column(group.schema.get_field_index("n"), "n", pa.array([n], pa.int64())) for n in numbers]
    pq.write_table(pa.concat_tables(many), path)
    assert counts_on("/failures/quality_failures") == [*reversed(numbers)][:50]
    text = client.get("/failures/quality_failures?where=candidate:is:tickets", X_User="ada").text
    [further] = re.findall('rel="next" href="([^"]*)"', text)
    assert counts_on("/failures/quality_failures" + html.unescape(further)) == [*reversed(numbers)][50:]


def test_a_share_by_the_weights_of_a_sample_is_named_so_beside_the_counted_rows(serve, tmp_path):
    ids = [f"t{number}" for number in range(20)]
    weights = {"sample_weight": [10.0] * 10 + [1.0] * 10, "sample_rows": [110] * 20}
    gold = pa.table({"id": ids, "topic": ["bug"] * 20, **weights})
    labels = pa.table({"id": ids, "body": [f"Text of {each}" for each in ids], "topic": ["billing"] * 5 + ["bug"] * 15})
    report = compare(gold, {"tickets": labels}, key="id", targets=["topic"])
    [failure] = find_failures(report.joined, {"tickets": labels})
    stored = {"tickets": labels, "quality_failures": failures_to_arrow([failure]), "quality_mistakes": report.mistakes}
    for name, table in stored.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assets = [
        StoredAsset(
            name,
            "tickets" if name == "tickets" else None,
            "labels" if name == "tickets" else "evaluation",
            "id" if name == "tickets" else "",
            {"": str(tmp_path / f"{name}.parquet")},
        )
        for name in stored
    ]
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    deployment = ReviewedDeployment("here", ledger, PayloadStore(str(tmp_path / "p")), "test", lambda: assets)
    client = serve(review_app(deployment, Door(user_header="X-User")))
    words = words_of(client, "/failures/quality_failures")
    ledger.close()
    # 5 of 20 rows were counted, and they stand for 50 of 110.
    assert f"{failure.share:.0%}" == "45%"
    assert "This happened in 5 rows of 20 gold rows (topic). By the weights of the sample, that is 45% of all" in words
    assert "Text of t0" in words


def test_facets_have_values_of_several_rows_so_neither_keys_nor_texts_that_are_all_different(serve, tmp_path):
    rows = {"number": ["n0", "n1", "n2"], "body": ["a", "b", "c"], "gold": ["x", "x", "y"], "only": ["d", None, "e"]}
    pq.write_table(pa.table(rows), tmp_path / "few.parquet")
    asset = StoredAsset("few", files={"": str(tmp_path / "few.parquet")})
    nothing = SimpleNamespace()  # the pages of a table read neither ledger nor payloads
    deployment = ReviewedDeployment("here", nothing, nothing, "test", lambda: [asset])
    client = serve(review_app(deployment, Door(user_header="X-User")))
    shown = [client.get(path, X_User="ada").text for path in ("/table/few", "/table/few?q=none+of+them")]
    assert [re.findall(r"<summary>(\w+)</summary>", text) for text in shown] == [["gold"], []]


def test_an_evaluation_is_a_page_of_sentences_with_its_confusions_classes_and_change(desk):
    open_page, _ = desk
    client = open_page()
    words = words_of(client, "/evaluation/quality").partition("rules: topic")[0]
    assert "92% of the labels are right, and between 80% and 98% with 95% confidence." in words
    assert "40 of 40 gold rows have a label (100%)." in words
    assert "If every label were bug , 75% would be right." in words
    assert "Last time, 90% were right: +2.5 percentage points since." in words
    assert "Gold ↓ Label → billing bug billing 10 0 bug 3 27" in words
    assert "Found (recall)" in words
    assert "3 rows : billing where people answered bug" in words
    text = client.get("/evaluation/quality", X_User="ada").text
    links = re.findall(r'<td class="number wrong-cell"><a href="([^"]*)">', text)
    assert "3 of 30 rows" in words_of(client, html.unescape(links[0]))
    # Each sentence about mistakes leads to its rows, too.
    sentences = re.findall(r'<li><a href="([^"]*)">3 rows</a>: ', text)
    assert "3 of 30 rows" in words_of(client, html.unescape(sentences[0]))
    assert 'href="/evaluation/quality"' in client.get("/", X_User="ada").text
    assert "Summary" in words_of(client, "/table/quality")
    assert client.get("/evaluation/quality_mistakes", X_User="ada").status == 404
    assert client.get("/evaluation/none", X_User="ada").status == 404


@pytest.fixture
def by_day(serve, tmp_path):
    """Serves an evaluation of several days. `open_page` takes the labels of each day, in the order of time."""

    def open_page(days, *, kind="categorical", gold=GOLD, before=None, is_ordered=True):
        stored = {}
        ids = [f"t{number}" for number in range(len(gold))]
        for day, candidates in days.items():
            labels = {name: pa.table({"id": ids, "value": values}) for name, values in candidates.items()}
            report = compare(
                pa.table({"id": ids, "value": gold}), labels, key="id", targets=[Target("value", kind=kind)]
            )
            pq.write_table(evaluations_to_arrow(report.evaluations), tmp_path / f"{day}.parquet")
            stored[day] = str(tmp_path / f"{day}.parquet")
        order = list(days)
        asset = StoredAsset(
            "quality",
            role="evaluation",
            files=stored,
            before=lambda partition: (before or {}).get(partition, {}),
            earlier=lambda partition: order[: order.index(partition)][::-1] if is_ordered else [],
        )
        nothing = SimpleNamespace()  # neither ledger nor payloads are asked for an evaluation
        deployment = ReviewedDeployment("here", nothing, nothing, "test", lambda: [asset])
        return serve(review_app(deployment, Door(user_header="X-User")))

    return open_page


def right(count: int) -> list[str]:
    """Labels of which so many are right."""
    return [*GOLD[:count], *(["other"] * (len(GOLD) - count))]


def test_a_partition_is_compared_with_the_newest_earlier_one_that_was_evaluated(by_day):
    days = {"d1": {"tickets": right(10)}, "d2": {"tickets": right(36)}, "d3": {"rules": right(1)}}
    client = by_day({**days, "d4": {"tickets": right(37), "rules": right(40)}})
    words = words_of(client, "/evaluation/quality?in=d4")
    # d3 lacks this candidate.
    assert (
        "In d2 , the newest earlier partition with such an evaluation, 90% were right: +2.5 percentage points since "
        "then, and between -12.3 and +17.4 with 95% confidence. Chance alone can explain this change."
    ) in words
    assert "no change since then, and between" in words_of(
        by_day({**days, "d4": days["d2"]}), "/evaluation/quality?in=d4"
    )
    assert "In d3 , the newest earlier partition with such an evaluation, 2% were right: +97.5" in words
    words = words_of(client, "/evaluation/quality?in=d2")
    assert "In d1 " in words
    assert "25% were right: +65.0 percentage points since then, and between +43.8 and +79.3 with 95%" in words
    assert "Chance alone does not explain this change." in words
    assert "earlier partition" not in words_of(client, "/evaluation/quality?in=d1")
    text = client.get("/evaluation/quality?in=d2", X_User="ada").text
    assert 'href="/evaluation/quality?in=d1"' in text


def test_an_end_of_an_interval_close_to_0_keeps_its_sign_and_a_digit(by_day):
    client = by_day({"d1": {"tickets": right(35)}, "d2": {"tickets": right(27)}})
    words = words_of(client, "/evaluation/quality?in=d2")
    assert "-20.0 percentage points since then, and between -38.6 and -0.04 with 95% confidence." in words
    assert "Chance alone does not explain this change." in words


def test_an_agreement_just_below_chance_is_0_without_a_sign(by_day):
    gold = ["bug"] * 300 + ["billing"] * 100
    labels = ["billing"] * 31 + ["bug"] * 269 + ["billing"] * 10 + ["bug"] * 90
    words = words_of(by_day({"d1": {"tickets": labels}}, gold=gold), "/evaluation/quality?in=d1")
    assert "Agreement beyond chance (kappa) is 0.00 (-0." in words


def test_the_newest_partition_is_the_last_in_the_order_of_its_definition(serve, tmp_path):
    order = ("31-01-2026", "01-02-2026", "02-02-2026")
    ids = [f"t{number}" for number in range(len(GOLD))]
    gold = pa.table({"id": ids, "topic": GOLD})
    for number, day in enumerate(order):
        labels = pa.table({"id": ids, "topic": right(10 * (number + 1))})
        report = compare(gold, {"tickets": labels}, key="id", targets=["topic"])
        for name, table in {
            "tickets": labels,
            "quality": evaluations_to_arrow(report.evaluations),
            "quality_mistakes": report.mistakes,
        }.items():
            pq.write_table(table, tmp_path / f"{name} {day}.parquet")

    def stored(name, *role):
        places = {day: str(tmp_path / f"{name} {day}.parquet") for day in sorted(order)}
        return StoredAsset(name, *role, files=places, order=order)

    assets = [stored("tickets", "tickets", "labels", "id"), stored("quality"), stored("quality_mistakes")]
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    deployment = ReviewedDeployment("here", ledger, PayloadStore(str(tmp_path / "p")), "test", lambda: assets)
    client = serve(review_app(deployment, Door(user_header="X-User")))
    first, evaluation = words_of(client), words_of(client, "/evaluation/quality")
    acts = acts_of(client)
    ledger.close()
    assert "75% right (59% to 87%) in column topic, by 40 gold rows in quality , 02-02-2026" in first
    assert "Rows by partition, 31-01-2026 to 02-02-2026" in first
    assert re.findall(r"[-\d]+: 40 rows labeled", first) == [f"{day}: 40 rows labeled" for day in order]
    assert acts[0] == ("See 10 mistakes of 02-02-2026", "/table/quality_mistakes?in=02-02-2026")
    assert evaluation.startswith('id="main"> quality, 02-02-2026')


class ListedFiles(UserDict[str, str]):
    """Counts how often its partitions are listed."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


def test_partitions_are_listed_as_often_for_many_earlier_ones_as_for_few(serve, tmp_path):
    gold = pa.table({"id": [f"t{number}" for number in range(len(GOLD))], "topic": GOLD})
    path = str(tmp_path / "evaluated.parquet")
    report = compare(gold, {"tickets": gold}, key="id", targets=[Target("topic", kind="categorical")])
    pq.write_table(evaluations_to_arrow(report.evaluations), path)
    times = []
    for count in (20, 200):
        days = [f"d{number:03}" for number in range(count)]
        files = ListedFiles(dict.fromkeys(days, path))
        asset = StoredAsset("quality", role="evaluation", files=files, earlier=lambda _last, days=days: days[-2::-1])
        nothing = SimpleNamespace()  # neither ledger nor payloads are asked for an evaluation
        deployment = ReviewedDeployment("here", nothing, nothing, "test", lambda asset=asset: [asset])
        client = serve(review_app(deployment, Door(user_header="X-User")))
        assert "no change since then" in words_of(client, f"/evaluation/quality?in={days[-1]}")
        times.append(files.times)
    assert times[0] == times[1]


def test_a_number_is_compared_by_its_mean_error_and_a_missing_interval_is_said(by_day):
    gold = [float(number % 7) for number in range(40)]
    off = {
        "d1": {"tickets": [each + 0.1 * (number % 5) for number, each in enumerate(gold)]},
        "d2": {"tickets": [each + 0.2 * (number % 5) for number, each in enumerate(gold)]},
        "d3": {"tickets": [each + 1 for each in gold]},
    }
    client = by_day(off, kind="numeric", gold=gold)
    words = words_of(client, "/evaluation/quality?in=d2")
    assert "In d1 , the newest earlier partition with such an evaluation, the mean error was 0.2: +0.2 since" in words
    assert "Chance alone does not explain this change." in words
    # All errors of d3 are alike, which has no interval.
    words = words_of(client, "/evaluation/quality?in=d3")
    assert "the mean error was 0.4: +0.6 since then. An interval is missing, so chance cannot be excluded." in words


def test_a_partition_without_an_order_in_time_is_compared_with_its_last_materialization(by_day):
    regions = {name: {"tickets": right(37)} for name in ("north", "south")}
    client = by_day(regions, before={"north": BEFORE}, is_ordered=False)
    words = words_of(client, "/evaluation/quality?in=north")
    assert "Last time, 90% were right: +2.5 percentage points since." in words
    words = words_of(client, "/evaluation/quality?in=south")
    assert "of the labels are right" in words
    assert "Last time" not in words
    assert "earlier partition" not in words


def test_a_sample_shows_the_texts_of_its_rows_and_each_judgment_with_its_author(desk):
    open_page, _ = desk
    client = open_page(with_sample=True)
    form = {"form_id": "f", "partition": "", "row_key": "t0", "kind": "label", "answer_topic": '"bug"'}
    sent = {"Origin": f"http://127.0.0.1:{client.port}", "Content_Type": "application/x-www-form-urlencoded"}
    assert client.ask("POST", "/label/to_judge?as=tickets", urlencode(form), X_User="ada", **sent).status == 303
    words = words_of(client, "/table/to_judge").partition("aria-label")[0]
    assert "id body judgments why sample_weight sample_rows" in words
    assert "t0 Text <i>t0 ada: bug random 8 40" in words
    assert "ada" not in words.partition("t1 Text")[2]


def test_a_sample_shows_the_text_of_its_own_partition_and_by_the_key_alone_of_the_only_one(serve, tmp_path):
    texts = {"d1": ["First u1", "First u2"], "d2": ["Second u1"]}
    ids = {"d1": ["u1", "u2"], "d2": ["u1"]}
    for day, keys in ids.items():
        pq.write_table(pa.table({"id": keys, "body": texts[day]}), tmp_path / f"{day}.parquet")
    for name, keys in {"s1": ["u1"], "s2": ["u1", "u2"], "any": ["u1", "u2"]}.items():
        drawn = {"why": ["random"] * len(keys), "sample_weight": [1.0] * len(keys), "sample_rows": [3] * len(keys)}
        pq.write_table(pa.table({"id": keys, **drawn}), tmp_path / f"{name}.parquet")
    places = {name: str(tmp_path / f"{name}.parquet") for name in ("d1", "d2", "s1", "s2", "any")}
    assets = [
        StoredAsset("tickets", "tickets", "labels", "id", {day: places[day] for day in ids}),
        StoredAsset("by_day", role="evaluation", files={"d1": places["s1"], "d2": places["s2"]}),
        StoredAsset("at_once", role="evaluation", files={"": places["any"]}),
    ]
    ledger, payloads = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), PayloadStore(str(tmp_path / "p"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: assets, forms=[FORM])
    client = serve(review_app(deployment, Door(user_header="X-User")))
    shown = {path: words_of(client, path) for path in ("/table/by_day", "/table/by_day?in=d2", "/table/at_once")}
    ledger.close()
    both = shown["/table/by_day"]
    assert (both.count("First u1"), both.count("Second u1")) == (1, 1)
    # The row u2 of d2 has no text, and the row u2 of d1 is another row.
    assert "First" not in shown["/table/by_day?in=d2"]
    assert "Second u1" in shown["/table/by_day?in=d2"]
    assert "First u2" in shown["/table/at_once"]
    assert not {"First u1", "Second u1"} & set(re.findall(r"\w+ u1", shown["/table/at_once"]))


def test_all_stored_groups_of_mistakes_are_in_the_matrix_and_a_cell_without_one_is_not_0(serve, tmp_path):
    classes = [f"class {letter}" for letter in "abcdefghijkl"]
    pairs = [(gold, label) for gold in classes for label in classes if (gold, label) != ("class a", "class b")]
    ids = [f"{number:03}" for number in range(len(pairs))]
    gold = pa.table({"id": ids, "topic": [gold for gold, _ in pairs]})
    labels = {"tickets": pa.table({"id": ids, "topic": [label for _, label in pairs]})}
    report = compare(gold, labels, key="id", targets=["topic"])
    failures = failures_to_arrow(find_failures(report.joined, labels))
    assert len(failures) == 100
    stored = {
        "quality": evaluations_to_arrow(report.evaluations),
        "quality_failures": failures,
        "quality_per_class": report.per_class,
    }
    for name, table in stored.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assets = [StoredAsset(name, role="evaluation", files={"": str(tmp_path / f"{name}.parquet")}) for name in stored]
    nothing = SimpleNamespace()  # the pages of an evaluation read neither ledger nor payloads
    client = serve(
        review_app(ReviewedDeployment("here", nothing, nothing, "test", lambda: assets), Door(user_header="X-User"))
    )
    text = client.get("/evaluation/quality", X_User="ada").text
    matrix = text.partition('class="matrix"')[2].partition("</table>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", matrix)
    counts = Counter(re.sub("<[^>]+>", "", cell) for cell in cells)
    # The 12 right cells and the 100 stored groups have a row each. All mistakes of class a are stored.
    assert counts == {"1": 112, "0": 1, "\N{EN DASH}": 31}
