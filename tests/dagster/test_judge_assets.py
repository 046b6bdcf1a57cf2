"""Judges in a real Dagster, over the official SDK and the emulator: their requests, costs and metadata."""

from __future__ import annotations

import re
from dataclasses import replace

import dagster as dg
import pyarrow as pa
import pytest
from code_location import failure

from dagster_llm_batch import (
    AnthropicBatchResource,
    AtLeast,
    BedrockBatchResource,
    Checks,
    GeminiBatchResource,
    LLMBatchResource,
    Mask,
    OpenAIBatchResource,
    Prompt,
    Realtime,
    Resend,
    Rubric,
    VertexBatchResource,
    llm_batch_assets,
    pairwise_judge_assets,
    rubric_judge_assets,
)
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.rubric import rubric_table
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text

DAYS = dg.StaticPartitionsDefinition(["mon", "tue"])
QUESTIONS = {"q1": "Why?", "q2": "How?", "q3": "When?", "q4": "Where?"}
SHORT = {"q1": "No.", "q2": "So.", "q3": "Now.", "q4": "Here."}
LONG = {"q1": "Because of it.", "q2": "So.", "q3": "When it is !time.", "q4": "Where it !was."}
PROMPT = Prompt(system="You are strict.", user="Q: {{ question }}\nA: {{ answer_a }}\nB: {{ answer_b }}")
ONCE = Resend(invalid_waves=1)
SCORING = Prompt(user="Q: {{ question }}\nAnswer: {{ answer }}")


def judge(body, _endpoint):
    """Prefer the longer answer; where one shouts, the first. Scores are the length, up to 5."""
    text = last_user_text(body)
    shown = re.findall(r"^(?:A|B|Answer): (.*)$", text, re.MULTILINE)
    if len(shown) == 1:
        return {"reason": "By length.", "complete": min(5, len(shown[0])), "polite": 1}
    a, b = shown
    if "!" in text:
        return {"reason": "The first is better.", "verdict": "A"}
    return {"reason": "By length.", "verdict": "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"}


def table(texts, name, partitions_def=None, column="answer"):
    @dg.asset(name=name, partitions_def=partitions_def)
    def stored(context):
        ids = list(texts)
        if partitions_def is not None:
            ids = [one for one in ids if (one in ("q1", "q2")) == (context.partition_key == "mon")]
        return pa.table({"id": ids, column: [texts[one] for one in ids]})

    return stored


class EvaluationProject:
    """An instance, an emulated provider and a place for tables."""

    def __init__(self, tmp_path, emulator):
        self.emulator = emulator
        self.instance = dg.DagsterInstance.ephemeral()
        provider = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url, timeout_seconds=10.0)
        llm = LLMBatchResource(
            openai=provider, ledger_url=f"sqlite:///{tmp_path}/ledger.sqlite", payload_root=str(tmp_path / "payloads")
        )
        self.resources = {"llm_batch": llm, "io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path / "tables"))}

    def run(self, assets, *names, partition=None, between=None, succeeds=True):
        tags = {}
        if between:
            tags = {"dagster/asset_partition_range_start": between[0], "dagster/asset_partition_range_end": between[1]}
        self.assets = list(assets)
        result = dg.materialize(
            self.assets,
            instance=self.instance,
            resources=self.resources,
            selection=list(names) or None,
            partition_key=partition,
            tags=tags,
            raise_on_error=False,
        )
        assert result.success is succeeds, result
        return result

    def fill(self, assets):
        for partition in DAYS.get_partition_keys():
            self.run(assets, partition=partition)

    def judge(self, assets, name="duel", **where):
        """Run all assets, from cases to figures."""
        self.run(assets, f"{name}_cases", **where)
        self.run(assets, f"{name}_verdicts_batch", **where)
        self.emulator.settle()
        self.run(assets, f"{name}_verdicts", f"{name}_verdicts_rejects", **where)
        return self.run(assets, name, **where)

    def stored(self, key, partition=None):
        defs = dg.Definitions(assets=self.assets, resources=self.resources)
        return defs.load_asset_value(key, instance=self.instance, partition_key=partition)

    def metadata(self, key):
        [record] = self.instance.fetch_materializations(dg.AssetKey(key), limit=1).records
        return record.asset_materialization.metadata


@pytest.fixture
def project(tmp_path):
    with Emulator(answer=judge) as emulator:
        yield EvaluationProject(tmp_path, emulator)


def duel(partitions_def=None, *, together=False, **more):
    upstream = [
        table(QUESTIONS, "questions", partitions_def, "question"),
        table(SHORT, "short", partitions_def),
        table(LONG, "long", partitions_def),
    ]
    usual = {
        "name": "duel",
        "rows": "questions",
        "candidates": upstream[1:],
        "key": "id",
        "target": "answer",
        "prompt": PROMPT,
        "model": "openai/gpt-4o",
        "params": {"max_tokens": 50},
        "resend": ONCE,
        "partitions_def": None if together else partitions_def,
    }
    return upstream, pairwise_judge_assets(**{**usual, **more})


CRITERIA = {"complete": "Does it answer all of it?", "polite": "Is it kind?"}


def grades(**more):
    upstream, _ = duel()
    usual = {
        "name": "grade",
        "rows": "questions",
        "candidates": upstream[1:],
        "key": "id",
        "target": "answer",
        "rubric": Rubric(CRITERIA),
        "prompt": SCORING,
        "model": "openai/gpt-4o",
        "params": {"max_tokens": 50},
        "resend": ONCE,
    }
    return upstream, rubric_judge_assets(**{**usual, **more})


def test_one_asset_as_two_candidates_is_refused_before_anything_is_asked():
    for factory, more in ((duel, {}), (grades, {})):
        with pytest.raises(ConfigError, match=r"candidates a, b are one asset, short: .* Name each asset once"):
            factory(candidates={"a": "short", "b": "short"}, **more)


@pytest.mark.parametrize("factory", [duel, grades])
def test_candidates_without_a_row_in_common_with_the_rows_are_refused_before_anything_is_asked(project, factory):
    upstream, judging = factory()
    others = [
        table({f"x{key}": text for key, text in texts.items()}, name)
        for name, texts in (("short", SHORT), ("long", LONG))
    ]
    name = judging[0].key.to_user_string()
    project.run([upstream[0], *others])
    result = project.run([upstream[0], *others, *judging], name, succeeds=False)
    assert "There is nothing to judge: no row has an answer of the candidates by the same 'id'" in failure(result)
    assert "questions has 'q1', 'q2', 'q3'; short has 'xq1'" in failure(result)
    assert not project.emulator.books.batches


@pytest.mark.parametrize("factory", [duel, grades])
def test_a_partition_without_rows_has_nothing_to_judge_and_fails_nothing(project, factory):
    _, judging = factory()
    nobody = [table({}, "questions", column="question"), table({}, "short"), table({}, "long")]
    project.run(nobody)
    name = judging[0].key.to_user_string().removesuffix("_cases")
    project.run([*nobody, *judging], f"{name}_cases")
    project.run([*nobody, *judging], f"{name}_verdicts_batch")
    project.run([*nobody, *judging], f"{name}_verdicts", f"{name}_verdicts_rejects")
    assert project.stored(f"{name}_verdicts").num_rows == 0
    assert not project.emulator.books.batches


MAILS = {"q1": "Is it ann@example.com?", "q2": "How?"}
TWO_MAILS = {"q1": "It is ann@example.com or bob@example.com.", "q2": "So."}
MASKED_DUEL = Mask(columns=["question", "answer_a", "answer_b"])
MASKED_GRADES = Mask(columns=["question", "answer"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "prompt", "mask", "emails"), [(duel, PROMPT, MASKED_DUEL, 6), (grades, SCORING, MASKED_GRADES, 4)]
)
def test_the_stored_cases_of_a_judge_have_placeholders_and_show_their_number(project, factory, prompt, mask, emails):
    """Run a Dagster."""
    _, judging = factory(prompt=replace(prompt, mask=mask))
    upstream = [table(MAILS, "questions", column="question"), table(SHORT, "short"), table(TWO_MAILS, "long")]
    name = judging[0].key.to_user_string()
    project.run(upstream)
    project.run([*upstream, *judging], name)
    cases = project.stored(name)
    assert "Is it [EMAIL_1]?" in cases["question"].to_pylist()
    assert "It is [EMAIL_1] or [EMAIL_2]." in cases[mask.columns[1]].to_pylist()
    assert "@" not in str(cases.to_pylist())
    shown = project.metadata(name)
    assert [shown[f"llm_batch/masked_{kind}"].value for kind in ("values", "email")] == [emails, emails]


@pytest.mark.slow
def test_the_mask_of_a_judge_finds_values_behind_line_breaks_of_answers_in_json(project):
    """Run a Dagster. In JSON, as in an answer of several columns, the escape of a line break puts a letter before the
    value.
    """
    _, judging = grades(target=["answer", "id"], prompt=replace(SCORING, mask=Mask(columns=["answer"])))
    broken = {"q1": "At:\n10.0.0.1", "q2": "So."}
    upstream = [table(MAILS, "questions", column="question"), table(SHORT, "short"), table(broken, "long")]
    project.run(upstream)
    project.run([*upstream, *judging], "grade_cases")
    answers = project.stored("grade_cases")["answer"].to_pylist()
    assert '{"answer": "At:\\n[IP_1]", "id": "q1"}' in answers
    assert project.metadata("grade_cases")["llm_batch/masked_ip"].value == 1


@pytest.mark.parametrize(("factory", "prompt"), [(duel, PROMPT), (grades, SCORING)])
def test_a_mask_changes_the_code_version_of_the_cases(factory, prompt):
    def code_version(mask):
        _, judging = factory(prompt=replace(prompt, mask=mask))
        return judging[0].code_versions_by_key[judging[0].key]

    masks = [None, Mask(columns=["question"]), Mask(columns=["question"], what=["email"])]
    assert len({code_version(mask) for mask in masks}) == len(masks)


@pytest.mark.parametrize("factory", [duel, grades])
@pytest.mark.parametrize(
    ("column", "reason"), [("id", "mask names the key 'id'"), ("candidate", "mask names candidate, which the judge's")]
)
def test_a_judge_refuses_to_mask_the_key_and_columns_that_its_prompt_does_not_read(factory, column, reason):
    prompt = {duel: PROMPT, grades: SCORING}[factory]
    with pytest.raises(ConfigError, match=reason):
        factory(prompt=replace(prompt, mask=Mask(columns=["question", column])))


@pytest.mark.parametrize(("factory", "prompt"), [(duel, PROMPT), (grades, SCORING)])
def test_a_judge_refuses_to_restore_what_its_cases_do_not_have(factory, prompt):
    with pytest.raises(ConfigError, match="mask restores reason, which a judge cannot"):
        factory(prompt=replace(prompt, mask=Mask(columns=["question"], restore=["reason"])))


@pytest.mark.parametrize(
    ("factory", "prompt", "answers"),
    [(duel, PROMPT, ["answer_a", "answer_b"]), (grades, SCORING, ["answer"])],
)
def test_a_judge_of_restored_answers_needs_a_mask_of_them(factory, prompt, answers):
    """Refuse others, since their provider would get values that the candidate's provider never got."""

    def judging(restore, judged=None, **more):
        source = Prompt(user="{{ question }}", mask=Mask(columns=["question"], restore=restore))
        usual = {"rows": "questions", "key": "id", "prompt": source, "model": "openai/gpt-4o", "response": None}
        restored = [llm_batch_assets(name=name, **usual) for name in ("one", "two")]
        return factory(
            candidates=restored,
            target="text",
            prompt=prompt if judged is None else replace(prompt, mask=judged),
            **more,
        )

    named = f"target names text, in which Mask.restore puts values of rows.*a mask of {', '.join(answers)}, or restore"
    # A mask of only the rows, or of one of two answers, does not cover the answers.
    for lacking in (None, Mask(columns=["question"]), Mask(columns=["question", *answers[1:]])):
        with pytest.raises(ConfigError, match=named if lacking is None else "target names text"):
            judging(["text"], lacking)
    covered = Mask(columns=answers)
    versions = [[assets.code_versions_by_key for assets in judging(restore, covered)[1]] for restore in ([], ["text"])]
    assert versions[0] == versions[1]
    assert judging([])
    # The rows can be restored labels, too.
    prompt = replace(prompt, user=f"{prompt.user} {{{{ text }}}}")
    with pytest.raises(ConfigError, match=r"prompt reads text of rows=one, in which Mask\.restore puts"):
        judging(["text"], covered, rows="one")
    assert judging(["text"], Mask(columns=[*answers, "text"]), rows="one")


class TestPairwise:
    @pytest.mark.slow
    def test_pairs_are_asked_in_both_orders_equal_answers_not_at_all_and_flips_are_ties(self, project):
        upstream, judging = duel()
        project.run(upstream)
        project.judge([*upstream, *judging])
        asked = [one for one in project.emulator.books.executions if one.billed]
        assert len(asked) == 6  # q2 has equal answers
        [row] = project.stored("duel").to_pylist()
        assert (row["a"], row["b"], row["n_rows"], row["n_identical"]) == ("short", "long", 4, 1)
        assert (row["n_a_wins"], row["n_b_wins"], row["n_inconsistent"], row["n_both_first"]) == (0, 1, 2, 2)
        assert row["win_rate_a"] == pytest.approx((3 / 2) / 4)
        assert row["first_rate"] == pytest.approx(5 / 6)

    @pytest.mark.slow
    def test_verdicts_are_a_labeled_dataset_with_reason_provenance_and_cost(self, project):
        upstream, judging = duel()
        project.run(upstream)
        project.judge([*upstream, *judging])
        verdicts = {row["case_id"]: row for row in project.stored("duel_verdicts").to_pylist()}
        one = verdicts["long/short/q1"]
        assert (one["id"], one["first"], one["second"], one["verdict"]) == ("q1", "long", "short", "A")
        assert one["reason"] == "By length."
        assert one["llm_cost_usd"] > 0
        shown = project.metadata("duel")
        assert shown["llm_batch/cost_usd"].value == pytest.approx(
            float(sum(v["llm_cost_usd"] for v in verdicts.values()))
        )
        assert shown["llm_batch/inconsistent_rate of short vs long"].value == pytest.approx(2 / 3)
        assert "| short | long | 37.5% (" in shown["llm_batch/judgment"].md_str
        assert "](data:image/png;base64," in shown["llm_batch/judgment"].md_str

    @pytest.mark.slow
    def test_judging_again_pays_nothing_and_a_new_answer_pays_for_itself_alone(self, project):
        upstream, judging = duel()
        project.run(upstream)
        project.judge([*upstream, *judging])
        project.judge([*upstream, *judging])
        assert len(project.emulator.books.executions) == 6
        changed = table({**SHORT, "q1": "Well, no."}, "short")
        assets = [upstream[0], changed, upstream[2], *judging]
        project.run(assets, "short")
        project.judge(assets)
        assert len(project.emulator.books.executions) == 8

    def test_the_judge_is_told_how_to_answer_and_never_who_said_it(self, project):
        seen = []

        def looking(body, endpoint):
            seen.append(str(body))
            return judge(body, endpoint)

        with Emulator(answer=looking) as emulator:
            openai = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
            project.resources["llm_batch"] = LLMBatchResource(openai=openai)
            project.emulator = emulator
            upstream, judging = duel(candidates={"champion": "short", "challenger": "long"})
            project.run(upstream)
            project.judge([*upstream, *judging])
        assert seen
        assert all("You are strict." in one and "The order in which" in one for one in seen)
        assert not any("champion" in one or "challenger" in one for one in seen)

    @pytest.mark.slow
    def test_a_case_without_a_verdict_is_unjudged_and_what_it_cost_counts(self, project):
        with Emulator(answer=lambda body, path: "no JSON" if "Why?" in str(body) else judge(body, path)) as emulator:
            openai = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
            project.resources["llm_batch"] = LLMBatchResource(openai=openai)
            project.emulator = emulator
            upstream, judging = duel(checks=Checks(blocking=False))
            project.run(upstream)
            project.judge([*upstream, *judging])
        [row] = project.stored("duel").to_pylist()
        assert (row["n_unjudged"], row["n_judged"], row["n_rows"]) == (1, 2, 4)
        paid = [*project.stored("duel_verdicts")["llm_cost_usd"].to_pylist()]
        rejected = [*project.stored("duel_verdicts_rejects")["llm_cost_usd"].to_pylist()]
        assert project.metadata("duel")["llm_batch/cost_usd"].value == pytest.approx(float(sum(paid) + sum(rejected)))
        assert sum(rejected) > 0

    def test_a_sample_bounds_what_is_asked(self, project):
        upstream, judging = duel(sample_size=2)
        project.run(upstream)
        project.run([*upstream, *judging], "duel_cases")
        assert len(set(project.stored("duel_cases")["id"].to_pylist())) == 2
        _, all_judging = duel(sample_size=None)
        project.run([*upstream, *all_judging], "duel_cases")
        assert len(set(project.stored("duel_cases")["id"].to_pylist())) == 4

    def test_over_budget_nothing_is_sent(self, project):
        upstream, judging = duel(max_cost_usd="0.000001")
        project.run(upstream)
        result = project.run([*upstream, *judging], "duel_cases", "duel_verdicts_batch", succeeds=False)
        assert "exceeds max_cost_usd" in failure(result)
        assert not project.emulator.books.executions

    @pytest.mark.parametrize("policy", [None, dg.BackfillPolicy.multi_run(100), dg.BackfillPolicy.multi_run(3)])
    def test_cases_and_asking_are_never_in_one_run_of_a_backfill(self, policy):
        _, [cases, asking, landing, figures] = duel(DAYS, backfill_policy=policy)
        wanted = policy or dg.BackfillPolicy.single_run()
        assert next(iter(cases.specs)).description.endswith("short, long, of at most 100 rows.")
        assert {one.backfill_policy for one in (asking, landing, figures)} == {wanted}
        assert cases.backfill_policy not in (None, wanted)

    @pytest.mark.slow
    def test_partitions_are_judged_by_themselves_in_one_run(self, project):
        upstream, judging = duel(DAYS, max_inconsistent=0.5)
        project.fill(upstream)
        result = project.judge([*upstream, *judging], between=("mon", "tue"))
        monday, tuesday = (project.stored("duel", day).to_pylist()[0] for day in ("mon", "tue"))
        assert (monday["partition"], monday["n_rows"], monday["n_b_wins"], monday["n_identical"]) == ("mon", 2, 1, 1)
        assert (tuesday["n_rows"], tuesday["n_inconsistent"]) == (2, 2)
        checks = {one.partition: one.passed for one in result.get_asset_check_evaluations()}
        assert checks == {"mon": True, "tue": False}

    def test_a_backfill_asks_in_another_run_than_it_makes_the_cases(self):
        """Request answers in another run, since Dagster puts assets into one run only if their policies are equal."""
        _, [cases, batch, *_] = duel(DAYS)
        assert cases.backfill_policy is not None
        assert cases.backfill_policy != batch.backfill_policy

    @pytest.mark.slow
    def test_an_unpartitioned_judge_reads_all_partitions(self, project):
        upstream, judging = duel(DAYS, together=True)
        project.fill(upstream)
        project.judge([*upstream, *judging])
        assert project.stored("duel").to_pylist()[0]["n_rows"] == 4

    def test_lineage_leads_from_answers_over_cases_to_figures(self, project):
        upstream, judging = duel()
        defs = dg.Definitions(assets=[*upstream, *judging], resources=project.resources)
        graph = defs.resolve_asset_graph()

        def parents(name):
            return {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys}

        assert parents("duel_cases") == {"questions", "short", "long"}
        assert parents("duel_verdicts_batch") == {"duel_cases"}
        assert parents("duel") == {"duel_cases", "duel_verdicts", "duel_verdicts_rejects"}
        project.run(upstream)
        project.run([*upstream, *judging], "duel_cases")
        lineage = project.metadata("duel_cases")["dagster/column_lineage"].lineage.deps_by_column
        answers = {dg.TableColumnDep(dg.AssetKey(name), "answer") for name in ("short", "long")}
        assert set(lineage["answer_a"]) == set(lineage["answer_b"]) == answers

    def test_answers_that_are_not_there_say_what_to_do(self, project):
        upstream, judging = duel()
        project.run(upstream[:2])
        result = project.run([*upstream, *judging], "duel_cases", succeeds=False)
        assert re.search("long could not be read.*never materialized here: materialize it first", failure(result))

    @pytest.mark.slow
    def test_cases_and_figures_follow_by_themselves_and_money_waits_for_a_person(self, project):
        upstream, judging = duel()
        assets = [*upstream, *judging]

        def tick(cursor):
            found = dg.evaluate_automation_conditions(
                dg.Definitions(assets=assets, resources=project.resources), project.instance, cursor=cursor
            )
            names = ("duel_cases", "duel_verdicts_batch", "duel")
            return {one for one in names if found.get_requested_partitions(dg.AssetKey(one))}, found.cursor

        asked, cursor = tick(None)
        assert asked == set()
        project.run(upstream[:2])
        asked, cursor = tick(cursor)
        assert asked == set()  # one candidate has no answers
        project.run(upstream[2:])
        asked, cursor = tick(cursor)
        assert asked == {"duel_cases"}
        project.run(assets, "duel_cases")
        asked, cursor = tick(cursor)
        assert asked == set()
        project.run(assets, "duel_verdicts_batch")
        project.emulator.settle()
        project.run(assets, "duel_verdicts", "duel_verdicts_rejects")
        asked, cursor = tick(cursor)
        assert asked == {"duel"}

    def test_rows_from_outside_are_not_waited_for(self, project):
        questions = dg.AssetSpec("questions")
        [_, *answers], judging = duel(rows=questions)
        defs = dg.Definitions(assets=[questions, *answers, *judging], resources=project.resources)
        first = dg.evaluate_automation_conditions(defs, project.instance)
        project.run(answers)
        then = dg.evaluate_automation_conditions(defs, project.instance, cursor=first.cursor)
        assert then.get_requested_partitions(dg.AssetKey("duel_cases")) == {None}

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"candidates": ["short"]}, "candidates is short alone"),
            ({"prompt": Prompt(user="{{ answer_a }}")}, "does not show answer_b."),
            ({"prompt": Prompt(user="{{ answer_a }} {{ answer_b }} {{ first }}")}, "tell whose answers"),
            ({"prompt": Prompt(user="{{ row }}")}, "would show whose answers they are"),
            ({"max_inconsistent": 5}, "between 0 and 1"),
            ({"sample_size": 0}, "at least 1"),
            ({"target": []}, "target is empty"),
            ({"key": "verdict"}, "would have verdict twice"),
            ({"frame": "spark"}, "'spark'"),
            ({"realtime": Realtime(urgent="is_vip")}, "realtime.urgent='is_vip' is not allowed"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, wrong, says):
        with pytest.raises(ConfigError, match=re.escape(says)):
            duel(**wrong)


PROVIDERS = {
    "openai/gpt-5-nano": OpenAIBatchResource(api_key="none"),
    "anthropic/claude-haiku-4-5": AnthropicBatchResource(api_key="none"),
    "gemini/gemini-2.5-flash": GeminiBatchResource(api_key="none"),
    "vertex/gemini-2.5-flash": VertexBatchResource(
        project="p", location="us-central1", bucket="b", access_token="none"
    ),
    "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0": BedrockBatchResource(
        role_arn="arn:aws:iam::123456789012:role/x", s3_uri="s3://bucket/folder", region_name="us-east-1"
    ),
}


@pytest.mark.parametrize("model", PROVIDERS)
def test_every_provider_takes_the_responses_of_both_judges(model):
    params = {} if model.startswith(("gemini", "vertex")) else {"max_tokens": 500}
    for _, assets in (duel(model=model, params=params), grades(model=model, params=params)):
        spec = dataset_of(assets).labeling.spec
        assert PROVIDERS[model].provider().codec(spec).encode(make_request(None, "?"), "r0-0")


class TestRubric:
    @pytest.mark.slow
    def test_each_answer_is_scored_by_each_criterion(self, project):
        upstream, judging = grades()
        project.run(upstream)
        result = project.judge([*upstream, *judging], "grade")
        found = {(row["candidate"], row["criterion"]): row for row in project.stored("grade").to_pylist()}
        assert found["short", "complete"]["mean"] == pytest.approx((3 + 3 + 4 + 5) / 4)
        assert found["long", "complete"]["mean"] == pytest.approx((5 + 3 + 5 + 5) / 4)
        assert found["long", "polite"]["highest"] == 1
        assert not list(result.get_asset_check_evaluations())
        assert project.metadata("grade")["llm_batch/mean_score of short, complete"].value == pytest.approx(3.75)

    def test_the_least_score_is_a_check_and_a_blocking_one_holds_back_what_is_downstream(self, project):
        upstream, judging = grades(rubric=Rubric(CRITERIA, min_score={"complete": 4}), blocking=True)

        @dg.asset(deps=["grade"])
        def report():
            raise AssertionError("must not run")

        project.run(upstream)
        assets = [*upstream, *judging, report]
        project.run(assets, "grade_cases", "grade_verdicts_batch")
        project.emulator.settle()
        project.run(assets, "grade_verdicts", "grade_verdicts_rejects")
        result = project.run(assets, "grade", "report", succeeds=False)
        [check] = result.get_asset_check_evaluations()
        assert (check.check_name, check.passed) == ("score", False)
        assert "short, complete: 3.75; required: at least 4" in check.description

    def test_a_least_score_may_be_a_bound_that_few_answers_do_not_reach(self):
        cases = pa.table({"case_id": ["m/1", "m/2", "m/3"], "candidate": ["m"] * 3})
        scores = pa.table({"case_id": ["m/1", "m/2", "m/3"], "complete": [5, 4, 5], "polite": [5, 5, 5]})
        rubric = Rubric(CRITERIA, min_score={"complete": 4, "polite": AtLeast(4, confidence=0.975)})
        table = rubric_table(cases, scores, ["m"], rubric, dg.AssetCheckSeverity.ERROR)
        [outcome] = table.check_results
        low = table.table.to_pylist()[1]["mean_low"]
        assert not outcome.passed
        assert outcome.description == (
            "m, complete: 4.67; required: at least 4. "
            f"m, polite: 5.00, surely {low:.2f} or more; required: at least 4, with 0.975 confidence."
        )

    @pytest.mark.slow
    def test_a_score_outside_of_the_scale_is_a_reject(self, project):
        upstream, judging = grades(rubric=Rubric(CRITERIA, scale=(1, 3)), checks=Checks(blocking=False))
        project.run(upstream)
        project.judge([*upstream, *judging], "grade")
        found = {(row["candidate"], row["criterion"]): row for row in project.stored("grade").to_pylist()}
        assert (found["short", "complete"]["n_cases"], found["short", "complete"]["n_scored"]) == (4, 2)

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"criteria": {}}, "at least one criterion"),
            ({"criteria": {"reason": "?"}}, "none named 'reason'"),
            ({"scale": (5, 1)}, "from a lower to a higher"),
            ({"min_score": {"kind": 3}}, "the criteria are complete, polite"),
            ({"min_score": 7}, "scores are from 1 to 5"),
            ({"min_score": AtLeast(7, confidence=0.9)}, "scores are from 1 to 5"),
            ({"min_score": AtLeast(4, on="labeled")}, "min_score takes no on='labeled'"),
        ],
    )
    def test_a_rubric_that_cannot_work_is_refused_at_once(self, wrong, says):
        with pytest.raises(ConfigError, match=re.escape(says)):
            Rubric(**{"criteria": CRITERIA, **wrong})

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"rubric": Rubric({"best": "Not by {{ candidate }}?"})}, "tell whose answers"),
            ({"prompt": Prompt(user="{{ question }}")}, "does not show answer."),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, wrong, says):
        with pytest.raises(ConfigError, match=re.escape(says)):
            grades(**wrong)
