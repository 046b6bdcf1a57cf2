"""docs/how-to/add-a-provider.md, word by word: a folder and a line of the registry make a provider for everybody."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from markdown_it import MarkdownIt

from dagster_llm_batch.providers.registry import PROVIDERS, provider_class
from dagster_llm_batch.testing.contracts import ProviderContract, ProviderUnderTest
from dagster_llm_batch.types import RequestSpec

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-provider.md"
REGISTERED = frozenset(PROVIDERS)


def python_blocks(text):
    return [token for token in MarkdownIt().parse(text) if token.type == "fence" and token.info.startswith("python")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the page's program, and return its names: its folder is written, its line is run, and its assets are made."""
    folder = tmp_path_factory.mktemp("page")
    program = ModuleType("page")
    program.__file__ = str(folder / "page.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setitem(PROVIDERS, "dice", PROVIDERS["command"])  # the page adds it, and these tests remove it
        del PROVIDERS["dice"]
        patch.setitem(sys.modules, "page", program)
        for block in python_blocks(PAGE.read_text(encoding="utf-8")):
            if title := re.search(r'title="([\w./]+)"', block.info):
                path = folder / title[1]
                path.parent.mkdir(exist_ok=True)
                path.write_text(block.content, encoding="utf-8")
            if "pytest" not in block.content:
                exec(compile(block.content, str(PAGE), "exec", dont_inherit=True), vars(program))
        yield vars(program)
        for module in [name for name in sys.modules if name.partition(".")[0] == "dice"]:
            del sys.modules[module]


@pytest.fixture
def registered(page):
    """Return the provider of the resource."""
    resource = page["LLMBatchResourceOfAll"](dice=page["DiceBatchResource"]())
    return resource.make_providers(Path.cwd())["dice"]


class TestRegisteredDice(ProviderContract):
    @pytest.fixture
    def subject(self, registered) -> ProviderUnderTest:
        return ProviderUnderTest(registered, RequestSpec("d6"), lambda: None, unreported=["failed", "created_at"])


def test_the_page_makes_one_folder_and_one_line(page):
    folder = Path(page["__file__"]).parent
    assert {path.relative_to(folder).parts[0] for path in folder.rglob("*.py")} == {"dice", "test_dice.py"}
    assert [name for name in PROVIDERS if name not in REGISTERED] == ["dice"]
    assert isinstance(page["DiceBatchResource"]().provider(), provider_class("dice"))


def test_a_field_without_the_line_makes_no_provider(page, monkeypatch):
    monkeypatch.delitem(PROVIDERS, "dice")
    resource = page["LLMBatchResourceOfAll"](dice=page["DiceBatchResource"]())
    assert resource.make_providers(Path.cwd()) == {}
