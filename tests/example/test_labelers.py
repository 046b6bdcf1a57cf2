"""The example's labelers follow the file format of `vllm run-batch`, as commands in separate processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from example_project import prompt

ROOT = Path(__file__).resolve().parents[2]
VADER, SMOLLM2 = "vader", "smollm2"


def _body(model, text, **changes):
    messages = [{"role": "system", "content": prompt.SYSTEM}]
    for user, reply in prompt.EXAMPLES:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    messages.append({"role": "user", "content": prompt.USER.replace("{{ text }}", text)})
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": prompt.MAX_TOKENS}
    return {**body, "response_format": prompt.response_format(), **changes}


def _request(custom_id, body, url="/v1/chat/completions"):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def _lines(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def _label(labeler, folder, content):
    source = folder / "in.jsonl"
    if not isinstance(content, bytes):
        content = b"".join(json.dumps(request, ensure_ascii=False).encode() + b"\n" for request in content)
    source.write_bytes(content)
    command = [sys.executable, "-m", f"example_project.labelers.{labeler}", "-i", source, "-o", folder / "out.jsonl"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    return done, folder / "out.jsonl"


def _reply(row):
    return row["response"]["body"]["choices"][0]["message"]["content"]


def test_every_line_is_answered_in_order_under_its_own_custom_id(tmp_path):
    texts = {"a": "I love it, wonderful!", "b": "What a horrible, sad mess.", "c": "The bus leaves at nine."}
    done, out = _label(VADER, tmp_path, [_request(key, _body(VADER, text)) for key, text in texts.items()])
    assert done.returncode == 0, done.stderr
    rows = _lines(out)
    assert [row["custom_id"] for row in rows] == ["a", "b", "c"]
    assert [json.loads(_reply(row)) for row in rows] == [
        {"label": "positive"},
        {"label": "negative"},
        {"label": "neutral"},
    ]
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in rows)
    assert all(row["response"]["body"]["model"] == VADER for row in rows)


def test_only_the_last_user_message_decides(tmp_path):
    body = _body(VADER, "Awful.")
    body["messages"][0]["content"] = "Great, lovely, wonderful, perfect!"
    _, out = _label(VADER, tmp_path, [_request("a", body)])
    assert json.loads(_reply(_lines(out)[0])) == {"label": "negative"}


def test_the_answer_follows_the_schema_and_a_schema_out_of_reach_is_a_failed_row(tmp_path):
    def form(**properties):
        schema = {"type": "object", "properties": properties, "required": sorted(properties)}
        return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}

    label, number = {"type": "string"}, {"type": "number"}
    _, out = _label(
        VADER,
        tmp_path,
        [
            _request(
                "score", _body(VADER, "Great!", response_format=form(label=label, score=number, confidence=number))
            ),
            _request("topic", _body(VADER, "Great!", response_format=form(label=label, topic=label))),
            _request("enum", _body(VADER, "Great!", response_format=form(label={"enum": ["good", "bad"]}))),
            _request("text", _body(VADER, "Great!", response_format={"type": "text"})),
        ],
    )
    score, topic, enum, text = _lines(out)
    answer = json.loads(_reply(score))
    assert answer["label"] == "positive"
    assert 0 < answer["score"] == answer["confidence"] <= 1
    assert "topic" in topic["error"]["error"]["message"]
    assert [row["response"]["status_code"] for row in (topic, enum)] == [400, 400]
    assert [row["response"]["body"] for row in (topic, enum)] == [None, None]
    assert _reply(text) == "positive"


def test_usage_counts_the_words_of_all_messages_and_of_the_reply(tmp_path):
    messages = [{"role": "system", "content": "one two"}, {"role": "user", "content": "three  four\nfive"}]
    _, out = _label(VADER, tmp_path, [_request("a", _body(VADER, "", messages=messages))])
    usage = _lines(out)[0]["response"]["body"]["usage"]
    assert usage == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_a_failed_row_says_why_and_leaves_the_others_alone(tmp_path):
    good = _body(VADER, "I love it!")
    done, out = _label(
        VADER,
        tmp_path,
        [
            _request("model", {**good, "model": "wrong"}),
            _request("url", good, url="/v1/embeddings"),
            _request("messages", {"model": VADER}),
            _request("odd", {**good, "messages": [7]}),
            _request("good", good),
            _request("good", good),
        ],
    )
    rows = _lines(out)
    assert done.returncode == 0
    assert [row["response"]["status_code"] for row in rows] == [404, 400, 400, 500, 200, 200]
    assert "`wrong`" in rows[0]["error"]["error"]["message"]
    assert [row["error"] is None for row in rows] == [False] * 4 + [True] * 2
    assert rows[4]["custom_id"] == rows[5]["custom_id"] == "good"


def test_blank_lines_are_skipped_and_a_line_separator_in_a_text_splits_nothing(tmp_path):
    line = json.dumps(_request("a", _body(VADER, "bad\u2028news")), ensure_ascii=False).encode()
    done, out = _label(VADER, tmp_path, b"\n" + line + b"\r\n\n" + line)
    assert done.returncode == 0, done.stderr
    assert len(_lines(out)) == 2


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"custom_id": "a", "method": "POST", "url": "/v1/x"}'])
def test_a_line_that_is_no_request_ends_the_command_and_leaves_no_output(tmp_path, bad):
    good = json.dumps(_request("a", _body(VADER, "fine"))).encode()
    done, out = _label(VADER, tmp_path, good + b"\n" + bad + b"\n")
    assert done.returncode == 1
    assert "line 2" in done.stderr
    assert not out.exists()


def test_the_progress_file_ends_at_the_total_and_nothing_temporary_stays(tmp_path):
    _label(VADER, tmp_path, [_request(str(n), _body(VADER, "ok")) for n in range(30)])
    assert json.loads((tmp_path / "out.jsonl.progress").read_text()) == {"done": 30, "total": 30}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.progress"]


@pytest.mark.slow
def test_smollm2_answers_by_schema_and_the_same_each_time(tmp_path):
    """Run a real model on the processor."""
    texts = ("I hate this, it is terrible.", "I love this, what a great day!")
    requests = [_request(str(n), _body(SMOLLM2, text)) for n, text in enumerate(texts)]
    requests += [_request("long", _body(SMOLLM2, "word " * 3000)), _request("model", _body("other", "x"))]
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        done, out = _label(SMOLLM2, tmp_path / name, requests)
        assert done.returncode == 0, done.stderr
        runs.append(_lines(out))
    first, second = runs
    assert [row["response"]["status_code"] for row in first] == [200, 200, 400, 404]
    assert {json.loads(_reply(row))["label"] for row in first[:2]} <= set(prompt.LABELS)
    assert [_reply(row) for row in first[:2]] == [_reply(row) for row in second[:2]]
    assert first[0]["response"]["body"]["model"] == SMOLLM2
    assert first[0]["response"]["body"]["usage"]["completion_tokens"] > 0
