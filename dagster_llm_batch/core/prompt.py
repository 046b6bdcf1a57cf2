"""Prompts: templates that make a request out of each row.

Templates are Jinja in a sandbox (`core.sandbox`). Row data is data: it is never run as code, and read as a path only
below `image_root` and `file_root`.
Errors of syntax and unknown columns are raised before the first row; others name the row and the column.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta
from jinja2 import nodes

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.documents import check_can_count_pages
from dagster_llm_batch.core.identity import make_request, make_requests
from dagster_llm_batch.core.masks import Mask
from dagster_llm_batch.core.row_files import NO_FILES, FilesOfRows, RowFiles, UnreadableFile
from dagster_llm_batch.core.sandbox import MOST_CHARS, Sandbox, size_of
from dagster_llm_batch.core.uploads import digest_of
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.text import keep_utf8
from dagster_llm_batch.types import Document, Request, Turn

__all__ = ["Prompt", "Renderer"]

_Template = Callable[[Mapping[str, Any]], str]
_NESTED = (list, dict, tuple)
_ROW = "row"


@checked
@dataclass(frozen=True)
class Prompt:
    """The question that the model is asked about each row.

    Args:
        user: Jinja template. Columns are variables (`{{ subject }}`); `{{ row["odd name"] }}` reaches any column.
            A null renders as nothing, in filters too; it is false, and `is none`.
        system: Jinja template of the system part. One without variables is the same for all requests: a stable prefix.
        images: Columns that hold images: bytes, an http(s) URL, or a path below `image_root`. A null adds none.
        image_root: Where path columns are looked up (any universal_pathlib URL), as in `s3://bucket/scans`. A row has a
            path relative to it, or an address that begins with it. All others are refused, so that rows name no other
            files of this process.
        examples: Few-shot pairs of (user text, reply), the same for all requests.
        cache_prefix: Mark the stable prefix (system and examples) for prompt caching where the provider has marks for
            it; others cache on their own.
        version: A name for this wording, kept with every row. Default: a digest of the prompt.
        mask: Personal data to replace by placeholders before rows are rendered, stored and sent. Default: none.
        documents: Columns that hold documents: bytes, an http(s) URL, or a path below `file_root`. A null adds none.
            All vendors that take documents take PDF; some take text, Word and sheets. Needs the extra `documents`.
        file_root: Where the paths of documents are looked up, as `image_root` for images.
        documents_as: "text" sends the text of each PDF or text file after `user`, for models that read no documents.
            A scan is a reject. "upload" uploads each file once to the vendor's storage, and requests name it there, so
            that batches stay small: at OpenAI, Anthropic and Gemini. Default: "file", which sends it in each request.
    """

    user: str
    system: str | None = None
    images: Sequence[str] = ()
    image_root: str | None = None
    examples: Sequence[tuple[str, str]] = ()
    cache_prefix: bool = False
    version: str | None = None
    mask: Mask | None = None
    documents: Sequence[str] = ()
    file_root: str | None = None
    documents_as: Literal["file", "text", "upload"] = "file"
    _environment: jinja2.Environment = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        environment = Sandbox(
            undefined=jinja2.StrictUndefined,
            finalize=_shown,
            keep_trailing_newline=False,
            autoescape=False,
        )
        environment.tests["none"] = _is_null
        environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _json_of_null}
        object.__setattr__(self, "_environment", environment)
        if self.documents:
            check_can_count_pages()
        elif self.documents_as != "file":
            raise ConfigError(
                f"Prompt(documents_as={self.documents_as!r}) has no documents. Name their columns, as in "
                "documents=['pdf'], or leave documents_as out."
            )
        for part, source in self._sources():
            try:
                # Compiling finds unknown filters, too, which parsing does not.
                environment.from_string(source)
            except (jinja2.TemplateSyntaxError, RecursionError) as error:
                line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
                what = f"{line}: {str(error).rstrip('.')}"
                msg = f"The {part} template has a syntax error{what}. A column is written as {{{{ name }}}}."
                raise ConfigError(msg) from error

    @classmethod
    def from_files(cls, user: str | Path, system: str | Path | None = None, **rest: Any) -> Prompt:
        """Return a prompt whose templates are in UTF-8 text files. Raises ConfigError where one cannot be read."""

        def read(path: str | Path) -> str:
            try:
                return Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                msg = f"The prompt file {str(path)!r} cannot be read: {error}"
                raise ConfigError(msg) from error

        return cls(user=read(user), system=None if system is None else read(system), **rest)

    def _sources(self) -> Iterator[tuple[str, str]]:
        if self.system is not None:
            yield "system", self.system
        yield "user", self.user

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The examples as conversation turns."""
        return tuple(turn for user, reply in self.examples for turn in (Turn("user", user), Turn("assistant", reply)))

    @property
    def files(self) -> tuple[str, ...]:
        """The columns with images and documents."""
        return (*self.images, *self.documents)

    @property
    def sends_files(self) -> bool:
        """Whether requests have images or documents, and not their text alone."""
        return bool(self.images) or self.sends_documents

    @property
    def sends_documents(self) -> bool:
        """Whether requests have documents, and not their text."""
        return bool(self.documents) and self.documents_as != "text"

    @property
    def asked_documents(self) -> list[Any]:
        """The columns of documents, for digests of the prompt: of a prompt without documents they stay the same."""
        return [list(self.documents), *(["text"] if self.documents_as == "text" else [])] if self.documents else []

    def columns(self) -> frozenset[str] | None:
        """Return the columns that the prompt reads, or None where it takes the whole row."""
        names = self._variables
        return None if _ROW in names else frozenset(names - self._environment.globals.keys()) | frozenset(self.files)

    def content(self, columns: Collection[str], key: str) -> frozenset[str]:
        """Return which of these columns hold what is asked about: those that the prompt reads, but for the key.

        The key counts where nothing else is read. A prompt that takes the whole row reads all columns.
        """
        read = frozenset(self.files) | self._variables | self._columns_of_row(columns)
        return (read & set(columns)) - {key} or read & set(columns)

    def _columns_of_row(self, columns: Collection[str]) -> frozenset[str]:
        """Return the columns that the templates read as `row["name"]` or `row.name`; all where they use `row` else."""
        names: set[str] = set()
        for _, source in self._sources():
            template = self._environment.parse(source)
            uses = sum(node.name == _ROW for node in template.find_all(nodes.Name))
            named = [name for node in template.find_all((nodes.Getattr, nodes.Getitem)) if (name := _item_of_row(node))]
            if uses > len(named):
                return frozenset(columns)
            names.update(named)
        return frozenset(names)

    def names(self) -> frozenset[str] | None:
        """Return the columns and Jinja's own names that the templates use: a column of such a name has precedence."""
        return None if _ROW in self._variables else self._variables | frozenset(self.files)

    @cached_property
    def _variables(self) -> frozenset[str]:
        """The names that the templates read: columns, `row`, and Jinja's own globals such as `range`."""
        parsed = (self._environment.parse(source) for _, source in self._sources())
        return frozenset(name for template in parsed for name in jinja2.meta.find_undeclared_variables(template))

    def renderer(self, columns: Collection[str], files: RowFiles = NO_FILES) -> Renderer:
        """Return a renderer for rows with these columns. Raises ConfigError where the prompt names another column."""
        needed = self.columns()
        if needed is not None:
            # A column with the name of one of Jinja's globals has precedence.
            needed |= self._variables & set(columns)
        unknown = sorted((needed or frozenset(self.files)) - set(columns))
        if unknown:
            msg = (
                f"The prompt names {_listed(unknown)}, which the rows do not have. "
                f"Columns of the rows: {_listed(sorted(columns))}. Correct the template, or add the column."
            )
            raise ConfigError(msg)
        return Renderer(self, columns if needed is None else needed, files)


class Renderer:
    """Render rows with one set of columns into requests. `columns` are those that it reads."""

    def __init__(self, prompt: Prompt, columns: Collection[str], files: RowFiles) -> None:
        environment = prompt._environment  # noqa: SLF001 - two halves of one thing
        self._files: FilesOfRows | None = None
        if prompt.images or prompt.documents:
            self._files = FilesOfRows(tuple(prompt.images), tuple(prompt.documents), files)
        self._sends_texts, self._uploads = prompt.documents_as == "text", prompt.documents_as == "upload"
        self._user = _template(environment, prompt.user, columns)
        self._system = None if prompt.system is None else _template(environment, prompt.system, columns)
        parts = [part for part in (self._system, self._user) if part is not None]
        plain = [part for part in parts if isinstance(part, _Plain)]
        # `{{ row["odd name"] }}` of a wide table reads one column, though `row` might be asked for any.
        self.columns = tuple(
            sorted({*prompt.files, *(name for part in plain for name in part.names)} if plain == parts else columns)
        )
        variables = jinja2.meta.find_undeclared_variables(environment.parse(prompt.system or ""))
        self._fixed_system: str | None = None
        if self._system is not None and not variables:
            try:
                self._fixed_system = self._system({})
            # A filter may raise anything, and so may the sandbox.
            except Exception as error:
                msg = f"The system template failed: {type(error).__name__}: {error}. Correct it; nothing was sent."
                raise ConfigError(msg) from error

    def requests(self, columns: Mapping[str, Sequence[Any]], keys: Sequence[object]) -> list[Request | UnreadableFile]:
        """Return requests of rows, given as columns, and UnreadableFile for a row whose file is. See `render`."""
        system_varies = self._system is not None and self._fixed_system is None
        if isinstance(self._user, _Plain) and not system_varies and self._files is None:
            users: list[str] | None = None
            # A row that is too long is named below.
            with suppress(OverflowError):
                users = self._user.all(columns, len(keys))
            if users is not None:
                # It is digested, counted and looked through.
                keep_utf8(users)
                return [*make_requests(self._fixed_system, users)]
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        requests = [self._request(row, key) for row, key in zip(rows if columns else repeat({}), keys, strict=False)]
        keep_utf8([request.user for request in requests if not isinstance(request, UnreadableFile)])
        return requests

    def render(self, row: Mapping[str, Any], key: object) -> Request:
        """Return the request of one row. Raises InputError, which names `key` and the template or column at fault."""
        request = self._request(row, key)
        if isinstance(request, UnreadableFile):
            raise InputError(f"Row {key!r}: {request.reason}.")
        return request

    def _request(self, row: Mapping[str, Any], key: object) -> Request | UnreadableFile:
        part = "system"
        try:
            system = self._fixed_system
            if system is None and self._system is not None:
                system = self._system(row)
            part = "user"
            user = self._user(row)
        # A filter, or an attribute of row data, may raise anything.
        except Exception as error:
            msg = (
                f"Row {key!r}: the {part} template failed: {type(error).__name__}: {error}. "
                f"It reads the columns {_listed(self.columns)}. Correct the template or the row; nothing was sent."
            )
            raise InputError(msg) from error
        if self._files is None:
            return make_request(system, user)
        images = self._files.images(row, key)
        if isinstance(images, UnreadableFile):
            return images
        if self._sends_texts:
            with_texts = self._files.with_texts(row, key, user)
            return with_texts if isinstance(with_texts, UnreadableFile) else make_request(system, with_texts, images)
        documents = self._files.documents(row, key, images, user)
        if self._uploads and not isinstance(documents, UnreadableFile):
            documents = tuple(map(_uploaded, documents))
        return documents if isinstance(documents, UnreadableFile) else make_request(system, user, images, documents)


def _uploaded(document: Document) -> Document:
    """Return a document that is uploaded; one by address stays as it is. The request_id does not depend on this."""
    return document if document.data is None else replace(document, digest=digest_of(document.data))


def _template(environment: jinja2.Environment, source: str, columns: Collection[str]) -> _Template:
    """Return a function that renders the template for a row with these columns."""
    plain = _plain(environment.parse(source), columns)
    if plain is not None:
        return plain
    compiled = environment.from_string(source)
    names = dict(compiled.globals)

    def render(row: Mapping[str, Any]) -> str:
        """Render a row. As `compiled.render`, which collects Jinja's own names anew for each row."""
        row = {
            name: _NULL if value is None else _with_nulls(value) if isinstance(value, _NESTED) else value
            for name, value in row.items()
        }
        context = compiled.new_context({**names, **row, _ROW: row}, shared=True)
        return environment.concat(compiled.root_render_func(context))

    return render


@dataclass(frozen=True)
class _Plain:
    """A template of text and columns alone, rendered without Jinja, which would take most of the time of a plan.

    `text` has %s for each of the columns `names`.
    """

    text: str
    names: Sequence[str]

    def __call__(self, row: Mapping[str, Any]) -> str:
        return self.all({name: [row[name]] for name in self.names}, 1)[0]

    def all(self, columns: Mapping[str, Sequence[Any]], rows: int) -> list[str]:
        """Return the texts of so many rows."""
        values = [
            ["" if value is None else _with_nulls(value) if isinstance(value, _NESTED) else value for value in column]
            for column in map(columns.__getitem__, self.names)
        ]
        if len(self.text) + sum(map(_longest, values)) > MOST_CHARS:
            for row in zip(*values, strict=True):
                if len(self.text) + sum(map(size_of, row)) > MOST_CHARS:
                    raise OverflowError(
                        f"this would show more than {MOST_CHARS:,} characters, which is the most allowed"
                    )
        return [self.text % row for row in (zip(*values, strict=True) if self.names else repeat((), rows))]


def _longest(column: Sequence[Any]) -> int:
    """Return the most characters of a value."""
    # Nearly every column has texts alone.
    sizes = map(len, column) if set(map(type, column)) <= {str} else map(size_of, column)
    return max(sizes, default=0)


def _plain(template: nodes.Template, columns: Collection[str]) -> _Plain | None:
    """Return the template as _Plain where it has text and columns alone, else None."""
    text = ""
    names: list[str] = []
    for output in template.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                text += node.data.replace("%", "%%")
            elif (name := _column_named(node)) in columns and name is not None:
                text += "%s"
                names.append(name)
            else:
                return None
    return _Plain(text, names)


def _column_named(node: nodes.Expr) -> str | None:
    """Return the column in `{{ name }}`, `{{ row["name"] }}` or `{{ row.name }}`; None in another expression."""
    if isinstance(node, nodes.Name):
        return None if node.name == _ROW else node.name
    return _item_of_row(node)


def _item_of_row(node: nodes.Node) -> str | None:
    """Return the column in `row["name"]` or `row.name`; None in another expression."""
    if not (isinstance(node, nodes.Getattr | nodes.Getitem) and node.node == nodes.Name(_ROW, "load")):
        return None
    if isinstance(node, nodes.Getattr):
        # Jinja looks for an attribute of the dict first, as `row.items`.
        return None if hasattr(dict, node.attr) else node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str) else None


class _Null:
    """A null in a row: nothing as text, in any filter, where None would be the word "None"."""

    def __str__(self) -> str:
        return ""

    def __repr__(self) -> str:
        # Within a list or a row that is shown whole.
        return "null"

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, part: object) -> _Null:
        # `{{ text[:1000] }}`
        if isinstance(part, slice):
            return self
        raise LookupError(part)

    def __eq__(self, other: object) -> bool:
        return other is None or other is self

    def __hash__(self) -> int:
        return hash(None)


_NULL = _Null()


def _with_nulls(value: Any) -> Any:
    """Return the value with each None in it, at any depth, as `_NULL`."""
    if isinstance(value, dict):
        return {name: _with_nulls(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    if isinstance(value, tuple):
        return tuple(map(_with_nulls, value))
    return _NULL if value is None else value


def _is_null(value: object) -> bool:
    return value is None or value is _NULL


def _json_of_null(value: object) -> None:
    if value is not _NULL:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _shown(value: object) -> object:
    """Return what `{{ value }}` shows: nothing for a None that the template itself made."""
    if isinstance(value, _NESTED) and size_of(value) > MOST_CHARS:
        raise OverflowError(f"this would show more than {MOST_CHARS:,} characters, which is the most allowed")
    return "" if value is None else value


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
