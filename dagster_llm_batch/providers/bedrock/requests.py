r"""Records of Bedrock's batch files, with the body that each family of models takes. Pure.

    {"modelId":"…","recordId":"…","modelInput":{…,"messages":[…]}}

All that a spec's requests share is serialised once. `modelId` is for us, so that a record can be answered in real time
too: on a job the model stands once, and `record_of` leaves it out of what is uploaded. Nothing is marked for
the prompt cache: batches on Bedrock do not use one. A row's text stays data, also where the body is a prompt with
markup (Llama): the markup's opening `<|` is written `< |` there.

Formats: https://docs.aws.amazon.com/bedrock/latest/userguide/batch-inference-data.html
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.providers.bedrock.bodies import check_shape, settings
from dagster_llm_batch.providers.bedrock.models import Family, takes_images
from dagster_llm_batch.providers.bedrock.replies import read_claude_lines, read_line
from dagster_llm_batch.providers.jsonlines import dumps, quote
from dagster_llm_batch.text import replace_halves
from dagster_llm_batch.types import BatchLimits, Image, Request, RequestSpec, ResultColumns

__all__ = ["BedrockLines"]

_IMAGE_FORMATS = frozenset({"png", "jpeg", "gif", "webp"})


class BedrockLines:
    """The codec for one spec. `limits` is asked only when it is needed, for it may cost a call."""

    # see Codec.enforces_format
    enforces_format = True

    def __init__(self, spec: RequestSpec, family: Family, limits: Callable[[], BatchLimits]) -> None:
        check_shape(spec, family)
        self._spec = spec
        self._family = family
        self._limits = limits
        self._start = f'{{"modelId":{quote(spec.model)},'
        self._head = dumps(settings(spec, family))[1:-1]
        self._turns = "".join(dumps({"role": t.role, "content": self._content(t.text)}) + "," for t in spec.turns)

    def __reduce__(self) -> Any:
        """With its limits as they are: a copy elsewhere has no credentials to ask for them."""
        return BedrockLines, (self._spec, self._family, partial(replace, self.limits))

    @property
    def limits(self) -> BatchLimits:
        """What one batch may hold, per model."""
        return self._limits()

    def encode(self, request: Request, custom_id: str) -> bytes:
        """One line; see Codec.encode. Raises InputError for an image that the model or the form cannot take."""
        self._check(request)
        match self._family:
            case Family.TITAN:
                varying = f'"inputText":{quote(request.user)}'
            case Family.LLAMA:
                varying = f'"prompt":{quote(self._prompt(request))}'
            case Family.CHAT:
                system = f'{{"role":"system","content":{quote(request.system)}}},' if request.system else ""
                varying = f'"messages":[{system}{self._turns}{self._user(request)}]'
            case Family.CLAUDE:
                system = f'"system":{quote(request.system)},' if request.system else ""
                varying = f'{system}"messages":[{self._turns}{self._user(request)}]'
            case _:
                system = f'"system":[{{"text":{quote(request.system)}}}],' if request.system else ""
                varying = f'{system}"messages":[{self._turns}{self._user(request)}]'
        comma = "," if self._head else ""
        line = f'{self._start}"recordId":{quote(custom_id)},"modelInput":{{{self._head}{comma}{varying}}}}}\n'
        return line.encode("ascii")

    decode = staticmethod(read_line)  # see Codec.decode

    def decode_all(self, lines: Sequence[bytes]) -> ResultColumns:
        """Return result lines by column; see ColumnCodec.decode_all."""
        if self._family is Family.CLAUDE:
            return read_claude_lines(lines)
        return ResultColumns.of(map(read_line, lines))

    def record_of(self, line: bytes) -> bytes:
        """Return the line as Bedrock gets it."""
        start = self._start.encode("ascii")
        return b"{" + line[len(start) :] if line.startswith(start) else line

    def _check(self, request: Request) -> None:
        if self._family is Family.TITAN and (request.system or request.images):
            what = "a system text" if request.system else "images"
            raise ConfigError(f"Embeddings take one text; the prompt has {what}. Leave only its user part.")
        if request.images and (self._family is Family.LLAMA or not takes_images(self._spec.model)):
            raise ConfigError(
                f"The model {self._spec.model!r} takes no images in a request of the form '{self._family.value}'. Take "
                "the images out of the prompt, or use a model that sees."
            )

    def _content(self, text: str) -> Any:
        return (
            [{"text": replace_halves(text)}] if self._family in (Family.NOVA, Family.CONVERSE) else replace_halves(text)
        )

    def _user(self, request: Request) -> str:
        if not request.images:
            return dumps({"role": "user", "content": self._content(request.user)})
        typed = self._family in (Family.CLAUDE, Family.CHAT)
        parts: list[dict[str, Any]] = [self._image(image) for image in request.images]
        if request.user:
            text = replace_halves(request.user)
            parts.append({"type": "text", "text": text} if typed else {"text": text})
        return dumps({"role": "user", "content": parts})

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
        # a row that holds the markup's own opening could speak as the system or as the LLM
        dialogue = "".join(f"{start}{role}{end}\n\n{text.replace('<|', '< |')}{stop}" for role, text in turns)
        return f"<|begin_of_text|>{dialogue}{start}assistant{end}\n\n"
