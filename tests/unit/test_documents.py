"""YAML by hand: read strictly, and every mistake found at its line, its column and its nearest name."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field

from gateway.documents.pydantic_models import parse
from gateway.documents.spelling import nearest
from gateway.documents.yaml_files import Document, DocumentInvalid, read, read_text
from gateway.domain.generation import Json


def document(text: str) -> Document:
    return read_text(text, name="house.yaml")


def mistakes(text: str, model: type[object] | None = None) -> list[str]:
    with pytest.raises(DocumentInvalid) as refused:
        document(text) if model is None else parse(document(text), model)
    assert str(refused.value) == "\n".join(map(str, refused.value.mistakes))
    return list(map(str, refused.value.mistakes))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("NO", "NO"),
        ("on", "on"),
        ("yes", "yes"),
        ("True", "True"),
        ("12:30", "12:30"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("+5", "+5"),
        (".5", ".5"),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("2026-01-01", "2026-01-01"),
        ("=", "="),
        ("'5'", "5"),
        ('"true"', "true"),
        ("|-\n  7", "7"),
        ("5", 5),
        ("-5", -5),
        ("0", 0),
        ("4.0", 4.0),
        ("1e3", 1000.0),
        ("2.5E-1", 0.25),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("[]", []),
        ("{}", {}),
    ],
)
def test_scalars_mean_what_json_says_and_everything_else_is_text(written: str, meant: Json) -> None:
    value = document(f"key: {written}").value

    assert value == {"key": meant}
    assert isinstance(value, dict)
    assert type(value["key"]) is type(meant)


def test_keys_are_always_text() -> None:
    assert document("{on: 1, 6: 2, true: 3, 1080p: 4, null: 5}").value == {
        "on": 1,
        "6": 2,
        "true": 3,
        "1080p": 4,
        "null": 5,
    }


def test_an_integer_of_thousands_of_digits_is_text_and_no_crash() -> None:
    assert document(f"key: {'9' * 5000}").value == {"key": "9" * 5000}


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "null", "---\n"])
def test_an_empty_document_is_an_empty_mapping(text: str) -> None:
    assert document(text).value == {}


def test_every_duplicate_key_is_refused_and_the_first_one_shown() -> None:
    assert mistakes("a: 1\nb: {c: 1, c: 2}\na: 3\n") == [
        "house.yaml:2:11: b.c: is given twice, first at house.yaml:2:5",
        "house.yaml:3:1: a: is given twice, first at house.yaml:1:1",
    ]


def test_a_tag_a_loop_and_a_key_that_is_no_text_are_refused_together() -> None:
    assert mistakes("a: !!python/name:os.system x\nb: &b [*b]\n? [1]\n: 2\n") == [
        "house.yaml:1:1: a: the tag tag:yaml.org,2002:python/name:os.system is not understood here; leave it out",
        "house.yaml:2:4: b[0]: holds itself",
        "house.yaml:3:3: a key has to be plain text",
    ]


def test_an_anchor_may_be_used_more_than_once() -> None:
    assert document("a: &a {x: 1}\nb: *a\nc: [*a, *a]").value == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": [{"x": 1}, {"x": 1}],
    }


@pytest.mark.parametrize(
    ("text", "where"),
    [("a: [b", "house.yaml:1:6"), ("a:\n\t- b", "house.yaml:2:1"), ("a: 1\n--- \nb: 2", "house.yaml:2:1")],
)
def test_what_is_not_yaml_is_refused_at_its_place(text: str, where: str) -> None:
    (mistake,) = mistakes(text)

    assert mistake.startswith(f"{where}: is not YAML: ")


def test_a_file_that_is_missing_or_not_text_is_refused_by_name(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(DocumentInvalid, match=r"missing\.yaml: cannot be read: No such file"):
        read(tmp_path / "missing.yaml")
    with pytest.raises(DocumentInvalid, match=r"binary\.yaml: is not UTF-8 text"):
        read(binary)
    with pytest.raises(DocumentInvalid, match="is not YAML"):
        document("a: \x00")


def test_a_file_knows_where_each_of_its_entries_is(tmp_path: Path) -> None:
    path = tmp_path / "house.yaml"
    path.write_text("\ufeffa:\n  b: [1, {c: 2}]\n")

    here = read(path)

    assert here.value == {"a": {"b": [1, {"c": 2}]}}
    assert here.where(("a",)) == f"{path}:1:1"
    assert here.where(("a", "b")) == f"{path}:2:3"
    assert here.where(("a", "b", 0)) == f"{path}:2:7"
    assert here.where(("a", "b", 1, "c")) == f"{path}:2:11"
    assert here.where(("a", "b", 1, "missing", "deeper")) == f"{path}:2:10"
    assert here.where(()) == f"{path}:1:1"


class Per(enum.Enum):
    DAY = "day"
    MONTH = "month"


class Fixed(BaseModel):
    kind: Literal["fixed"]
    usd: Decimal


class Scaled(BaseModel):
    kind: Literal["scaled"]
    at: dict[str, float]
    minimum_usd: Decimal | None = None


@dataclass(frozen=True)
class Listen:
    port: int = 8080
    host: str = "127.0.0.1"


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"{value} is odd")
    return value


class House(BaseModel):
    price: Annotated[Fixed | Scaled, Field(discriminator="kind")]
    listen: Listen = Listen()
    per: Per = Per.DAY
    rooms: tuple[Listen, ...] = ()
    guests: dict[str, Listen] = {}
    open: bool = False
    floors: int = 1
    height: float = 1
    name: str | None = None
    directory: Path = Path()
    size: int | str = 1
    even: Annotated[int, AfterValidator(_even)] = 2
    hosts: frozenset[str] = frozenset()


def test_a_document_that_fits_becomes_a_typed_tree() -> None:
    house = parse(
        document(
            "price: {kind: fixed, usd: 0.416}\nper: month\nrooms: [{port: 1}]\nguests: {a: {port: 2}}\nheight: 3\n"
            "directory: var\nhosts: [b, b]\nname: '010'\nlisten: {port: 9}\n"
        ),
        House,
    )

    assert house == House(
        price=Fixed(kind="fixed", usd=Decimal("0.416")),
        per=Per.MONTH,
        rooms=(Listen(1),),
        guests={"a": Listen(2)},
        height=3.0,
        directory=Path("var"),
        hosts=frozenset({"b"}),
        name="010",
        listen=Listen(9),
    )


def test_every_mistake_is_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
price: {kind: scaled, at: {width: wide}, minimun_usd: 1, foo: 2}
listen: {prot: 1}
per: mounth
rooms:
  - {port: 1}
  - {port: 80.5, hots: x}
guests:
  ann: {porch: 1, host: 5}
open: on
floors: "3"
height: true
name: [a]
size: 2.5
even: 3
flors: 2
"""

    assert mistakes(text, House) == [
        'house.yaml:1:28: price.at.width: should be a valid number, not "wide"',
        "house.yaml:1:42: price.minimun_usd: unknown setting minimun_usd, did you mean minimum_usd?",
        "house.yaml:1:58: price.foo: unknown setting foo (known: at, kind, minimum_usd)",
        "house.yaml:2:10: listen.prot: unknown setting prot, did you mean port?",
        "house.yaml:3:1: per: should be 'day' or 'month', not \"mounth\", did you mean month?",
        "house.yaml:6:6: rooms[1].port: should be a valid integer, not 80.5",
        "house.yaml:6:18: rooms[1].hots: unknown setting hots, did you mean host?",
        "house.yaml:8:9: guests.ann.porch: unknown setting porch, did you mean port?",
        "house.yaml:8:19: guests.ann.host: should be a valid string, not 5",
        'house.yaml:9:1: open: should be true or false, not "on"',
        'house.yaml:10:1: floors: should be a valid integer, not "3"',
        "house.yaml:11:1: height: should be a valid number, not true",
        "house.yaml:12:1: name: should be a valid string, not a list",
        "house.yaml:13:1: size: should be a valid integer, not 2.5, or should be a valid string, not 2.5",
        "house.yaml:14:1: even: 3 is odd",
        "house.yaml:15:1: flors: unknown setting flors, did you mean floors?",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "house.yaml:1:1: price: is missing"),
        ("floors: 1\nprice: {kind: fixed}", "house.yaml:2:1: price.usd: is missing"),
        ("price: {}", "house.yaml:1:1: price: kind is missing"),
        (
            "price: {kind: fixd}",
            "house.yaml:1:1: price: kind should be one of 'fixed', 'scaled', not fixd, did you mean fixed?",
        ),
        ("[1]", "house.yaml:1:1: should be an object, not a list"),
        (f"price: {{kind: fixed, usd: 1}}\nfloors: {'x' * 100}", f'"{"x" * 59}…'),
    ],
)
def test_what_is_missing_or_of_another_shape_is_told_where_it_should_be(text: str, mistake: str) -> None:
    assert mistakes(text, House)[0].endswith(mistake)


def test_a_key_is_called_what_its_reader_calls_it() -> None:
    with pytest.raises(DocumentInvalid, match="unknown key prot, did you mean port"):
        parse(document("prot: 1"), Listen, entry="key")


def test_an_entry_set_from_elsewhere_is_blamed_on_elsewhere() -> None:
    written = document("price: {kind: fixed, usd: 1}\nlisten: {port: 1, host: a}\n")

    overridden = written.having(("listen", "port"), 7, where="--set listen.port").having(
        ("guests", "ann", "prot"), 8, where="--set guests.ann.prot"
    )

    assert overridden.value == {
        "price": {"kind": "fixed", "usd": 1},
        "listen": {"port": 7, "host": "a"},
        "guests": {"ann": {"prot": 8}},
    }
    assert written.value == {"price": {"kind": "fixed", "usd": 1}, "listen": {"port": 1, "host": "a"}}
    assert overridden.where(("listen", "port")) == "--set listen.port"
    assert overridden.where(("listen", "host")) == "house.yaml:2:19"
    with pytest.raises(DocumentInvalid, match=r"^--set guests.ann.prot: .*did you mean port\?$"):
        parse(overridden, House)
    with pytest.raises(DocumentInvalid, match=r"--set listen.port.x: listen.port: is a plain value"):
        written.having(("listen", "port", "x"), 1, where="--set listen.port.x")


def test_setting_a_whole_section_from_elsewhere_forgets_where_its_entries_were_written() -> None:
    overridden = document("listen: {port: 1}\n").having(("listen",), {"port": "x"}, where="GATEWAY_LISTEN")

    assert overridden.where(("listen", "port")) == "GATEWAY_LISTEN"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("sed", "seed"),
        ("SEED", "seed"),
        ("promt", "prompt"),
        ("2K", "2k"),
        ("xyzzy", None),
        ("s" * 100_000, None),
    ],
)
def test_the_nearest_name_is_what_was_probably_meant(written: str, meant: str | None) -> None:
    assert nearest(written, ["seed", "prompt", "2k"]) == meant
