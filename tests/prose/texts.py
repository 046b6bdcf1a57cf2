"""Sentences of a page or a module: Markdown, docstrings, comments, and string literals that read as text.

Code blocks, code in backticks, addresses and SQL are left out. Modules are scanned by one regular expression; `ast`
takes three times as long over the whole repository. The scan relies on ruff's rules: docstrings have three double
quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.prose.patterns import WORD

SUFFIXES = frozenset({".py", ".md", ".html"})


class Sentence(NamedTuple):
    """One sentence, the line where its paragraph begins, and whether it is the first of a function's docstring."""

    line: int
    text: str
    is_summary: bool


class _Text(NamedTuple):
    line: int
    text: str
    is_summary: bool = False


_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)[)\"']?\s+(?=[A-Z\"'(])")
_LEFT_OVER_CODE = re.compile(r"[=<>]{1,2} ?\w+[(\[]|^\W*\w+\(.*\)$|;$")
_PRAGMA = re.compile(r"#(?:!|:|\s*(?:noqa|type:|pragma|fmt|ruff|mypy|nosec|pyright|isort|pylint|TODO))")
_SQL = re.compile(r"\b(?:FROM|SELECT|TABLE)\b|[<>=]=")
_FIVE_WORDS = re.compile(r"(?:\b[a-z']+,? ){4}")
_ITEM = re.compile(r"(?:[-*+]|\d+[.)]) +|:\w+ ?\w*: ?|\*{0,2}\w+(?: \([^)]*\))?: ")
_SKIPPED = re.compile(r">>>|\.\.|#|===|---|:::|\+--|import |\$ |%|\||$")
_HEADING_OF_ARGUMENTS = re.compile(r"[\w*]+(?: ?: ?[\w\[\], .|`~]+)?:?")
_TOKEN = re.compile(
    r'(?P<comment>\#[^\n]*)|(?P<kind>\b[rRbBfFuU]{1,2})?(?:"""(?P<long>(?:[^"\\]|\\.|"(?!""))*)"""'
    r"|'''(?:[^'\\]|\\.|'(?!''))*'''"
    r'|"(?P<double>(?:[^"\\\n]|\\.)*)"'
    r"|'(?P<single>(?:[^'\\\n]|\\.)*)')"
    r"|^[ \t]*(?P<head>@[\w.]*property\b|(?:async )?def |class )",
    re.DOTALL | re.MULTILINE,
)


def read_sentences(path: Path) -> list[Sentence]:
    """Return the sentences of three words or more of a page or a module."""
    source = path.read_text(encoding="utf-8")
    texts = _scan_module(source) if path.suffix == ".py" else _split_paragraphs(source.splitlines(), 1)
    return list(split_sentences(texts))


def split_sentences(texts: list[_Text]) -> Iterator[Sentence]:
    """Yield the sentences of texts, without code and links."""
    for line, text, is_summary in texts:
        for index, part in enumerate(_SENTENCE_END.split(_clean(text))):
            if len(WORD.findall(part)) > 2 and not _LEFT_OVER_CODE.search(part):
                yield Sentence(line, part, is_summary and index == 0)


def _clean(text: str) -> str:
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->|<[^<>]+>|\{%.*?%\}|\[\^?\w+\]:", " ", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"(?::[\w:]+:)?(?:``.+?``|`[^`]*`)|\{\{.*?\}\}|\{[^{}]*\}|https?://\S+", "X", text)
    return re.sub(r"\s+", " ", text.replace("*", "").replace("__", "")).strip()


def _split_paragraphs(lines: list[str], first: int, *, is_summary: bool = False) -> list[_Text]:
    """Return paragraphs, list items and table cells; leave out code, headings and directives."""
    found: list[_Text] = []
    held: list[str] = []
    fence = ""
    # the indentation above which lines are code; -1 outside of code
    code = -1
    for number, raw in enumerate([*lines, ""], first):
        line, depth = re.sub(r"^> ?", "", raw.strip()), len(raw) - len(raw.lstrip())
        in_code = bool(fence) or (code >= 0 and (not line or depth > code))
        if line.startswith(("```", "~~~")):
            fence, in_code = ("" if fence else line[:3]), True
        code = code if in_code else -1
        item, skipped = _ITEM.match(line), _SKIPPED.match(line)
        if (in_code or skipped or item) and held:
            found.append(_Text(number - len(held), " ".join(held)))
            held.clear()
        if in_code:
            continue
        if skipped:
            found += [_Text(number, cell) for cell in line.strip("|").split("|")] if line.startswith("|") else []
            code = depth if re.match(r"\.\. (?:code|testcode)", line) else code
            continue
        line = line[item.end() :] if item else line
        if held or not _HEADING_OF_ARGUMENTS.fullmatch(line):
            held.append(line)
        code = depth if line.endswith("::") else code
    return [one._replace(is_summary=is_summary and index == 0) for index, one in enumerate(found)]


def _scan_module(source: str) -> list[_Text]:
    """Return docstrings, blocks of comments, and literals that read as text."""
    found: list[_Text] = []
    head, is_property = "", False
    comments, literals = _Block(), _Block()
    end = line = 0
    for token in _TOKEN.finditer(source):
        between = source[end : token.start()]
        line += between.count("\n")
        began, end = line + 1, token.end()
        line += token[0].count("\n")
        if token["comment"]:
            is_alone = not source[source.rfind("\n", 0, token.start()) + 1 : token.start()].strip()
            if not (is_alone and comments.parts and began == comments.last + 1):
                found += comments.close()
            if not _PRAGMA.match(token[0]):
                comments.add(began, re.sub(r"\s*(?:# )?(?:noqa|type:|pragma).*", "", token[0].lstrip("# ")))
                comments.last = began if is_alone else -1
            continue
        if literals.parts and between.strip(" \t\n\\+"):
            found += literals.close_message()
        if token["head"]:
            is_property = is_property if token["head"] in {"def ", "async def "} and head.startswith("@") else False
            is_property = is_property or token["head"].startswith("@")
            head = token["head"]
        elif token["long"] is not None and not source[source.rfind("\n", 0, token.start()) + 1 : token.start()].strip():
            before = between.rstrip()
            is_function = "def " in head and not is_property and before.endswith(":")
            text = _dedent(token["long"])
            found += _split_paragraphs(text, began, is_summary=is_function)
        else:
            literals.add(began, _unescape(token))
    return [*found, *comments.close(), *literals.close_message()]


class _Block:
    """Comments on lines after each other, or literals that are one string."""

    def __init__(self) -> None:
        self.first, self.last, self.parts = 0, -1, list[str]()

    def add(self, line: int, part: str) -> None:
        self.first = self.first if self.parts else line
        self.parts.append(part)

    def close(self) -> list[_Text]:
        texts = _split_paragraphs(self.parts, self.first) if self.parts else []
        self.parts.clear()
        return texts

    def close_message(self) -> list[_Text]:
        text = "".join(self.parts)
        self.parts = text.splitlines() if _FIVE_WORDS.search(text) and not _SQL.search(text) else []
        return self.close()


def _dedent(docstring: str) -> list[str]:
    first, *lines = docstring.splitlines() or [""]
    margin = min((len(each) - len(each.lstrip()) for each in lines if each.strip()), default=0)
    return [first.lstrip(), *(each[margin:] for each in lines)]


def _unescape(token: re.Match[str]) -> str:
    text = token["long"] or token["double"] or token["single"] or ""
    kind = (token["kind"] or "").lower()
    if "f" in kind:
        text = re.sub(r"\{\{|\}\}", " ", text)
        text = re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "X", text)
    if "r" not in kind:
        text = text.replace("\\n", "\n").replace('\\"', '"').replace("\\'", "'")
    return text.replace("{", "(").replace("}", ")")
