"""Secrets in addresses: a key in the path of a server's, credentials in front of a bucket. Pure.

A part between two slashes of a server's path counts as a key by its form, since no vendor marks it:

    NAME=VALUE      if NAME contains key, token, secret, password, signature or credential
    other parts     of 20 or more characters, or 16 after a prefix of keys such as sk-, with letters and digits and
                    without spaces; but not a name of ordinary words, years and sizes, such as gpt-4o-mini-2024-07-18

So ids of 32 hexadecimal digits count too: too much is hidden rather than too little. Paths in stores of files are never
keys; there the user and password in front of the host are, and the values of such names in the query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from dagster_llm_batch.errors import ConfigError

__all__ = ["hide_secrets", "quote_address", "refuse_credentials", "secret_parts"]

_MASK = "***"
# So much of the address of a row's file is shown, and so much of it is searched for secrets.
_SHOWN_CHARS, _SEARCHED_CHARS = 200, 2_000
# Makes the path of a file, which has no scheme, one in a store: a name that looks like a key is shown.
_STORE = "local:///"
_SCHEME = re.compile(r"(?:^|(?<=[^A-Za-z0-9+.-]))([A-Za-z][A-Za-z0-9+.-]*)://")
# Hosts of these are buckets, without a user in front. (In Azure's `abfs`, the container is in front.)
_BUCKETS = frozenset({"gcs", "gs", "oci", "oss", "r2", "s3", "s3a", "s3n"})
_WEB = frozenset({"http", "https"})
_STORES = _BUCKETS | frozenset(
    {
        *("abfs", "abfss", "adl", "az", "azure", "dbfs", "file", "ftp", "github", "hdfs", "hf", "lakefs", "local"),
        *("memory", "sftp", "smb", "ssh", "viewfs", "wasb", "wasbs", "webdav", "webhdfs"),
    }
)
_PORT = re.compile(r"(?:[^:]*|\[.*\]):\d*")

_WORDS = r"(?:key|token|secret|passw|pwd|sig|credential)"
_QUERY_VALUE = re.compile(rf"(?i)([?&;][^=&;\s]*{_WORDS}[^=&;\s]*=)([^&;#\s]+)")
_NAMED_VALUE = re.compile(rf"(?i)[^=]*{_WORDS}[^=]*=(.+)")
_KEY_PREFIX = re.compile(r"(?i:(?:sk|pk|rk|gsk|hf|ghp|xai|key|token|secret)[-_])|AKIA|ASIA|AIza|eyJ")
_KEY_CHARS = re.compile(r"(?=.*[A-Za-z])(?=.*\d)[\w.~+=:%!$,;-]+", re.ASCII)
_LEAST_CHARS, _LEAST_WITH_PREFIX = 20, 16
_WORD = (
    # ticket, TEXT3, ticketLabels; 2024; 4o, 70b; 8x7b
    r"(?:[A-Z]{1,14}\d{0,3}|(?=[A-Za-z]{1,14}\d{0,3}(?![A-Za-z0-9]))[a-z]*(?:[A-Z][a-z]{2,})*\d{0,3}|\d{1,8}"
    r"|\d{1,3}[A-Za-z]{1,2}|\d{1,3}x\d{1,3}[A-Za-z]?)"
)
_NAME = re.compile(rf"{_WORD}(?:[-_.~+:,]{_WORD})*")


def hide_secrets(address: str) -> str:
    """Return an address, or an account that is named by one, with `***` in the place of each secret."""
    for start, end in reversed(list(_spans(address))):
        address = address[:start] + _MASK + address[end:]
    return address


def quote_address(address: str) -> str:
    """Return the address or path of a row's file for a message: in quotes, without its secrets, and cut."""
    address = address[:_SEARCHED_CHARS]
    shown = hide_secrets(address) if _SCHEME.search(address) else hide_secrets(_STORE + address)[len(_STORE) :]
    return repr(shown[:_SHOWN_CHARS])


def secret_parts(*addresses: str | None) -> list[str]:
    """Return the parts of these addresses that count as secrets, both as written and URL-decoded."""
    found: dict[str, None] = {}
    for address in filter(None, addresses):
        for start, end in _spans(address):
            for part in (address[start:end], unquote(address[start:end])):
                found[part] = None
                if named := _NAMED_VALUE.fullmatch(part):
                    found[named[1]] = None
    return list(found)


def refuse_credentials(address: str, what: str) -> None:
    """Raise ConfigError if the address of a store of files, which the setting `what` holds, has credentials."""
    head = _SCHEME.search(address)
    if head is None or head[1].lower() in _WEB:
        return
    user_end = _user_end(address, head)
    if user_end > head.end() or _QUERY_VALUE.search(address, user_end):
        raise ConfigError(
            f"The {what} {hide_secrets(address)!r} holds credentials, which would be shown wherever the address is. "
            "Leave them out: the store's client takes them from environment variables, a profile or a role. The "
            "address looks like 's3://bucket/folder'."
        )


def _spans(address: str) -> Iterator[tuple[int, int]]:
    """Yield the positions of an address's secrets, from its start to its end."""
    head = _SCHEME.search(address)
    start = head.end() if head else 0
    end = _user_end(address, head) if head else 0
    if end > start:
        yield start, end
    if head is None or head[1].lower() not in _STORES:
        # Up to the query: an account's query names an organization, a project or a workspace.
        path_end = min([len(address), *(at for char in "?#" if (at := address.find(char, end)) >= 0)])
        host_end = address.find("/", end, path_end)
        for part in re.compile(r"[^/]+").finditer(address, max(host_end, 0), path_end if host_end >= 0 else 0):
            if _is_key(unquote(part[0])):
                yield part.span()
        end = path_end
    for value in _QUERY_VALUE.finditer(address, end):
        yield value.span(2)


def _user_end(address: str, head: re.Match[str]) -> int:
    """Return the end of the user and password before the host; without these, the start of the host."""
    start = head.end()
    host = re.split(r"[/?#]", address[start:], maxsplit=1)[0]
    user, at, _ = host.rpartition("@")
    if at:
        return start + len(user) if ":" in user or head[1].lower() in _BUCKETS | _WEB else start
    # A secret key may have a slash, and the host then seems to end there.
    if ":" in host and not _PORT.fullmatch(host) and not host.startswith("arn:"):
        return max(start, address.rfind("@"))
    return start


def _is_key(part: str) -> bool:
    """Return whether a part of a path has the form of a key; see the module."""
    if _NAMED_VALUE.fullmatch(part):
        return True
    least = _LEAST_WITH_PREFIX if _KEY_PREFIX.match(part) else _LEAST_CHARS
    return len(part) >= least and _KEY_CHARS.fullmatch(part) is not None and _NAME.fullmatch(part) is None
