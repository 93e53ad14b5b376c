"""The real gateway with the real sandbox behind it, on loopback, and a caller's hand on both."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from gateway.app.running import RunningGateway, running_gateway
from gateway.app.upstream import SANDBOX_KEY
from gateway.catalog.yaml_files import load_catalog
from gateway.http.listening import listening
from gateway.sandbox.server import create_sandbox
from gateway.settings import load_settings
from gateway.telemetry import logs

PROJECT = Path(__file__).parents[2]
MODELS = PROJECT / "config" / "models"
MODEL = "ltx-2-19b-t2v"
FEW_MODELS = (
    MODEL,
    "ltx-2-fast",
    "kling-2.6",
    "flux-schnell",
    "fast-flux-schnell",
    "eleven-labs-transcript",
    "deepseek-chat",
)
"""Those that are asked for here: reading the whole catalogue for each test would take longer than the tests."""

PROMPT = "a red fox in the snow, zebrafinch"
"""With a word that no log has for reasons of its own."""

PRICE_MICROS = 4_000
"""What `video()` costs: the least there is."""

TENANTS: Mapping[str, Any] = {"demo": {"budgets": [{"limit_usd": 25, "per": "month"}]}}

_PATIENCE_SECONDS = 30.0
_MOST_REPETITIONS = 10
_PASSING = frozenset({"date", "x-request-id", "age", "x-remaining-credits"})


def video(**changes: Any) -> dict[str, Any]:
    """The parameters of the smallest, cheapest video."""
    return {"prompt": PROMPT, "width": 256, "height": 256, "num_frames": 9, **changes}


class MovableClock:
    """The real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def __call__(self) -> float:
        return datetime.now(UTC).timestamp() + self.ahead_seconds


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    """Names in any case."""

    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def cache(self) -> str:
        """The Cache-Status without its key."""
        return self.headers["Cache-Status"].partition("; key=")[0].removeprefix("gateway; ")

    @property
    def seed(self) -> int:
        return int(self.headers["x-seed-value"])

    @property
    def could_be_known(self) -> bool:
        """Whether the hit path could give this answer."""
        media = self.status in {200, 206} and "Repr-Digest" in self.headers
        return media and self.headers.get("Cache-Status", "gateway; hit").startswith("gateway; hit")

    @property
    def lasting(self) -> tuple[int, Sequence[tuple[str, str]], bytes]:
        """What is the same whenever the same is answered with: header by header, in their order."""
        headers = [(name, "" if name.lower() in _PASSING else value) for name, value in self.headers.items()]
        return self.status, headers, self.body

    def refused(self, status: int, code: str) -> Any:
        """The envelope of an error, which has to be this one."""
        assert (self.status, self.json.get("code")) == (status, code), (self.status, self.body)
        assert isinstance(self.json["error"], str)
        assert self.json["error"]
        assert self.json["request_id"] == self.headers["x-request-id"]
        return self.json


class House:
    """A gateway and its sandbox. Directories outlive both, so that each can be stopped and started again."""

    def __init__(
        self,
        directory: Path,
        *,
        tenants: Mapping[str, Any] = TENANTS,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        time_scale: float = 0,
        hit_path: bool = True,
    ) -> None:
        self.directory = directory
        self.clock = MovableClock()
        self.log = io.StringIO()
        self.secrets: set[str] = {SANDBOX_KEY}
        """What must appear in no log line."""

        self.hit_path = hit_path
        self.insists = hit_path
        """Whether a hit is asked for again until the hit path has answered it. For as long as it is, every journey
        compares what the hit path says with what the ordinary application says, and counts of answers are not exact."""

        self.environment = dict(environment or {})
        self.settings: dict[str, Any] = {
            "listen.hit_path": hit_path,
            "listen.port": 0,
            "operations.port": 0,
            "upstream.kind": "sandbox",
            "sandbox.time_scale": time_scale,
            "shutdown.grace_seconds": 0,
            "reconcile.interval_seconds": 0.05,
            "reconcile.wait_seconds": 5,
            **(settings or {}),
        }
        self.key = ""
        """A key of the first tenant."""

        self.sandbox_url = ""
        self.keys: list[str] = []
        self._time_scale = time_scale
        self._sandbox = AsyncExitStack()
        self._gateway = AsyncExitStack()
        self._running: RunningGateway | None = None
        directory.mkdir(exist_ok=True)
        self.config = directory / "gateway.yaml"
        self.config.write_text(json.dumps({"storage": {"directory": "var"}, "models": "models"}))
        self.models = directory / "models"
        self.models.mkdir(exist_ok=True)
        for name in FEW_MODELS:
            shutil.copy(MODELS / f"{name}.yaml", self.models)
        self.declare(tenants)

    # --- Running

    @asynccontextmanager
    async def open(self) -> AsyncIterator[House]:
        """Both, running, and a key of the first tenant; afterwards the log is held against what it must not say."""
        logs.configure("debug", stream=self.log)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
            self._session = session
            await self.start_sandbox()
            try:
                await self.start()
                self.key = await self.new_key(next(iter(self.tenants)))
                yield self
            finally:
                await self.stop()
                await self.stop_sandbox()
        said = self.log.getvalue()
        told = [line for line in said.splitlines() if any(secret in line for secret in self.secrets)]
        assert told == [], told

    async def start(self, **settings: Any) -> None:
        """Start the gateway; with double underscores for the points in the settings' names."""
        self.settings |= _with_points(settings)
        self._running = await self._gateway.enter_async_context(self._running_gateway(self.settings))

    @asynccontextmanager
    async def beside(self, **settings: Any) -> AsyncIterator[RunningGateway]:
        """A second gateway over the same storage, with these settings instead."""
        async with self._running_gateway(self.settings | _with_points(settings)) as running:
            yield running
            await running.drain()

    def _running_gateway(self, settings: Mapping[str, Any]) -> AbstractAsyncContextManager[RunningGateway]:
        overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        read = load_settings(self.config, overrides=overrides, environment=self.environment)
        return running_gateway(
            read, environment=self.environment, sandbox_url=self.sandbox_url, clock=self.clock
        )

    async def stop(self) -> None:
        """Stop the gateway as SIGTERM does."""
        if self._running is not None:
            await self._running.drain()
            self._running = None
        await self._gateway.aclose()

    async def restart(self, **settings: Any) -> None:
        await self.stop()
        await self.start(**settings)

    async def start_sandbox(self) -> None:
        application = create_sandbox(
            catalog=load_catalog(self.models),
            directory=self.directory / "sandbox",
            public_url=None,
            time_scale=self._time_scale,
            clock=self.clock,
        )
        self.sandbox_url = await self._sandbox.enter_async_context(
            listening(application, "127.0.0.1", 0, 75.0)
        )

    async def stop_sandbox(self) -> None:
        await self._sandbox.aclose()

    def declare(self, tenants: Mapping[str, Any]) -> None:
        """What tenants.yaml says from the next start on."""
        self.tenants = tenants
        (self.directory / "tenants.yaml").write_text(json.dumps({"tenants": tenants}))

    @property
    def gateway(self) -> RunningGateway:
        assert self._running is not None
        return self._running

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    async def new_key(self, tenant: str) -> str:
        key = await self.gateway.keys.create(tenant, "of a test")
        self.keys.append(key)
        self.secrets.add(key)
        return key

    # --- Asking the gateway

    async def ask(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        """`path` may be a whole URL. `key`: the first tenant's own by default, none if it is empty."""
        key = self.key if key is None else key
        sent = ({"x-api-key": key} if key else {}) | dict(headers or {})
        if isinstance(prompt := (options.get("json") or {}).get("prompt"), str) and len(prompt) > 10:
            self.secrets.add(prompt)
        url = path if path.startswith("http") else self.url + path
        ask = partial(self._ask, method, url, sent, **options)
        answer = await ask()
        if self.insists and answer.could_be_known and not _is_peculiar(method, sent, options):
            return await self._by_heart(answer, ask)
        return answer

    async def _by_heart(self, answer: Answer, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """What the hit path says, as soon as it says anything: the same as the ordinary application."""
        known = await self.answered_by_heart()
        for _ in range(_MOST_REPETITIONS):
            again = await ask()
            if not again.could_be_known:
                # It was dropped meanwhile.
                return again
            assert again.lasting == answer.lasting
            answer = again
            if await self.answered_by_heart() > known:
                break
        return answer

    async def answered_by_heart(self) -> int:
        """How many answers the hit path has given, in all gateways that write this log."""
        await self._ask("GET", f"{self.gateway.operations_url}/metrics", {})
        return sum(line["count"] for line in self.log_lines if line["event"] in {"hits", "fetches"})

    async def _ask(self, method: str, url: str, sent: Mapping[str, str], **options: Any) -> Answer:
        async with self._session.request(method, url, headers=sent, allow_redirects=False, **options) as got:
            return Answer(got.status, got.headers.copy(), await got.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def make(self, parameters: Mapping[str, Any] | None = None, **options: Any) -> Answer:
        """POST /v1/{model}"""
        return await self._post("v1", parameters, **options)

    async def submit(self, parameters: Mapping[str, Any] | None = None, **options: Any) -> Answer:
        """POST /v2/{model}"""
        return await self._post("v2", parameters, **options)

    async def _post(
        self, api: str, parameters: Mapping[str, Any] | None, *, model: str = MODEL, **options: Any
    ) -> Answer:
        if "data" not in options:
            options["json"] = dict(video() if parameters is None else parameters)
        return await self.ask("POST", f"/{api}/{model}", **options)

    async def ended(self, submitted: Answer, *, key: str | None = None) -> Answer:
        """The status endpoint's answer once a v2 request has ended."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                answer = await self.get(submitted.json["status_url"], key=key)
                if answer.status != 200 or answer.json["status"] == "COMPLETED":
                    return answer
                await asyncio.sleep(0.01)

    async def result(self, submitted: Answer, *, key: str | None = None) -> Answer:
        """The result of a v2 request, once there is one."""
        await self.ended(submitted, key=key)
        return await self.get(submitted.json["response_url"], key=key)

    async def usage(self, *, key: str | None = None) -> Any:
        answer = await self.get("/v1/usage", key=key)
        assert answer.status == 200, answer.body
        return answer.json

    async def metrics(self) -> Metrics:
        answer = await self.get(f"{self.gateway.operations_url}/metrics", key="")
        assert answer.status == 200, answer.body
        return Metrics(answer.body.decode())

    # --- Looking into the books

    async def pending(self) -> int:
        """How many requests were accepted and have no outcome yet."""

        def count() -> int:
            ledger = self.directory / "var" / "ledger.sqlite3"
            with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as books:
                (pending,) = books.execute("SELECT COUNT(*) FROM requests WHERE outcome IS NULL").fetchone()
                return int(pending)

        return await asyncio.to_thread(count)

    async def until_pending(self, requests: int) -> None:
        """Wait until so many requests are accepted and under way; 0: until all have an outcome."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while await self.pending() != requests:
                await asyncio.sleep(0.01)

    def blob_files(self) -> list[Path]:
        return [path for path in (self.directory / "var" / "blobs" / "sha256").rglob("*") if path.is_file()]

    # --- The sandbox

    async def faults(self, faults: Mapping[str, Any]) -> None:
        """Switch faults on (or off, with {})."""
        async with self._session.put(f"{self.sandbox_url}/sandbox/faults", json=faults) as answer:
            assert answer.status == 200, await answer.text()

    async def hold(self) -> None:
        """From now on nothing that is bought can land: every poll fails. `let_go` ends it."""
        await self.faults({"poll_error": {"status": 502}})

    async def let_go(self) -> None:
        await self.faults({"poll_error": {}})

    async def bill(self) -> Bill:
        async with self._session.get(f"{self.sandbox_url}/sandbox/bill") as answer:
            assert answer.status == 200, await answer.text()
            return Bill(await answer.json())

    async def until_billed(self, jobs: int) -> Bill:
        """The bill, once it has so many jobs and none of them runs."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                bill = await self.bill()
                if len(bill.jobs) >= jobs and not bill.total["running"]:
                    return bill
                await asyncio.sleep(0.01)


def _with_points(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in settings.items()}


def _is_peculiar(method: str, sent: Mapping[str, str], options: Mapping[str, Any]) -> bool:
    """Whether a request is never the hit path's, or cannot be sent again."""
    conditional = any(name.lower().startswith("if-") for name in sent)
    return method == "HEAD" or conditional or not isinstance(options.get("data", b""), bytes | str)


@dataclass(frozen=True)
class Bill:
    """What the sandbox has billed."""

    all: Mapping[str, Any]

    @property
    def jobs(self) -> list[Any]:
        return list(self.all["jobs"])

    @property
    def total(self) -> Mapping[str, Any]:
        total: Mapping[str, Any] = self.all["total"]
        return total

    @property
    def micros(self) -> int:
        return int(self.total["cost_micros"])


class Metrics:
    """One exposition, read as Prometheus does."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples of this name that have these labels; 0 if there are none."""
        return round(sum(self._matching(name, labels)), 9)

    def has(self, name: str, **labels: str) -> bool:
        return any(True for _ in self._matching(name, labels))

    def of(self, name: str) -> Sequence[Mapping[str, str]]:
        """The labels, with their values, of all samples of this name."""
        return [sample.labels for sample in self._samples if sample.name == name]

    def labels(self, name: str) -> set[frozenset[str]]:
        return {frozenset(sample.labels) for sample in self._samples if sample.name == name}

    def _matching(self, name: str, labels: Mapping[str, str]) -> Iterable[float]:
        return (
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
