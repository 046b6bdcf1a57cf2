"""Destinations of Amazon Bedrock: the prefix of an inference profile, else the region.

https://docs.aws.amazon.com/bedrock/latest/userguide/inference-profiles-support.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.providers.bedrock.models import profile_region
from dagster_llm_batch.types import Destination

__all__ = ["destination_of"]

# As AWS's configuration files and variables name them.
_SERVICES = ("bedrock", "bedrock_runtime")

# Other hosts of AWS, as of a load balancer or an API gateway, can be anybody's server.
# https://docs.aws.amazon.com/general/latest/gr/bedrock.html
_OWN_HOST = re.compile(
    r"(?:vpce-[a-z0-9-]+\.)?bedrock(?:-runtime)?(?:-fips)?\.([a-z0-9-]+)\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)"
)

# Models of these ARNs run in the ARN's region, except inference profiles with a prefix. Other ARNs, as of an
# application inference profile or a prompt router, can stand for models of any region.
_IN_REGION = ("foundation-model", "custom-model", "imported-model", "provisioned-model", "inference-profile")


def destination_of(settings: Any, model: str, params: Mapping[str, Any]) -> Destination:
    """Return the destination of this model: the geography of its inference profile, else `region_name`."""
    del params
    region = settings.region_name
    place, kind = _parts(model)
    is_shown = kind in _IN_REGION if kind else "." in model
    geography = profile_region(model) if is_shown else None
    named = geography or (place if is_shown else None) or None
    for setting, url in _addresses(settings):
        if not _is_of_aws(url, region):
            return Destination(None, f"{setting} is another server, {hide_secrets(url)!r}", named=named)
    if geography is not None:
        return Destination(geography)
    # AWS alone knows the model of other ids.
    if not is_shown or (place is not None and place != region):
        what = "ARN" if kind else "id"
        return Destination(None, f"the {what} {model!r} does not show the region of its model", named=named)
    if region is None:
        return Destination(None, "region_name is not given, and AWS's configuration decides where the batch runs")
    return Destination(region)


def _parts(model: str) -> tuple[str | None, str]:
    """Return the region and the kind of an ARN; of another id, None and no text."""
    if not model.startswith("arn:"):
        return None, ""
    place, _, resource = model.partition(":bedrock:")[2].partition(":")
    return place, resource.partition(":")[2].partition("/")[0] or "unknown"


def _addresses(settings: Any) -> Iterator[tuple[str, str]]:
    """Yield the addresses of batches and of calls that replace AWS's own, each after the name of its setting.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html
    """
    if settings.endpoint_url:
        yield "endpoint_url", settings.endpoint_url
        return
    profile = _profile_addresses(settings.profile_name)
    for service in _SERVICES:
        # An SDK looks for the second where the first is not set.
        names = (f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ENDPOINT_URL")
        name = next((name for name in names if os.environ.get(name)), None)
        if name is not None:
            yield name, os.environ[name]
        elif service in profile:
            yield "endpoint_url of the AWS profile", profile[service]


def _profile_addresses(profile_name: str | None) -> dict[str, str]:
    """Return the address of each service that AWS's configuration files give it; none where boto3 cannot read them."""
    try:
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]  # noqa: PLC0415 -- an extra
        from botocore.session import Session  # type: ignore[import-untyped]  # noqa: PLC0415 -- as above
    except ImportError:
        # Without it, nothing can be sent.
        return {}
    session = Session(profile=profile_name)
    try:
        profile = session.get_scoped_config()
        services = session.full_config.get("services", {}).get(profile.get("services"), {})
    except BotoCoreError:
        # Then the provider cannot send either.
        return {}
    found: dict[str, str] = {}
    for name in _SERVICES:
        # A service without settings of its own is text.
        own = services.get(name) if isinstance(services, Mapping) else None
        url = (own.get("endpoint_url") if isinstance(own, Mapping) else None) or profile.get("endpoint_url")
        if url:
            found[name] = url
    return found


def _is_of_aws(url: str, region: str | None) -> bool:
    """Return whether this is AWS's own address of Bedrock in the region, also of a VPC endpoint."""
    found = _OWN_HOST.fullmatch(urlsplit(url).hostname or "")
    return found is not None and found[1] == region
