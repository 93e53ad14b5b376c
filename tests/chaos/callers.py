"""Callers who keep asking until they have their bytes, and behave as badly as callers do meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from tests.chaos.processes import World
from tests.journeys.running import MODEL, video

WORTH_ANOTHER_TRY = {
    "upstream_unusable",
    "generation_failed",
    "outcome_unknown",
    "paid_and_lost",
    "not_bought",
    "result_broken",
    "result_gone",
    "result_unavailable",
    "shutting_down",
    "still_running",
    "storage_unavailable",
    "unavailable",
    "upstream_rate_limited",
    "upstream_unreachable",
    "overloaded",
}
"""Refusals that say something about the moment, and nothing about the request."""

_NETWORK_FAULTS = (aiohttp.ClientError, OSError, TimeoutError)
_PATIENCE_SECONDS = 20.0


class Strange(AssertionError):
    """An answer that no caller should ever be given."""


class BudgetSaysNo(Exception):
    """The one refusal for which there is no retry."""


@dataclass
class Received:
    """What all callers together have seen."""

    digests: dict[str, set[str]] = field(default_factory=dict)
    """What came for each request, by its name; one digest each, if all is well."""

    media: dict[str, bytes] = field(default_factory=dict)
    issued: set[str] = field(default_factory=set)
    """Every v2 id that was ever given out."""

    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    def note(self, name: str, body: bytes) -> None:
        digest = hashlib.sha256(body).hexdigest()
        self.digests.setdefault(name, set()).add(digest)
        self.media[digest] = body
        self.counts["deliveries"] += 1


class Caller:
    """One of many. `url` answers where a gateway is at the moment."""

    def __init__(
        self,
        world: World,
        session: aiohttp.ClientSession,
        received: Received,
        *,
        url: Callable[[], str],
        chance: random.Random,
        hang_up: float = 0.0,
        longest_pause_seconds: float = 0.6,
    ) -> None:
        """`hang_up`: how likely it is to leave in the middle of any one question."""
        self._world = world
        self._session = session
        self._received = received
        self._url = url
        self._chance = chance
        self._hang_up = hang_up
        self._longest_pause_seconds = longest_pause_seconds

    async def have(self, request: Mapping[str, Any], name: str) -> None:
        """Ask, this way or that, until the bytes are here. Raises BudgetSaysNo and Strange."""
        pause_seconds = 0.05
        while True:
            body = await (self._by_v1 if self._chance.random() < 0.5 else self._by_v2)(request)
            if body is not None:
                self._received.note(name, body)
                return
            self._received.counts["retries"] += 1
            await asyncio.sleep(pause_seconds * self._chance.uniform(0.5, 1.5))
            pause_seconds = min(pause_seconds * 1.6, self._longest_pause_seconds)

    async def _by_v1(self, request: Mapping[str, Any]) -> bytes | None:
        answer = await self._ask("POST", f"/v1/{MODEL}", json=dict(request))
        if answer is None:
            return None
        _, body, _ = answer
        return body if self._accepted(answer) else None

    async def _by_v2(self, request: Mapping[str, Any]) -> bytes | None:
        answer = await self._ask("POST", f"/v2/{MODEL}", json=dict(request))
        if answer is None or not self._accepted(answer):
            return None
        identity = answer[2]["request_id"]
        self._received.issued.add(identity)
        return await self._polled(identity)

    async def _polled(self, identity: str) -> bytes | None:
        polls = 0
        while True:
            if self._hang_up and self._chance.random() < self._hang_up / 10:
                self._received.counts["polls given up"] += 1
                return None
            answer = await self._ask("GET", f"/v2/requests/{identity}/status")
            polls += 1
            if answer is not None:
                status, _, said = answer
                if status == 404:
                    raise Strange(f"the gateway has forgotten {identity}")
                if status == 422:
                    self._reason_of(identity, said)
                    self._received.refusals[said["code"]] += 1
                    return None
                if status == 200 and said["status"] == "COMPLETED":
                    return await self._result(identity)
                self._accepted(answer)
            await asyncio.sleep(min(0.05 * polls, 0.5))

    async def _result(self, identity: str) -> bytes | None:
        answer = await self._ask("GET", f"/v2/requests/{identity}")
        if answer is None or not self._accepted(answer):
            return None
        if answer[2]["status"] != "COMPLETED":
            raise Strange(f"{identity} was COMPLETED and is {answer[2]['status']}")
        # A link has the port of the process that gave it; another may answer by now.
        link = URL(answer[2]["video"]["url"])
        media = await self._ask("GET", link.path_qs, key="")
        return media[1] if media is not None and self._accepted(media) else None

    @staticmethod
    def _reason_of(identity: str, said: Any) -> None:
        if said.get("status") != "FAILED" or not said.get("code") or not said.get("error"):
            raise Strange(f"{identity} failed without a reason: {said}")

    def _accepted(self, answer: tuple[int, bytes, Any]) -> bool:
        """False for a refusal that passes."""
        status, body, said = answer
        if status == 200:
            return True
        code = said.get("code") if isinstance(said, dict) else None
        if code == "budget_exceeded":
            raise BudgetSaysNo
        if code not in WORTH_ANOTHER_TRY:
            raise Strange(f"{status}: {body[:400]!r}")
        self._received.refusals[code] += 1
        return False

    async def _ask(
        self, method: str, path: str, *, key: str | None = None, json: Any = None
    ) -> tuple[int, bytes, Any] | None:
        """Status, body, and the body as JSON if it is any; None if the connection did not live to see it."""
        patience_seconds = _PATIENCE_SECONDS
        if self._chance.random() < self._hang_up:
            patience_seconds = self._chance.uniform(0.005, 1.0)
        headers = {"x-api-key": self._world.key} if key is None else {}
        self._received.counts["requests"] += 1
        try:
            async with (
                asyncio.timeout(patience_seconds),
                self._session.request(method, self._url() + path, json=json, headers=headers) as answer,
            ):
                body = await answer.read()
                said = await answer.json() if answer.content_type == "application/json" else {}
                return answer.status, body, said
        except TimeoutError:
            self._received.counts["hung up"] += 1
        except _NETWORK_FAULTS:
            self._received.counts["connections lost"] += 1
        return None

    async def outcome(self, identity: str) -> str:
        """COMPLETED or FAILED, once a v2 request has ended. Raises Strange when it is forgotten."""
        while True:
            answer = await self._ask("GET", f"/v2/requests/{identity}/status")
            if answer is not None:
                status, _, said = answer
                if status == 404:
                    raise Strange(f"the gateway has forgotten {identity}")
                if status == 422:
                    self._reason_of(identity, said)
                    return "FAILED"
                if status == 200 and said["status"] == "COMPLETED":
                    return "COMPLETED"
            await asyncio.sleep(0.1)


def seeded(*words: object) -> random.Random:
    """Chance that comes out the same for the same words."""
    return random.Random(" ".join(map(str, words)))  # noqa: S311 -- it is to be foreseen


def requests(count: int) -> dict[str, dict[str, Any]]:
    """So many distinct requests for the smallest video, by name."""
    return {f"seed {seed}": video(prompt="a red fox in the snow", seed=seed) for seed in range(1, count + 1)}
