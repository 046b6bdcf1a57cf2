"""The README is true: its Python runs, in order and as one program; its pictures and links lead somewhere."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def _blocks(page, language):
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    return [(t.map[0] + 1, t.content) for t in tokens if t.type == "fence" and t.info.split()[:1] == [language]]


@pytest.mark.filterwarnings("ignore")
def test_the_python_of_the_readme_runs_as_one_program_from_top_to_bottom(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-emulator")
    blocks = _blocks("README.md", "python")
    assert len(blocks) >= 5
    names = {"__name__": "readme"}
    for line, source in blocks:
        exec(compile("\n" * line + source, str(ROOT / "README.md"), "exec", dont_inherit=True), names)
    labels = names["landed"].asset_materializations_for_node("ticket_labels")
    assert {m.asset_key.to_user_string() for m in labels} == {"ticket_labels", "ticket_labels_rejects"}
    assert names["defs"].resolve_asset_graph().has(names["tickets"].key)


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_links_of_the_documents_lead_to_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / target).is_file(), target


def test_pictures_are_small():
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 300_000


def test_the_commands_that_the_documents_name_exist():
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    for module in sorted(set(re.findall(r"python3? -m ([a-z_.]+)", text))):
        path = ROOT.joinpath(*module.split("."))
        ours = (path / "__main__.py").is_file() or path.with_suffix(".py").is_file()
        assert ours or find_spec(module.split(".", maxsplit=1)[0]) is not None, module
