"""Tenants and keys, administered over HTTP while callers ask."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.domain.tenant import KeyTerms, Rate, Role
from gateway.tenants import key_format
from tests.house.project import table_rows, text_of
from tests.journeys.conftest import OpenHouse
from tests.journeys.running import MODEL, PRICE_MICROS, Answer, House, video

ORGANISATION: dict[str, Any] = {
    "demo": {"budgets": [{"limit_usd": 25, "per": "month"}]},
    "acme": {"budgets": [{"limit_usd": 5, "per": "month"}], "models": [MODEL, "ltx-2-fast"]},
    "film": {"parent": "acme", "budgets": [{"limit_usd": 2, "per": "day"}]},
    "root": {"budgets": [{"limit_usd": 0, "per": "total"}]},
}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Administrator:
    """Somebody with a key of the role admin."""

    house: House
    key: str

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        url = f"{self.house.gateway.operations_url}/admin{path}"
        return await self.house.ask(method, url, key=options.pop("key", self.key), **options)

    async def has(self, method: str, path: str, **options: Any) -> Any:
        """What is answered, which has to be no refusal."""
        answer = await self.ask(method, path, **options)
        assert answer.status == 200, answer.body
        return answer.json

    async def made_key(self, tenant: str, **terms: Any) -> Any:
        made = await self.has("POST", "/keys", json={"tenant": tenant, **terms})
        self.house.secrets.add(made["key"])
        return made

    @property
    def name(self) -> str:
        """As the audit log has it."""
        caller = self.house.gateway.keys.authenticate(self.key)
        return f"key:{caller.key_id}"


async def _key(house: House, tenant: str, role: Role, **terms: Any) -> str:
    key = await house.gateway.keys.create(tenant, role.value, terms=KeyTerms(role=role, **terms))
    house.secrets.add(key)
    return key


@pytest.fixture
async def admin(open_house: OpenHouse) -> Administrator:
    house = await open_house(tenants=ORGANISATION)
    return Administrator(house, await _key(house, "root", Role.ADMIN))


def _addresses() -> list[tuple[str, str]]:
    rows = table_rows(text_of("docs/api.md"), after="## Routes of the admin API")
    return [(method, path.strip("`").removeprefix("/admin")) for method, path, *_ in rows]


async def test_only_a_key_for_it_administers_anything(admin: Administrator) -> None:
    house = admin.house
    reader = await _key(house, "demo", Role.READER)
    for method, path in _addresses():
        address = path.format(name="film", id="0" * 12)
        (await admin.ask(method, address, key="")).refused(401, "invalid_api_key")
        (await admin.ask(method, address, key="gwk_nothing")).refused(401, "invalid_api_key")
        (await admin.ask(method, address, key=house.key)).refused(403, "key_forbidden")
        (await admin.ask(method, address, key=reader)).refused(403, "key_forbidden")

    assert {entry["who"] for entry in (await admin.has("GET", "/audit"))["entries"]} <= {"start", ""}


async def test_a_key_for_administration_looks_and_buys_nothing(admin: Administrator) -> None:
    (await admin.house.make(key=admin.key)).refused(403, "key_forbidden")

    assert (await admin.house.get("/v1/usage", key=admin.key)).status == 200


async def test_callers_do_not_reach_the_administration_unless_the_settings_say_so(
    admin: Administrator,
) -> None:
    house = admin.house
    (await house.get("/admin/tenants", key=admin.key)).refused(404, "route_not_found")
    assert (await admin.has("GET", "/tenants"))["tenants"]

    await house.restart(admin__served_on="listen")
    assert (await house.get("/admin/tenants", key=admin.key)).json["tenants"]
    (await house.get("/admin/tenants")).refused(403, "key_forbidden")
    assert (await admin.ask("GET", "/tenants")).status == 404

    await house.restart(admin__served_on="nowhere")
    (await house.get("/admin/tenants", key=admin.key)).refused(404, "route_not_found")
    assert (await admin.ask("GET", "/tenants")).status == 404


async def test_what_is_wrong_beneath_admin_is_told_as_everywhere_and_the_others_stay_as_they_are(
    admin: Administrator,
) -> None:
    (await admin.ask("GET", "/tenant")).refused(404, "route_not_found")
    (await admin.ask("DELETE", "/audit")).refused(405, "method_not_allowed")
    (await admin.ask("PUT", "/tenants/film", data=b"{}")).refused(415, "unsupported_media_type")
    listed = await admin.ask("PUT", "/tenants/film", data=b"[1]", headers=JSON)
    torn = await admin.ask("PUT", "/tenants/film", data=b'{"budgets":', headers=JSON)
    for each in (listed, torn):
        assert "prompt" not in each.refused(400, "malformed_request")["error"]
    health = await admin.house.get(f"{admin.house.gateway.operations_url}/healthz", key="")

    assert (health.status, health.json) == (200, {"status": "ok"})
    assert "x-request-id" not in health.headers


async def test_what_an_administrator_sends_is_bounded(open_house: OpenHouse) -> None:
    house = await open_house(tenants=ORGANISATION, settings={"listen.max_body_bytes": 2000})
    admin = Administrator(house, await _key(house, "root", Role.ADMIN))
    large = {"budgets": [], "models": ["x" * 3000]}

    (await admin.ask("PUT", "/tenants/film", json=large)).refused(413, "body_too_large")


async def test_the_tree_is_shown_with_what_is_said_and_how_it_stands(admin: Administrator) -> None:
    house = admin.house
    await house.make(key=await house.new_key("film"))

    told = {each["name"]: each for each in (await admin.has("GET", "/tenants"))["tenants"]}

    assert list(told) == ["acme", "film", "demo", "root"]
    assert told["film"]["path"] == "acme/film"
    assert told["film"]["declaration"] == {
        "parent": "acme",
        "budgets": [{"limit_usd": "2", "per": "day"}],
    }
    for name, limit in (("acme", 5_000_000), ("film", 2_000_000)):
        (budget,) = told[name]["budgets"]
        assert (budget["of"], budget["limit_micros"]) == (name, limit)
        assert (budget["spent_micros"], budget["remaining_micros"]) == (PRICE_MICROS, limit - PRICE_MICROS)
    assert await admin.has("GET", "/tenants/film") == told["film"]
    refused = (await admin.ask("GET", "/tenants/flim")).refused(404, "tenant_not_found")
    assert "did you mean film" in refused["error"]


async def test_a_tenant_is_made_changed_and_removed_and_each_change_is_in_force_at_once(
    admin: Administrator,
) -> None:
    house = admin.house
    new = {"parent": "acme", "budgets": [{"limit_usd": 1, "per": "week"}]}
    shown = await admin.has("PUT", "/tenants/paint?dry_run=true", json=new)
    (await admin.ask("GET", "/tenants/paint")).refused(404, "tenant_not_found")
    made = await admin.has("PUT", "/tenants/paint", json=new)
    key = (await admin.made_key("paint"))["key"]
    first = await house.make(video(seed=1), key=key)

    lowered = await admin.has("PUT", "/tenants/paint", json=new | {"max_usd_per_request": "0.001"})
    second = await house.make(video(seed=2), key=key)
    would_be = await admin.has("DELETE", "/tenants/paint?dry_run=true")
    assert (await admin.ask("GET", "/tenants/paint")).status == 200
    removed = await admin.has("DELETE", "/tenants/paint")
    third = await house.make(video(seed=3), key=key)

    assert shown == made | {"dry_run": True}
    (change,) = made["changes"]
    assert (change["what"], change["before"]) == ("paint", None)
    assert change["after"]["parent"] == "acme"
    assert first.status == 200
    assert [each["what"] for each in lowered["changes"]] == ["paint.max_usd_per_request"]
    second.refused(406, "budget_exceeded")
    assert removed["changes"][0]["after"] is None
    assert removed == would_be | {"dry_run": False}
    third.refused(401, "invalid_api_key")
    entries = (await admin.has("GET", "/audit?limit=4"))["entries"]
    assert [entry["action"] for entry in entries] == [
        *("tenant removed", "tenant changed", "key created", "tenant made")
    ]
    assert {entry["who"] for entry in entries} == {admin.name}
    assert entries[1]["before"] == {"parent": "acme", "budgets": [{"limit_usd": "1", "per": "week"}]}


async def test_every_mistake_in_a_declaration_is_told_and_nothing_is_changed(admin: Administrator) -> None:
    before = await admin.has("GET", "/audit")
    wrong = {"budgets": [{"limit_usd": -1, "per": "day"}, {"limit_usd": 1, "per": "dya"}], "modles": []}

    told = (await admin.ask("PUT", "/tenants/film", json=wrong)).refused(400, "invalid_declaration")
    names = {"budgets": [], "models": ["ltx-2-fats"]}
    model = (await admin.ask("PUT", "/tenants/film", json=names)).refused(400, "invalid_declaration")
    ring = {"parent": "film", "budgets": []}
    cycle = (await admin.ask("PUT", "/tenants/acme", json=ring)).refused(400, "invalid_declaration")
    parent = (await admin.ask("DELETE", "/tenants/acme")).refused(400, "invalid_declaration")
    misspelt = (await admin.ask("DELETE", "/tenants/film?dryrun=true")).refused(400, "invalid_query")
    neither = (await admin.ask("DELETE", "/tenants/film?dry_run=yes")).refused(400, "invalid_query")

    fields = {problem["field"] for problem in told["problems"]}
    assert fields == {"budgets[0].limit_usd", "budgets[1].per", "modles"}
    assert "did you mean ltx-2-fast" in model["error"]
    assert "below itself" in cycle["error"]
    assert "move it first" in parent["error"]
    assert misspelt["error"].endswith("did you mean dry_run?")
    assert "true or false, not yes" in neither["error"]
    assert await admin.has("GET", "/audit") == before


async def test_a_whole_file_is_applied_as_json(admin: Administrator) -> None:
    lower = {**ORGANISATION, "film": {"parent": "acme", "budgets": [{"limit_usd": 1, "per": "day"}]}}
    file = {"zone": "Europe/Berlin", "tenants": {name: lower[name] for name in lower if name != "demo"}}

    shown = await admin.has("POST", "/apply?dry_run=true", json=file)
    applied = await admin.has("POST", "/apply", json=file)
    wrong = await admin.ask("POST", "/apply", json={"tenants": {"film": {"parent": "acme"}}})

    assert shown == applied | {"dry_run": True}
    told = {change["what"] for change in applied["changes"]}
    assert {"demo", "film.budgets.day.limit_usd"} <= told
    (problem,) = wrong.refused(400, "invalid_declaration")["problems"]
    assert problem["field"] == "tenants.film.parent"
    # The tenant that the file does not name has gone, and its key with it.
    (await admin.house.get("/v1/usage")).refused(401, "invalid_api_key")
    assert len((await admin.has("GET", "/keys?tenant=demo"))["keys"]) > 0


async def test_a_budget_is_topped_up_with_a_reason(admin: Administrator) -> None:
    body = {"usd": "50.5", "reason": "launch"}
    added = await admin.has("POST", "/tenants/film/top-ups", json=body)

    assert added["added_micros"] == 50_500_000
    (budget,) = (await admin.has("GET", "/tenants/film"))["budgets"]
    assert (budget["limit_micros"], budget["top_ups"][0]["reason"]) == (52_500_000, "launch")
    for wrong in (
        {"usd": 0},
        {"usd": -1},
        {"usd": "much"},
        {"reason": " "},
        {"reason": "a\nb"},
        {"reason": None},
        {"more": 1},
    ):
        answer = await admin.ask("POST", "/tenants/film/top-ups", json=body | wrong)
        answer.refused(400, "invalid_declaration")
    unknown = await admin.ask("POST", "/tenants/film/top-ups", json=body | {"budget": "week"})
    assert "there are day" in unknown.refused(404, "budget_not_found")["error"]
    nobody = await admin.ask("POST", "/tenants/film/top-ups", json=body | {"key_id": "0" * 12})
    nobody.refused(404, "key_not_found")
    (await admin.ask("POST", "/tenants/flim/top-ups", json=body)).refused(404, "tenant_not_found")


async def test_a_key_is_made_amended_rotated_and_revoked(admin: Administrator) -> None:
    house = admin.house
    terms = {"budgets": [{"limit_usd": "0.004", "per": "day"}], "models": [MODEL], "name": "ci"}
    made = await admin.made_key("film", **terms)
    key, identity = made["key"], made["id"]
    assert (await house.make(video(seed=1), key=key)).status == 200
    assert (await house.make(video(seed=2), key=key)).refused(406, "budget_exceeded")[
        "of"
    ] == f"film#{identity}"

    amended = await admin.has("PATCH", f"/keys/{identity}", json={"budgets": [], "role": "caller"})
    assert (amended["budgets"], amended["models"], amended["name"]) == ([], [MODEL], "ci")
    assert (await house.make(video(seed=2), key=key)).status == 200

    rotated = await admin.has("POST", f"/keys/{identity}/rotate", json={"overlap_seconds": 60})
    house.secrets.add(rotated["key"])
    assert (rotated["name"], rotated["models"], rotated["in_place_of"]) == ("ci", [MODEL], identity)
    for each in (key, rotated["key"]):
        assert (await house.make(video(seed=2), key=each)).cache == "hit"
    house.clock.ahead_seconds = 61
    async with asyncio.timeout(30):
        # What is answered from memory looks at the keys once a second.
        while (await house.make(video(seed=2), key=key)).status != 401:
            await asyncio.sleep(0.02)

    again = await admin.has("POST", f"/keys/{rotated['id']}/rotate")
    house.secrets.add(again["key"])
    assert again["in_place_of"] == rotated["id"]
    revoked = await admin.has("DELETE", f"/keys/{rotated['id']}")
    assert revoked["revoked_at"] is not None
    (await house.make(video(seed=2), key=rotated["key"])).refused(401, "invalid_api_key")
    (await admin.ask("DELETE", f"/keys/{rotated['id']}")).refused(404, "key_not_found")
    told = (await admin.has("GET", "/keys?tenant=film"))["keys"]
    assert [each["id"] for each in told] == [identity, rotated["id"], again["id"]]
    assert told[0]["replaced_by"] == rotated["id"]
    assert all("key" not in each for each in told)


async def test_keys_of_one_rotation_spend_one_budget(admin: Administrator) -> None:
    house = admin.house
    made = await admin.made_key("film", budgets=[{"limit_usd": "0.008", "per": "total"}])
    old, identity = made["key"], made["id"]
    assert (await house.make(video(seed=1), key=old)).status == 200
    rotated = await admin.has("POST", f"/keys/{identity}/rotate")
    new = rotated["key"]
    house.secrets.add(new)

    assert (await house.make(video(seed=2), key=new)).status == 200
    for each, of in ((old, identity), (new, rotated["id"])):
        told = (await house.make(video(seed=3), key=each)).refused(406, "budget_exceeded")
        assert (told["of"], told["spent_usd"]) == (f"film#{of}", 0.008)

    top_up = {"usd": "0.004", "reason": "launch", "key_id": identity}
    await admin.has("POST", "/tenants/film/top-ups", json=top_up)
    assert (await house.make(video(seed=3), key=new)).status == 200
    (await house.make(video(seed=4), key=old)).refused(406, "budget_exceeded")
    again = (await admin.ask("POST", f"/keys/{identity}/rotate")).refused(400, "invalid_declaration")
    assert f"rotate {rotated['id']}" in again["error"]


async def test_what_is_no_key_that_can_be_is_not_made(admin: Administrator) -> None:
    for wrong in (
        {"role": "boss"},
        {"tenant": 5},
        {"models": ["ltx-2-fats"]},
        {"rate": {"requests": 0}},
        {"name": "a\nb"},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"x": 1},
    ):
        answer = await admin.ask("POST", "/keys", json={"tenant": "film"} | wrong)
        answer.refused(400, "invalid_declaration")
    (await admin.ask("POST", "/keys", json={"tenant": "flim"})).refused(404, "tenant_not_found")
    (await admin.ask("POST", "/keys", json={})).refused(400, "invalid_declaration")
    (await admin.ask("GET", "/keys?tenant=flim")).refused(404, "tenant_not_found")
    (await admin.ask("PATCH", f"/keys/{'0' * 12}", json={"name": "x"})).refused(404, "key_not_found")
    assert "never by itself" in (await admin.ask("DELETE", f"/keys/{admin.house.key}")).json["error"]


async def test_when_a_key_ends_is_amended_and_left_alone_otherwise(admin: Administrator) -> None:
    made = await admin.made_key(
        "film", expires_at="2030-01-01T00:00:00Z", rate={"requests": 5, "per": "minute"}
    )

    named = await admin.has("PATCH", f"/keys/{made['id']}", json={"name": "laptop"})
    freed = await admin.has("PATCH", f"/keys/{made['id']}", json={"expires_at": None, "rate": None})

    assert (named["name"], named["expires_at"]) == ("laptop", "2030-01-01T00:00:00Z")
    assert named["rate"] == {"requests": 5, "per": "minute", "burst": 5}
    assert (freed["name"], freed["expires_at"], freed["rate"]) == ("laptop", None, None)


async def test_the_audit_log_is_read_page_by_page(admin: Administrator) -> None:
    for number in range(5):
        await admin.made_key("film", name=str(number))

    first = await admin.has("GET", "/audit?limit=3")
    second = await admin.has("GET", f"/audit?limit=3&before={first['next']}")
    serials = [entry["serial"] for entry in (*first["entries"], *second["entries"])]

    assert [entry["after"]["name"] for entry in first["entries"]] == ["4", "3", "2"]
    assert serials == sorted(set(serials), reverse=True)
    for wrong in ("limit=0", "limit=1001", "limit=x", "before=-1", "limit=1&limit=2"):
        (await admin.ask("GET", f"/audit?{wrong}")).refused(400, "invalid_query")


async def test_a_request_to_the_administration_is_in_the_log_by_its_id(admin: Administrator) -> None:
    answers = [await admin.ask("GET", path) for path in ("/tenants/nobody", "/tenants", "/usage?as=csv")]

    lines = [
        line
        for answer in answers
        for line in admin.house.log_lines
        if line.get("request_id") == answer.headers["x-request-id"]
    ]
    assert [(line["tenant"], line["status"], line.get("code")) for line in lines] == [
        ("root", 404, "tenant_not_found"),
        ("root", 200, None),
        ("root", 200, None),
    ]


async def test_a_rate_of_an_amended_key_counts_at_once_and_over_requests_at_the_same_moment(
    admin: Administrator,
) -> None:
    house = admin.house
    await house.make()
    house.insists = False  # asking again would count
    made = await admin.made_key("demo")
    assert (await house.make(key=made["key"])).status == 200

    await admin.has("PATCH", f"/keys/{made['id']}", json={"rate": {"requests": 3, "per": "hour"}})
    answers = await asyncio.gather(*(house.make(key=made["key"]) for _ in range(12)))

    assert sorted(answer.status for answer in answers) == [200] * 3 + [429] * 9
    assert Rate(3, 3600, 3) == house.gateway.keys.authenticate(made["key"]).terms.rate


async def test_a_key_that_is_declared_is_amended_where_it_is_declared(admin: Administrator) -> None:
    key = key_format.made()
    admin.house.secrets.add(key)
    said = ORGANISATION["film"] | {"keys": [{"hash": key_format.hash_text(key), "name": "ci"}]}

    told = await admin.has("PUT", "/tenants/film", json=said)
    (known,) = (await admin.has("GET", "/keys?tenant=film"))["keys"]

    assert key not in str(told)
    assert (known["is_declared"], known["name"]) == (True, "ci")
    assert (await admin.house.make(key=key)).status == 200
    for method, path in (("PATCH", ""), ("POST", "/rotate")):
        answer = await admin.ask(method, f"/keys/{known['id']}{path}", json={})
        assert "say it there" in answer.refused(400, "invalid_declaration")["error"]
    narrowed = said | {"keys": [said["keys"][0] | {"role": "reader"}]}
    await admin.has("PUT", "/tenants/film", json=narrowed)
    (await admin.house.make(key=key)).refused(403, "key_forbidden")
    assert (await admin.has("GET", "/tenants/film"))["declaration"]["keys"] == narrowed["keys"]
    await admin.has("DELETE", f"/keys/{known['id']}")
    (await admin.house.make(key=key)).refused(401, "invalid_api_key")
