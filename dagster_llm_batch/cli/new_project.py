"""The files of a new project: definitions in Python or YAML, pointers to them, and a Dagster home."""

from __future__ import annotations

import builtins
import json
import keyword
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import click
import jinja2

from dagster_llm_batch.cli.new_tables import GoldTable, RowTable
from dagster_llm_batch.providers.registry import PROVIDERS, needs_max_tokens

__all__ = ["PROVIDER_NAMES", "NewProject", "check_name", "default_name"]

_TEMPLATES = Path(__file__).with_name("templates")
_HOME = "# Dagster keeps its run history in this folder, and the ledger of all batches: keep it.\n"
# Environment variables with the address of an emulator.
_BASE_URLS = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}
# Names with another meaning in a template.
_NO_COLUMNS = frozenset([*keyword.kwlist, "row", "loop", "self", "true", "false", "none", "range", "dict", "set"])
_PACKAGE = "labeling"
# Names that a project uses itself. It uses one of Python's own, `str`, and Dagster refuses others of these for assets.
_USED = frozenset(
    [
        "Answer",
        "BaseModel",
        "HERE",
        "Literal",
        "MODEL",
        "Path",
        "assets",
        "days",
        "defs",
        "dg",
        "follow",
        "gold",
        "llm",
        "os",
        "project",
        "quality",
        "quality_failures",
        "quality_mistakes",
        "quality_per_class",
        "simulated",
        "sys",
        "vendor",
    ]
)
_DAGSTERS = frozenset(["context", "conf", "config", "meta", "output", "arg_dict", "input_arg_dict", "output_arg_dict"])

PROVIDER_NAMES = tuple(
    name for name, entry in PROVIDERS.items() if entry.starter.environment and entry.price_book is not None
)
"""Vendors whose settings are environment variables alone."""


@dataclass(frozen=True)
class NewProject:
    """Contents of a new project. `question` comes before the text in each prompt."""

    name: str
    rows: RowTable
    key: str
    texts: Sequence[str]
    labels: Sequence[str]
    question: str
    model: str
    day: str | None
    gold: GoldTable | None

    def files(self, folder: Path, *, is_yaml: bool) -> Mapping[Path, str]:
        """Return the text of each file by its place. Writes nothing."""
        values = self._values(folder)
        if is_yaml:
            defs = folder / _PACKAGE / "defs"
            made = {
                folder / "pyproject.toml": _filled("dg.toml.j2", values),
                folder / _PACKAGE / "__init__.py": "",
                folder / _PACKAGE / "definitions.py": _filled("definitions.py.j2", values),
                defs / "__init__.py": "",
                defs / "project.py": _filled("project.py.j2", values),
                defs / self.name / "defs.yaml": _filled("defs.yaml.j2", values),
            }
        else:
            made = {
                folder / "pyproject.toml": _filled("dagster.toml.j2", values),
                folder / "labels.py": _filled("labels.py.j2", values),
            }
        return made | {folder / "home" / "dagster.yaml": _HOME}

    @property
    def target(self) -> str:
        """Name of the labels' column: the gold's name, if Python allows it and it is unused."""
        wanted = "label" if self.gold is None else self.gold.column
        taken = {self.key, *self.texts}
        usable = wanted.isidentifier() and wanted not in _NO_COLUMNS and not wanted.startswith(("llm_", "_", "model_"))
        return next(name for name in (wanted if usable else "label", "label", "answer", "chosen") if name not in taken)

    def _values(self, folder: Path) -> dict[str, Any]:
        provider, _, model = self.model.partition("/")
        entry = PROVIDERS[provider]
        variables = entry.starter.environment
        settings = [f'{setting}=dg.EnvVar("{variable}")' for setting, variable in variables.items()]
        base_url = _BASE_URLS.get(provider)
        settings += [f'base_url=os.environ.get("{base_url}")'] if base_url else []
        return {
            "name": self.name,
            "table": self.rows.path,
            "table_path": _path_from(folder, self.rows.path),
            "delimiter": self.rows.delimiter,
            "key": self.key,
            "texts": self.texts,
            "labels": self.labels,
            "target": self.target,
            "prompt": self._prompt(),
            "day": self.day,
            "days": self._days(),
            "gold": self.gold,
            "gold_path": None if self.gold is None else _path_from(folder, self.gold.path),
            "model": self.model,
            "provider": provider,
            "params": needs_max_tokens(provider, model),
            "resource": entry.resource.partition(":")[2],
            "settings": ", ".join(settings),
            "environment": variables,
            "base_url": base_url,
            "key_variable": next(iter(variables.values()), None),
        }

    def _prompt(self) -> str:
        if len(self.texts) == 1:
            return f"{self.question}\n\n{_variable(self.texts[0])}"
        return "\n\n".join([self.question, *(f"{_plain(name)}: {_variable(name)}" for name in self.texts)])

    def _days(self) -> tuple[str, str | None] | None:
        if self.rows.first_day is None or self.rows.last_day is None:
            return None
        end = date.fromisoformat(self.rows.last_day) + timedelta(days=1)
        return self.rows.first_day, end.isoformat()


def _variable(column: str) -> str:
    is_plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", column) and column not in _NO_COLUMNS
    return f"{{{{ {column} }}}}" if is_plain else f"{{{{ row[{json.dumps(column, ensure_ascii=False)}] }}}}"


def _plain(column: str) -> str:
    """Return a column's name as text of a template."""
    return re.sub(r"[{}%#]", "", column).strip() or "Text"


def _path_from(folder: Path, path: Path) -> str:
    # ".." of a linked folder is the folder above its target. A link to the file itself may point elsewhere later.
    return Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()


def _quoted(value: Any) -> str:
    """Return a text in quotes that Python and YAML both read."""
    return json.dumps(str(value), ensure_ascii=False)


def _filled(template: str, values: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        autoescape=False,  # noqa: S701 - the files are no web pages, and each value is quoted where it stands
    )
    environment.filters["quoted"] = _quoted
    text = environment.get_template(template).render(values)
    text = re.sub(r"\n{4,}", "\n\n\n", text)
    return text.rstrip("\n") + "\n"


def default_name(table: Path) -> str:
    """Return a name for the labels of a table, in letters that Python and Dagster take."""
    plain = unicodedata.normalize("NFKD", table.stem).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_").lower()
    return f"{stem}_labels" if stem[:1].isalpha() else "_".join(filter(None, ["table", stem, "labels"]))


def check_name(name: str) -> str:
    """Return the name of the dataset. Raises UsageError for one that Python cannot have, or that the project uses."""
    is_word = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) and not keyword.iskeyword(name)
    if not is_word or name in _USED | _DAGSTERS | {*dir(builtins)}:
        raise click.UsageError(
            f"--name {name!r} cannot be the name of the labels. Use letters, digits and _, begin with a letter, and "
            f"use no word of Python, and none of {', '.join(sorted(_USED))}."
        )
    return name
