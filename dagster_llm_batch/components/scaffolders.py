"""What `dg scaffold defs` writes: files that run as they are, without a key unless a vendor is asked for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import click
import dagster as dg
import yaml  # type: ignore[import-untyped]
from dagster.components.scaffold.scaffold import ScaffoldRequest
from pydantic import Field

from dagster_llm_batch.components.resolution import Block
from dagster_llm_batch.providers.registry import PROVIDERS

__all__ = [
    "AgreementScaffolder",
    "BatchScaffolder",
    "CostScaffolder",
    "DriftScaffolder",
    "EvaluationScaffolder",
    "GoldSampleScaffolder",
    "PairwiseJudgeScaffolder",
    "RubricJudgeScaffolder",
    "SkewScaffolder",
]

_WITHOUT_KEY = "command"
"""Who answers where nobody is named: it needs neither a key nor an account."""
_TEMPLATES = Path(__file__).with_name("templates")

if TYPE_CHECKING:
    Provider = str
else:
    Provider = Literal[tuple(PROVIDERS)]


class BatchParams(Block):
    """Options of `dg scaffold defs dagster_llm_batch.LLMBatchComponent`."""

    provider: Provider | None = Field(
        default=None,
        description="Who answers. Default: the project's provider, else a labeler by keywords, without a key.",
    )
    model: str | None = Field(default=None, description="The provider's name for the model. Default: a small one.")


class BatchScaffolder(dg.Scaffolder[BatchParams]):
    """A labeled dataset, with prompt, response and rows as files beside it."""

    @classmethod
    def get_scaffold_params(cls) -> type[BatchParams]:
        """Return the options."""
        return BatchParams

    def scaffold(self, request: ScaffoldRequest[BatchParams]) -> None:
        """Write the files."""
        if request.scaffold_format == "python":
            dg.scaffold_component(request)
            return
        shared = next((datasets["resource"] for datasets in _datasets(request) if "resource" in datasets), None)
        provider = _provider(request.params.provider, shared)
        entry = PROVIDERS[provider]
        starter = entry.starter
        lines = [
            f"  name: {_name(request)}",
            "  rows:",
            "    function: .rows.tickets  # or the key of an asset",
            "  key: ticket_id",
            "  prompt:",
            "    system: You label support tickets.",
            "    user_file: prompt.md.j2",
            "  response: .schema.TicketLabel",
            f"  model: {provider}/{request.params.model or starter.model}",
        ]
        if entry.price_book is not None:
            lines.append("  max_cost_usd: 1  # refuses before anything is sent")
        lines += [f"  {line}" for line in starter.attributes]
        files = ["prompt.md.j2", "rows.py", "schema.py"]
        if shared is None:
            lines.append("  resource:  # once in a project")
            lines.append(f"    {provider}:")
            lines += [f'      {name}: "{{{{ env.{variable} }}}}"' for name, variable in starter.environment.items()]
            lines += [f"      {line.replace('$folder', _place(request))}" for line in starter.settings]
            files += starter.files
            if starter.environment:
                lines += ["", "requirements:", f"  env: [{', '.join(starter.environment.values())}]"]
        _write(request, "\n".join([f"type: {request.type_name}", "", "attributes:", *lines, ""]), files)


def _provider(wanted: str | None, shared: object) -> str:
    """Return the provider to write for: the one that is wanted, else one that is installed. `shared`: the project's
    resource, if it is in YAML.
    """
    if not isinstance(shared, Mapping):
        return wanted or _WITHOUT_KEY
    configured = [name for name in PROVIDERS if name in shared]
    provider = wanted or next(iter(configured), _WITHOUT_KEY)
    if provider not in configured:
        raise click.ClickException(
            f"This project's `resource` has no provider {provider!r}; it has: {', '.join(configured) or 'none'}. "
            "Add it there first, or choose one of them."
        )
    return provider


def _place(request: ScaffoldRequest[Any]) -> str:
    """Return the definition's folder in its project."""
    folder = _folder(request).resolve()
    return folder.relative_to((request.project_root or folder).resolve()).as_posix()


class AroundScaffolder(dg.Scaffolder):
    """Something around the labels that the project has in YAML."""

    suffix: ClassVar[str]
    """Of the name, where the folder has that of the labels."""
    attributes: ClassVar[str]
    """YAML, with what is there by `$name`."""
    gold: ClassVar[bool] = False
    """Whether an asset with gold for the example comes with it."""

    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        """Write the files."""
        if request.scaffold_format == "python":
            dg.scaffold_component(request)
            return
        datasets = [dataset for dataset in _datasets(request) if "name" in dataset]
        labels, *others = [str(dataset["name"]) for dataset in datasets] or ["ticket_labels"]
        rows = next((dataset["rows"] for dataset in datasets if isinstance(dataset.get("rows"), str)), "tickets")
        models = [str(dataset.get("model")) for dataset in datasets]
        name = _name(request)
        attributes = Template(self.attributes).substitute(
            labels=labels,
            other=next(iter(others), "other_labels"),
            rows=rows,
            judge=next((model for model in models if not model.startswith(f"{_WITHOUT_KEY}/")), "openai/gpt-5-nano"),
        )
        name = name if name != labels else f"{name}_{self.suffix}"
        folder = _write(request, f"type: {request.type_name}\n\nattributes:\n  name: {name}\n{attributes}", [])
        if self.gold:
            # in a folder that has YAML, Dagster loads no Python by itself
            _copy("ticket_gold.py", folder.parent)


class EvaluationScaffolder(AroundScaffolder):
    """An evaluation of the project's labels, and gold for it."""

    suffix, gold = "eval", True
    attributes = """\
  gold: ticket_gold
  candidates: [$labels]
  rejects: {$labels: ${labels}_rejects}
  key: ticket_id
  target: topic
"""


class AgreementScaffolder(AroundScaffolder):
    """How far the project's labels and people agree, and gold for it."""

    suffix, gold = "agreement", True
    attributes = """\
  gold: ticket_gold
  candidates: [$labels]
  key: ticket_id
  target: topic
"""


class DriftScaffolder(AroundScaffolder):
    """Drift of the project's labels between partitions."""

    suffix = "drift"
    attributes = """\
  candidates: [$labels]  # they must have partitions
  target: topic
"""


class SkewScaffolder(AroundScaffolder):
    """The project's labels, a sample of them asked again in real time."""

    suffix = "skew"
    attributes = """\
  candidates: $labels
  target: topic
  sample_size: 50
  max_cost_usd: 1  # for each sample; refuses before anything is sent
"""


class GoldSampleScaffolder(AroundScaffolder):
    """Rows of the project's labels that people should label."""

    suffix = "gold_sample"
    attributes = """\
  candidates: [$labels]
  rejects: {$labels: ${labels}_rejects}
  key: ticket_id
  target: topic
  sample_size: 100
"""


class CostScaffolder(AroundScaffolder):
    """Costs of the project's labels."""

    suffix = "costs"
    attributes = """\
  candidates: [$labels]  # without this: all of the namespace
"""


_JUDGED = """\
  rows: $rows  # the asset with what was asked about
  candidates: [$CANDIDATES]
  key: ticket_id
  target: topic
"""
_JUDGE = """\
  model: $judge  # a real model, whose provider is in the project's `resource`
  max_cost_usd: 1  # refuses before anything is sent
"""


class PairwiseJudgeScaffolder(AroundScaffolder):
    """A judge of two of the project's labels."""

    suffix = "duel"
    attributes = (
        _JUDGED.replace("$CANDIDATES", "$labels, $other")
        + """\
  prompt: |
    A support ticket: {{ body }}

    Topic A: {{ answer_a }}
    Topic B: {{ answer_b }}
"""
        + _JUDGE
    )


class RubricJudgeScaffolder(AroundScaffolder):
    """A judge of the project's labels."""

    suffix = "scores"
    attributes = (
        _JUDGED.replace("$CANDIDATES", "$labels")
        + """\
  criteria:
    right: Is this what the ticket is about?
  prompt: |
    A support ticket: {{ body }}

    Its topic is said to be: {{ answer }}
"""
        + _JUDGE
    )


def _write(request: ScaffoldRequest[Any], text: str, files: list[str]) -> Path:
    """Write YAML and the files beside it; their folder."""
    path = request.target_path if request.append else request.target_path / "defs.yaml"
    with path.open("a" if request.append else "w", encoding="utf-8") as out:
        out.write(f"---\n{text}" if request.append else text)
    for name in files:
        _copy(name, path.parent)
    return path.parent


def _copy(name: str, folder: Path) -> None:
    """Copy a file of the templates, unless there is one already."""
    if not (folder / name).exists():
        shutil.copyfile(_TEMPLATES / name, folder / name)


def _folder(request: ScaffoldRequest[Any]) -> Path:
    return request.target_path.parent if request.append else request.target_path


def _name(request: ScaffoldRequest[Any]) -> str:
    return re.sub(r"\W", "_", _folder(request).name)


def _datasets(request: ScaffoldRequest[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield attributes of the labeled datasets that the project has in YAML."""
    above = request.target_path.parents
    defs = next((folder for folder in above if folder.name == "defs"), request.target_path.parent)
    for path in sorted(defs.rglob("defs.yaml")):
        try:
            documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError):
            # somebody else's to mend
            continue
        for document in documents:
            if isinstance(document, dict) and str(document.get("type")).endswith(".LLMBatchComponent"):
                yield document.get("attributes") or {}
