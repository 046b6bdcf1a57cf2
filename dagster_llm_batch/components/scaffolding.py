"""What `dg scaffold defs` writes: files that run as they are, without a key unless a vendor is asked for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import click
import dagster as dg
import yaml  # type: ignore[import-untyped]
from dagster.components.scaffold.scaffold import ScaffoldRequest
from pydantic import BaseModel, Field

__all__ = ["BatchScaffolder", "EvaluationScaffolder"]

_TEMPLATES = Path(__file__).with_name("templates")

_LABELER = """\
    command:  # labeler.py goes by keywords; a model of your own runs by a command like `vllm run-batch`
      command: [python3, "{{{{ context.project_root }}}}/{folder}/labeler.py", "{{input}}", "{{output}}"]
"""
_VENDORS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "openai": ("gpt-5-nano", {"api_key": "OPENAI_API_KEY"}),
    "anthropic": ("claude-haiku-4-5", {"api_key": "ANTHROPIC_API_KEY"}),
    "gemini": ("gemini-2.5-flash-lite", {"api_key": "GEMINI_API_KEY"}),
    "vertex": (
        "gemini-2.5-flash-lite",
        {"project": "GOOGLE_CLOUD_PROJECT", "location": "GOOGLE_CLOUD_LOCATION", "bucket": "LLM_BATCH_BUCKET"},
    ),
    "bedrock": (
        "us.anthropic.claude-haiku-4-5-20251001-v1:0",
        {"role_arn": "LLM_BATCH_ROLE_ARN", "s3_uri": "LLM_BATCH_S3_URI"},
    ),
}
"""A small model of each vendor, and the settings it needs, from the environment."""

Provider = Literal["command", "openai", "anthropic", "gemini", "vertex", "bedrock"]


class BatchParams(BaseModel):
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
        """The options."""
        return BatchParams

    def scaffold(self, request: ScaffoldRequest[BatchParams]) -> None:
        """Write the files."""
        if request.scaffold_format == "python":
            dg.scaffold_component(request)
            return
        there = next((found["resource"] for found in _datasets(request) if "resource" in found), None)
        configured = [name for name in ("command", *_VENDORS) if name in (there or {})]
        provider: str = request.params.provider or next(iter(configured), "command")
        if there is not None and provider not in configured:
            raise click.ClickException(
                f"This project's `resource` has no provider {provider!r}; it has: {', '.join(configured) or 'none'}. "
                "Add it there first, or choose one of them."
            )
        default_model, settings = _VENDORS.get(provider, ("keywords", {}))
        lines = [
            f"  name: {_name(request)}",
            "  rows:",
            "    function: .rows.tickets  # or the key of an asset",
            "  key: ticket_id",
            "  prompt:",
            "    system: You label support tickets.",
            "    user_file: prompt.md.j2",
            "  response: .schema.TicketLabel",
            f"  model: {provider}/{request.params.model or default_model}",
        ]
        files = ["prompt.md.j2", "rows.py", "schema.py"]
        if provider == "command":
            lines.append("  mode: wait  # the run waits for the labels; without this, a sensor lands them")
            lines.append("  poll_seconds: 1")
        else:
            lines.append("  max_cost_usd: 1  # refuses before anything is sent")
        if provider == "bedrock":
            lines.append("  below_minimum: realtime  # three tickets are too few for a batch")
        if there is None:
            lines.append("  resource:  # once in a project")
            if provider == "command":
                files.append("labeler.py")
                lines.append(_LABELER.format(folder=_relative(request)).rstrip())
            else:
                lines.append(f"    {provider}:")
                lines += [f'      {name}: "{{{{ env.{variable} }}}}"' for name, variable in settings.items()]
        text = f"type: {request.type_name}\n\nattributes:\n" + "\n".join(lines) + "\n"
        if settings and there is None:
            text += f"\nrequirements:\n  env: [{', '.join(settings.values())}]\n"
        _write(request, text, files)


class EvaluationScaffolder(dg.Scaffolder):
    """An evaluation of the project's labels, and gold for it."""

    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        """Write the files."""
        if request.scaffold_format == "python":
            dg.scaffold_component(request)
            return
        labels = next((str(found["name"]) for found in _datasets(request) if "name" in found), "ticket_labels")
        name = _name(request)
        text = (
            f"type: {request.type_name}\n\nattributes:\n"
            f"  name: {name if name != labels else f'{name}_eval'}\n"
            "  gold: ticket_gold\n"
            f"  candidates: [{labels}]\n"
            f"  rejects: {{{labels}: {labels}_rejects}}\n"
            "  key: ticket_id\n"
            "  target: topic\n"
        )
        folder = _write(request, text, [])
        _copy("ticket_gold.py", folder.parent)  # in a folder that has YAML, Dagster loads no Python by itself


def _write(request: ScaffoldRequest[Any], text: str, files: list[str]) -> Path:
    """Write YAML and the files beside it; their folder."""
    path = request.target_path if request.append else request.target_path / "defs.yaml"
    with path.open("a" if request.append else "w", encoding="utf-8") as out:
        out.write(f"---\n{text}" if request.append else text)
    for name in files:
        _copy(name, path.parent)
    return path.parent


def _copy(name: str, folder: Path) -> None:
    """A file of the templates, unless there is one already."""
    if not (folder / name).exists():
        shutil.copyfile(_TEMPLATES / name, folder / name)


def _folder(request: ScaffoldRequest[Any]) -> Path:
    return request.target_path.parent if request.append else request.target_path


def _name(request: ScaffoldRequest[Any]) -> str:
    return re.sub(r"\W", "_", _folder(request).name)


def _relative(request: ScaffoldRequest[Any]) -> str:
    folder = _folder(request).resolve()
    return folder.relative_to((request.project_root or folder).resolve()).as_posix()


def _datasets(request: ScaffoldRequest[Any]) -> Iterator[Mapping[str, Any]]:
    """Attributes of the labeled datasets that the project has in YAML."""
    above = request.target_path.parents
    defs = next((folder for folder in above if folder.name == "defs"), request.target_path.parent)
    for path in sorted(defs.rglob("defs.yaml")):
        try:
            documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError):  # somebody else's to mend
            continue
        for one in documents:
            if isinstance(one, dict) and str(one.get("type")).endswith(".LLMBatchComponent"):
                yield one.get("attributes") or {}
