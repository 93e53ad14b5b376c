"""The same bytes to a gateway with the hit path and to one without, over one storage: the same bytes come back."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.journeys.running import MODEL, PROMPT, House, video
from tests.journeys.wire import LARGE, SMALL, asking, conversation, fetching, lasting, learnt, wired

TENANTS: Mapping[str, Any] = {
    "demo": {"budgets": [{"limit_usd": 25, "per": "month"}, {"limit_usd": 20, "per": "day"}]},
    "free": {"budgets": []},
    "private": {"budgets": [], "cache": "private"},
    "narrow": {"budgets": [], "models": ["fast-flux-schnell"]},
    # May have what is there, and nothing else.
    "poor": {"budgets": [{"limit_usd": 0.000001, "per": "total"}]},
}
PICTURE = json.dumps({"prompt": PROMPT}).encode()
TEXT = json.dumps({"prompt": PROMPT}).encode()


@dataclass(frozen=True)
class Pair:
    """Two gateways over one storage, and what both have in their caches; the one with the hit path knows it by heart."""

    house: House
    without: str
    keys: Mapping[str, str]
    small_link: str
    large_link: str

    @property
    def with_it(self) -> str:
        return self.house.url

    def small(self, tenant: str = "demo", **options: Any) -> bytes:
        return asking(SMALL, key=self.keys[tenant], **options)

    def large(self, tenant: str = "demo", **options: Any) -> bytes:
        return asking(LARGE, key=self.keys[tenant], **options)

    async def same(self, *pieces: bytes, **options: int) -> bytes:
        """What both say to these pieces, without what passes."""
        ours, theirs = await asyncio.gather(
            conversation(self.with_it, *pieces, **options), conversation(self.without, *pieces, **options)
        )
        assert lasting(ours) == lasting(theirs), pieces
        return ours


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Everything that the tests here ask for is made, and known."""
    house = House(
        tmp_path / "house",
        tenants=TENANTS,
        settings={"listen.max_body_bytes": 4096, "listen.body_timeout_seconds": 0.3},
    )
    async with house.open(), house.beside(listen__hit_path=False) as other:
        house.insists = False
        keys = {name: await house.new_key(name) for name in TENANTS}
        targets = []
        for body in (SMALL, LARGE):
            submitted = await house.submit(data=body, headers={"Content-Type": "application/json"})
            link = urlsplit((await house.result(submitted)).json["output"])
            targets.append(f"{link.path}?{link.query}")
        pair = Pair(house, other.url, keys, *targets)
        made = [
            *(pair.small(tenant) for tenant in ("demo", "free", "private", "poor")),
            pair.large(),
            pair.large("free"),
            asking(PICTURE, key=keys["demo"], model="fast-flux-schnell"),
            asking(PICTURE, key=keys["narrow"], model="fast-flux-schnell"),
            asking(TEXT, key=keys["demo"], model="deepseek-chat"),
        ]
        async with wired(house.url) as wire:
            for request in made:
                assert (await wire.ask(request)).status == 200, request
            await learnt(house, wire, *made, *map(fetching, targets))
        yield pair


def _hits(pair: Pair) -> dict[str, bytes]:
    """What the hit path answers by itself."""
    keys = pair.keys
    links = {"small": pair.small_link, "large": pair.large_link}
    ranges = ("0-0", "0-99", "100-", "-1", "-100", "5-5", "1000-70000", "10-99999999", "-99999999")
    return {
        "a hit of a limited tenant": pair.small(),
        "a hit of an unlimited tenant": pair.small("free"),
        "a hit of a private tenant": pair.small("private"),
        "a large hit of a limited tenant": pair.large(),
        "a large hit of an unlimited tenant": pair.large("free"),
        "a picture": asking(PICTURE, key=keys["demo"], model="fast-flux-schnell"),
        "a picture for one who may have no other": asking(
            PICTURE, key=keys["narrow"], model="fast-flux-schnell"
        ),
        "a text": asking(TEXT, key=keys["demo"], model="deepseek-chat"),
        "the same, written in another way": asking(
            json.dumps(video(seed=1234567890, fps=24.0), indent=3).encode(), key=keys["demo"]
        ),
        "whatever is accepted": pair.small(headers=[("Accept", "*/*")]),
        "with what browsers send": pair.small(
            headers=[("User-Agent", "x/1 (y; z)"), ("Accept-Encoding", "gzip, br"), ("Accept-Language", "en")]
        ),
        "kept alive": pair.small(headers=[("Connection", "Keep-Alive")]),
        "names in capitals": pair.small().replace(b"x-api-key", b"X-API-KEY").replace(b"Host", b"HOST"),
        "names in small letters": pair.small()
        .replace(b"Content-Type", b"content-type")
        .replace(b"Content-Length", b"content-length"),
        "values with spaces around": pair.small().replace(b"application/json", b" \t application/json \t"),
        "no space after the colon": pair.small().replace(b"x-api-key: ", b"x-api-key:"),
        "an odd host": pair.small().replace(b"Host: gateway", b"Host: a,b c/d?e#f@[::"),
        "a length with zeros": pair.small(length=f"000{len(SMALL)}"),
        "a cookie, which nobody reads": pair.small(headers=[("Cookie", "a=b; c=d")]),
        "a range, which is none of a POST's": pair.small(headers=[("Range", "bytes=0-9")]),
        **{f"{size} media": fetching(link) for size, link in links.items()},
        **{
            f"{size} media, bytes {part}": fetching(link, f"Range: bytes={part}")
            for size, link in links.items()
            for part in ranges
        },
        "several ranges": fetching(pair.large_link, "Range: bytes=0-1,5-6"),
        "a range backwards": fetching(pair.large_link, "Range: bytes=5-2"),
        "a range of lines": fetching(pair.large_link, "Range: lines=1-2"),
        "a range of nothing": fetching(pair.large_link, "Range: bytes=-"),
        "media with a key": fetching(pair.small_link, f"x-api-key: {keys['demo']}"),
        "media with an announced body of nothing": fetching(pair.small_link, "Content-Length: 0"),
    }


def _others(pair: Pair) -> dict[str, bytes]:
    """What is the ordinary application's, or nobody's."""
    key, link, small = pair.keys["demo"], pair.large_link, pair.small()
    etag = f'"{link[7:71]}"'
    other = "0" * 64
    folded = small.replace(
        b"Content-Type: application/json", b"Content-Type: application/json\r\n ; charset=utf-8"
    )
    return {
        "no key": small.replace(f"x-api-key: {key}\r\n".encode(), b""),
        "no host": small.replace(b"Host: gateway\r\n", b""),
        "an empty host": small.replace(b"Host: gateway", b"Host:"),
        "a key that is mistyped": asking(SMALL, key=key[:-1] + "~"),
        "an empty key": asking(SMALL, key=""),
        "a key of the upstream's": asking(SMALL, key="SG_0123456789abcdef"),
        "a key twice": pair.small(headers=[("x-api-key", key)]),
        "two keys": pair.small(headers=[("x-api-key", pair.keys["free"])]),
        "two keys, the other first": asking(
            SMALL, key=pair.keys["private"], headers=[("X-Api-Key", key)]
        ),
        "a forbidden model": pair.small("narrow"),
        "an unknown model": asking(SMALL, key=key, model="ltx-2-19b-t2"),
        "a model that is escaped": asking(SMALL, key=key, model=MODEL.replace("l", "%6C")),
        "a model with a query": asking(SMALL, key=key, model=MODEL + "?x=1"),
        "a model with a fragment": asking(SMALL, key=key, model=MODEL + "#x"),
        "a model and a slash": asking(SMALL, key=key, model=MODEL + "/"),
        "slashes in front": small.replace(b"/v1/", b"//v1/"),
        "a detour": small.replace(b"/v1/", b"/v1/x/../"),
        "a whole address": small.replace(b"POST /v1", b"POST http://gateway/v1"),
        "the whole address of media": fetching("http://gateway" + link),
        "no JSON": asking(b"{", key=key),
        "an array": asking(b"[]", key=key),
        "nothing": asking(b"", key=key),
        "a name twice": asking(b'{"prompt":"a","prompt":"a"}', key=key),
        "wrong parameters": asking(b'{"promt":1}', key=key),
        "not a number": asking(b'{"prompt":"a","fps":NaN}', key=key),
        "half a surrogate pair": asking(b'{"prompt":"\\ud800"}', key=key),
        "no UTF-8": asking(b'{"prompt":"\xff"}', key=key),
        "a body that is too large": asking(SMALL + b" " * 5000, key=key),
        "a body that is barely too large": asking(SMALL.ljust(4097), key=key),
        "a body that is barely not too large": asking(SMALL.ljust(4096), key=key),
        "text": small.replace(b"application/json", b"text/plain"),
        "text and JSON": small.replace(b"application/json", b"application/json, text/plain"),
        "no type": small.replace(b"Content-Type: application/json\r\n", b""),
        "an empty type": small.replace(b"Content-Type: application/json", b"Content-Type:"),
        "JSON in other letters": small.replace(b"application/json", b'application/json;charset="latin-1"'),
        "JSON in capitals": small.replace(b"application/json", b"APPLICATION/JSON"),
        "the record": pair.small(headers=[("Accept", "application/json")]),
        "the record rather": pair.small(headers=[("Accept", "application/json, */*;q=0.5")]),
        "the record as well": pair.small(headers=[("Accept", "application/json, */*")]),
        "a video by name": pair.small(headers=[("Accept", "video/mp4")]),
        "a picture, which it is not": pair.small(headers=[("Accept", "image/png")]),
        "nothing is accepted": pair.small(headers=[("Accept", "*/*;q=0")]),
        "the text's record": asking(
            TEXT, key=key, model="deepseek-chat", headers=[("Accept", "application/json")]
        ),
        "HTTP 1.0": small.replace(b"HTTP/1.1", b"HTTP/1.0"),
        "HTTP 1.0, kept alive": pair.small(headers=[("Connection", "keep-alive")]).replace(
            b"HTTP/1.1", b"HTTP/1.0"
        ),
        "HTTP 1.2": small.replace(b"HTTP/1.1", b"HTTP/1.2"),
        "HTTP 2": small.replace(b"HTTP/1.1", b"HTTP/2.0"),
        "HTTP 0.9": b"GET /\r\n\r\n",
        "the preface of HTTP 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "to be closed": pair.small(headers=[("Connection", "close")]),
        "to be closed, said twice": pair.small(headers=[("Connection", "keep-alive, close")]),
        "to be closed in capitals": pair.large(headers=[("Connection", "CLOSE")]),
        "an upgrade": pair.small(headers=[("Connection", "Upgrade"), ("Upgrade", "websocket")]),
        "an upgrade to HTTP 2": pair.small(headers=[("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c")]),
        "in chunks": small.replace(
            f"Content-Length: {len(SMALL)}\r\n\r\n".encode() + SMALL,
            b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + SMALL[:5]
            + f"\r\n{len(SMALL) - 5:x};x=y\r\n".encode() + SMALL[5:] + b"\r\n0\r\nTrailer: x\r\n\r\n",
        ),
        "in chunks and with a length": pair.small(headers=[("Transfer-Encoding", "chunked")]),
        "in chunks in chunks": pair.small(headers=[("Transfer-Encoding", "chunked, chunked")], length="0"),
        "in some other encoding": pair.small(headers=[("Transfer-Encoding", "xchunked")]),
        "expecting to be told to go on": pair.small(headers=[("Expect", "100-continue")]),
        "expecting something else": pair.small(headers=[("Expect", "x")]),
        "compressed": asking(gzip.compress(SMALL, mtime=0), key=key, headers=[("Content-Encoding", "gzip")]),
        "not as compressed as it says": pair.small(headers=[("Content-Encoding", "gzip")]),
        "compressed in no way": pair.small(headers=[("Content-Encoding", "identity")]),
        "a header over two lines": folded,
        "lines that end in LF": small.replace(b"\r\n", b"\n"),
        "one line that ends in LF": small.replace(b"Host: gateway\r\n", b"Host: gateway\n"),
        "one line that ends in CR": small.replace(b"Host: gateway\r\n", b"Host: gateway\r"),
        "a NUL in a value": small.replace(b"gateway", b"gate\0way"),
        "a NUL in a name": small.replace(b"Host", b"Ho\0st"),
        "a NUL in the address": small.replace(MODEL.encode(), MODEL.encode() + b"\0"),
        "a letter beyond ASCII in a value": small.replace(b"gateway", b"g\xe4teway"),
        "a letter beyond ASCII in the address": small.replace(b"/v1/", b"/v1/\xc3\xa4"),
        "a space before a colon": small.replace(b"Host:", b"Host :"),
        "a space before a name": small.replace(b"Host:", b" Host:"),
        "an empty name": pair.small(headers=[("", "x")]),
        "a name in quotes": pair.small(headers=[('"x"', "x")]),
        "an empty value": pair.small(headers=[("X-Empty", "")]),
        "a line without a colon": small.replace(b"Host: gateway", b"Host gateway"),
        "two spaces": small.replace(b"POST /", b"POST  /"),
        "a tab for a space": small.replace(b"POST /", b"POST\t/"),
        "a space at the end of the line": small.replace(b"HTTP/1.1", b"HTTP/1.1 "),
        "an empty line first": b"\r\n\r\n" + small,
        "a word in small letters": small.replace(b"POST", b"post"),
        "a word that is none": small.replace(b"POST", b"PO-ST"),
        "a length with a plus": pair.small(length=f"+{len(SMALL)}"),
        "a length with a minus": pair.small(length=f"-{len(SMALL)}"),
        "a length in hexadecimal": pair.small(length=hex(len(SMALL))),
        "a length with a point": pair.small(length=f"{len(SMALL)}.0"),
        "a length with a space": pair.small(length=f"{len(SMALL)} 0"),
        "two lengths in one": pair.small(length=f"{len(SMALL)}, {len(SMALL)}"),
        "two equal lengths": pair.small(headers=[("Content-Length", str(len(SMALL)))]),
        "two lengths": pair.small(headers=[("Content-Length", str(len(SMALL) + 7))]),
        "a length beyond all bounds": pair.small(length="9" * 30),
        "no length": small.replace(f"Content-Length: {len(SMALL)}\r\n".encode(), b""),
        "an empty length": small.replace(f"Content-Length: {len(SMALL)}".encode(), b"Content-Length:"),
        "a body that is longer than announced": pair.small(length=str(len(SMALL) - 9)),
        "a body that is shorter than announced": pair.small(length=str(len(SMALL) + 20)),
        "a head that is very long": pair.small(headers=[("X-Long", "x" * 7900)]),
        "a head that is too long": pair.small(headers=[("X-Long", "x" * 9000)]),
        "a head of many lines": pair.small(headers=[(f"X-{number}", "x") for number in range(100)]),
        "a head of too many lines": pair.small(headers=[(f"X-{number}", "x") for number in range(200)]),
        "an address that is too long": small.replace(b"/v1/", b"/v1/" + b"x" * 9000),
        "the head of media": fetching(link, method="HEAD"),
        "the head of a hit": small.replace(b"POST", b"HEAD"),
        "another word for a hit": small.replace(b"POST", b"PUT"),
        "another word for media": fetching(link, method="DELETE"),
        "what may be asked": b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n",
        "a way through": b"CONNECT gateway:80 HTTP/1.1\r\nHost: gateway\r\n\r\n",
        "media and a body": fetching(link, "Content-Length: 5") + b"hello",
        "a range that cannot be": fetching(link, "Range: bytes=99999999-"),
        "a range of no bytes": fetching(link, "Range: bytes=-0"),
        "two ranges in two lines": fetching(link, "Range: bytes=0-1", "Range: bytes=5-6"),
        "media that are there already": fetching(link, f"If-None-Match: {etag}"),
        "media that are there already, weakly": fetching(link, f'If-None-Match: W/{etag}, "x"'),
        "any media that are there": fetching(link, "If-None-Match: *"),
        "media that are not there yet": fetching(link, f'If-None-Match: "{other}"'),
        "only these media": fetching(link, f"If-Match: {etag}"),
        "only other media": fetching(link, f'If-Match: "{other}"'),
        "a part of these": fetching(link, "Range: bytes=5-9", f"If-Range: {etag}"),
        "a part of others": fetching(link, "Range: bytes=5-9", f'If-Range: "{other}"'),
        "since when": fetching(link, "If-Modified-Since: Wed, 21 Oct 2065 07:28:00 GMT"),
        "a forged link": fetching(link.replace("signature=", "signature=A")),
        "a link cut short": fetching(link[:-1]),
        "a link with more": fetching(link + "&x=y"),
        "a link with another name": fetching(link.replace(".mp4", ".html")),
        "a link that names nothing": fetching("/blobs/x"),
        "a farewell": b"",
    }  # fmt: skip


async def test_whatever_one_request_is_both_say_the_same(pair: Pair) -> None:
    for name, request in _hits(pair).items():
        known = await pair.house.answered_by_heart()
        said = await pair.same(request)
        assert said.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 206 ")), name
        assert await pair.house.answered_by_heart() > known, f"{name}: not by the hit path"
    for request in _others(pair).values():
        # A hit before it and one behind it, on the same connection, as far as it lives.
        await pair.same(pair.small(), request)
        await pair.same(request, pair.large())


async def test_a_hit_says_the_same_as_often_as_it_is_asked(pair: Pair) -> None:
    for request in _hits(pair).values():
        await pair.same(*[request] * 4)


async def test_what_comes_at_once_is_answered_in_its_order(pair: Pair) -> None:
    known = [
        pair.small(),
        fetching(pair.large_link, "Range: bytes=0-9"),
        pair.large(),
        fetching(pair.small_link),
        asking(PICTURE, key=pair.keys["demo"], model="fast-flux-schnell"),
    ]
    unknown = [asking(b"{}", key=pair.keys["demo"]), fetching("/nothing"), pair.small("narrow")]
    for count in (2, 3, 5, 20):
        mixed = [(known if number % 3 else unknown)[number % 3] for number in range(count)]
        rising = [known[number % len(known)] for number in range(count)]
        for requests in (mixed, rising, [*rising, unknown[0]], [unknown[1], *rising]):
            said = await pair.same(b"".join(requests))
            assert said.count(b"HTTP/1.1 ") == len(requests) + 1
            await pair.same(*requests)
            # Two at a time, and cut in the middle of a request.
            whole = b"".join(requests)
            await pair.same(whole[: len(whole) // 2 + 7], whole[len(whole) // 2 + 7 :])


async def test_wherever_a_request_is_cut_it_is_the_same_request(pair: Pair) -> None:
    requests = (
        pair.small("free", headers=[("Accept", "*/*")]),
        fetching(pair.small_link, "Range: bytes=0-9"),
        asking(b"{}", key=pair.keys["free"]),
    )
    for request in requests:
        async with wired(pair.with_it) as ours, wired(pair.without) as theirs:
            for cut in range(1, len(request)):
                said = []
                for wire in (ours, theirs):
                    await wire.send(request[:cut], request[cut:])
                    reply = await wire.reply()
                    said.append(lasting(reply.head + reply.body))
                assert said[0] == said[1], cut
        for cut in range(1, len(request), 11):
            # Each on a connection of its own, which had no reason to be careful yet.
            assert (await pair.same(request[:cut], request[cut:])).count(b"HTTP/1.1 ") == 2
        assert (await pair.same(*(bytes([byte]) for byte in request))).count(b"HTTP/1.1 ") == 2


async def test_a_request_in_anothers_body_is_no_request(pair: Pair) -> None:
    for hidden in (pair.small("free"), fetching(pair.small_link), pair.small() + pair.small()):
        key = pair.keys["demo"]
        swallowed = asking(hidden, key=key)
        for request in (
            swallowed,
            swallowed.replace(b"application/json", b"text/x-plain-text", 1),
            fetching("/nothing", f"Content-Length: {len(hidden)}") + hidden,
            fetching(pair.small_link, f"Content-Length: {len(hidden)}") + hidden,
        ):
            end = request.index(b"\r\n\r\n") + 4
            said = await pair.same(request)
            assert said.count(b"HTTP/1.1 ") == 2, said
            await pair.same(request[:end], request[end:])
            await pair.same(pair.small(), request[: end + 9], request[end + 9 :], pair.small())


async def test_rubbish_behind_a_hit_is_refused_after_the_hit(pair: Pair) -> None:
    for rubbish in (b"\0", b"rubbish\r\n\r\n", b"\r\n", b"{}", SMALL, b"GET", b"\x16\x03\x01\x02\x00"):
        for request in (pair.small(), pair.large(), fetching(pair.large_link)):
            await pair.same(request + rubbish)
            assert (await pair.same(request, rubbish)).startswith(b"HTTP/1.1 200 "), rubbish


async def test_after_an_answer_that_ends_the_connection_nothing_more_is_said(pair: Pair) -> None:
    last = {
        asking(SMALL.ljust(4097), key=pair.keys["demo"]): 0,
        pair.small(headers=[("Connection", "close")]): 1,
        b"rubbish\r\n\r\n": 0,
    }
    for request, hits in last.items():
        for turns in range(20):
            # However soon the next one comes: also when the answer is written, and the connection not yet closed.
            said = await pair.same(request, pair.small(), turns=turns)
            assert said.count(b"Cache-Status: gateway; hit") <= hits, turns


def _mutations(requests: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One or two of `requests`, with a few things done to them that tend to be read in different ways."""
    pieces = st.sampled_from(
        [
            b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"\x80", b"0", b"1", b"9", b"x", b"\r\n\r\n", b"\r\n ", b";", b"%20",
            b"Content-Length: 3\r\n", b"content-length:0\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:\tchunked\r\n",
            b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: x\r\n", b"Expect: 100-continue\r\n",
            b"Accept: application/json\r\n", b"Accept: video/*\r\n", b"Range: bytes=0-5\r\n", b"If-None-Match: *\r\n", b"x-api-key: a\r\n",
            b"Content-Encoding: identity\r\n", b"Upgrade: x\r\n", b"Trailer: a\r\n", b"X: y\r\n", b"HTTP/1.0", b"HTTP/1.1", b"GET ", b"POST ",
        ]
    )  # fmt: skip
    places = st.floats(0, 1, exclude_max=True)
    changes = st.lists(
        st.tuples(
            st.sampled_from(["insert", "delete", "replace", "line"]), places, pieces, st.integers(1, 4)
        ),
        min_size=1,
        max_size=3,
    )

    def changed(chosen: list[bytes], done: list[tuple[str, float, bytes, int]]) -> bytes:
        whole = b"".join(chosen)
        for what, where, piece, count in done:
            at = int(where * len(whole))
            if what == "line":
                # Between two lines of the head, where whole headers belong.
                at = whole.find(b"\r\n", at) + 2 if b"\r\n" in whole[at:] else 0
            gone = count if what in {"delete", "replace"} else 0
            whole = whole[:at] + (b"" if what == "delete" else piece) + whole[at + gone :]
        return whole

    return st.builds(changed, st.lists(st.sampled_from(requests), min_size=1, max_size=2), changes)


async def test_however_requests_are_mangled_both_say_the_same(pair: Pair) -> None:
    requests = [
        pair.small("poor"),
        pair.small("poor", headers=[("Accept", "*/*")]),
        fetching(pair.small_link),
        fetching(pair.large_link, "Range: bytes=0-9"),
        asking(b"{}", key=pair.keys["poor"]),
    ]
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=200,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mangled=_mutations(requests), cut=st.floats(0, 1))
    def mangle(mangled: bytes, cut: float) -> None:
        at = int(cut * len(mangled))
        pieces = [piece for piece in (mangled[:at], mangled[at:]) if piece]
        asyncio.run_coroutine_threadsafe(pair.same(*pieces), loop).result()

    await asyncio.to_thread(mangle)
