"""Records the exchanges between a provider and its vendor for others to read, without the identity of the user.

One line is one exchange: method, path, both bodies, and the headers that a client acts on. Request headers and hosts
are not recorded. Before it is written, this is removed from paths and bodies: credentials and names of accounts that
the request's headers carried, text in the form of one, and the values of fields that name people, accounts, projects
and single requests. Ids of batches and files stay: a replay needs them, and only their owner can use them.

It works by hooks of the SDKs' transports, httpx and httpx2: at OpenAI and similar vendors, Anthropic and Gemini.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from dagster_llm_batch.errors import ConfigError

__all__ = ["HOST", "REMOVED", "Recorder", "cleaned", "record_client", "recording_to"]

HOST, REMOVED = "http://HOST", "REMOVED"
"""Replacements for the vendor's own address, and for removed text."""

# The last two are the steps of an upload to Gemini.
_KEPT_HEADERS = ("content-type", "retry-after", "retry-after-ms", "x-goog-upload-url", "x-goog-upload-status")
# Headers that identify the caller. Their values are removed from everything that is written from then on.
_TELLING_HEADERS = (
    *("authorization", "api-key", "x-api-key", "x-goog-api-key", "openai-organization", "openai-project"),
    *("anthropic-workspace-id", "anthropic-user-profile-id", "x-goog-user-project"),
)
_TELLING_FIELDS = frozenset(
    {
        *("request_id", "organization", "organization_id", "org_id", "organization_uuid", "project", "project_id"),
        *("workspace_id", "account", "account_id", "user", "user_id", "email", "created_by", "owner", "ip"),
        *("system_fingerprint", "safety_identifier", "api_key", "access_token"),
    }
)
_FORMS = tuple(
    re.compile(form)
    for form in (
        r"\bBearer\s+[\w.~+/=-]+",
        r"\bsk-[\w-]{8,}",
        r"\bAIza[\w-]{20,}",
        r"\bya29\.[\w.-]+",
        r"\beyJ[\w-]+\.[\w-]+\.[\w-]*",
        r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}",
        r"\borg-[A-Za-z0-9]{6,}",
        r"\b(?:proj|wrkspc|workerreq|req|user|acct)_[A-Za-z0-9]{4,}",
        r"(?<=:)[0-9]{12}(?=:)",
        r"(?<=\bgs://)[^/\"\\\s]+",
        r"(?<=\bs3://)[^/\"\\\s]+",
        r"(?<=\bprojects/)[^/\"\\\s]+",
        r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
        r"(?<=[?&])(?:sig|Signature|X-Amz-[\w-]+|X-Goog-[\w-]+|key|token)=[^&\"\\\s]+",
    )
)
_LEAST_CHARS = 6
_LISTS = ("data", "batches", "operations", "batchPredictionJobs")
_NONCE = re.compile(r"\br[0-9a-f]{16}(?=[-\"./_]|$)")


def cleaned(text: str, words: frozenset[str] = frozenset()) -> str:
    """Return a text without these words, and without text in the form of a credential or of an account's name."""
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, REMOVED)
    for form in _FORMS:
        text = form.sub(REMOVED, text)
    return text


def _without_fields(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: REMOVED if name in _TELLING_FIELDS and inner is not None else _without_fields(inner)
            for name, inner in value.items()
        }
    return [_without_fields(inner) for inner in value] if isinstance(value, list) else value


def _json_without_fields(text: str) -> str | None:
    """Return a JSON object or list on one line, without those fields; None for other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return json.dumps(_without_fields(value), separators=(",", ":")) if isinstance(value, dict | list) else None


class Recorder:
    """Append exchanges to a file. A recording in an existing file goes on, as after a process that was stopped.

    `about` becomes its first line, which describes the recording. Raises ConfigError for a file of another kind.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self._words: frozenset[str] = frozenset()
        # The ids that mark a batch on a list as part of this dialogue. Other batches are private.
        self._own: set[str] = set()
        if not path.exists() or not path.stat().st_size:
            self._append(json.loads(cleaned(json.dumps(_without_fields({"dialogue": 1, **about})))))
            return
        try:
            first, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if first["dialogue"] != 1:
                raise ValueError(first["dialogue"])
            for line in lines:
                self._learn(line["method"], line["request"], line["response"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds something else than a dialogue. Give the name of a new file.") from error

    def hide(self, words: Iterable[str]) -> None:
        """Add words to remove, besides the values of headers."""
        self._words |= set(words)

    def begin(self, request: Any) -> None:
        """Collect the words to remove from the headers of a request, right before it is sent; read its body."""
        told = (request.headers.get(name) or "" for name in _TELLING_HEADERS)
        words = {word for value in told for word in value.split() if len(word) >= _LEAST_CHARS and word != "Bearer"}
        self._words |= words
        request.read()

    def end(self, response: Any) -> None:
        """Write an exchange whose answer has come."""
        request = response.request
        response.read()
        host = f"{request.url.scheme}://{request.url.netloc.decode()}"
        parts = urlsplit(str(request.url))
        told = [pair for pair in parse_qsl(parts.query) if pair[0] not in ("key", "access_token")]
        query = urlencode(told)
        asked = self._clean(request.content.decode("utf-8", "replace"), host)
        said = self._clean(response.content.decode("utf-8", "replace"), host)
        self._learn(request.method, asked, said)
        self._append(
            {
                "method": request.method,
                "path": self._clean(parts.path + (f"?{query}" if query else ""), host),
                "request": asked,
                "status": response.status_code,
                "headers": {
                    name: self._clean(response.headers[name], host)
                    for name in _KEPT_HEADERS
                    if name in response.headers
                },
                "response": said if request.method != "GET" else self._without_others(said),
            }
        )

    def _learn(self, method: str, asked: str, said: str) -> None:
        """Record the id of the object that a call has created."""
        if method != "POST":
            return
        self._own.update(_NONCE.findall(asked))
        try:
            made = json.loads(said)
        except ValueError:
            return
        if isinstance(made, dict):
            self._own.update(made[name] for name in ("id", "name") if isinstance(made.get(name), str))

    def _without_others(self, said: str) -> str:
        """Return an answer without the account's other batches and files in its lists."""
        try:
            value = json.loads(said)
        except ValueError:
            return said
        found = [name for name in _LISTS if isinstance(value, dict) and isinstance(value.get(name), list)]
        for name in found:
            value[name] = [one for one in value[name] if any(own in json.dumps(one) for own in self._own)]
        if found and isinstance(value.get("total"), int):
            value["total"] = len(value[found[0]])
        if found and "last_id" in value:
            ids = [one.get("id") for one in value[found[0]] if isinstance(one, dict)]
            value |= {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None, "has_more": False}
        return json.dumps(value, separators=(",", ":")) if found else said

    def _clean(self, text: str, host: str) -> str:
        text = text.replace(host, HOST)
        # One object, over however many lines some servers write theirs; else lines with one each, as of a file.
        whole = _json_without_fields(text)
        if whole is None:
            lines = text.split("\n")
            whole = "\n".join(line if (told := _json_without_fields(line)) is None else told for line in lines)
        return cleaned(whole, self._words)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


_recorder: Recorder | None = None


@contextmanager
def recording_to(recorder: Recorder | None) -> Iterator[None]:
    """Record the dialogues of all clients that this process makes within the block."""
    global _recorder  # noqa: PLW0603 - an SDK's client is made deep inside, where no argument leads
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


def record_client(client: Any, secrets: Iterable[str] = ()) -> None:
    """Let a client of httpx or httpx2 record its exchanges without these secrets, if a recording is on."""
    if _recorder is None:
        return
    _recorder.hide(secrets)
    hooks: Mapping[str, list[Callable[[Any], None]]] = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _recorder.begin],
        "response": [*hooks.get("response", []), _recorder.end],
    }
