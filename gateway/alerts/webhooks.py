"""Messages by HTTP POST, signed as Standard Webhooks has it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

import aiohttp

from gateway.alerts.contract import Delivery
from gateway.alerts.signing import SigningSecret
from gateway.domain.clock import Clock

_NOT_NOW = frozenset({429, 503})


class WebhookMessenger:
    """Keeps the contract Messenger: sends to one address, which never appears in what it says."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        url: str,
        secret: SigningSecret,
        clock: Clock,
        timeout_seconds: float,
    ) -> None:
        self._session = session
        self._url = url
        self._secret = secret
        self._clock = clock
        self._timeout_seconds = timeout_seconds

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, url: str, secret: SigningSecret, clock: Clock, timeout_seconds: float
    ) -> AsyncIterator[WebhookMessenger]:
        """A messenger with connections of its own, for as long as the block runs."""
        async with aiohttp.ClientSession(
            # Alerts are rare: a connection that was kept would be closed by the time of the next.
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session:
            yield cls(session, url=url, secret=secret, clock=clock, timeout_seconds=timeout_seconds)

    async def send(self, message_id: str, message: str) -> Delivery:
        loop = asyncio.get_running_loop()
        at, began_at = self._clock(), loop.time()
        status, error, retry_after_seconds = await self._post(message_id, int(at), message.encode())
        return Delivery(at, loop.time() - began_at, status, error, retry_after_seconds)

    async def _post(
        self, message_id: str, timestamp: int, body: bytes
    ) -> tuple[int | None, str, float | None]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "generation-gateway",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": self._secret.signature(message_id, timestamp, body),
        }
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                # Where a receiver has moved to is for whoever runs it to say, not for whoever answers there.
                self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                return answer.status, _refusal(answer.status), self._asked_seconds(answer)
        except TimeoutError:
            return None, f"no answer within {self._timeout_seconds:g} seconds", None
        except aiohttp.ClientConnectorError:
            return None, "no connection", None
        except (aiohttp.ClientError, OSError) as error:
            # By its kind alone: what it says may hold the address, and an address may hold a secret.
            return None, f"no answer ({type(error).__name__})", None

    def _asked_seconds(self, answer: aiohttp.ClientResponse) -> float | None:
        """What `Retry-After` says, in either of its forms (RFC 9110), beside a status that says: not now."""
        said = answer.headers.get("Retry-After", "").strip()
        if answer.status not in _NOT_NOW or not said:
            return None
        if re.fullmatch("[0-9]{1,9}", said):
            return float(said)
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - self._clock())
        except (ValueError, OverflowError):
            return None


def _refusal(status: int) -> str:
    if 200 <= status < 300:
        return ""
    return "a redirect, which is not followed" if 300 <= status < 400 else f"answered {status}"
