"""`answer`: a batch file, answered by a student. It is the command of a `CommandBatchResource`, so that a student is a
model like any other: the cheap one of a cascade, above all.

What cannot be answered is a row of the results with an error, also where there is no student yet: a cascade asks its
oracle about such rows, and the first student learns from that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import click
import dagster as dg

from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import print_json
from dagster_llm_batch.core.json_schema import Fit
from dagster_llm_batch.core.memory import chunks
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.evaluation import student_of
from dagster_llm_batch.evaluation.student import check_store
from dagster_llm_batch.exports.files import whole
from dagster_llm_batch.metrics.student import Answer, Student

__all__ = ["answer_command"]

_AT_ONCE = 1_000
_NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@click.command("answer", cls=Command, examples=["mood_student -i requests.jsonl -o answers.jsonl -f labels.py"])
@click.argument("student")
@code_location_command
@click.option("-i", "--input", "requests", required=True, type=click.File("rb"), help="Batch file in OpenAI's format.")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="File with the results.")
@click.option(
    "--score", default="confidence", show_default=True, help="Field of the response with the confidence, 0 to 1."
)
@json_option
def answer_command(
    deployment: DeploymentAccess, student: str, requests: BinaryIO, output: str, score: str, *, as_json: bool
) -> None:
    """Answer a batch file with the student model that an asset holds. It uses no LLM and costs nothing.

    The student reads the last message of the user. It answers two fields of the response: its target and --score. A
    request that needs more fields is refused, and so is a file for another model. If no student is stored yet, each row
    of the results is an error.
    """
    key = dg.AssetKey.from_user_string(student)
    with deployment.code.io_manager(key) as (name, manager):
        check_store(manager, name)
    try:
        stored = deployment.code.load_asset(key, None)
    except InputError as error:
        none = str(error)
        click.echo(none, err=True)
        answered = _refusals(_requests_to(student, requests), none)
    else:
        answered = _Replies(student_of(stored), score).lines(_requests_to(student, requests))
    count = good = 0
    # A refusal in the middle leaves no file. The batch has then failed, with the reason.
    with whole(Path(output)) as part, part.open("wb") as file:
        for is_good, line in answered:
            file.write(line)
            count, good = count + 1, good + is_good
    if as_json:
        print_json({"output": output, "rows": count, "answered": good})
    else:
        click.echo(f"{good:,} of {count:,} requests answered in {output}")


def _requests(file: BinaryIO) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the id and the body of each request. Raises InputError for a line that is not a request."""
    for number, line in enumerate(file, 1):
        try:
            request = json.loads(line)
            custom_id, body = request["custom_id"], request["body"]
            if not isinstance(custom_id, str) or not isinstance(body, dict):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"Line {number} of the batch file is no request with a custom_id and a body.") from error
        yield custom_id, body


def _requests_to(student: str, file: BinaryIO) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the requests. Raises ConfigError for one that asks a model of another name.

    When definitions load, they find the cascade's student by the model's name, and check the prompt against the text
    that the student learns from. The prompt of a model of another name is unchecked, so the guarantee may not hold.
    """
    for custom_id, body in _requests(file):
        if (model := body.get("model", student)) != student:
            raise ConfigError(
                f"The batch file asks the model {model!r}, and the student is {student!r}. A cascade's guarantee "
                "needs a prompt that is the student's text. Definitions find a student by its name and check this when "
                f"they load: make the dataset's model end in '/{student}', such as 'student/{student}'. In "
                "the command of a CommandBatchResource, {model} stands for what follows the first slash."
            )
        yield custom_id, body


def _refusals(requests: Iterator[tuple[str, Mapping[str, Any]]], why: str) -> Iterator[tuple[bool, bytes]]:
    return (_line(custom_id, 404, why) for custom_id, _ in requests)


def _line(custom_id: str, status: int, reply: str, model: str = "") -> tuple[bool, bytes]:
    """Return whether it is a good reply, and the line of the results."""
    is_good = status == 200  # noqa: PLR2004 - of HTTP
    body: dict[str, Any] = {"error": {"message": reply, "type": "invalid_request_error", "code": status}}
    if is_good:
        message = {"role": "assistant", "content": reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"object": "chat.completion", "model": model, "choices": [choice], "usage": _NO_TOKENS}
    line = {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}
    return is_good, json.dumps(line).encode() + b"\n"


class _Replies:
    """Answers of a student, as JSON of the response that each request wants."""

    def __init__(self, student: Student, score: str) -> None:
        self._student = student
        self._score = score
        self._model = f"student {student.version}"
        self._schema: object = None
        self._fit: Fit
        self._values: dict[str, Any] = {}

    def lines(self, requests: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[bool, bytes]]:
        for some in chunks(requests, _AT_ONCE):
            answers = self._student.answers([_text(body) for _, body in some])
            for (custom_id, body), answer in zip(some, answers, strict=True):
                try:
                    reply = self._reply(body, answer)
                except InputError as error:
                    yield _line(custom_id, 400, str(error))
                else:
                    yield _line(custom_id, 200, reply, self._model)

    def _reply(self, body: Mapping[str, Any], answer: Answer) -> str:
        self._read_schema(body)
        if answer.label not in self._values:
            self._values[answer.label] = self._value(answer.label)
        return json.dumps({self._student.target: self._values[answer.label], self._score: answer.confidence})

    def _read_schema(self, body: Mapping[str, Any]) -> None:
        """Take in the response that is wanted. Raises ConfigError where a student cannot give it."""
        wanted = body.get("response_format") or {}
        schema = wanted.get("json_schema", {}).get("schema", {})
        # It is the same in all requests of a batch.
        if self._schema == schema:
            return
        given = {self._student.target, self._score}
        if more := sorted(set(schema.get("required", ())) - given):
            raise ConfigError(
                f"The response has {', '.join(map(repr, more))} beside {self._student.target!r} and {self._score!r}, "
                "which are all that a student answers. Give these a default, or leave them out; --score names the "
                "field of its confidence."
            )
        self._schema, self._values = schema, {}
        self._fit = Fit(schema)

    def _value(self, label: str) -> Any:
        """Return a class as the response has it: a text, or the number or truth that the text is of."""
        for value in _readings(label):
            if self._fit.misfit({self._student.target: value, self._score: 0.5}) is None:
                return value
        raise InputError(
            f"The student's class {label!r}, with a {self._score!r} between 0 and 1, does not fit the response."
        )


def _readings(label: str) -> Iterator[Any]:
    yield label
    try:
        yield json.loads(label)
    except ValueError:
        return


def _text(body: Mapping[str, Any]) -> str:
    """Return the text of the user's last message, or ""."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
            return str(content or "")
    return ""
