"""Tenants, as whoever runs the gateway changes them: by commands, and by a file and SIGHUP while it runs."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from tests.journeys.program import run, serving
from tests.journeys.running import MODEL, MODELS

TREE = """\
tenants:
  demo: {budgets: [{limit_usd: 25, per: month}]}
  film:
    parent: demo
    budgets: [{limit_usd: 20, per: day, zone: Europe/Berlin}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with one model and a tree of tenants."""
    (tmp_path / "models").mkdir()
    shutil.copy(MODELS / f"{MODEL}.yaml", tmp_path / "models")
    (tmp_path / "tenants.yaml").write_text(TREE)
    settings = {
        "storage": {"directory": "var"},
        "models": "models",
        "listen": {"port": 0},
        "operations": {"port": 0},
        "sandbox": {"port": 0},
        "upstream": {"kind": "sandbox"},
    }
    (tmp_path / "gateway.yaml").write_text(json.dumps(settings))
    return tmp_path / "gateway.yaml"


async def test_a_file_is_shown_first_and_then_applied(config: Path) -> None:
    listed = await run("tenants", "list", "--config", config)
    assert [line.split()[:4] for line in listed.out.splitlines()] == [
        ["demo", "$25.00", "per", "month"],
        ["film", "$20.00", "per", "day"],
    ]
    assert listed.out.splitlines()[1].startswith("  film")
    lower = config.with_name("lower.yaml")
    lower.write_text(TREE.replace("20", "10") + "  guest: {budgets: []}\n")

    shown = await run("tenants", "apply", lower, "--dry-run", "--config", config)
    applied = await run("tenants", "apply", lower, "--config", config)
    again = await run("tenants", "apply", lower, "--config", config)

    told = "~ film.budgets.day.limit_usd: 20 -> 10\n+ guest: budgets []\n"
    assert shown.out == told + "2 changes; dry run: nothing was changed.\n"
    assert applied.out == told + "2 changes.\n"
    assert again.out == "no change.\n"
    audit = json.loads((await run("tenants", "audit", "--json", "--config", config)).out)
    assert [entry["action"] for entry in audit[:3]] == ["file applied", "tenant made", "tenant changed"]
    assert all(entry["who"].startswith("cli:") for entry in audit[:3])
    assert all(datetime.fromisoformat(entry["at"]).tzinfo for entry in audit)


async def test_a_file_with_mistakes_is_refused_with_its_lines(config: Path) -> None:
    config.with_name("ring.yaml").write_text(TREE.replace("{budgets", "{parent: film, budgets"))

    applied = await run("tenants", "apply", config.with_name("ring.yaml"), "--config", config)

    assert applied.code == 1
    assert "ring.yaml:2:10: tenants.demo.parent: stands below itself: demo < film < demo" in applied.err
    assert "Traceback" not in applied.err


async def test_a_tenant_is_shown_moved_and_topped_up(config: Path) -> None:
    arguments = ("--config", config)
    added = await run("tenants", "top-up", "film", "--usd", "5", "--reason", "launch", *arguments)
    shown = await run("tenants", "show", "film", *arguments)
    moved = await run("tenants", "move", "film", "--to-the-top", *arguments)
    unsaid = await run("tenants", "top-up", "film", "--usd", "-5", "--reason", "x", *arguments)
    unknown = await run("tenants", "move", "flim", "--to", "demo", *arguments)
    audit = await run("tenants", "audit", *arguments)

    assert added.out == "Added $5.00 to film.\n", added.err
    assert "demo/film" in shown.out
    assert "film: $5.00 at" in shown.out
    assert "demo: $25.00 per month" in shown.out
    assert moved.out == "- film.parent: demo\n1 change.\n"
    assert (unsaid.code, unknown.code) == (1, 1)
    assert "did you mean film" in unknown.err
    assert "budget day, usd 5, reason launch" in audit.out


async def test_a_key_has_the_terms_it_was_made_with(config: Path) -> None:
    options = ("--role", "reader", "--models", MODEL, "--budget", "5/day", "--budget", "9/rolling 30d")
    limits = ("--rate", "60/minute", "--burst", "5", "--expires", "30d", "--name", "ci")
    made = await run("keys", "create", "film", *options, *limits, "--config", config)
    assert made.code == 0, made.err
    rotated = await run("keys", "rotate", made.out.strip(), "--overlap", "2h", "--config", config)

    listed = await run("keys", "list", "--json", "--config", config)
    old, new = json.loads(listed.out)

    told = {name: new[name] for name in ("role", "models", "budgets", "rate")}
    assert told == {
        "role": "reader",
        "models": [MODEL],
        "budgets": [{"limit_usd": "5", "per": "day"}, {"limit_usd": "9", "rolling": "30d"}],
        "rate": {"requests": 60, "per": "minute", "burst": 5},
    }
    assert (old["replaced_by"], new["name"]) == (new["id"], "ci")
    assert old["expires_at"] < new["expires_at"]
    assert rotated.out.strip() not in listed.out
    lasting = await run("keys", "expire", new["id"], "--at", "never", "--config", config)
    assert lasting.out.endswith("ends: never.\n")
    called = await run("keys", "label", new["id"], "nightly", "--config", config)
    assert called.out.endswith("is called: nightly.\n"), called.err
    listed = await run("keys", "list", "--config", config)
    assert [line.split()[-1] for line in listed.out.splitlines()[1:]] == ["ci", "nightly"]
    wrong = await run("keys", "create", "film", "--budget", "5/dya", "--config", config)
    assert wrong.code == 1
    assert "did you mean day" in wrong.err


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_applies_the_file_to_a_gateway_that_runs(config: Path, workers: int) -> None:
    async def allowed(key: str, url: str) -> int:
        async with session.get(f"{url}/v1/usage", headers={"x-api-key": key}) as answer:
            return answer.status

    async with (
        aiohttp.ClientSession() as session,
        serving("--config", config, "--workers", str(workers), log=config.with_name("log")) as gateway,
    ):
        key = (await run("keys", "create", "film", "--config", config)).out.strip()
        assert await allowed(key, gateway.url) == 200

        config.with_name("tenants.yaml").write_text(TREE.replace("limit_usd: 20", "limit_us: 20"))
        gateway.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while "tenants.yaml:5:" not in gateway.log.read_text():
                await asyncio.sleep(0.02)
        assert await allowed(key, gateway.url) == 200

        config.with_name("tenants.yaml").write_text("tenants:\n  demo: {budgets: []}\n")
        gateway.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while await allowed(key, gateway.url) != 401:
                await asyncio.sleep(0.02)
        gateway.terminate()
        assert await gateway.ended() == 0


async def test_what_was_changed_is_exported_as_a_file_that_changes_nothing(config: Path) -> None:
    arguments = ("--config", config)
    made, hashed = (await run("keys", "hash", "--new")).out.split()
    with_key = TREE + f"    keys: [{{hash: '{hashed}', name: ci, rate: {{requests: 6, per: hour}}}}]\n"
    config.with_name("tenants.yaml").write_text(with_key)
    await run("tenants", "move", "film", "--to-the-top", *arguments)

    exported = await run("tenants", "export", *arguments)
    config.with_name("exported.yaml").write_text(exported.out)
    applied = await run("tenants", "apply", config.with_name("exported.yaml"), *arguments)
    checked = await run("config", "check", *arguments, "--set", "tenants=exported.yaml")

    assert exported.code == 0, exported.err
    assert "parent" not in exported.out
    assert hashed in exported.out
    assert made not in exported.out + with_key
    assert applied.out == "no change.\n", applied.err
    assert checked.code == 0, checked.err
    listed = json.loads((await run("keys", "list", "--json", *arguments)).out)
    assert [(key["name"], key["is_declared"]) for key in listed] == [("ci", True)]


async def test_a_key_is_hashed_from_standard_input_and_what_is_none_is_refused() -> None:
    made, hashed = (await run("keys", "hash", "--new")).out.split()

    assert (await run("keys", "hash", given=f"{made}\n")).out == f"{hashed}\n"
    for wrong in ("", "secret", f"{made[:-1]}\n", made.swapcase()):
        refused = await run("keys", "hash", given=wrong)
        assert (refused.code, refused.out) == (1, "")
        assert "--new" in refused.err
        assert "Traceback" not in refused.err


async def test_what_is_wrong_with_a_key_is_told_with_its_option_and_no_key_is_made(config: Path) -> None:
    async def refused(*options: str) -> str:
        ended = await run("keys", "create", "film", *options, "--config", config)
        assert (ended.code, ended.out) == (1, "")
        assert "Traceback" not in ended.err
        return ended.err

    assert "--budget 5/dya: per: should be" in await refused("--budget", "9/day", "--budget", "5/dya")
    assert "--budget 1e30/day: limit_usd: 1e30 is not an amount" in await refused("--budget", "1e30/day")
    assert "--rate 60/minute: burst: should be" in await refused("--rate", "60/minute", "--burst", "0")
    assert "--models x: unknown model x: `gateway models` lists them" in await refused("--models", "x")
    assert "--expires 2020-01-01 is over" in await refused("--expires", "2020-01-01")
    assert "--name should be one line" in await refused("--name", "a\nb")
    assert (await run("keys", "list", "--config", config)).out.count("\n") == 1


async def test_nobody_is_listed_for_a_tenant_that_there_never_was(config: Path) -> None:
    none_yet = await run("keys", "list", "film", "--config", config)
    unknown = await run("keys", "list", "flim", "--config", config)
    backwards = await run("tenants", "audit", "--limit", "-3", "--config", config)

    assert (none_yet.code, none_yet.out.split()[0]) == (0, "ID")
    assert (unknown.code, unknown.out) == (1, "")
    assert "There is no tenant flim, did you mean film?" in unknown.err
    assert (backwards.code, backwards.out) != (0, "")
    assert "Traceback" not in backwards.err


async def test_columns_stay_apart_however_long_a_name_is(config: Path) -> None:
    name = "a-team-with-a-name-that-is-longer-than-any-column"
    config.with_name("tenants.yaml").write_text(TREE + f"  {name}: {{budgets: []}}\n")
    await run("keys", "create", name, "--name", "ci", "--config", config)

    header, line = (await run("keys", "list", "--config", config)).out.splitlines()

    assert line.split()[1] == name
    assert header.index("KEY") == line.index("gwk_")
