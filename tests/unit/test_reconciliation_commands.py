"""`gateway purchases` and `gateway ledger`, on the ledger of a gateway that runs all the while."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.cli.main import app
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.generation import GenerationRequest, Json
from gateway.domain.identity import PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Tenant
from gateway.generation.fingerprint import fingerprint_of
from gateway.ledger.contract import Bought, Held, Purchase, State
from gateway.ledger.sqlite import SqliteLedger
from tests.contracts.ledger_books import BLOB, MovableClock

PRICE = Money(416_000)
MODEL = "ltx-2-19b-t2v"
PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    output: str
    errors: str


@dataclass
class Office:
    """A running gateway's ledger, and a command line beside it."""

    ledger: SqliteLedger
    directory: Path

    async def gateway(self, *arguments: str) -> Ended:
        return await gateway(self.directory, *arguments)

    async def lose(self, prompt: str = "a confidential cat", tenant: str = "acme") -> PurchaseId:
        parameters: dict[str, Json] = {"prompt": prompt, "seed": 7}
        asked = GenerationRequest(MODEL, parameters, fingerprint_of(MODEL, parameters), PRICE, seed=7)
        held = await self.ledger.reserve(Caller(Tenant(tenant, ()), "key-1"), asked, newest_known=None)
        assert isinstance(held, Held)
        sent = await self.ledger.send(held)
        await self.ledger.mark_unknown(sent, "silence after the request was sent")
        return sent.purchase

    async def settle(self, prompt: str = "a settled dog") -> PurchaseId:
        purchase = await self.lose(prompt)
        await self.ledger.resolve_bought(purchase, Ticket(f"ticket-{len(prompt)}"))
        claim = await self.ledger.adopt(purchase)
        assert isinstance(claim, Bought)
        await self.ledger.settle(claim, cost=Money(400_000), blobs=[BLOB], seed=7, seconds=1.0)
        return purchase

    async def purchase(self, identity: PurchaseId) -> Purchase:
        found = await self.ledger.purchase(identity)
        assert found is not None
        return found


def options(directory: Path) -> Sequence[str]:
    return ("--config", str(PROJECT / "config" / "gateway.yaml"), "--set", f"storage.directory={directory}")


async def gateway(directory: Path, *arguments: str) -> Ended:
    """Run a command as an operator would: as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *arguments, *options(directory),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, output.decode(), errors.decode())


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    database = SqliteDatabase(tmp_path / "ledger.sqlite3")
    try:
        yield Office(
            SqliteLedger(
                database, clock=MovableClock(), owner="one", is_alive=lambda _: True, lease_seconds=15.0
            ),
            tmp_path,
        )
    finally:
        database.close()


async def test_purchases_are_listed_newest_first_and_by_what_is_wanted(office: Office) -> None:
    settled = await office.settle()
    lost = await office.lose()
    globex = await office.lose("an emu", tenant="globex")

    everything = await office.gateway("purchases", "list")
    unknown = await office.gateway("purchases", "list", "--state", "unknown", "--tenant", "acme")
    newest = await office.gateway("purchases", "list", "--limit", "1")

    heading, *lines = everything.output.splitlines()
    assert heading.split() == ["ID", "STATE", "TENANT", "MODEL", "HELD", "COST", "RESERVED", "TICKET"]
    assert [line.split()[0] for line in lines] == [globex, lost, settled]
    assert lines[2].split() == [
        *(settled, "settled", "acme", MODEL, "$0.416", "$0.40", "2026-11-23", "00:00", "ticket-13"),
    ]
    assert [line.split()[:2] for line in unknown.output.splitlines()[1:]] == [[lost, "unknown"]]
    assert [line.split()[0] for line in newest.output.splitlines()[1:]] == [globex]
    assert "confidential" not in everything.output


async def test_a_purchase_is_shown_without_what_was_asked_for_unless_that_is_wanted(office: Office) -> None:
    lost = await office.lose()

    plain = await office.gateway("purchases", "show", lost)
    whole = await office.gateway("purchases", "show", lost, "--parameters")

    facts = dict(line.split(maxsplit=1) for line in plain.output.splitlines())
    assert facts == {
        "id": lost,
        "state": "unknown",
        "tenant": "acme",
        "key": "key-1",
        "model": MODEL,
        "fingerprint": (await office.purchase(lost)).request.fingerprint,
        "seed": "7",
        "held": "$0.416",
        "ticket": "-",
        "reserved": "2026-11-23 00:00:00 UTC",
        "sent": "2026-11-23 00:00:00 UTC",
        "reason": "silence after the request was sent",
    }
    assert "confidential" not in plain.output
    assert '"prompt": "a confidential cat"' in whole.output


async def test_a_settled_purchase_shows_its_cost_and_its_blob(office: Office) -> None:
    shown = (await office.gateway("purchases", "show", await office.settle())).output

    assert "cost         $0.40\n" in shown
    assert f"blob         {BLOB.digest} video/mp4 1234 bytes\n" in shown


async def test_what_was_bought_is_resolved_by_its_ticket_and_can_be_collected(office: Office) -> None:
    lost = await office.lose()

    ended = await office.gateway(
        "purchases", "resolve", lost, "--ticket", "t-1", "--reason", "in the console"
    )

    assert (ended.status, ended.errors) == (0, "")
    assert "t-1" in ended.output
    claim = await office.ledger.adopt(lost)
    assert isinstance(claim, Bought)
    assert claim.ticket == "t-1"


async def test_what_was_not_bought_is_released_with_the_reason(office: Office) -> None:
    lost = await office.lose()

    ended = await office.gateway("purchases", "resolve", lost, "--not-bought", "--reason", "support says no")

    assert ended.status == 0
    found = await office.purchase(lost)
    assert (found.state, found.reason) == (State.RELEASED, "support says no")
    assert await office.ledger.reserved() == {}


@pytest.mark.parametrize(("more", "spent"), [((), PRICE), (("--cost-usd", "0.5"), Money(500_000))])
async def test_what_is_lost_is_spent_at_its_cost_or_at_what_was_held(
    office: Office, more: tuple[str, ...], spent: Money
) -> None:
    lost = await office.lose()

    ended = await office.gateway("purchases", "resolve", lost, "--lost", *more, "--reason", "gone")

    assert ended.status == 0
    assert str(spent) in ended.output
    assert (await office.purchase(lost)).state is State.LOST
    assert await office.ledger.lost() == spent


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--reason", "x"), "exactly one"),
        (("--lost", "--not-bought", "--reason", "x"), "exactly one"),
        (("--ticket", "t", "--lost", "--reason", "x"), "exactly one"),
        (("--not-bought", "--cost-usd", "1", "--reason", "x"), "--cost-usd"),
        (("--lost", "--cost-usd", "-1", "--reason", "x"), "--cost-usd"),
        (("--lost", "--cost-usd", "much", "--reason", "x"), "not an amount"),
        (("--lost", "--cost-usd", "0.0000001", "--reason", "x"), "not an amount"),
        (("--lost", "--cost-usd", "NaN", "--reason", "x"), "not an amount"),
        (("--lost", "--reason", " "), "--reason"),
        (("--ticket", "a b", "--reason", "x"), "cannot be a ticket"),
        (("--ticket", "ticket-13", "--reason", "x"), "another purchase's"),
    ],
)
async def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    office: Office, arguments: tuple[str, ...], complaint: str
) -> None:
    await office.settle()
    lost = await office.lose()

    command = ["purchases", "resolve", lost, *arguments, *options(office.directory)]
    with pytest.raises(SystemExit) as ended:
        # In this process, to be quick: what is refused is refused before anything is done.
        await asyncio.to_thread(app, command)

    assert complaint in str(ended.value)
    assert (await office.purchase(lost)).state is State.UNKNOWN


async def test_only_an_unknown_purchase_can_be_resolved(office: Office) -> None:
    settled = await office.settle()

    ended = await office.gateway("purchases", "resolve", settled, "--not-bought", "--reason", "x")
    nobody = await office.gateway("purchases", "resolve", "nobody", "--not-bought", "--reason", "x")
    shown = await office.gateway("purchases", "show", "nobody")

    assert (ended.status, nobody.status, shown.status) == (1, 1, 1)
    assert "is settled: only an unknown one" in ended.errors
    assert "no purchase nobody" in nobody.errors
    assert "no purchase nobody" in shown.errors
    assert (await office.purchase(settled)).state is State.SETTLED


async def test_a_ledger_in_order_says_so_in_a_sentence(office: Office) -> None:
    await office.settle()
    await office.lose()

    ended = await office.gateway("ledger", "verify")

    assert (ended.status, ended.errors) == (0, "")
    assert ended.output.startswith("The ledger is in order")


async def test_a_ledger_that_does_not_add_up_says_where_in_a_line_each(office: Office) -> None:
    await office.settle()
    with sqlite3.connect(office.directory / "ledger.sqlite3") as books:
        books.execute("UPDATE sums SET spent_micros = spent_micros + 1 WHERE series = 1")
        books.execute("INSERT INTO series VALUES (99, 'globex', '', '', 'globex')")
        books.execute("INSERT INTO sums VALUES (99, 0, 5, 0)")
    books.close()

    ended = await office.gateway("ledger", "verify")

    assert ended.status == 1
    assert len(ended.output.splitlines()) == 2
    assert "400001" in ended.output
    assert "globex" in ended.output


async def test_a_file_that_is_no_ledger_is_a_discrepancy_and_no_traceback(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "ledger.sqlite3").write_bytes, b"no database at all " * 300)

    ended = await gateway(tmp_path, "ledger", "verify")

    assert ended.status == 1
    assert "not a database" in ended.output


async def test_a_backup_is_a_ledger_for_its_owner_alone(office: Office) -> None:
    settled = await office.settle()
    copy = office.directory / "elsewhere" / "ledger.sqlite3"
    copy.parent.mkdir()

    ended = await office.gateway("ledger", "backup", str(copy))
    listed = await gateway(copy.parent, "purchases", "list")
    again = await office.gateway("ledger", "backup", str(copy))

    assert ended.status == 0
    assert settled in listed.output
    assert stat.S_IMODE(copy.stat().st_mode) & 0o077 == 0
    assert again.status == 1
    assert "is there already" in again.errors


async def test_a_backup_that_cannot_be_written_says_so(office: Office) -> None:
    ended = await office.gateway("ledger", "backup", str(office.directory / "nowhere" / "copy"))

    assert ended.status == 1
    assert ended.errors.startswith("gateway: the ledger was not copied")


@pytest.mark.parametrize("command", [("ledger", "verify"), ("purchases", "list")])
async def test_where_no_gateway_has_run_there_is_no_ledger_and_none_is_made(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    ended = await gateway(tmp_path, *command)

    assert ended.status == 1
    assert "There is no ledger" in ended.errors
    assert not await asyncio.to_thread((tmp_path / "ledger.sqlite3").exists)
