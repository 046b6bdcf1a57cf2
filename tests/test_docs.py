"""The documents are true: their Python runs, page by page and in order; pictures and links lead somewhere."""

from __future__ import annotations

import pydoc
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from markdown_it import MarkdownIt
from mkdocs.config import load_config

import dagster_llm_batch
from dagster_llm_batch.providers.registry import PROVIDERS, SERVER_FOLDERS
from dagster_llm_batch.testing.emulator import VENDORS
from tests import architecture_page
from tests.holds_table import with_table
from tests.page import COMMANDS_RUN_ELSEWHERE, blocks, install_lines, packages, run_commands, run_python
from tests.providers_page import PAGE as PROVIDERS_PAGE
from tests.providers_page import with_tables
from tests.state_diagram import PAGE as LEDGER_PAGE
from tests.state_diagram import with_diagram
from tests.tables import table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "AGENTS.md", "docs/llms.txt")
SITE = sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))
WITH_CODE = [page for page in ("README.md", *SITE) if blocks(ROOT / page, "python", "csv")]


def _blocks(page, language):
    tokens = MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
    return [(t.map[0] + 1, t) for t in tokens if t.type == "fence" and t.info.split()[:1] == [language]]


def _run_python(page, monkeypatch, folder):
    """Run the blocks of a page as one module; the test removes the module and its imports again."""
    monkeypatch.setitem(sys.modules, "page", ModuleType("page"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-emulator")
    # The test removes the page's registrations again.
    for registry, name in ((PROVIDERS, "dice"), (SERVER_FOLDERS, "acme"), (VENDORS, "acme")):
        monkeypatch.setitem(registry, name, None)
        del registry[name]
    before = set(sys.modules)
    names = run_python(ROOT / page, folder)
    for file in folder.rglob("*.py"):
        name = ".".join(file.relative_to(folder).with_suffix("").parts)
        for module in {name, name.partition(".")[0]} - before:
            sys.modules.pop(module, None)
    return names


@pytest.mark.filterwarnings("ignore")
def test_the_python_of_the_readme_defines_what_its_text_names(monkeypatch, tmp_path):
    names = _run_python("README.md", monkeypatch, tmp_path)
    specs = {spec.key.to_user_string(): spec for spec in names["defs"].resolve_all_asset_specs()}
    assert specs.keys() >= {"moods", "moods_batch", "quality_mistakes"}
    assert [name for name, spec in specs.items() if "table" not in spec.kinds] == ["moods_batch"]


@pytest.mark.sample
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in SITE if page in WITH_CODE])
def test_the_python_of_a_page_runs_as_one_program_and_its_commands_after_it(page, monkeypatch, tmp_path):
    """Run all blocks of a page. Each command is a process of its own, which imports Dagster for seconds."""
    _run_python(page, monkeypatch, tmp_path)
    if page in COMMANDS_RUN_ELSEWHERE:
        return
    # A page may have made it, with runs in it.
    tmp_path.joinpath("home").mkdir(exist_ok=True)
    tmp_path.joinpath("home", "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    run_commands(ROOT / page)


@table("page", ["README.md", *SITE])
def test_the_code_of_a_page_is_found_without_a_parser_of_markdown(page):
    """The environment of `tests.page` has only the page's packages."""
    read = [
        (line, token.info.split()[0], token.content)
        for language in ("python", "sh")
        for line, token in _blocks(page, language)
    ]
    found = [(one.line, one.language, one.content) for one in blocks(ROOT / page, "python", "sh")]
    assert sorted(found) == sorted(read)


def test_a_line_that_installs_both_names_dagsters_command_before_its_web_page():
    """Otherwise pip tries all releases while the index lacks a `dagster-dg-cli` for the newest web page."""
    lines = [line for page in ("README.md", *SITE) for line in install_lines(ROOT / page) if "dagster-dg-cli" in line]
    assert len(lines) >= 5
    assert [line for line in lines if line.index("dagster-dg-cli") > line.index("dagster-webserver")] == []


def test_readme_and_start_install_the_same():
    assert packages(ROOT / "README.md") == packages(ROOT / "docs" / "start.md")


@table("page", WITH_CODE)
def test_a_page_with_code_installs_what_it_needs_or_links_to_the_page_that_does(page):
    """`python3 -m tests docs` runs it in an environment with only these packages."""
    assert packages(ROOT / page)


@table("page", [page for page in SITE if page.startswith("docs/how-to/")])
def test_a_how_to_page_names_first_what_it_needs_and_last_how_to_check(page):
    start, *sections = (ROOT / page).read_text(encoding="utf-8").split("\n## ")
    assert re.search(r"start\.md#install|[Yy]ou need|It needs", start)
    assert [section.partition("\n")[0] for section in sections].index("Check that it worked") == len(sections) - 1


@table("page", [*PAGES, *SITE])
def test_pictures_and_links_of_the_documents_lead_to_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / page).parent.joinpath(target).is_file(), target


@table("page", [*PAGES, *SITE])
def test_the_modules_that_a_page_names_exist(page):
    """Paths may be relative to the repository or to the package."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(r"`([\w.]+/[\w./]+\.py)`", text):
        assert any((root / path).is_file() for root in (ROOT, ROOT / "dagster_llm_batch")), path


def test_pictures_are_small():
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size < 300_000


def test_the_commands_that_the_documents_name_exist():
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in (*PAGES, *SITE))
    for module in sorted(set(re.findall(r"python3? -m ([a-z_.]+)", text))):
        path = ROOT.joinpath(*module.split("."))
        ours = (path / "__main__.py").is_file() or path.with_suffix(".py").is_file()
        assert ours or find_spec(module.split(".", maxsplit=1)[0]) is not None, module


def test_the_diagram_of_states_is_the_one_that_the_table_of_moves_gives():
    page = LEDGER_PAGE.read_text(encoding="utf-8")
    assert page == with_diagram(page), "run `python -m tests.state_diagram --write`"


def test_the_table_of_waits_is_the_one_that_the_rules_give():
    page = LEDGER_PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run `python -m tests.holds_table --write`"


def test_the_tables_of_providers_are_those_that_the_code_gives():
    page = PROVIDERS_PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run `python -m tests.providers_page --write`"


@pytest.mark.slow
def test_the_page_of_the_architecture_agrees_with_the_import_graph():
    page = architecture_page.PAGE.read_text(encoding="utf-8")
    today = page
    for name, part in {
        "tree": architecture_page.tree,
        "packages": architecture_page.packages,
        "walk": architecture_page.walk,
    }.items():
        today = architecture_page.with_part(today, name, part())
    assert page == today, "run `python -m tests.architecture_page --write`"


def test_the_table_of_folders_names_every_folder_of_the_package_once_and_none_that_is_not_there():
    table = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where things are")[2].partition("\n## ")[0]
    )
    named = re.findall(
        r"`([\w/]+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    )
    folder = architecture_page.FOLDER
    assert [place for place in named if not any((root / place).exists() for root in (ROOT, folder.parent))] == []
    folders = {str(path.parent.relative_to(folder.parent)) for path in folder.glob("*/__init__.py")}
    assert sorted(place for place in named if place.startswith("dagster_llm_batch/")) == sorted(folders)


def test_the_reference_has_every_public_name():
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: dagster_llm_batch[\w.]*\.(\w+)$", text, re.MULTILINE))
    assert set(dagster_llm_batch.__all__) - {"__version__"} <= named


def test_what_the_reference_says_of_itself_in_a_clone_is_true_of_every_name_and_is_not_on_the_site():
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: (dagster_llm_batch[\w.]+)$", text, re.MULTILINE)
    assert len(names) > 60
    assert [name for name in names if not getattr(pydoc.locate(name), "__doc__", None)] == []
    assert "dagster_llm_batch.llm_batch_assets" in names
    assert "python -m pydoc" in text
    hooks = load_config(str(ROOT / "mkdocs.yml"))["hooks"]
    [shown] = [module.on_page_markdown(text) for module in hooks.values()]
    assert "python -m pydoc" not in shown
    assert "::: dagster_llm_batch.llm_batch_assets" in shown


def test_the_site_leads_to_every_page():
    config = load_config(str(ROOT / "mkdocs.yml"))
    nav, not_in_nav = str(config.nav), config.not_in_nav
    pages = [page.removeprefix("docs/") for page in SITE]
    assert [page for page in pages if f"'{page}'" not in nav and not not_in_nav.match_file(page)] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """Build the site, which has every page, and the reference of every public name."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    reference = tmp_path.joinpath("site", "reference", "python", "index.html").read_text(encoding="utf-8")
    assert "queue_limits" in reference
    assert "<!-- fields" not in reference


def test_the_table_of_stored_names_lists_each_name_once_and_names_of_the_code() -> None:
    lines = (ROOT / "docs/reference/support.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    header = next(i for i, row in enumerate(rows) if "| Decision |" in row)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[header + 2 :]]
    table_of_names = [row for row in cells if len(row) == 5]
    assert {row[3] for row in table_of_names} == {"kept"}
    names = [name for row in table_of_names for name in re.findall(r"`([\w/]+)`", row[0]) if not name.endswith("_")]
    assert len(set(names)) == len(names) > 15
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "dagster_llm_batch").rglob("*.py")]
    assert [name for name in names if not any(re.search(rf"\b{name}\b", source) for source in sources)] == []
