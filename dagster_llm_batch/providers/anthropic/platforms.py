"""Clouds that offer Claude's Message Batches in addition to Anthropic's own API: AWS and Google Cloud.

    AwsPlatform           "Claude Platform on AWS": keys of AWS that sign each call, or an API key
    GooglePlatform        "Claude on Google Cloud": tokens of Google Cloud
    refuse_unbatched      rejects addresses of clouds that have Claude but lack Message Batches

Both pass on the whole API, so only authentication differs from Anthropic's own. The SDK's client for each signs the
calls. Settings that the client would read from the environment are rejected: the account that answers must not depend
on where the code runs. The exceptions are the credential chains of AWS and Google. They are used if the caller gives no
credentials, like at Bedrock and Vertex AI.

SDK: anthropic 2.14.0, lib/aws, lib/google_cloud, lib/bedrock, lib/vertex, lib/foundry.py
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.errors import ConfigError, CredentialsError, LLMBatchError, MissingExtraError
from dagster_llm_batch.providers.answers import words_of
from dagster_llm_batch.providers.base import AccessTokens
from dagster_llm_batch.providers.http import importing_sdk
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.text import plain_words

if TYPE_CHECKING:
    from anthropic import Anthropic

__all__ = ["AwsPlatform", "GooglePlatform", "Platform", "refuse_unbatched"]

_GOOGLE_ADDRESS = "ANTHROPIC_GOOGLE_CLOUD_BASE_URL"


class Platform(ABC):
    """A cloud that passes Anthropic's API on."""

    sends_workspace = True
    """Whether a header names the workspace; otherwise the address does."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The address that names this cloud in the provider's account; without versions and secrets."""

    @abstractmethod
    def secrets(self) -> list[str]:
        """List the secrets that are available so far, for masking in messages."""

    @abstractmethod
    def client(self, name: str, base_url: str | None, options: Mapping[str, Any]) -> Anthropic:
        """Make the SDK's client for the provider of this name. Raises MissingExtraError."""

    def dress(self, client: Any) -> None:
        """Remove the settings that the SDK read from the environment from a copy of the client."""
        del client


@dataclass(frozen=True, repr=False)
class AwsPlatform(Platform):
    """Claude Platform on AWS. Without an API key, calls are signed: by keys, a profile, or AWS's credential chain."""

    region: str
    workspace_id: str
    api_key: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    profile_name: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for half of a pair of keys."""
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ConfigError("aws_access_key_id and aws_secret_access_key go together: give both or neither.")

    @property
    def address(self) -> str:
        """See Platform.address."""
        return f"https://aws-external-anthropic.{self.region}.api.aws"

    def secrets(self) -> list[str]:
        """See Platform.secrets."""
        given = (self.api_key, self.access_key_id, self.secret_access_key, self.session_token)
        return [secret for secret in given if secret]

    def client(self, name: str, base_url: str | None, options: Mapping[str, Any]) -> Anthropic:
        """See Platform.client."""
        with importing_sdk("anthropic", f"The provider '{name}'"):
            from anthropic import AnthropicAWS  # noqa: PLC0415 -- an optional extra
        client = _with_own_errors(AnthropicAWS, name, "bedrock", self.secrets)(
            api_key=self.api_key,
            aws_region=self.region,
            aws_access_key=self.access_key_id,
            aws_secret_key=self.secret_access_key,
            aws_session_token=self.session_token,
            aws_profile=self.profile_name,
            workspace_id=self.workspace_id,
            base_url=base_url or self.address,
            **options,
        )
        made: Anthropic = client
        return made

    def dress(self, client: Any) -> None:
        """See Platform.dress. Without a given key, the SDK takes ANTHROPIC_AWS_API_KEY from the environment."""
        client.api_key = self.api_key
        client._use_sigv4 = self.api_key is None  # noqa: SLF001 - as above


class GooglePlatform(Platform):
    """Claude on Google Cloud. Tokens come from a function, from `credentials`, or from Google's own credential chain.

    `given` are the secret parts of the credentials; messages mask them.
    """

    sends_workspace = False

    def __init__(
        self,
        project: str,
        workspace_id: str,
        location: str = "global",
        credentials: Any = None,
        token_provider: Callable[[], str] | None = None,
        given: Sequence[str] = (),
    ) -> None:
        self._project = project
        self._workspace_id = workspace_id
        self._location = location
        self._credentials = credentials
        self._tokens = None if token_provider is None else AccessTokens(token_provider, "Claude on Google Cloud")
        self._given = tuple(given)
        self._client: Any = None

    @property
    def address(self) -> str:
        """See Platform.address."""
        words = ("projects", self._project, "locations", self._location, "workspaces", self._workspace_id)
        return "/".join(["https://claude.googleapis.com", *(quote(word, safe="") for word in words)])

    def secrets(self) -> list[str]:
        """See Platform.secrets. A token is available from the first call on."""
        known = self._credentials if self._client is None else self._client.google_credentials
        token = getattr(known, "token", None)
        return [*self._given, *(self._tokens.known if self._tokens else ()), *([token] if token else [])]

    def client(self, name: str, base_url: str | None, options: Mapping[str, Any]) -> Anthropic:
        """See Platform.client. Raises ConfigError where the environment would send the calls to another address."""
        if base_url is None and os.environ.get(_GOOGLE_ADDRESS):
            raise ConfigError(
                f"{_GOOGLE_ADDRESS} is set, and would send the calls of provider '{name}' elsewhere. Unset it, or give "
                "that address as base_url."
            )
        with importing_sdk("anthropic", f"The provider '{name}'"):
            from anthropic import AnthropicGoogleCloud  # noqa: PLC0415 -- an optional extra
        self._client = _with_own_errors(AnthropicGoogleCloud, name, "google", self.secrets)(
            project=self._project,
            location=self._location,
            workspace_id=self._workspace_id,
            credentials=self._credentials,
            token_provider=self._tokens,
            base_url=base_url,
            **options,
        )
        made: Anthropic = self._client
        return made


def _with_own_errors(client: type[Any], name: str, extra: str, secrets: Callable[[], list[str]]) -> type[Any]:
    """Return the SDK's client, which raises CredentialsError before a call if it lacks usable credentials."""

    @contextmanager
    def credentials() -> Iterator[None]:
        try:
            yield
        except LLMBatchError:
            raise
        except ImportError as error:
            raise MissingExtraError(extra, f"The provider '{name}'") from error
        except Exception as error:  # noqa: BLE001 - of the SDKs that find credentials: anything may come
            reason = plain_words(Mask(secrets()).text(words_of(error)))
            raise CredentialsError(f"The provider '{name}' has no credentials to sign a call with: {reason}") from None

    class Client(client):  # type: ignore[misc]  # which of the SDK's it is, is known when it runs
        """The SDK's own client."""

        def _prepare_options(self, options: Any) -> Any:
            with credentials():
                return super()._prepare_options(options)

        def _prepare_request(self, request: Any) -> None:
            with credentials():
                super()._prepare_request(request)

    return Client


# The form of each cloud's address, and the alternative to it.
_UNBATCHED = (
    (
        re.compile(r"bedrock(-runtime|-mantle)?\.[a-z0-9-]+\.(amazonaws\.com|api\.aws)"),
        "Claude on Amazon Bedrock has no Message Batches. Its batches are Bedrock's own: use BedrockBatchResource.",
    ),
    (
        re.compile(r"([a-z0-9-]+-)?aiplatform\.googleapis\.com|aiplatform\.[a-z]+\.rep\.googleapis\.com"),
        "Claude on Vertex AI has no Message Batches. Its batches are Vertex AI's own: use VertexBatchResource.",
    ),
    (
        re.compile(r"[a-z0-9-]+\.services\.ai\.azure\.com"),
        "Claude in Microsoft Foundry has no batches. Use Anthropic's own API, another cloud, Bedrock or Vertex AI.",
    ),
    (
        re.compile(r"aws-external-anthropic\.[a-z0-9-]+\.api\.aws"),
        'Claude Platform on AWS wants a region and a workspace: AnthropicBatchResource(platform="aws", …).',
    ),
    (
        re.compile(r"claude\.googleapis\.com"),
        'Claude on Google Cloud wants a project and a workspace: AnthropicBatchResource(platform="google_cloud", …).',
    ),
)


def refuse_unbatched(base_url: str) -> None:
    """Raise ConfigError for the address of a cloud that has Claude, but lacks Message Batches by an API key alone."""
    host = (urlsplit(base_url).hostname or "").lower()
    for form, instead in _UNBATCHED:
        if form.fullmatch(host):
            raise ConfigError(f"The base_url {hide_secrets(base_url)!r} cannot be Anthropic's: {instead}")
