"""The projects that `init` writes run unchanged, in Python and in YAML; wrong arguments write no files."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dagster_llm_batch.cli.main import main
from dagster_llm_batch.cli.new_project import PROVIDER_NAMES
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.testing.emulator import DEFAULT_KEY
from tests.tables import table

COMMENTS = """id,text,day
007,"Great service, thank you!",2026-01-01
2,Still waiting for my parcel,2026-01-02
3,Where do I find the manual?,2026-01-02
4,,2026-01-03
"""
GOLD = "id,mood\n007,happy\n2,unhappy\n"
LABELS = {"happy", "unhappy", "neither"}
USUAL = ["comments.csv", "--key", "id", "--text", "text", "--labels", "happy,unhappy,neither"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """Make a folder with two tables the current folder. Forget the modules of its project after the test."""
    tmp_path.joinpath("comments.csv").write_text(COMMENTS)
    tmp_path.joinpath("gold.csv").write_text(GOLD)
    for name in ("DAGSTER_MODULE_NAME", "DAGSTER_PYTHON_FILE", "DAGSTER_LLM_BATCH_LEDGER", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("labels", "labeling")]:
        del sys.modules[name]


def cli(*arguments: str, code: int = 0) -> Result:
    forget()
    result = CliRunner().invoke(main, list(arguments), prog_name="dagster-llm-batch")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def init(*arguments: str, code: int = 0) -> Result:
    return cli("init", *arguments, code=code)


def definitions() -> dg.Definitions:
    """Load them as `dagster dev` and `dg dev` do, by the module that pyproject.toml points to."""
    forget()
    if Path("labels.py").exists():
        return import_module("labels").defs
    return dg.load_from_defs_folder(path_within_project=Path("labeling").absolute())


def run(defs: dg.Definitions, *names: str, partition: str | None = None) -> None:
    """Run these assets, or all that have no partitions."""
    keys = {dg.AssetKey(name) for name in names} or set(defs.resolve_asset_graph().get_all_asset_keys())
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)
    assert job.execute_in_process(instance=dg.DagsterInstance.get(), partition_key=partition).success


def rows_of(name: str) -> list[dict[str, Any]]:
    return pq.read_table(Path("tables", name)).to_pylist()


def check_labels(target: str = "mood") -> None:
    labels = {row["id"]: row for row in rows_of("comments_labels")}
    assert labels.keys() == {"007", "2", "3"}
    assert {row[target] for row in labels.values()} <= LABELS
    assert labels["007"]["text"] == "Great service, thank you!"
    assert [row["id"] for row in rows_of("comments_labels_rejects")] == ["4"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [[], ["--yaml"]], ids=["python", "yaml"])
def test_a_project_labels_its_table_without_a_key_and_measures_the_labels_by_gold(folder, form):
    """Take more than ten seconds: an evaluation loads scikit-learn, and the labeler is a separate process."""
    said = init(*USUAL, "--gold", "gold.csv", *form).stdout
    assert "The labels are simulated until you name a real model" in said
    planned = json.loads(cli("plan", "--json").stdout)
    assert "command/simulated" in json.dumps(planned)
    defs = definitions()
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert [name for name, spec in specs.items() if "table" not in spec.kinds] == ["comments_labels_batch"]
    run(defs, "comments_labels_batch", "comments_labels", "comments_labels_rejects", "gold")
    run(defs)
    check_labels()
    [measured] = rows_of("quality")
    assert measured["candidate"] == "comments_labels"
    assert measured["n_gold"] == 2
    cli("export", "comments_labels", "-o", "labels.csv")
    assert Path("labels.csv").read_text().count("\n") == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [[], ["--yaml"]], ids=["python", "yaml"])
def test_one_line_changes_a_project_to_a_vendor_and_its_model(folder, emulator, monkeypatch, form):
    monkeypatch.setenv("OPENAI_API_KEY", DEFAULT_KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.openai_base_url)
    init(*USUAL, *form)
    [file] = [*Path().glob("labels.py"), *Path().rglob("defs.yaml")]
    before = file.read_text().splitlines()
    after = [re.sub(r'^((?:MODEL = "|  model: ))command/simulated', r"\1openai/gpt-5-nano", line) for line in before]
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
    file.write_text("\n".join(after))
    assert json.loads(cli("plan", "--json").stdout)["estimated_usd"] is not None
    defs = definitions()
    names = ("comments_labels_batch", "comments_labels", "comments_labels_rejects")
    run(defs, *names)
    emulator.settle()
    run(defs, *names)
    check_labels("label")
    assert len(emulator.books.batches) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [[], ["--yaml"]], ids=["python", "yaml"])
def test_a_column_of_days_makes_one_partition_a_day(folder, form):
    """Take more than ten seconds: an evaluation loads scikit-learn, and each day is a run."""
    said = init(*USUAL, "--gold", "gold.csv", "--day", "day", *form).stdout
    assert "plan comments_labels --partition-range 2026-01-01...2026-01-03" in said
    defs = definitions()
    [spec] = [spec for spec in defs.resolve_all_asset_specs() if spec.key == dg.AssetKey("comments_labels")]
    assert spec.partitions_def.get_partition_keys() == ["2026-01-01", "2026-01-02", "2026-01-03"]
    for day in ("2026-01-01", "2026-01-02"):
        for _ in range(2):
            run(defs, "comments_labels_batch", "comments_labels", "comments_labels_rejects", partition=day)
    labels = {row["id"]: str(row["partition"]) for row in rows_of("comments_labels")}
    assert labels == {"007": "2026-01-01", "2": "2026-01-02", "3": "2026-01-02"}
    run(defs, "gold")
    run(defs, *("quality", "quality_mistakes", "quality_per_class", "quality_failures"))
    assert rows_of("quality")[0]["n_gold"] == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [[], ["--yaml"]], ids=["python", "yaml"])
def test_odd_names_and_texts_stay_what_they_are(folder, form):
    """Try names that are not Python names, words of Jinja, quotes, braces, another delimiter, and Parquet."""
    odd = {"No.": ["a", "b"], 'Comment "Text"': ["{{ x }}", "it's"], "for": ["1", "2"], "not read": [1, 2]}
    pq.write_table(pa.table(odd), folder / "my comments.parquet")
    folder.joinpath("gold.csv").write_text('No.;Right Label\na;it\'s "good"\n')
    options = ["--key", "No.", "--text", 'Comment "Text"', "--text", "for", "--gold", "gold.csv"]
    init("my comments.parquet", *options, "--labels", 'it\'s "good",bad {x}', "--question", 'What is "it"?', *form)
    defs = definitions()
    names = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert {"my_comments_labels", "my_comments_labels_batch", "gold", "quality"} <= names
    assert json.loads(cli("plan", "--json").stdout)["plans"][0]["rows"] == 2
    run(defs, "gold")
    assert rows_of("gold") == [{"No.": "a", "label": 'it\'s "good"'}]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("type_", "form"),
    [(pa.int64(), []), (pa.float64(), ["--yaml"]), (pa.dictionary(pa.int32(), pa.string()), [])],
    ids=["int", "float-yaml", "category"],
)
def test_gold_that_is_no_text_becomes_text_like_the_labels(folder, form, type_):
    pq.write_table(pa.table({"id": ["007", "2"], "stars": pa.array(["5", "1"]).cast(type_)}), "gold.parquet")
    init(*USUAL[:-1], "1,2,3,4,5", "--gold", "gold.parquet", *form)
    run(definitions(), "gold")
    assert rows_of("gold") == [{"id": "007", "stars": "5"}, {"id": "2", "stars": "1"}]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [[], ["--yaml"]], ids=["python", "yaml"])
@pytest.mark.parametrize("name", ['c"""+print(1)+""".csv', "back\\xslash.csv", "two\nlines.csv"])
def test_the_name_of_a_file_is_no_code_and_a_word_of_yaml_names_a_column(folder, capsys, name, form):
    folder.joinpath(name).write_text(COMMENTS)
    folder.joinpath("gold.csv").write_text("id,no\n007,happy\n")
    init(name, *USUAL[1:], "--gold", "gold.csv", "--name", "moods", *form)
    assert dg.AssetKey("moods") in definitions().resolve_asset_graph().get_all_asset_keys()
    assert capsys.readouterr().out == ""
    assert next(iter(json.loads(cli("plan", "--json").stdout)["plans"]))["rows"] == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("provider", PROVIDER_NAMES)
def test_a_project_is_ready_for_each_vendor_that_its_settings_can_name(folder, monkeypatch, provider):
    starter = PROVIDERS[provider].starter
    for variable in starter.environment.values():
        monkeypatch.setenv(variable, "s3://bucket/x" if "S3" in variable else "value")
    init(*USUAL, "--model", f"{provider}/{starter.model}")
    init(*USUAL, "--model", f"{provider}/{starter.model}", "--yaml", "--into", "yaml")
    source = Path("labels.py").read_text()
    Path("labels.py").write_text(source.replace('MODEL = "command/simulated"', f'MODEL = "{provider}/{starter.model}"'))
    resource = definitions().resources["llm_batch"]
    assert getattr(resource, provider) is not None
    assert resource.command is not None
    monkeypatch.chdir("yaml")
    monkeypatch.syspath_prepend(str(folder / "yaml"))
    Path("labels.py").unlink(missing_ok=True)
    resource = definitions().resources["llm_batch"]
    assert getattr(resource, provider) is not None


@pytest.mark.parametrize("form", [[], ["--yaml"]], ids=["python", "yaml"])
def test_files_that_are_there_are_never_overwritten(folder, form):
    init(*USUAL, *form)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = init(*USUAL, *form, code=1).output
    assert "pyproject.toml" in said
    assert "nothing was written. Name an empty folder with --into" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    home = folder / "home" / "dagster.yaml"
    home.write_text("telemetry: {enabled: false}\n")
    # A Dagster home alone does not prevent `init`, and stays.
    for path in before:
        if path not in (home, folder / "comments.csv", folder / "gold.csv"):
            path.unlink()
    init(*USUAL, *form)
    assert home.read_text() == "telemetry: {enabled: false}\n"


def test_each_command_that_it_prints_is_one_of_this_command_line(folder):
    written = json.loads(init(*USUAL, "--gold", "gold.csv", "--into", "my project", "--json").stdout)
    assert all(Path(path).is_file() for path in written["written"])
    assert (written["rows"], written["empty_rows"], written["gold_rows"]) == (4, 1, 2)
    typed = [shlex.split(line) for line in written["next"]]
    assert typed[0] == ["cd", "my project"]
    own = [words[1:] for words in typed if words[0] == "dagster-llm-batch"]
    assert [name for name, *_ in own] == ["plan", "export", "export"]
    for name, *arguments in own:
        main.get_command(click.Context(main), name).make_context(name, arguments)


def test_the_range_of_days_that_it_prints_ends_at_yesterday(folder):
    """Leave out today, since Dagster has a partition of a day only after its end."""
    before = datetime.now(UTC).date()
    first = before - timedelta(days=3)
    folder.joinpath("comments.csv").write_text(f"id,text,day\n1,Hello,{first}\n5,Thanks,2999-12-31\n")
    said = init(*USUAL, "--day", "day").stdout
    ends = [f"{first}...{day - timedelta(days=1)}" for day in (before, datetime.now(UTC).date())]
    [planned] = re.findall(r"plan comments_labels --partition-range (\S+)", said)
    assert planned in ends
    assert f"export comments_labels --partition-range {planned} " in said
    assert "Rows of today and later wait until their day is over (UTC)" in said
    cli("plan", "comments_labels", "--partition-range", planned)


def test_rows_whose_days_are_not_over_need_no_command_yet(folder):
    folder.joinpath("comments.csv").write_text("id,text,day\n1,Thanks,2999-12-31\n")
    said = init(*USUAL, "--day", "day").stdout
    assert "dagster dev" in said
    assert "--partition-range" not in said


@pytest.mark.parametrize("form", [[], ["--yaml"]], ids=["python", "yaml"])
def test_names_that_a_project_uses_itself_are_refused(folder, form):
    init(*USUAL, "--gold", "gold.csv", "--day", "day", "--into", "all", *form)
    trees = [ast.parse(file.read_text()) for file in Path("all").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    used |= {alias.asname or alias.name for node in nodes if isinstance(node, ast.alias) for alias in [node]}
    used |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used |= {path.stem for path in Path("all/labeling/defs").glob("*.py")}
    for name in used - {"comments_labels", "__file__", "__init__", "mood", "table", "ROOT"} | {
        "config",
        "quality_mistakes",
    }:
        said = init(*USUAL, "--name", name, "--into", "other", *form, code=2).output
        assert f"--name '{name}' cannot be the name of the labels" in " ".join(said.split())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("123.csv", "table_123_labels"),
        ("été-2026.csv", "ete_2026_labels"),
        ("コメント.csv", "table_labels"),
        ("My comments.CSV", "my_comments_labels"),
    ],
)
def test_a_table_of_any_name_has_labels_of_a_name_in_python(folder, file, name):
    folder.joinpath(file).write_text(COMMENTS)
    assert json.loads(init(file, *USUAL[1:], "--json").stdout)["name"] == name


def test_a_project_in_a_linked_folder_finds_its_table(folder):
    folder.joinpath("far", "away").mkdir(parents=True)
    folder.joinpath("link").symlink_to(folder / "far" / "away", target_is_directory=True)
    init(*USUAL, "--into", "link")
    [path] = re.findall(r'HERE / "(.*comments\.csv)"', Path("link/labels.py").read_text())
    assert Path("link", path).read_text() == COMMENTS


WRONG_OPTIONS = {
    "key": (["--key", "nr"], "comments.csv has no column 'nr' (--key). Its columns: id, text, day."),
    "text": (["--text", "body"], "comments.csv has no column 'body' (--text)."),
    "day": (["--day", "when"], "comments.csv has no column 'when' (--day)."),
    "day is text": (["--day", "id"], "which is no date. Write dates as 2026-01-31"),
    "twice": (
        ["--key", "day"],
        "each row needs its own key, and 'day' repeats 1 key: '2026-01-02'. Remove the duplicate rows",
    ),
    "no key": (["--key", "text", "--text", "id"], "the key 'text' is empty in 1 row. Fill it"),
    "same": (["--key", "id", "--text", "id"], "--key and --text are both 'id'"),
    "one label": (["--labels", "happy"], "--labels has one label, 'happy'"),
    "empty label": (["--labels", "happy,,sad"], "has an empty label"),
    "case": (["--labels", "Happy,happy"], "--labels has 'Happy', 'happy', which differ in case at most"),
    "model": (["--model", "gpt-5"], "--model 'gpt-5' is not written as VENDOR/MODEL"),
    "vendor": (
        ["--model", "acme/gpt"],
        "names the vendor 'acme', and `init` can write projects for: openai, anthropic",
    ),
    "name": (["--name", "class"], "--name 'class' cannot be the name of the labels"),
    "gold column alone": (["--gold-column", "mood"], "give --gold, too"),
}


@table("changes, said", WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_options_that_do_not_fit_the_table_are_refused(changes, said):
    with CliRunner().isolated_filesystem():
        Path("comments.csv").write_text(COMMENTS)
        changed = {changes[at] for at in range(0, len(changes), 2)}
        usual = [word for at in range(1, len(USUAL), 2) if USUAL[at] not in changed for word in USUAL[at : at + 2]]
        result = CliRunner().invoke(main, ["init", "comments.csv", *usual, *changes])
        assert result.exit_code in (1, 2), result.output
        assert said in " ".join(result.output.split())
        assert [path.name for path in Path().iterdir()] == ["comments.csv"]


@table(
    "left_out, said",
    [
        ("--key", "Missing option '--key': Column with the key of a row; each row has another value. For example: "),
        ("--text", "Missing option '--text': Column with the text to label"),
        ("--labels", "Missing option '--labels': The labels to choose from"),
    ],
)
def test_a_missing_option_is_named_with_its_meaning_and_an_example(left_out, said):
    at = USUAL.index(left_out)
    with CliRunner().isolated_filesystem():
        Path("comments.csv").write_text(COMMENTS)
        shown = " ".join(init(*USUAL[:at], *USUAL[at + 2 :], code=2).output.split())
    assert said in shown
    assert "init comments.csv --key id --text text --labels happy,unhappy,neither" in shown


def test_a_missing_table_is_named_with_an_example(folder):
    shown = " ".join(init(*USUAL[1:], code=2).output.split())
    assert "Missing argument 'TABLE'. For example: dagster-llm-batch init comments.csv --key id" in shown


WRONG_GOLD = {
    "stranger": ("id,mood\n007,happy\n9,unhappy\n", "gold.csv has 1 key without a row in comments.csv: '9'"),
    "seven": ("id,mood\n7,happy\n", "1 key without a row in comments.csv: '7'"),
    "label": ("id,mood\n007,hapy\n", "'mood' has 'hapy', which --labels does not have"),
    "no label": ("id,mood\n007,\n", "'mood' has '', which --labels does not have"),
    "twice": ("id,mood\n2,happy\n2,unhappy\n", "'id' repeats 1 key: '2'"),
    "columns": ("id,mood,by\n2,happy,me\n", "has the columns mood, by beside the key. Name the one"),
    "one column": ("id\n2\n", "has no column but the key 'id'"),
    "no rows": ("id,mood\n", "gold.csv has no rows"),
    "no key": ("nr,mood\n2,happy\n", "gold.csv has no column 'id' (--key)"),
    "Latin": (b"id,mood\n2,happy\n" + b"3,\xfcble\n", "Save it again as CSV in UTF-8"),
}


@table("gold, said", WRONG_GOLD.values(), ids=WRONG_GOLD)
def test_gold_that_does_not_fit_is_refused(gold, said):
    with CliRunner().isolated_filesystem():
        Path("comments.csv").write_text(COMMENTS)
        Path("gold.csv").write_bytes(gold if isinstance(gold, bytes) else gold.encode())
        result = CliRunner().invoke(main, ["init", *USUAL, "--gold", "gold.csv"])
        assert result.exit_code in (1, 2), result.output
        assert said in " ".join(result.output.split())
        assert sorted(path.name for path in Path().iterdir()) == ["comments.csv", "gold.csv"]


def test_gold_of_another_format_with_other_keys_is_refused(folder):
    pq.write_table(pa.table({"id": [7, 2], "text": ["a", "b"]}), "comments.parquet")
    said = init("comments.parquet", *USUAL[1:], "--gold", "gold.csv", code=1).output
    assert "Save both tables in the same format" in said
