"""The scenes of hits: every candidate takes its turn in every repetition, so that all have the same neighbours on the machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

from bench.paid_once.programs import DidNotStart, free_port
from bench.paid_once.scenes import Request
from bench.speed import questions
from bench.speed.findings import (
    CONNECTIONS,
    DISCARDED,
    GATEWAY,
    HALF_RATE,
    LARGE,
    LITELLM,
    NGINX,
    SENDFILE,
    SOUND,
    TAIL_1_MIB,
    TAIL_64_KIB,
    TWO_WORKERS,
    UNSEEN,
    VARNISH,
    VIDEO,
    Findings,
    small,
)
from bench.speed.load import Native, Sample, Wrk
from bench.speed.machine import Cores, Measured, pinned
from bench.speed.peers import completion, warm_completions
from bench.speed.servers import Asked, Server

SOUND_BYTES = 20 << 20
_TAILS = {TAIL_1_MIB: 1 << 20, TAIL_64_KIB: 1 << 16}
_LARGE_CONNECTIONS = 16
_RATE_CONNECTIONS = 64
_LITELLM_CONNECTIONS = 16
_COMPLETIONS = 20
_MAXIMUM_OF = 3
_EXERCISED = 2.0
"""Times the length of a repetition."""


@dataclass(frozen=True, slots=True)
class Length:
    """How much of everything."""

    repetitions: int
    seconds: float
    """Of each repetition of each candidate."""

    video_seconds: int
    connections: Sequence[int] = CONNECTIONS
    large: Sequence[str] = LARGE


@dataclass(frozen=True, slots=True)
class _Lane:
    name: str
    server: Server
    load: Callable[[], Awaitable[Sample]]


@dataclass(slots=True)
class Hits:
    """`candidates` by their names, as far as they run. `tell` is for who waits."""

    found: Findings
    candidates: Mapping[str, Server]
    length: Length
    cores: Cores
    scratch: Path
    wrk: Wrk | None
    native: Native | None
    tell: Callable[[str], None]
    _small: Sequence[Asked] = field(init=False)

    def __post_init__(self) -> None:
        self._small = [questions.small(number) for number in range(questions.DISTINCT)]

    async def measure(self) -> None:
        large = {VIDEO: questions.video(self.length.video_seconds), SOUND: questions.sound(SOUND_BYTES)}
        large = {scene: asked for scene, asked in large.items() if scene in self.length.large}
        answers = await self._warm([*self._small, *large.values()])
        bodies = dict(zip(large, answers[questions.DISTINCT :], strict=True))
        self.found.answer_bytes["1 KB hit"] = len(answers[0])
        self.found.answer_bytes |= {scene: len(body) for scene, body in bodies.items()}
        if self.wrk is None:
            self.found.missing.append("1 KB hits as fast as they are answered: wrk is not installed.")
        else:
            await self._small_hits(self.wrk)
        if self.native is None:
            self.found.missing.append("large hits, Ranges and the half rate: there is no C compiler (cc).")
        else:
            await self._large_hits(self.native, large, bodies)
            await self._half_rate(self.native)

    async def _warm(self, asked: Sequence[Asked]) -> Sequence[bytes]:
        """The answers, which every candidate has from now on, byte for byte the same."""
        answers: Sequence[bytes] = ()
        for name, candidate in self.candidates.items():
            if name == LITELLM:
                await warm_completions(candidate, self._completions(candidate))
                continue
            had = await candidate.warm(asked)
            await self._exercise(candidate)
            if answers and had != answers:
                raise DidNotStart(f"{name} does not give the same answers")
            answers = had
        return answers

    async def _exercise(self, candidate: Server) -> None:
        """Ask for all tenants until every process has seen each of them: who comes first waits, and is another measurement."""
        generator = self.wrk or self.native
        if generator is not None:
            requests = questions.by_all_tenants(self._small, candidate)
            seconds = _EXERCISED * self.length.seconds
            await generator.load(candidate.program, requests, connections=_RATE_CONNECTIONS, seconds=seconds)

    def _completions(self, candidate: Server) -> Sequence[Request]:
        return [completion(candidate, number) for number in range(_COMPLETIONS)]

    async def _small_hits(self, wrk: Wrk) -> None:
        for connections in self.length.connections:

            def lane(
                name: str,
                candidate: str,
                requests: Sequence[Request],
                *,
                unseen: bool = False,
                connections: int = connections,
            ) -> _Lane:
                server = self.candidates[candidate]
                return _Lane(
                    name,
                    server,
                    lambda: wrk.load(
                        server.program,
                        requests,
                        connections=connections,
                        seconds=self.length.seconds,
                        unseen=unseen,
                    ),
                )

            lanes = [
                lane(name, name, questions.by_all_tenants(self._small, self.candidates[name]))
                for name in (GATEWAY, NGINX, VARNISH)
                if name in self.candidates
            ]
            unseen = questions.by_all_tenants(self._respelled(), self.candidates[GATEWAY])
            lanes.append(lane(UNSEEN, GATEWAY, unseen, unseen=True))
            if connections == max(CONNECTIONS) and (two := self.candidates.get(TWO_WORKERS)):
                lanes.append(lane(TWO_WORKERS, TWO_WORKERS, questions.by_all_tenants(self._small, two)))
            if connections == _LITELLM_CONNECTIONS and (litellm := self.candidates.get(LITELLM)):
                lanes.append(lane(LITELLM, LITELLM, self._completions(litellm)))
            await self._take_turns(small(connections), lanes)

    def _respelled(self) -> Sequence[Asked]:
        """Every question in every spelling, the questions in turn."""
        return [one for turn in zip(*map(questions.respelled, self._small), strict=True) for one in turn]

    async def _large_hits(
        self, native: Native, large: Mapping[str, Asked], bodies: Mapping[str, bytes]
    ) -> None:
        for scene, asked in large.items():
            names = (GATEWAY, NGINX, VARNISH) if scene == VIDEO else (GATEWAY, NGINX)
            asking = {name: asked.of(self.candidates[name]) for name in names if name in self.candidates}
            await self._beside_the_ceiling(native, scene, asking, bodies[scene])
            if scene == VIDEO and DISCARDED in self.length.large:
                await self._beside_the_ceiling(native, DISCARDED, asking, bodies[scene])
        for scene, size in _TAILS.items():
            if scene in self.length.large:
                body = bodies[VIDEO]
                requests = await self._tails(large[VIDEO], len(body), size)
                await self._beside_the_ceiling(native, scene, requests, body[-size:])

    async def _tails(self, asked: Asked, size_bytes: int, tail_bytes: int) -> Mapping[str, Request]:
        """Through the link of the gateway, which nginx passes on once and then has."""
        request = asked.of(self.candidates[GATEWAY])
        headers = {**request.headers, "Accept": "application/json"}
        record = (await self.candidates[GATEWAY].answer(replace(request, headers=headers))).body
        requests = {}
        for name in (GATEWAY, NGINX):
            if server := self.candidates.get(name):
                requests[name] = questions.tail(record, server, size_bytes, tail_bytes)
                for _ in range(2):
                    part = await server.answer(requests[name])
                    if (part.status, len(part.body)) != (206, min(tail_bytes, size_bytes)):
                        raise DidNotStart(f"{name}: a range is {part.status}, {len(part.body)} bytes")
        return requests

    async def _beside_the_ceiling(
        self, native: Native, scene: str, requests: Mapping[str, Request], body: bytes
    ) -> None:
        async with self._ceiling(native, body) as ceiling:
            servers = {**self.candidates, SENDFILE: ceiling}
            asked = {**requests, SENDFILE: Request("GET", f"{ceiling.url}/")}

            def lane(name: str, request: Request) -> _Lane:
                server = servers[name]
                return _Lane(
                    name,
                    server,
                    lambda: native.load(
                        server.program,
                        [request],
                        connections=_LARGE_CONNECTIONS,
                        seconds=self.length.seconds,
                        discards=scene == DISCARDED,
                    ),
                )

            await self._take_turns(scene, [lane(name, request) for name, request in asked.items()])

    @asynccontextmanager
    async def _ceiling(self, native: Native, body: bytes) -> AsyncIterator[Server]:
        file = self.scratch / "ceiling"
        await asyncio.to_thread(file.write_bytes, body)
        port = free_port()
        program = Measured(
            pinned([native.sendfile, str(port), file], self.cores.server), log=self.scratch / "ceiling.log"
        )
        try:
            await program.start(listening_on=port)
            yield Server(SENDFILE, program, f"http://127.0.0.1:{port}", [""], _nobody)
        finally:
            await program.stop()

    async def _half_rate(self, native: Native) -> None:
        """Of whoever is slower: both are asked at one and the same rate."""
        names = [name for name in (GATEWAY, NGINX) if name in self.candidates]
        requests = {name: questions.by_all_tenants(self._small, self.candidates[name]) for name in names}

        async def load(name: str, rate: float = 0.0) -> Sample:
            return await native.load(
                self.candidates[name].program,
                requests[name],
                connections=_RATE_CONNECTIONS,
                seconds=self.length.seconds,
                rate=rate,
            )

        # The best of some: a neighbour's work is no limit of the server's.
        most = {name: max([(await load(name)).rate for _ in range(_MAXIMUM_OF)]) for name in names}
        self.found.half_rate = rate = min(most.values()) / 2

        def lane(name: str) -> _Lane:
            return _Lane(name, self.candidates[name], lambda: load(name, rate))

        await self._take_turns(HALF_RATE, [lane(name) for name in names])

    async def _take_turns(self, scene: str, lanes: Sequence[_Lane]) -> None:
        for lane in islice(cycle(lanes), self.length.repetitions * len(lanes)):
            passed_on = await lane.server.passed_on()
            sample = await self._sample(scene, lane)
            more = await lane.server.passed_on() - passed_on
            self.found.passed_on[lane.name] = self.found.passed_on.get(lane.name, 0) + more
            self.found.samples.setdefault((scene, lane.name), []).append(sample)
            self.tell(
                f"{scene}: {lane.name}: {sample.rate:,.0f}/s, {sample.cpu_microseconds:.1f} us CPU each, "
                f"others {sample.other_cores:.2f} cores"
            )

    async def _sample(self, scene: str, lane: _Lane) -> Sample:
        """A load generator that somebody kills costs another try, and not the run."""
        try:
            return await lane.load()
        except DidNotStart as error:
            self.tell(f"{scene}: {lane.name}: once more, since {error}")
            return await lane.load()


async def _nobody() -> int:
    return 0
