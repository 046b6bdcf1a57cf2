"""Request bodies of every vendor's format as the messages that a person reads."""

from __future__ import annotations

import json

import pytest

from dagster_llm_batch.review.prompts import Part, read_body, read_prompt, read_texts

PNG = "iVBORw0KGgo="
IMAGE = Part("user", image=f"data:image/png;base64,{PNG}")
ASKED = [Part("system", "You label."), Part("user", "Where is it?")]

# Bodies as in the vendors' documentation.
BODIES = {
    "openai chat": {
        "custom_id": "r-1",
        "body": {
            "messages": [
                {"role": "developer", "content": "You label."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Where is it?"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                    ],
                },
            ]
        },
    },
    "openai responses": {
        "body": {
            "instructions": "You label.",
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "Where is it?"},
                        {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
                    ],
                }
            ],
        }
    },
    "anthropic": {
        "custom_id": "r-1",
        "params": {
            "system": [{"type": "text", "text": "You label.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Where is it?"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                    ],
                }
            ],
        },
    },
    "converse": {
        "recordId": "r-1",
        "modelInput": {
            "system": [{"text": "You label."}],
            "messages": [
                {
                    "role": "user",
                    "content": [{"text": "Where is it?"}, {"image": {"format": "png", "source": {"bytes": PNG}}}],
                }
            ],
        },
    },
    "gemini": {
        "key": "r-1",
        "request": {
            "systemInstruction": {"parts": [{"text": "You label."}]},
            "contents": [
                {
                    "role": "user",
                    "parts": [{"text": "Where is it?"}, {"inlineData": {"mimeType": "image/png", "data": PNG}}],
                }
            ],
        },
    },
}

REPLIES = {
    "openai chat": {"response": {"body": {"choices": [{"message": {"role": "assistant", "content": "Here."}}]}}},
    "openai responses": {
        "response": {"body": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "Here."}]}]}}
    },
    "anthropic": {"result": {"message": {"role": "assistant", "content": [{"type": "text", "text": "Here."}]}}},
    "converse": {"modelOutput": {"output": {"message": {"role": "assistant", "content": [{"text": "Here."}]}}}},
    "gemini": {"response": {"candidates": [{"content": {"role": "model", "parts": [{"text": "Here."}]}}]}},
}


@pytest.mark.parametrize("wire", BODIES)
def test_a_body_is_read_as_it_was_rendered(wire):
    assert read_prompt(read_body(json.dumps(BODIES[wire]).encode())) == [*ASKED, IMAGE]


@pytest.mark.parametrize("wire", REPLIES)
def test_the_text_of_a_reply_is_found(wire):
    assert read_texts(REPLIES[wire]) == ["Here."]


def test_examples_keep_their_roles_and_their_order():
    turns = [("user", "A"), ("model", "1"), ("user", "B")]
    body = {"request": {"contents": [{"role": role, "parts": [{"text": text}]} for role, text in turns]}}
    assert [(part.role, part.text) for part in read_prompt(body)] == [("user", "A"), ("assistant", "1"), ("user", "B")]


@pytest.mark.parametrize("body", [None, 5, [], "text", {"body": 3}, {"modelInput": {"inputText": ""}}])
def test_what_has_another_form_is_no_prompt(body):
    assert read_prompt(body) == []


def test_a_picture_elsewhere_is_told_and_not_fetched():
    body = {"body": {"messages": [{"role": "user", "content": [{"image_url": {"url": "https://x.example/a.png"}}]}]}}
    (part,) = read_prompt(body)
    assert part.image is None
    assert "https://x.example/a.png" in part.text


def test_a_line_that_is_no_json_is_its_text():
    assert read_body(b"\xff{") == "\ufffd{"


@pytest.mark.parametrize(
    "content",
    [
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
        {"type": "input_file", "file_data": "data:application/pdf;base64,JVBERg=="},
        {"type": "document_url", "document_url": "data:application/pdf;base64,JVBERg=="},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBERg=="}},
        {"document": {"format": "pdf", "name": "a", "source": {"bytes": "JVBERg=="}}},
    ],
)
def test_a_document_of_any_vendor_can_be_opened(content):
    body = {"messages": [{"role": "user", "content": [content]}]}
    assert [part.document for part in read_prompt(body)] == ["data:application/pdf;base64,JVBERg=="]


def test_a_document_of_another_type_is_no_address():
    for kind in ("text/html", "image/svg+xml", "application/pdf;x"):
        content = {"type": "document", "source": {"type": "base64", "media_type": kind, "data": "PHNjcmlwdD4="}}
        assert read_prompt({"messages": [{"role": "user", "content": [content]}]})[0].document is None


DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
DOCUMENTS = {
    "responses": (
        {"type": "input_file", "filename": "document-1.docx", "file_data": f"data:{DOCX};base64,{PNG}"},
        "[document: document-1.docx]",
    ),
    "anthropic": (
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": PNG}},
        "[document: text/plain]",
    ),
    "converse": (
        {"document": {"format": "docx", "name": "document 1", "source": {"bytes": PNG}}},
        "[document: document 1 (docx)]",
    ),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_is_no_pdf_is_named_without_its_bytes(case: str) -> None:
    block, text = DOCUMENTS[case]
    assert read_prompt({"messages": [{"role": "user", "content": [block]}]}) == [Part("user", text)]
