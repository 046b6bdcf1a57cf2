"""Rows through a `ray.data.llm` vLLM processor: its engines run in Ray's workers, no server or file between.

Chat lines only. A row that the engine refuses is that row's result line (`should_continue_on_error`); a line that is
not a chat line never gets there. The processor does not report why a reply ends: it counts as cut short at
`max_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .answering import custom_id_of, error_line, reply_line
from .files import Files

__all__ = ["SAMPLING", "finished_runs"]

_URL = "/v1/chat/completions"
SAMPLING = (
    "frequency_penalty", "ignore_eos", "include_stop_str_in_output", "min_p", "min_tokens", "presence_penalty",
    "repetition_penalty", "seed", "skip_special_tokens", "stop", "stop_token_ids", "temperature", "top_k", "top_p",
)  # fmt: skip
"""Parameters of a chat request that are parameters of vLLM's sampling, under the same names."""


def finished_runs(folder: str, plan: Mapping[str, Any], pool: Mapping[str, Any]) -> Any:
    """Return a dataset with one row for each result file that was written."""
    import ray.data  # noqa: PLC0415 -- the provider reads SAMPLING without Ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig  # noqa: PLC0415 -- as above

    config = vLLMEngineProcessorConfig(
        **{"concurrency": (1, pool["workers"]), "batch_size": pool["rows_per_file"], **plan["processor"]},
        should_continue_on_error=True,
    )
    processor = build_processor(config, preprocess=_asked, postprocess=_answered)
    files = Files(folder)
    spans = [{"start": start, "length": length} for start, length in files.spans(pool["rows_per_file"])]
    rows = ray.data.from_items(spans, override_num_blocks=len(spans)).flat_map(_Rows(folder))
    good, bad = rows.filter(lambda row: row["refused"] == ""), rows.filter(lambda row: row["refused"] != "")
    write = {"fn_constructor_args": (folder,), "batch_size": pool["rows_per_file"], "concurrency": 1, "num_cpus": 0.1}
    return processor(good).union(bad).map_batches(_Writer, batch_format="pyarrow", **write)


class _Rows:
    """The rows of a span, each with the reason why the engine cannot take it, if any."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, span: Mapping[str, Any]) -> list[dict[str, str]]:
        lines = Files(self._folder).requests(int(span["start"]), int(span["length"]))
        return [{"line": line.decode("utf-8", "replace"), "refused": _refused(line)} for line in lines]


class _Writer:
    """Writes result files."""

    def __init__(self, folder: str) -> None:
        self._files = Files(folder)

    def __call__(self, batch: Any) -> dict[str, list[int]]:
        rows = batch.to_pylist()
        name = self._files.result_name("".join(row["line"] for row in rows).encode(), len(rows))
        self._files.write_results(name, (_result(row) + b"\n" for row in rows))
        return {"rows": [len(rows)]}


def _refused(line: bytes) -> str:
    try:
        request = json.loads(line)
        if request["url"] != _URL:
            return f"The vLLM processor answers {_URL}; got {request['url']}."
        if not request["body"]["messages"]:
            return "The request has no messages."
    except Exception as error:  # noqa: BLE001 -- one bad row is one bad row
        return f"{type(error).__name__}: {error}"
    return ""


def _asked(row: Mapping[str, Any]) -> dict[str, Any]:
    body = json.loads(row["line"])["body"]
    sampling = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    if (most := _most(body)) is not None:
        sampling["max_tokens"] = most
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        sampling["structured_outputs"] = {"json": json.dumps(form["json_schema"]["schema"])}
    elif form.get("type") == "json_object":
        sampling["structured_outputs"] = {"json_object": True}
    return {"messages": body["messages"], "sampling_params": sampling}


def _answered(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("line", "refused", "generated_text", "num_input_tokens", "num_generated_tokens")
    return {name: row[name] for name in kept}


def _result(row: Mapping[str, Any]) -> bytes:
    if row["refused"]:
        return error_line(custom_id_of(row["line"].encode()), "invalid_request", row["refused"])
    request = json.loads(row["line"])
    if failed := row.get("__inference_error__"):
        return error_line(request["custom_id"], "engine_error", str(failed))
    body, before, after = request["body"], int(row["num_input_tokens"]), int(row["num_generated_tokens"])
    most = _most(body)
    message = {"role": "assistant", "content": row["generated_text"]}
    finish = "length" if most is not None and after >= most else "stop"
    reply = {
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after},
    }
    return reply_line(request["custom_id"], reply)


def _most(body: Mapping[str, Any]) -> int | None:
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    return int(most) if most is not None else None
