"""The output of `dg scaffold defs`: files that run unchanged, without a key unless you choose a vendor."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import click
import dagster as dg
import yaml  # type: ignore[import-untyped]
from dagster.components.scaffold.scaffold import ScaffoldRequest
from pydantic import Field

from dagster_llm_batch.components.resolution import Block
from dagster_llm_batch.core.split import PART_COLUMNS, PART_KEY
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.openrouter.servers import INLINE_SERVERS
from dagster_llm_batch.providers.registry import PROVIDERS, needs_max_tokens

__all__ = [
    "AgreementScaffolder",
    "BatchScaffolder",
    "CostScaffolder",
    "DriftScaffolder",
    "EstimateScaffolder",
    "EvaluationScaffolder",
    "GatheredLabelsScaffolder",
    "GoldSampleScaffolder",
    "PairwiseJudgeScaffolder",
    "RubricJudgeScaffolder",
    "SkewScaffolder",
    "StudentScaffolder",
]

_WITHOUT_KEY = next(name for name, entry in PROVIDERS.items() if entry.starter.without_key)
"""The default provider."""
_PARAMS = "  params: {max_tokens: 1000}"
"""For models that take no request without."""
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
    """A labeled dataset, with prompt, response and rows as files next to it."""

    @classmethod
    def get_scaffold_params(cls) -> type[BatchParams]:
        """Return the options."""
        return BatchParams

    def scaffold(self, request: ScaffoldRequest[BatchParams]) -> None:
        """Write the files."""
        if request.scaffold_format == "python":
            dg.scaffold_component(request)
            return
        shared = next(_resources(request), None)
        provider, kind = _provider(request.params.provider, shared)
        entry = PROVIDERS[kind]
        starter = entry.starter
        model = request.params.model or starter.model
        lines = [
            f"  name: {_name(request)}",
            "  rows:",
            "    function: .rows.tickets  # or the key of an asset",
            "  key: ticket_id",
            "  prompt:",
            "    system: You label support tickets.",
            "    user_file: prompt.md.j2",
            "  response: .schema.TicketLabel",
            f"  model: {provider}/{model}",
        ]
        if needs_max_tokens(kind, model):
            lines.append(_PARAMS)
        if entry.price_book is not None:
            lines.append("  max_cost_usd: 1  # may be billed")
        lines += [f"  {line}" for line in starter.attributes]
        files = ["prompt.md.j2", "rows.py", "schema.py"]
        if shared is None:
            lines.append("  resource:  # once in a project")
            if any(line.startswith("mode: wait") for line in starter.attributes):
                lines.append("    poll_seconds: 1")
            lines.append(f"    {provider}:")
            lines += [f'      {name}: "{{{{ env.{variable} }}}}"' for name, variable in starter.environment.items()]
            lines += [f"      {line.replace('$folder', _place(request))}" for line in starter.settings]
            files += starter.files
            if starter.environment:
                lines += ["", "requirements:", f"  env: [{', '.join(starter.environment.values())}]"]
        else:
            lines += [f"  resource_key: {shared.key}"] if shared.key != "llm_batch" else []
            lines += ["  sensor: true  # once in a project: it materializes labels"] if not _has_sensor(request) else []
        _write(request, "\n".join([f"type: {request.type_name}", "", "attributes:", *lines, ""]), files)


class _Resource(NamedTuple):
    """The LLMBatchResource that the project has."""

    place: str
    key: str
    kinds: Mapping[str, str] | None
    """The kind of each provider that it has, by name; None where that cannot be read off."""


def _resources(request: ScaffoldRequest[Any]) -> Iterator[_Resource]:
    """Yield the resources of the project: resources in YAML, then resources in Python, which is read and not run."""
    for dataset in _datasets(request):
        if (given := dataset.get("resource")) is not None:
            kinds = _kinds_in_yaml(given) if isinstance(given, Mapping) else None
            yield _Resource("`resource` in YAML", dataset.get("resource_key", "llm_batch"), kinds)
    for path, tree in _modules(request):
        keys = {
            value: key.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Dict)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
        for call in _calls(tree, "LLMBatchResource"):
            key = str(keys.get(call, "llm_batch"))
            yield _Resource(f"LLMBatchResource in {path.name}", key, _kinds_in_python(call))


def _kinds_in_yaml(resource: Mapping[str, Any]) -> Mapping[str, str]:
    presets = _kinds_of_presets()
    named = {name: given.get("kind") for name, given in (resource.get("providers") or {}).items()}
    kinds = {name: presets.get(kind, kind) for name, kind in named.items()}
    return _kinds(resource) | {name: kind for name, kind in kinds.items() if kind in PROVIDERS}


def _kinds_in_python(call: ast.Call) -> Mapping[str, str] | None:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    named = given.pop("providers", ast.Dict([], []))
    if None in given or not isinstance(named, ast.Dict) or None in named.keys:
        return None
    classes = {entry.resource.partition(":")[2]: kind for kind, entry in PROVIDERS.items()}
    classes |= {"AzureOpenAIBatchResource": "openai"}
    kinds = _kinds(name for name in given if name is not None)
    for name, value in zip(named.keys, named.values, strict=True):
        function = getattr(value, "func", None)
        called = str(getattr(function, "id", getattr(function, "attr", None)))
        named_so = [one.value for one in getattr(value, "args", ()) if isinstance(one, ast.Constant)]
        kind = _kinds_of_presets().get(str(named_so[0])) if called == "preset" and named_so else classes.get(called)
        if isinstance(name, ast.Constant) and kind is not None:
            kinds[str(name.value)] = kind
    return kinds


def _kinds_of_presets() -> dict[str, str]:
    return dict.fromkeys(SERVERS, "openai") | dict.fromkeys(INLINE_SERVERS, "openrouter")


def _kinds(names: Iterable[str]) -> dict[str, str]:
    """Return the providers of a resource's short form, which are called as their kind."""
    return {name: name for name in PROVIDERS if name in set(names)}


def _has_sensor(request: ScaffoldRequest[Any]) -> bool:
    """Return whether the project already materializes labels automatically: with a resource in YAML comes a sensor."""
    in_yaml = (dataset.get("sensor", "resource" in dataset) for dataset in _datasets(request))
    return any(in_yaml) or any(True for _, tree in _modules(request) for _ in _calls(tree, "build_llm_batch_sensor"))


def _modules(request: ScaffoldRequest[Any]) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the Python files of the project, parsed."""
    for path in sorted(_defs(request).parent.rglob("*.py")):
        try:
            yield path, ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            # somebody else's to mend
            continue


def _calls(tree: ast.Module, name: str) -> Iterator[ast.Call]:
    """Yield the calls of a function or class of this name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name in (getattr(node.func, "id", None), getattr(node.func, "attr", None)):
            yield node


def _provider(wanted: str | None, shared: _Resource | None) -> tuple[str, str]:
    """Return name and kind of the provider to write for: of the kind that is wanted, else one that the project has."""
    if shared is None or shared.kinds is None:
        if shared is not None and wanted is None:
            raise click.ClickException(
                f"Cannot read the providers of this project's {shared.place} from its definition. Name the provider to "
                "write for: --provider NAME."
            )
        kind = wanted or _WITHOUT_KEY
        return kind, kind
    for name, kind in shared.kinds.items():
        if wanted in (None, kind):
            return name, kind
    raise click.ClickException(
        f"This project's {shared.place} has no provider {wanted or _WITHOUT_KEY!r}; it has: "
        f"{', '.join(shared.kinds) or 'none'}. Add it there first, or choose one of them."
    )


def _place(request: ScaffoldRequest[Any]) -> str:
    """Return the definition's folder in its project."""
    folder = _folder(request).resolve()
    return folder.relative_to((request.project_root or folder).resolve()).as_posix()


class AroundScaffolder(dg.Scaffolder):
    """Something around the labels that the project has in YAML."""

    suffix: ClassVar[str]
    """The end of the name, if the folder has the labels' name."""
    attributes: ClassVar[str]
    """YAML, with the existing names as `$name`."""
    gold: ClassVar[bool] = False
    """Whether an asset with gold comes with it, if the labels are from the example."""

    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        """Write the files."""
        if request.scaffold_format == "python":
            dg.scaffold_component(request)
            return
        datasets = [dataset for dataset in _datasets(request) if "name" in dataset]
        first = next(iter(datasets), _EXAMPLE)
        labels, *others = [str(dataset["name"]) for dataset in datasets] or [str(first["name"])]
        rows = next((dataset["rows"] for dataset in datasets if isinstance(dataset.get("rows"), str)), "tickets")
        judge = next(
            (model for model in map(_model, datasets) if not model.startswith(f"{_WITHOUT_KEY}/")), _JUDGE_MODEL
        )
        is_example = first.get("rows") == _EXAMPLE["rows"]
        name = _name(request)
        attributes = Template(self.attributes).substitute(
            labels=labels,
            other=next(iter(others), "other_labels"),
            rows=rows,
            key=first.get("key", "id"),
            target=_target(first),
            text=next(iter(first.get("keep", ())), "body  # one of the columns that the labels keep"),
            gold="ticket_gold" if is_example and datasets else "gold  # an asset of yours with the true values",
            judge=judge,
            judge_params=f"{_PARAMS}\n" if needs_max_tokens(*judge.split("/", 1)) else "",
        )
        name = name if name != labels else f"{name}_{self.suffix}"
        folder = _write(request, f"type: {request.type_name}\n\nattributes:\n  name: {name}\n{attributes}", [])
        if self.gold and is_example and datasets:
            # Dagster does not load Python on its own in a folder with YAML
            _copy("ticket_gold.py", folder.parent)


class EvaluationScaffolder(AroundScaffolder):
    """An evaluation of the project's labels, and gold for it."""

    suffix, gold = "eval", True
    attributes = """\
  gold: $gold
  candidates: [$labels]
  rejects: {$labels: ${labels}_rejects}
  key: $key
  target: $target
"""


class AgreementScaffolder(AroundScaffolder):
    """Agreement of the project's labels and people, and gold for it."""

    suffix, gold = "agreement", True
    attributes = """\
  gold: $gold
  candidates: [$labels]
  key: $key
  target: $target
"""


class EstimateScaffolder(EvaluationScaffolder):
    """Figures of all labels of the project, corrected by gold, and gold for it."""

    suffix = "estimates"


class DriftScaffolder(AroundScaffolder):
    """Drift of the project's labels between partitions."""

    suffix = "drift"
    attributes = """\
  candidates: [$labels]  # they must have partitions
  target: $target
"""


class SkewScaffolder(AroundScaffolder):
    """The project's labels, a sample of them asked again in real time."""

    suffix = "skew"
    attributes = """\
  candidates: $labels
  target: $target
  sample_size: 50
  max_cost_usd: 1  # may be billed for each sample
"""


class StudentScaffolder(AroundScaffolder):
    """A student of the project's labels."""

    suffix = "student"
    attributes = """\
  labels: $labels
  text: $text
  target: $target
"""


class GoldSampleScaffolder(AroundScaffolder):
    """Rows of the project's labels that people should label."""

    suffix = "gold_sample"
    attributes = """\
  candidates: [$labels]
  rejects: {$labels: ${labels}_rejects}
  key: $key
  target: $target
  sample_size: 100
"""


class AnnotationScaffolder(AroundScaffolder):
    """Human labels for rows of the project's labels, as gold."""

    suffix = "annotations"
    attributes = """\
  candidates: $labels
  target: $target
"""


class CostScaffolder(AroundScaffolder):
    """Costs of the project's labels."""

    suffix = "costs"
    attributes = """\
  candidates: [$labels]  # without this: all of the namespace
  # max_month_usd: 500  # a check, by the forecast; without this: the deployment's budgets of a month
"""


class GatheredLabelsScaffolder(dg.Scaffolder):
    """The labels of parts that the project has, gathered."""

    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        """Write the files. Raises ClickException if the project has no dataset of parts in YAML."""
        if request.scaffold_format == "python":
            dg.scaffold_component(request)
            return
        parts = next((one for one in _datasets(request) if one.get("key") == PART_KEY and "name" in one), None)
        own = [] if parts is None else [name for name in parts.get("keep", ()) if name not in PART_COLUMNS.names]
        if parts is None or not own:
            needed = ", ".join(name for name in PART_COLUMNS.names if name != PART_KEY)
            raise click.ClickException(
                f"This project has no labeled dataset of parts in YAML. Add one first: its rows are from split_rows, "
                f"and it has `key: {PART_KEY}` and `keep: [id, {needed}]`, with the key of your texts in place of id."
            )
        name = _name(request)
        lines = [
            f"  name: {name if name != parts['name'] else f'{name}_gathered'}",
            f"  labels: {parts['name']}",
            f"  key: {own[0]}  # the column that identifies a text",
            "  gather: {way: concat}  # lists and texts; or union: lists; or vote: texts, true and false",
        ]
        _write(request, "\n".join([f"type: {request.type_name}", "", "attributes:", *lines, ""]), [])


_JUDGE_MODEL = "openai/gpt-5-nano"
_EXAMPLE: Mapping[str, Any] = {
    "name": "ticket_labels",
    "rows": {"function": ".rows.tickets"},
    "key": "ticket_id",
    "response": ".schema.TicketLabel",
}
"""The scaffolder's output for labels."""


def _model(dataset: Mapping[str, Any]) -> str:
    return str(dataset.get("model"))


def _target(dataset: Mapping[str, Any]) -> str:
    """Return a column of the labels, if the definition names one."""
    response = dataset.get("response")
    columns = response.get("properties") if isinstance(response, Mapping) else None
    if isinstance(columns, Mapping) and columns:
        return str(next(iter(columns)))
    return "topic" if response == _EXAMPLE["response"] else "topic  # a column of the labels"


_JUDGED = """\
  rows: $rows  # the asset whose rows were labeled
  candidates: [$CANDIDATES]
  key: $key
  target: $target
"""
_JUDGE = """\
  model: $judge  # a real model, whose provider is in the project's resource
$judge_params  max_cost_usd: 1  # may be billed
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
  rubric:
    criteria:
      right: Is this what the ticket is about?
  prompt: |
    A support ticket: {{ body }}

    Its topic is said to be: {{ answer }}
"""
        + _JUDGE
    )


def _write(request: ScaffoldRequest[Any], text: str, files: list[str]) -> Path:
    """Write YAML and the files next to it; return their folder."""
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


def _defs(request: ScaffoldRequest[Any]) -> Path:
    """Return the folder of the project's definitions."""
    above = request.target_path.parents
    return next((folder for folder in above if folder.name == "defs"), request.target_path.parent)


def _datasets(request: ScaffoldRequest[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield attributes of the labeled datasets that the project has in YAML."""
    for path in sorted(_defs(request).rglob("defs.yaml")):
        try:
            documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError):
            # somebody else's to mend
            continue
        for document in documents:
            if isinstance(document, dict) and str(document.get("type")).endswith(".LLMBatchComponent"):
                yield document.get("attributes") or {}
