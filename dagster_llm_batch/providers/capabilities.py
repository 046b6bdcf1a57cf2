"""Call the optional verbs of a provider or a codec. Each function has a default for a missing verb.

All other code calls these verbs through this module, but for `telemetry`, which passes them on with spans. Their
protocols are in `dagster_llm_batch.protocols`.
"""

from __future__ import annotations

from collections.abc import Sequence

from dagster_llm_batch.errors import CannotStopError, ConfigError
from dagster_llm_batch.protocols import (
    CAPABILITIES,
    AnswersInFlex,
    AnswersInRealTime,
    CancelsBatches,
    ChecksParameters,
    ChecksSetup,
    Codec,
    CountsFiles,
    DeletesBatches,
    DeletesRequestFiles,
    LinksToConsole,
    Provider,
    StoresDocuments,
    TakesDocuments,
    TakesUploads,
)
from dagster_llm_batch.types import DocumentRules, Endpoint, FileCount

__all__ = [
    "cancel_batch",
    "check_parameters",
    "check_setup",
    "console_url",
    "count_files",
    "delete_batch",
    "delete_request_file",
    "document_rules",
    "document_store_of",
    "flex_of",
    "no_way_to_delete",
    "pass_on_capabilities",
    "real_time_of",
    "upload_rules",
]


def pass_on_capabilities(provider: Provider, wrapper: object) -> None:
    """Pass the provider's optional verbs on to an object that wraps it, except verbs that the object's class has."""
    for verb, capability in CAPABILITIES.items():
        if isinstance(provider, capability) and not hasattr(type(wrapper), verb):
            setattr(wrapper, verb, getattr(provider, verb))


def cancel_batch(provider: Provider, batch_id: str) -> None:
    """Ask to stop the batch. Raises CannotStopError if the provider cannot stop it, and the errors of `cancel`."""
    if not isinstance(provider, CancelsBatches):
        raise CannotStopError(
            f"The provider '{provider.name}' cannot stop the batch '{batch_id}', which runs on to its end, and is "
            "billed. Its answers are kept. Wait for it, or stop it at the provider's console."
        )
    provider.cancel(batch_id)


def delete_batch(provider: Provider, batch_id: str) -> str | None:
    """Delete the provider's data of an ended batch. Return a description of the data that remains, if any does."""
    return provider.delete(batch_id) if isinstance(provider, DeletesBatches) else no_way_to_delete(provider.name)


def no_way_to_delete(name: str) -> str:
    """Return in words that the provider of this name deletes nothing."""
    return f"the provider '{name}' cannot delete its stored data here; use its console, or ask its support"


def delete_request_file(provider: Provider, batch_id: str) -> None:
    """Delete the request file of an ended batch, if the provider has the verb."""
    if isinstance(provider, DeletesRequestFiles):
        provider.delete_request_file(batch_id)


def count_files(provider: Provider) -> Sequence[FileCount]:
    """Count the stored files that the provider limits; empty without such limits."""
    return provider.count_files() if isinstance(provider, CountsFiles) else ()


def real_time_of(provider: Provider) -> AnswersInRealTime:
    """Return the provider as one that answers in real time. Raises ConfigError where it answers batches alone."""
    if not isinstance(provider, AnswersInRealTime):
        raise ConfigError(
            f"The provider '{provider.name}' answers batches alone, and nothing in real time. Take out "
            "Realtime(urgent=…), Realtime(deadline=…) and Limits(below_minimum='realtime'), or name a model of another "
            "provider."
        )
    return provider


def flex_of(provider: Provider, model: str, endpoint: Endpoint) -> AnswersInFlex:
    """Return the provider as one that answers in the tier "flex". Raises ConfigError where it or the model does not."""
    flex = provider if isinstance(provider, AnswersInFlex) else None
    gap = f"The provider '{provider.name}' has none." if flex is None else flex.flex_gap(model, endpoint)
    if flex is None or gap is not None:
        raise ConfigError(
            f"Realtime(tier='flex') is not possible for '{provider.name}/{model}'. {gap} OpenAI, the Gemini API, "
            "Vertex AI (Gemini at location='global') and Bedrock have it. Leave the tier out, or name such a model."
        )
    return flex


def console_url(provider: Provider, batch_id: str) -> str | None:
    """Return the address of a page where a person can look at this batch; None without one."""
    return provider.console_url(batch_id) if isinstance(provider, LinksToConsole) else None


def check_setup(provider: Provider) -> None:
    """Raise ConfigError if the provider finds, without a call, that it cannot start a batch."""
    if isinstance(provider, ChecksSetup):
        provider.check_setup()


def check_parameters(codec: Codec) -> Sequence[str]:
    """Return a sentence for each parameter that the provider may refuse. Raises ConfigError for one that it refuses."""
    return codec.check_parameters() if isinstance(codec, ChecksParameters) else ()


def document_rules(codec: Codec) -> DocumentRules | None:
    """Return what the vendor allows of the documents of a request; None if the codec takes none."""
    return codec.documents if isinstance(codec, TakesDocuments) else None


def upload_rules(codec: Codec) -> DocumentRules | None:
    """Return what the vendor allows of uploaded documents; None if requests of the codec name none."""
    return codec.uploads if isinstance(codec, TakesUploads) else None


def document_store_of(provider: Provider) -> StoresDocuments:
    """Return the provider as one whose vendor stores documents. Raises ConfigError where it stores none."""
    if not isinstance(provider, StoresDocuments):
        raise ConfigError(
            f"The provider '{provider.name}' has no storage for documents here, and the requests name uploaded ones. "
            "Nothing was sent. Give it the settings that they were planned with, or cancel the submission and plan it "
            "again with documents_as='file'."
        )
    return provider
