"""POST /v1/{model} and /v2/{model}, and the requests that they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from aiohttp import web

from gateway.blobs.contract import BlobStore
from gateway.catalog.contract import Catalog
from gateway.domain.balance import remaining
from gateway.domain.clock import Clock
from gateway.domain.errors import RequestUnknown, ResultUnavailable
from gateway.domain.generation import Blob, CacheStatus, Generation, GenerationRequest, Json
from gateway.domain.identity import RequestId
from gateway.domain.money import Money
from gateway.domain.tenant import Caller
from gateway.generation import intake
from gateway.generation.service import GenerationService
from gateway.http import heads
from gateway.http.blobs import OpenedBlob
from gateway.http.errors import envelope, json_response
from gateway.http.front_door import VISIT, FrontDoor
from gateway.http.heads import REQUEST_ID
from gateway.http.links import Links, file_name
from gateway.ledger.contract import Statements
from gateway.requests.contract import Completed, Failed, RequestRecord

_MOST_INLINE_BYTES = 8 * 2**20
_ATTEMPTS_TO_OPEN = 3


class Generations:
    """The upstream's own API, with the upstream's own shapes."""

    def __init__(
        self,
        *,
        front_door: FrontDoor,
        catalog: Catalog,
        service: GenerationService,
        blobs: BlobStore,
        statements: Statements,
        links: Links,
        public_url: str | None,
        clock: Clock,
        on_hit: Callable[[Caller, GenerationRequest, bytes], None],
    ) -> None:
        """`on_hit` is told of each hit that is answered with its media: whose, which, and with which body."""
        self._front_door = front_door
        self._catalog = catalog
        self._service = service
        self._blobs = blobs
        self._statements = statements
        self._links = links
        self._public_url = public_url
        self._clock = clock
        self._on_hit = on_hit

    # --- Verbs

    async def post_v1(self, request: web.Request) -> web.StreamResponse:
        """Wait for the generation, and answer with its media."""
        caller = self._front_door.buyer(request)
        asked, body = await self._asked(request, caller)
        for attempt in range(_ATTEMPTS_TO_OPEN):
            if attempt:
                request[VISIT].request = self._front_door.request_ids.next()
            accepted = await self._service.accept(request[VISIT].request, caller, asked, pollable=False)
            if accepted.follower is not None:
                # One of thousands, perhaps, who wait for minutes: what came over the wire is not kept for so long.
                body = b""
            conclusion = await self._service.conclusion(
                accepted, wait_seconds=self._catalog.find(accepted.record.request.model).deadline_seconds
            )
            visit = request[VISIT]
            visit.waited_seconds += conclusion.waited_seconds
            visit.outcome, visit.cost = conclusion.outcome.status.value, conclusion.outcome.charged
            if _prefers_the_record(request, conclusion.outcome.generation.blob.media_type):
                return await self._record_response(request, caller, accepted.record, conclusion.outcome)
            left = await self._remaining(caller)
            opened = await OpenedBlob.of(self._blobs, conclusion.outcome.generation.blob.digest)
            if opened is not None:
                headers = self._headers(request, conclusion.outcome, left)
                if body and conclusion.outcome.status is CacheStatus.HIT:
                    self._on_hit(caller, accepted.record.request, body)
                return await opened.answer(request, headers)
            # Dropped between the look-up and now. It was paid for: ask again, and it is fetched again.
        raise ResultUnavailable("The media was made, and could not be kept; send the same request again.")

    async def post_v2(self, request: web.Request) -> web.StreamResponse:
        """Take the request on, and say where to ask for it."""
        caller = self._front_door.buyer(request)
        asked, _ = await self._asked(request, caller)
        accepted = await self._service.accept(request[VISIT].request, caller, asked, pollable=True)
        record = accepted.record
        visit = request[VISIT]
        if isinstance(record.outcome, Completed):
            visit.outcome, visit.cost = record.outcome.status.value, record.outcome.charged
        else:
            visit.outcome = "accepted"
        return json_response(
            {
                "request_id": record.id,
                "status": "QUEUED",
                "poll_url": self._url(request, f"/v1/requests/{record.id}"),
                **self._addresses(request, record.id),
            },
            headers={REQUEST_ID: record.id},
        )

    async def get_status(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/requests/{id}/status: how far it is, without what came of it."""
        caller = self._front_door.caller(request)
        record = await self._record(request, caller)
        match record.outcome:
            case None:
                return self._pending(request, record)
            case Failed():
                return self._failed(request, record, record.outcome)
            case Completed():
                return json_response(
                    {
                        "status": "COMPLETED",
                        "request_id": record.id,
                        **self._addresses(request, record.id),
                        "metrics": self._metrics(
                            record, record.outcome, await self._remaining(caller), record.concluded_at
                        ),
                    },
                    headers={REQUEST_ID: record.id},
                )

    async def get_result(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/requests/{id}, and its twin under /v1: what came of it."""
        caller = self._front_door.caller(request)
        try:
            record = await self._record(request, caller)
        except RequestUnknown as unknown:
            if request.path.startswith("/v1/"):
                raise RequestUnknown(
                    f"Output for this request ID {request.match_info['request_id']} Not Found"
                ) from unknown
            raise
        match record.outcome:
            case None:
                return self._pending(request, record)
            case Failed():
                return self._failed(request, record, record.outcome)
            case Completed():
                return await self._record_response(request, caller, record, record.outcome)

    # --- In

    async def _asked(self, request: web.Request, caller: Caller) -> tuple[GenerationRequest, bytes]:
        """What is asked for, and the body that says so."""
        visit = request[VISIT]
        model = self._catalog.find(request.match_info["model"])
        visit.model = model.name
        body = await self._front_door.body(request)
        asked = intake.name(caller, model, intake.parse(body))
        visit.fingerprint = asked.fingerprint
        return asked, body

    async def _record(self, request: web.Request, caller: Caller) -> RequestRecord:
        return await self._service.find(RequestId(request.match_info["request_id"]), caller)

    # --- Out

    def _headers(self, request: web.Request, outcome: Completed, left: Money | None) -> dict[str, str]:
        return heads.of_generation(
            outcome.generation,
            outcome.status,
            request=request[VISIT].request,
            charged=outcome.charged,
            age=str(max(0, int(self._clock() - outcome.generation.made_at))),
            left=None if left is None else heads.usd(left),
        )

    async def _remaining(self, caller: Caller) -> Money | None:
        return remaining(caller.holders, await self._statements.balances_of(caller.holders))

    async def _record_response(
        self, request: web.Request, caller: Caller, record: RequestRecord, outcome: Completed
    ) -> web.Response:
        left = await self._remaining(caller)
        headers = self._headers(request, outcome, left)
        headers[REQUEST_ID] = record.id
        del headers["Content-Type"]
        generation = outcome.generation
        files = [self._file(request, blob, record) for blob in generation.blobs]
        body: dict[str, Json] = {
            "status": "COMPLETED",
            "request_id": record.id,
            "error": None,
            "metrics": self._metrics(record, outcome, left, record.concluded_at),
            **await self._output(generation, files),
            "seed": None if generation.seed is None else str(generation.seed),
            "timings": {},
            "cache_status": outcome.status.value,
        }
        if isinstance(prompt := record.request.parameters.get("prompt"), str):
            body["prompt"] = prompt
        return json_response(body, headers=headers)

    async def _output(self, generation: Generation, files: list[dict[str, Json]]) -> dict[str, Json]:
        kind = generation.blob.media_type.partition("/")[0]
        match kind:
            case "video" | "audio":
                return {"output": files[0]["url"], kind: files[0]}
            case "image":
                urls: list[Json] = [file["url"] for file in files]
                return {"output": urls[0] if len(urls) == 1 else urls, "images": list(files)}
            case _:
                # Text models answer with their provider's raw body, as a string.
                text = await self._text(generation.blob)
                return {"output": files[0]["url"] if text is None else text}

    async def _text(self, blob: Blob) -> str | None:
        if blob.size_bytes > _MOST_INLINE_BYTES:
            return None
        opened = await OpenedBlob.of(self._blobs, blob.digest)
        if opened is None:
            return None
        with opened.handle:
            raw = await asyncio.to_thread(opened.handle.read)
        return raw.decode("utf-8", "replace")

    def _file(self, request: web.Request, blob: Blob, record: RequestRecord) -> dict[str, Json]:
        return {
            "url": self._url(request, self._links.path(blob, since=record.submitted_at)),
            "content_type": blob.media_type,
            "file_name": file_name(blob),
            "file_size": str(blob.size_bytes),
        }

    def _metrics(
        self,
        record: RequestRecord,
        outcome: Completed,
        remaining_credits: Money | None,
        concluded_at: float | None,
    ) -> dict[str, Json]:
        total = (concluded_at or self._clock()) - record.submitted_at
        worked = outcome.generation.seconds if outcome.charged else 0.0
        metrics: dict[str, Json] = {
            "cost": outcome.charged.usd_number,
            "inference_time": outcome.generation.seconds,
            "queue_time": round(max(0.0, total - (worked or 0.0)), 6),
            "total_time": round(total, 6),
        }
        if remaining_credits is not None:
            metrics["remaining_credits"] = remaining_credits.usd_number
        return metrics

    def _pending(self, request: web.Request, record: RequestRecord) -> web.Response:
        return json_response(
            {
                "status": self._service.progress(record).value,
                "request_id": record.id,
                **self._addresses(request, record.id),
                "metrics": {},
            },
            headers={REQUEST_ID: record.id},
        )

    def _failed(self, request: web.Request, record: RequestRecord, outcome: Failed) -> web.Response:
        body = envelope(outcome.message, outcome.code, record.id, outcome.details)
        return json_response(
            {"status": "FAILED", **body, **self._addresses(request, record.id), "metrics": {}},
            status=422,
            headers={REQUEST_ID: record.id},
        )

    def _addresses(self, request: web.Request, identity: RequestId) -> dict[str, Json]:
        return {
            "status_url": self._url(request, f"/v2/requests/{identity}/status"),
            "response_url": self._url(request, f"/v2/requests/{identity}"),
        }

    def _url(self, request: web.Request, path: str) -> str:
        base = self._public_url or str(request.url.origin())
        return f"{base}{path}"


def _prefers_the_record(request: web.Request, media_type: str) -> bool:
    """Whether JSON is asked for by name, and more than the media: many clients name it beside `*/*` always."""
    wanted = dict(_accepted(request.headers.get("Accept", "*/*")))
    asked = wanted.pop("application/json", 0.0)
    kind = media_type.partition("/")[0]
    media = next((wanted[name] for name in (media_type, f"{kind}/*", "*/*") if name in wanted), 0.0)
    return asked > media


def _accepted(header: str) -> Iterator[tuple[str, float]]:
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [piece[2:] for piece in parameters if piece.startswith("q=")]
        try:
            yield name, float(weights[0]) if weights else 1.0
        except ValueError:
            yield name, 1.0
