from __future__ import annotations

import asyncio
from collections import defaultdict

from gateway.domain.identity import Fingerprint
from gateway.generation.lookout import Lookout


async def test_who_waits_looks_again_though_nothing_says_that_anything_has_changed() -> None:
    lookout = Lookout()

    async with asyncio.timeout(10):
        await lookout.wait(Fingerprint("one"))
        await lookout.wait(Fingerprint("one"))


async def test_who_waits_among_thousands_looks_at_once_when_it_is_remembered() -> None:
    marks: dict[str, int] = defaultdict(int)
    lookout = Lookout(lambda name: marks[name])
    # With so many it is minutes until each looks by itself.
    others = [asyncio.create_task(lookout.wait(Fingerprint(str(number)))) for number in range(20_000)]
    await asyncio.sleep(0)
    waiting = asyncio.create_task(lookout.wait(Fingerprint("mine")))
    await asyncio.sleep(0)
    marks["entry:mine"] += 1

    async with asyncio.timeout(30):
        await waiting
    assert not others[-1].done()
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)

    # Nothing is left of those who have gone.
    assert not lookout._waiting
