"""An upstream that counts: each request that reaches it is one payment, whatever becomes of the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

BODY_BYTES = 2_000_000
_FILE_TYPE = b"\x00\x00\x00\x18ftypisom"


class CountingUpstream:
    """Answers anything with a body after a delay. Every payment makes a body of its own, as a generation does."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self.paid = 0
        self.url = ""

    async def pay(self, request: web.Request) -> web.Response:
        await request.read()
        self.paid += 1
        number = self.paid
        await asyncio.sleep(self._delay_seconds)
        body = (_FILE_TYPE + f"payment {number}".encode()).ljust(BODY_BYTES, b"\0")
        return web.Response(
            body=body, content_type="video/mp4", headers={"Cache-Control": "public, max-age=3600"}
        )

    async def pay_for_chat(self, request: web.Request) -> web.Response:
        """The same, in the words of the API that LiteLLM is for."""
        await self.pay(request)
        message = {"role": "assistant", "content": f"payment {self.paid}"}
        return web.json_response(
            {
                "id": f"chat-{self.paid}",
                "object": "chat.completion",
                "created": 1,
                "model": "any",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    async def pay_for_video(self, request: web.Request) -> web.Response:
        await self.pay(request)
        return web.json_response(
            {
                "id": f"video_{self.paid}",
                "object": "video",
                "status": "queued",
                "model": "any",
                "created_at": 1,
                "seconds": "4",
                "size": "720x1280",
                "progress": 0,
            }
        )

    async def count(self, _request: web.Request) -> web.Response:
        return web.json_response({"paid": self.paid})


@contextlib.asynccontextmanager
async def counting_upstream(delay_seconds: float) -> AsyncIterator[CountingUpstream]:
    """Running on loopback, on a port that the system chose, until the block ends."""
    upstream = CountingUpstream(delay_seconds)
    application = web.Application()
    application.router.add_get("/count", upstream.count)
    application.router.add_post("/openai/chat/completions", upstream.pay_for_chat)
    application.router.add_post("/openai/videos", upstream.pay_for_video)
    application.router.add_route("*", "/video", upstream.pay)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield upstream
    finally:
        await runner.cleanup()
