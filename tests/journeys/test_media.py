"""What `output` links to: fetched without a key, in ranges, conditionally; and never anything that is broken."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.domain.generation import Blob
from gateway.domain.identity import Digest
from gateway.http.links import Links
from tests.journeys.running import PRICE_MICROS, Answer, House, video

DAY_SECONDS = 24 * 3600


async def _link(house: House) -> str:
    return str((await house.result(await house.submit())).json["output"])


async def _fetch(house: House, link: str, method: str = "GET", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await house.ask(method, link, key="", headers=named)


async def test_media_are_fetched_without_a_key_whole_or_as_head(house: House) -> None:
    link = await _link(house)
    whole, head = await _fetch(house, link), await _fetch(house, link, "HEAD")

    assert (whole.status, head.status, head.body) == (200, 200, b"")
    for answer in (whole, head):
        assert answer.headers["Content-Type"] == "video/mp4"
        assert answer.headers["Content-Length"] == str(len(whole.body))
        assert answer.headers["ETag"] == f'"{hashlib.sha256(whole.body).hexdigest()}"'
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (await house.make()).body == whole.body


async def test_a_single_range_is_answered_with_that_part(house: House) -> None:
    link = await _link(house)
    whole = (await _fetch(house, link)).body
    size = len(whole)
    parts = {
        "bytes=0-0": (0, 1),
        "bytes=0-99": (0, 100),
        "bytes=1000-1999": (1000, 2000),
        f"bytes={size - 1}-": (size - 1, size),
        "bytes=100-": (100, size),
        "bytes=-5": (size - 5, size),
        f"bytes=-{size + 5}": (0, size),
        f"bytes=10-{size + 5}": (10, size),
    }
    for asked, (start, end) in parts.items():
        answer = await _fetch(house, link, Range=asked)
        assert answer.status == 206, asked
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
        assert answer.body == whole[start:end], asked


async def test_a_range_beyond_the_end_cannot_be_had(house: House) -> None:
    link = await _link(house)
    size = len((await _fetch(house, link)).body)

    for asked in (f"bytes={size}-", f"bytes={size + 10}-{size + 20}", "bytes=-0"):
        answer = await _fetch(house, link, Range=asked)
        assert (answer.status, answer.body) == (416, b""), asked
        assert answer.headers["Content-Range"] == f"bytes */{size}"


async def test_several_ranges_and_what_is_no_range_get_all_of_it(house: House) -> None:
    link = await _link(house)
    whole = await _fetch(house, link)

    for asked in ("bytes=0-1,5-6", "bytes=5-2", "bytes=a-b", "lines=1-2", "bytes", "bytes=-"):
        answer = await _fetch(house, link, Range=asked)
        assert (answer.status, answer.body) == (200, whole.body), asked
    head = await _fetch(house, link, "HEAD", Range="bytes=0-1")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(whole.body)))


async def test_what_the_caller_has_already_is_not_sent_again(house: House) -> None:
    link = await _link(house)
    etag = (await _fetch(house, link)).headers["ETag"]

    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        for method in ("GET", "HEAD"):
            answer = await _fetch(house, link, method, If_None_Match=known)
            assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", etag), known
    assert (await _fetch(house, link, If_None_Match='"other"')).status == 200
    assert (await _fetch(house, link, If_Match='"other"')).status == 412
    assert (await _fetch(house, link, If_Match=etag)).status == 200


async def test_a_range_of_what_the_caller_has_is_a_part_and_of_anything_else_the_whole(house: House) -> None:
    link = await _link(house)
    whole = await _fetch(house, link)
    etag = whole.headers["ETag"]

    part = await _fetch(house, link, Range="bytes=5-9", If_Range=etag)
    assert (part.status, part.body) == (206, whole.body[5:10])
    for other in ('"other"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = await _fetch(house, link, Range="bytes=5-9", If_Range=other)
        assert (answer.status, answer.body) == (200, whole.body), other


async def test_a_link_that_was_changed_opens_nothing(house: House) -> None:
    link = await _link(house)
    query = parse_qs(urlsplit(link).query)
    expires, signature = query["expires"][0], query["signature"][0]
    name = urlsplit(link).path.removeprefix("/blobs/")
    forged = [
        link.replace(expires, str(int(expires) + 1)),
        link.replace(signature, "A" * len(signature)),
        link.replace(signature, signature[:-1]),
        link.replace(name, name.replace(".mp4", ".html")),
        link.replace(name, "0" * 64 + ".mp4"),
        link.partition("?")[0],
        link.replace(f"expires={expires}", "expires=never"),
        link.replace(f"expires={expires}", "expires=%C2%B2"),
        link.replace(signature, "%C3%A9"),
    ]
    for url in forged:
        assert url != link
        (await _fetch(house, url)).refused(403, "link_invalid")
    assert (await _fetch(house, link)).status == 200


async def test_a_link_runs_out_and_the_request_gives_a_new_one(house: House) -> None:
    submitted = await house.submit()
    link = (await house.result(submitted)).json["output"]
    house.clock.ahead_seconds = 3 * DAY_SECONDS
    assert (await house.get(submitted.json["response_url"])).json["output"] == link
    assert (await _fetch(house, link)).status == 200

    house.clock.ahead_seconds = 8 * DAY_SECONDS
    (await _fetch(house, link)).refused(403, "link_invalid")
    renewed = (await house.get(submitted.json["response_url"])).json["output"]
    assert (await _fetch(house, renewed)).status == 200
    # However late it was given, it works for days.
    house.clock.ahead_seconds += 3 * DAY_SECONDS
    assert (await _fetch(house, renewed)).status == 200


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "cut short": _cut_short,
    "changed": _changed,
    "emptied": _emptied,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_media_that_are_damaged_are_never_served_and_are_fetched_again_for_nothing(
    house: House, damage: str, restarted: bool
) -> None:
    made = await house.make()
    link = await _link(house)
    if restarted:
        await house.restart()
        link = await _link(house)
    (path,) = house.blob_files()
    path.chmod(0o600)
    DAMAGES[damage](path)

    (await _fetch(house, link)).refused(404, "blob_not_found")
    again = await house.make()
    assert (again.status, again.body) == (200, made.body)
    assert again.headers["x-cost"] == "0"
    assert again.cache == "fwd=miss; stored"
    assert (await _fetch(house, link)).body == made.body
    assert (await house.make()).cache == "hit"
    metrics = await house.metrics()
    assert metrics.value("gateway_cache_corrupt_total") >= 1
    kind = "missing" if damage == "deleted" else "blob"
    assert metrics.value("gateway_cache_corrupt_total", kind=kind) >= 1
    assert (await house.bill()).micros == PRICE_MICROS == (await house.usage())["spent_micros"]


async def test_media_that_are_lost_here_and_gone_there_are_bought_again(house: House) -> None:
    made = await house.make()
    (path,) = house.blob_files()
    path.unlink()
    house.clock.ahead_seconds = 8 * DAY_SECONDS
    again = await house.make()

    assert (again.status, again.body, again.cache) == (200, made.body, "fwd=miss; stored")
    assert again.headers["x-cost"] == "0.004"
    bill = await house.bill()
    assert (len(bill.jobs), bill.micros) == (2, 2 * PRICE_MICROS)


async def test_many_who_find_the_media_damaged_at_once_fetch_them_once(house: House) -> None:
    made = await house.make()
    (path,) = house.blob_files()
    path.unlink()
    answers = await asyncio.gather(*(house.make() for _ in range(10)))

    assert {(answer.status, answer.body) for answer in answers} == {(200, made.body)}
    assert {answer.headers["x-cost"] for answer in answers} == {"0"}
    assert len((await house.bill()).jobs) == 1


async def test_what_does_not_fit_is_evicted_counted_and_bought_or_fetched_again(house: House) -> None:
    size = len((await house.make()).body)
    await house.restart(storage__max_bytes=int(size * 1.5))
    await house.make(video(seed=2))

    assert len(house.blob_files()) == 1
    metrics = await house.metrics()
    assert metrics.value("gateway_cache_evictions_total") >= 1
    assert metrics.value("gateway_cache_bytes") <= size * 1.5
    again = await house.make()
    assert (again.status, again.headers["x-cost"]) == (200, "0")
    assert len((await house.bill()).jobs) == 2


def _large_blob(house: House) -> str:
    """A link to more than fits between two sockets. The store finds the file at its next start."""
    content = bytes(32 << 20)
    digest = hashlib.sha256(content).hexdigest()
    folder = house.directory / "var" / "blobs" / "sha256" / digest[:2]
    folder.mkdir(parents=True)
    (folder / digest).write_bytes(content)
    secret = (house.directory / "var" / "links.key").read_bytes()
    links = Links(secret, lifetime_seconds=3600, clock=house.clock)
    return links.path(Blob(Digest(digest), len(content), "video/mp4"), since=house.clock())


async def test_callers_who_hang_up_while_media_are_sent_disturb_nobody(house: House) -> None:
    path = _large_blob(house)
    await house.restart()
    address = urlsplit(house.url)
    for number in range(12):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readexactly(1000)
        if number % 2:
            # No farewell: the connection is reset.
            reset = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()

    async with asyncio.timeout(30):
        while len(_lines_for_media(house)) < 12:
            await asyncio.sleep(0.01)
    assert {line["status"] for line in _lines_for_media(house)} == {499}
    assert [line["event"] for line in house.log_lines if line["level"] in {"warning", "error"}] == []
    whole = await house.get(path, key="")
    assert (whole.status, len(whole.body)) == (200, 32 << 20)


def _lines_for_media(house: House) -> list[Any]:
    return [line for line in house.log_lines if line.get("route") == "/blobs/{name}"]
