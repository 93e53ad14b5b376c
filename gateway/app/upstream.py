"""The account at the upstream, or the sandbox in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from gateway.catalog.contract import Catalog
from gateway.domain.clock import Clock
from gateway.domain.errors import CannotStart, ModelUnknown
from gateway.domain.expectation import Expectation
from gateway.domain.generation import GenerationRequest
from gateway.settings import Settings, UpstreamSettings
from gateway.telemetry.metrics import Metrics
from gateway.upstream.limits import Limits
from gateway.upstream.secret import Secret
from gateway.upstream.segmind import SegmindUpstream

SANDBOX_KEY = "SG_0123456789abcdef"
"""The key of the sandbox's first account. It opens nothing else."""

_SEGMIND_HISTORY_URL = "https://api.spotprod.segmind.com"


@asynccontextmanager
async def opened_upstream(
    settings: Settings,
    catalog: Catalog,
    metrics: Metrics,
    environment: Mapping[str, str],
    sandbox_url: str | None,
    clock: Clock,
) -> AsyncIterator[SegmindUpstream]:
    ours = settings.upstream
    pace = pace_of(settings)
    if ours.kind == "sandbox":
        base_url = sandbox_url or f"http://{settings.sandbox.host}:{settings.sandbox.port}"
        key, hosts, history_url = Secret(SANDBOX_KEY), frozenset({settings.sandbox.host}), base_url
    else:
        base_url, key, hosts = ours.base_url, _account_key(ours, environment), ours.result_hosts
        is_segmind = base_url == UpstreamSettings().base_url
        history_url = ours.history_url or (_SEGMIND_HISTORY_URL if is_segmind else base_url)

    def on_call(operation: str, status: str, _seconds: float) -> None:
        metrics.upstream_requests.labels(operation, status).inc()

    async with SegmindUpstream.open(
        base_url=base_url,
        api_key=key,
        clock=clock,
        on_call=on_call,
        result_hosts=hosts,
        history_url=history_url,
        protocols={model.name: model.protocol for model in catalog},
        text_models=frozenset(
            model.name for model in catalog if model.media_type.startswith(("text/", "application/json"))
        ),
        limits=Limits(
            connections=ours.connections,
            connect_seconds=ours.connect_timeout_seconds,
            answer_seconds=ours.answer_timeout_seconds,
            submit_attempts=ours.submit_attempts,
            poll_first_seconds=ours.poll_first_seconds * pace,
            poll_longest_seconds=ours.poll_longest_seconds * pace,
            polls_per_second=ours.polls_per_second,
        ),
    ) as upstream:
        yield upstream


def _account_key(upstream: UpstreamSettings, environment: Mapping[str, str]) -> Secret:
    if upstream.api_key_file is not None:
        try:
            key = upstream.api_key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CannotStart(
                f"upstream.api_key_file: the file cannot be read ({error.strerror}); it is to hold the account's key."
            ) from error
        source = "the file that upstream.api_key_file names"
    else:
        variable = upstream.api_key_env or ""
        key = environment.get(variable, "").strip()
        source = f"the environment variable {variable} (upstream.api_key_env)"
    if not key:
        raise CannotStart(
            f"The upstream account's key is missing: put it into {source}, or set upstream.kind to sandbox "
            "to try the gateway without an account."
        )
    return Secret(key)


def expectation_of(catalog: Catalog, request: GenerationRequest) -> Expectation | None:
    try:
        return catalog.find(request.model).expectation(request.parameters)
    except ModelUnknown:
        # It was bought while the model was in the catalogue.
        return None


def expected_seconds_of(settings: Settings, catalog: Catalog, request: GenerationRequest) -> float | None:
    try:
        return catalog.find(request.model).expected_seconds(request.parameters) * pace_of(settings)
    except ModelUnknown:
        # As above.
        return None


def is_ceiling(catalog: Catalog, request: GenerationRequest) -> bool:
    try:
        return catalog.find(request.model).price_is_ceiling
    except ModelUnknown:
        # As above.
        return True


def pace_of(settings: Settings) -> float:
    """What works fifty times as fast is asked fifty times as often."""
    is_sandbox = settings.upstream.kind == "sandbox"
    return min(1.0, max(settings.sandbox.time_scale, 0.01)) if is_sandbox else 1.0
