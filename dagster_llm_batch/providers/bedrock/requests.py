r"""Records of Bedrock's batch files, with the body that each family of models takes. Pure.

    {"modelId":"…","recordId":"…","modelInput":{…,"messages":[…]}}

All that a spec's requests share is serialised once. `modelId` is this package's own, so that a single record can be
answered in real time. It is cut off before the upload, since a job names its model once (`head`). Nothing is marked for
the prompt cache: batches on Bedrock do not use one. A row's text stays data, even if the body is a prompt with markup
(Llama): the markup's opening `<|` is written `< |` there.

Formats: https://docs.aws.amazon.com/bedrock/latest/userguide/batch-inference-data.html
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dagster_llm_batch.core.documents import DOCX, PDF, TEXT, XLSX
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.providers.bedrock.bodies import check_shape, parameter_warnings, settings
from dagster_llm_batch.providers.bedrock.models import Family, takes_images
from dagster_llm_batch.providers.bedrock.replies import read_claude_lines, read_line
from dagster_llm_batch.providers.jsonlines import LineStart, check_documents, dumps, encode_document, quote, quoted
from dagster_llm_batch.text import replace_halves
from dagster_llm_batch.types import (
    BatchLimits,
    Document,
    DocumentRules,
    Image,
    Request,
    RequestSpec,
    ResultColumns,
)

__all__ = ["BedrockLines"]

_IMAGE_FORMATS = frozenset({"png", "jpeg", "gif", "webp"})
_DOCUMENT_FORMATS = {PDF: "pdf", TEXT: "txt", DOCX: "docx", XLSX: "xlsx"}
_MOST_PAGES = 100
_DOCUMENTS = {
    # Pages: https://docs.aws.amazon.com/bedrock/latest/userguide/inference-api-restrictions.html. Bytes: a body of
    # InvokeModel has at most 25,000,000 by botocore 1.44.8, and base64 takes a third more than the documents have.
    Family.CLAUDE: DocumentRules(
        "Claude on Bedrock", (PDF,), most_total_bytes=18_600_000, most_total_pages=_MOST_PAGES, counts_all=True
    ),
    # DocumentBlock of botocore 1.44.8.
    Family.CONVERSE: DocumentRules(
        "Bedrock's Converse", tuple(_DOCUMENT_FORMATS), most_documents=5, most_bytes=4_500_000, needs_text=True
    ),
}


class BedrockLines:
    """The codec for one spec. `limits` is called only when it is needed, since it may cost a call.

    `head` is how each line starts: `{` and the model. The upload goes without it (`cut_heads`).
    """

    # see Codec.enforces_format
    enforces_format = True

    def __init__(self, spec: RequestSpec, family: Family, limits: Callable[[], BatchLimits]) -> None:
        check_shape(spec, family)
        self._spec = spec
        self._family = family
        self._limits = limits
        self.head = f'{{"modelId":{quote(spec.model)},'.encode("ascii")
        fixed = dumps(settings(spec, family))[1:-1]
        self._settings = f',"modelInput":{{{fixed}{"," if fixed else ""}'.encode("ascii")
        self._turns = "".join(dumps({"role": t.role, "content": self._content(t.text)}) + "," for t in spec.turns)
        self._dialogue = LineStart(self._before_user)

    def __reduce__(self) -> Any:
        """Pickle the present limits: a copy elsewhere has no credentials to ask for them."""
        return BedrockLines, (self._spec, self._family, partial(replace, self.limits))

    @property
    def documents(self) -> DocumentRules | None:
        """See TakesDocuments. Other forms than these two may take documents, which is not documented."""
        if self._family is Family.CONVERSE and "claude" in self._spec.model:
            return replace(_DOCUMENTS[self._family], most_total_pages=_MOST_PAGES)
        return _DOCUMENTS.get(self._family)

    def check_parameters(self) -> tuple[str, ...]:
        """See ChecksParameters."""
        return parameter_warnings(self._spec, self._family)

    @property
    def limits(self) -> BatchLimits:
        """The limits of one batch, per model."""
        return self._limits()

    def encode(self, request: Request, custom_id: str) -> bytes:
        """Encode one line; see Codec.encode. Raises InputError for a file that the model or the form cannot take."""
        self._check(request)
        start = (self.head, b'"recordId":', quoted(custom_id), self._settings)
        match self._family:
            case Family.TITAN:
                return b"".join((*start, b'"inputText":', quoted(request.user), b"}}\n"))
            case Family.LLAMA:
                return b"".join((*start, b'"prompt":', quoted(self._prompt(request)), b"}}\n"))
        return b"".join((*start, self._dialogue.of(request.system), self._user(request), b"]}}\n"))

    decode = staticmethod(read_line)  # see Codec.decode

    def decode_all(self, lines: Sequence[bytes]) -> ResultColumns:
        """Return result lines by column; see ColumnCodec.decode_all."""
        if self._family is Family.CLAUDE:
            return read_claude_lines(lines)
        return ResultColumns.of(map(read_line, lines))

    def _check(self, request: Request) -> None:
        if self._family is Family.TITAN and (request.system or request.images):
            what = "a system text" if request.system else "images"
            raise ConfigError(f"Embeddings take one text; the prompt has {what}. Leave only its user part.")
        if request.images and (self._family is Family.LLAMA or not takes_images(self._spec.model)):
            raise ConfigError(
                f"The model {self._spec.model!r} takes no images in a request of the form '{self._family.value}'. Take "
                "the images out of the prompt, or use a model that sees."
            )

        if request.documents:
            check_documents(request, self.documents, self._spec.model)

    def _content(self, text: str) -> Any:
        return (
            [{"text": replace_halves(text)}] if self._family in (Family.NOVA, Family.CONVERSE) else replace_halves(text)
        )

    def _before_user(self, system: str | None) -> bytes:
        """Return the dialogue up to the user's text."""
        before, first = "", ""
        if system:
            match self._family:
                case Family.CHAT:
                    first = f'{{"role":"system","content":{quote(system)}}},'
                case Family.CLAUDE:
                    before = f'"system":{quote(system)},'
                case _:
                    before = f'"system":[{{"text":{quote(system)}}}],'
        return f'{before}"messages":[{first}{self._turns}'.encode("ascii")

    def _user(self, request: Request) -> bytes:
        if not (request.images or request.documents):
            start, end = (
                (b'{"role":"user","content":[{"text":', b"}]}")
                if self._family in (Family.NOVA, Family.CONVERSE)
                else (b'{"role":"user","content":', b"}")
            )
            return b"".join((start, quoted(request.user), end))
        typed = self._family in (Family.CLAUDE, Family.CHAT)
        parts: list[dict[str, Any]] = [
            self._document(document, number) for number, document in enumerate(request.documents, start=1)
        ]
        parts += [self._image(image) for image in request.images]
        if request.user:
            text = replace_halves(request.user)
            parts.append({"type": "text", "text": text} if typed else {"text": text})
        return dumps({"role": "user", "content": parts}).encode("ascii")

    def _document(self, document: Document, number: int) -> dict[str, Any]:
        media_type, data = encode_document(document)
        if self._family is Family.CLAUDE:
            return {"type": "document", "source": {"type": "base64", "media_type": media_type, "data": data}}
        # The name is a number: the name of a file may identify a person, or give an order to the model.
        kind = _DOCUMENT_FORMATS[media_type]
        return {"document": {"format": kind, "name": f"document {number}", "source": {"bytes": data}}}

    def _image(self, image: Image) -> dict[str, Any]:
        if image.data is None or image.media_type is None:
            raise InputError(
                "Bedrock loads no images from addresses; an image needs its bytes and media type, such as 'image/png'."
            )
        kind = image.media_type.removeprefix("image/").replace("jpg", "jpeg")
        if kind not in _IMAGE_FORMATS:
            allowed = ", ".join(sorted(_IMAGE_FORMATS))
            raise InputError(f"Bedrock takes no images of the type {image.media_type!r}; it takes {allowed}.")
        data = b64encode(image.data).decode("ascii")
        if self._family is Family.CLAUDE:
            return {"type": "image", "source": {"type": "base64", "media_type": f"image/{kind}", "data": data}}
        if self._family is Family.CHAT:
            return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
        return {"image": {"format": kind, "source": {"bytes": data}}}

    def _prompt(self, request: Request) -> str:
        """Write the prompt in Llama's markup: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-meta.html"""
        version4 = "llama4" in self._spec.model
        start, end, stop = (
            ("<|header_start|>", "<|header_end|>", "<|eot|>")
            if version4
            else ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        )
        turns = [(turn.role, turn.text) for turn in self._spec.turns] + [("user", request.user)]
        if request.system:
            turns.insert(0, ("system", request.system))
        # a row with the markup's own opening could pose as the system or as the LLM
        dialogue = "".join(f"{start}{role}{end}\n\n{text.replace('<|', '< |')}{stop}" for role, text in turns)
        return f"<|begin_of_text|>{dialogue}{start}assistant{end}\n\n"
