"""The Makefile, the image and the compose file install the same and start the same. Nobody has an engine here: they are read."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from gateway.settings import load_settings
from tests.house.project import PROJECT, text_of

MAKEFILE = text_of("Makefile")
COMPOSE: dict[str, Any] = yaml.safe_load(text_of("compose.yaml"))
PROJECT_TABLE = tomllib.loads(text_of("pyproject.toml"))
SETTINGS = load_settings(PROJECT / "config/gateway.yaml", overrides=[], environment={})
EVERYWHERE = "0.0.0.0"  # noqa: S104 -- inside a container; the host decides what is published


def instructions() -> list[tuple[str, str]]:
    lines = "\n".join(
        line for line in text_of("Dockerfile").splitlines() if not line.lstrip().startswith("#")
    )
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [
        (name, rest.strip())
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def last_stage() -> list[tuple[str, str]]:
    every = instructions()
    start = max(index for index, (name, _) in enumerate(every) if name == "FROM")
    return every[start:]


def environment_of_the_image() -> dict[str, str]:
    (variables,) = [rest for name, rest in last_stage() if name == "ENV"]
    return dict(pair.split("=", 1) for pair in shlex.split(variables))


def floor() -> tuple[int, int]:
    major, minor = PROJECT_TABLE["project"]["requires-python"].removeprefix(">=").split(".")
    return int(major), int(minor)


def test_the_same_python_floor_is_in_the_makefile_and_the_image() -> None:
    versions = re.findall(r"^FROM python:(\d+)\.(\d+)-slim", text_of("Dockerfile"), flags=re.MULTILINE)
    (asked,) = set(re.findall(r"sys\.version_info < \((\d+), (\d+)\)", MAKEFILE))

    assert len(versions) == len(of("FROM")) == 2
    assert {(int(major), int(minor)) for major, minor in versions} == {floor()}
    assert (int(asked[0]), int(asked[1])) == floor()
    assert PROJECT_TABLE["tool"]["ruff"]["target-version"] == f"py{floor()[0]}{floor()[1]}"


def test_the_same_lock_is_installed_by_hash_and_as_wheels_only() -> None:
    wanted = "--require-hashes --only-binary :all: -r requirements.lock"

    assert wanted in MAKEFILE
    assert any(wanted in command for command in of("RUN"))
    assert any("--no-deps --no-build-isolation ." in command for command in of("RUN"))
    assert "--no-deps --no-build-isolation --editable ." in MAKEFILE


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_line_of_a_lock_is_pinned_and_has_its_hashes(lock: str) -> None:
    requirements = re.sub(r"\\\n", "", text_of(lock)).splitlines()
    pinned = [line for line in requirements if line and not line.lstrip().startswith("#")]

    assert pinned
    assert all("==" in line and "--hash=sha256:" in line for line in pinned)


def test_the_image_starts_what_make_run_starts() -> None:
    (entry,), (command,) = of("ENTRYPOINT"), of("CMD")
    started = re.search(r"gateway serve --config \$\(CONFIG\)", MAKEFILE)

    assert started
    assert json.loads(entry) == ["gateway"]
    assert json.loads(command) == ["serve", "--config", "/etc/gateway/gateway.yaml"]
    assert "CONFIG ?= config/gateway.yaml" in MAKEFILE
    assert ("COPY", "config/ /etc/gateway/") in last_stage()
    assert environment_of_the_image()["GATEWAY_CONFIG"] == "/etc/gateway/gateway.yaml"


def test_the_image_listens_where_it_says_and_checks_its_health_there() -> None:
    variables = {name: value for name, value in environment_of_the_image().items() if "__" in name}
    inside = load_settings(PROJECT / "config/gateway.yaml", overrides=[], environment=variables)
    (health,) = of("HEALTHCHECK")

    assert (inside.listen.host, inside.operations.host) == (EVERYWHERE, EVERYWHERE)
    assert of("EXPOSE") == [f"{inside.listen.port} {inside.operations.port}"]
    assert (inside.listen.port, inside.operations.port) == (SETTINGS.listen.port, SETTINGS.operations.port)
    assert f"'127.0.0.1', {inside.operations.port}" in health
    assert "'/healthz'" in health
    assert json.loads(health.partition("CMD ")[2])[:2] == ["python", "-c"]
    compile(json.loads(health.partition("CMD ")[2])[2], "healthcheck", "exec")


def test_the_image_has_no_root_and_writes_to_one_volume_only() -> None:
    names = [name for name, _ in last_stage()]
    (user,) = of("USER")
    variables = environment_of_the_image()

    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert of("VOLUME") == [variables["GATEWAY_STORAGE__DIRECTORY"]] == ["/var/lib/gateway"]
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"
    assert f"--uid {user.split(':')[0]}" in " ".join(of("RUN"))
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])
    assert not of("ADD")


@pytest.mark.parametrize("name", ["gateway", "production"])
def test_a_service_is_confined_and_published_on_this_machine_only(name: str) -> None:
    service = COMPOSE["services"][name]
    (user,) = of("USER")

    assert service["user"] == user
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108 -- the container's, and nobody writes there
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in of("EXPOSE")[0].split()]
    assert [v for v in service["volumes"] if not v.endswith(":ro")] == [
        f"{_volume_of(name)}:{of('VOLUME')[0]}"
    ]
    assert set(COMPOSE["volumes"]) == {"sandbox", "production"}
    assert int(service["stop_grace_period"].removesuffix("s")) > SETTINGS.shutdown.grace_seconds


def test_the_environment_of_a_service_is_settings_that_there_are() -> None:
    for service in COMPOSE["services"].values():
        load_settings(PROJECT / "config/gateway.yaml", overrides=[], environment=service["environment"])


def test_the_production_service_takes_its_key_from_a_secret_and_has_to_be_asked_for() -> None:
    production = COMPOSE["services"]["production"]
    (secret,) = production["secrets"]

    assert production["profiles"] == ["production"]
    assert production["environment"]["GATEWAY_UPSTREAM__API_KEY_FILE"] == f"/run/secrets/{secret}"
    assert production["command"] == ["serve", "--config", production["environment"]["GATEWAY_CONFIG"]]
    assert not any("API_KEY" in name and "FILE" not in name for name in production["environment"])
    assert "profiles" not in COMPOSE["services"]["gateway"]


def test_what_the_image_is_made_of_is_not_ignored_and_nothing_else_gets_in() -> None:
    lines = [line for line in text_of(".dockerignore").splitlines() if line and not line.startswith("#")]
    let_in = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for rest in of("COPY")
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    }

    assert lines[0] == "*"
    assert let_in == copied
    assert all((PROJECT / source).exists() for source in copied)
    assert {COMPOSE["secrets"]["segmind_api_key"]["file"]} <= {"config/segmind.key"}
    assert "config/*.key" in lines


def test_the_continuous_check_runs_what_the_readme_says() -> None:
    script = PROJECT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")

    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert re.search(r"^make .*\bcheck\b", text, flags=re.MULTILINE)
    assert re.search(r"^make .*\btest\b", text, flags=re.MULTILINE)


def _volume_of(service: str) -> str:
    return {"gateway": "sandbox", "production": "production"}[service]
