"""Which heads are read as plain requests, and that nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.hit_path.plain import MOST_HEAD_BYTES, Ask, Fetch, Other, read_head
from gateway.http.hit_path.template import BLANK, template

POST = (
    b"POST /v1/a-model HTTP/1.1\r\nHost: x\r\nx-api-key: gwk_1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 7\r\n\r\n"
)
GET = b"GET /blobs/x.mp4?expires=1&signature=2 HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_plain_post_asks_and_a_plain_get_fetches() -> None:
    assert read_head(POST) == Ask(7, "a-model", "gwk_1")
    assert read_head(GET) == Fetch(0, "/blobs/x.mp4?expires=1&signature=2", None)
    ranged = GET.replace(b"\r\n\r\n", b"\r\nRANGE:bytes=1-2 \r\n\r\n")
    assert read_head(ranged) == Fetch(0, "/blobs/x.mp4?expires=1&signature=2", "bytes=1-2")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"/v1/", b"/v2/"),
        (b"a-model", b"a-model?x"),
        (b"a-model", b"a%2Dmodel"),
        (b"a-model", b""),
        (b"a-model", b"a/b"),
        (b"a-model", b"a-model/quote"),
        (b"x-api-key", b"x-api-kez"),
        (b"application/json", b"application/json; charset=latin-1"),
        (b"Host: x", b"Host: x\r\nAccept: application/json"),
        (b"Host: x", b"Host: x\r\nAccept: */*;q=0.1, Application/JSON"),
        (b"Host: x", b"Host: x\r\nContent-Encoding: gzip"),
        (b"POST", b"PUT"),
        (b"POST", b"DELETE"),
    ],
)
def test_what_is_a_request_and_not_plain_has_a_length_and_no_more(old: bytes, new: bytes) -> None:
    assert read_head(POST.replace(old, new)) == Other(7)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"HTTP/1.1", b"HTTP/1.1 "),
        (b"HTTP/1.1", b"http/1.1"),
        (b"POST", b"post"),
        (b"POST", b"CONNECT"),
        (b"POST ", b"POST  "),
        (b"POST ", b" POST "),
        (b"POST ", b"\r\nPOST "),
        (b"Host: x\r\n", b""),
        (b"Host: x", b"Host:"),
        (b"Host: x", b"Host : x"),
        (b"Host: x", b" Host: x"),
        (b"Host: x", b"Host: x\r\n y"),
        (b"Host: x", b"Host: x\0"),
        (b"Host: x", b"Host: \x80"),
        (b"Host: x", b"Host: x\x7f"),
        (b"Host: x", b"Host: x\ty"),
        (b"Host: x\r\n", b"Host: x\n"),
        (b"Host: x\r\n", b"Host: x\r"),
        (b"Host: x", b"Host: x\r\nhost: x"),
        (b"Host: x", b"Host: x\r\nno colon"),
        (b"Host: x", b"Host: x\r\n: nameless"),
        (b"Host: x", b"Host: x\r\nTransfer-Encoding: identity"),
        (b"Host: x", b"Host: x\r\nUpgrade: h2c"),
        (b"Host: x", b"Host: x\r\nExpect: 100-continue"),
        (b"Host: x", b"Host: x\r\nTE: trailers"),
        (b"Host: x", b"Host: x\r\nTrailer: x"),
        (b"Host: x", b"Host: x\r\nConnection: close"),
        (b"Host: x", b"Host: x\r\nConnection: keep-alive, x"),
        (b"Host: x", b"Host: x\r\nX: " + b"x" * MOST_HEAD_BYTES),
        (b"Host: x", b"Host: x\r\n" + b"\r\n".join(b"X%d: x" % number for number in range(70))),
        (b": 7", b": +7"),
        (b": 7", b": -7"),
        (b": 7", b": 0x7"),
        (b": 7", b": 7, 7"),
        (b": 7", b": 7\r\nContent-Length: 7"),
        (b": 7", b": 1000000000"),
        (b": 7", b":"),
    ],
)
def test_where_it_is_not_certain_where_a_request_ends_nothing_is_read(old: bytes, new: bytes) -> None:
    assert old in POST
    assert read_head(POST.replace(old, new)) is None


@pytest.mark.parametrize(
    "name", ["If-Match", "If-None-Match", "If-Range", "If-Modified-Since", "If-Unmodified-Since"]
)
def test_what_has_a_condition_is_not_fetched(name: str) -> None:
    assert read_head(GET.replace(b"\r\n\r\n", f"\r\n{name}: x\r\n\r\n".encode())) == Other(0)


@given(value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1))
def test_a_header_is_read_without_the_spaces_around_it(value: str) -> None:
    head = read_head(POST.replace(b"gwk_1", f" \t {value} \t".encode()))
    assert head == (Ask(7, "a-model", value.strip(" \t")) if value.strip(" \t") else None)


def test_a_template_is_a_head_once_it_is_filled_in() -> None:
    made = template("200 OK", {"X": "50%b%", "Age": BLANK}, "12")
    assert made % (b"7", b"now") == (
        b"HTTP/1.1 200 OK\r\nX: 50%b%\r\nAge: 7\r\nContent-Length: 12\r\nDate: now\r\nServer: generation-gateway\r\n\r\n"
    )
