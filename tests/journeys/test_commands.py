"""`gateway config check`, `models` and what every command takes; mistakes are told by file, line and nearest name."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.journeys.program import MODULE, SCRIPT, run
from tests.journeys.running import MODEL, MODELS, PROJECT

CONFIG = PROJECT / "config" / "gateway.yaml"
GATEWAY = "listen: {port: 8080}\nstorage: {directory: var}\nupstream: {kind: sandbox}\nmodels: models/\n"
TENANTS = (
    "tenants:\n  demo:\n    budgets:\n      - {limit_usd: 25, per: month}\n    models: [ltx-2-19b-t2v]\n"
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with one model."""
    (tmp_path / "models").mkdir()
    shutil.copy(MODELS / f"{MODEL}.yaml", tmp_path / "models")
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "gateway.yaml").write_text(GATEWAY)
    return tmp_path / "gateway.yaml"


async def test_what_the_project_brings_is_in_order_by_either_name_of_the_command() -> None:
    for ended in await asyncio.gather(
        run("config", "check", program=SCRIPT), run("config", "check", program=MODULE)
    ):
        assert (ended.code, ended.err) == (0, "")
        assert "in order" in ended.out
        assert "demo" in ended.out


WRONG_GATEWAY = (
    "listen: {prot: 8080}\noperations: {port: 80800}\nstorrage: {directory: var}\nupstream: {kind: sandbx}\n"
    "listen: {port: 1}\n"
)
WRONG_TENANTS = (
    "tenants:\n  ann:\n    budgt: []\n  bob:\n    budgets: [{limit_us: 1, per: mnth}]\n  carol:\n"
    "    budgets: [{limit_usd: -25, per: day}]\n    modles: []\n"
)


async def test_slips_of_the_pen_are_all_told_at_once_with_their_places_and_the_nearest_names(
    config: Path,
) -> None:
    told = {
        "gateway.yaml": {
            WRONG_GATEWAY.rpartition("listen")[0]: {
                r"gateway\.yaml:1:\d+.*\bport\b",
                r"gateway\.yaml:2:\d+.*65535",
                r"gateway\.yaml:3.*\bstorage\b",
                r"gateway\.yaml:4:\d+.*\bsandbox\b",
            },
            WRONG_GATEWAY: {r"gateway\.yaml:5.*\blisten\b"},
            GATEWAY + "  : [\n": {r"gateway\.yaml:\d+"},
        },
        "tenants.yaml": {
            WRONG_TENANTS: {
                r"tenants\.yaml:3.*\bbudgets\b",
                r"tenants\.yaml:5.*\blimit_usd\b",
                r"tenants\.yaml:5.*\bmonth\b",
                r"tenants\.yaml:7.*0 or more",
                r"tenants\.yaml:8.*\bmodels\b",
            },
            TENANTS.replace("t2v]", "t2w]"): {rf"tenants\.yaml:5.*\b{MODEL}\b"},
        },
        f"models/{MODEL}.yaml": {
            (MODELS / f"{MODEL}.yaml")
            .read_text()
            .replace("modality:", "modalty:")
            .replace("minimum: 256", "minimun: 256", 1): {
                rf"{MODEL}\.yaml:\d+.*\bmodality\b",
                rf"{MODEL}\.yaml:\d+.*\bminimum\b",
            },
        },
    }
    cases = [(name, text, places) for name, texts in told.items() for text, places in texts.items()]
    ended = await asyncio.gather(
        *(
            run("config", "check", "--config", _with(config.parent, number, name, text))
            for number, (name, text, _) in enumerate(cases)
        )
    )
    for each, (_, text, places) in zip(ended, cases, strict=True):
        assert each.code == 1, text
        assert [place for place in places if not re.search(place, each.err)] == [], each.err
        assert "Traceback" not in each.err


def _with(directory: Path, number: int, name: str, text: str) -> Path:
    """A copy of the configuration in which one file says something else."""
    copy = directory / str(number)
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("[0-9]*"))
    (copy / name).write_text(text)
    return copy / "gateway.yaml"


async def test_a_setting_is_taken_from_the_command_line_before_the_environment_before_the_file(
    config: Path,
) -> None:
    arguments = ("config", "check", "--config", config)
    said = await asyncio.gather(
        run(*arguments),
        run(*arguments, GATEWAY_UPSTREAM__KIND="segmind"),
        run(*arguments, "--set", "upstream.kind=sandbox", GATEWAY_UPSTREAM__KIND="segmind"),
        run("config", "check", GATEWAY_CONFIG=str(config), GATEWAY_UPSTREAM__KIND="segmind"),
    )

    assert [ended.code for ended in said] == [0] * 4
    assert [re.findall(r"upstream: (\w+)", ended.out) for ended in said] == [
        ["sandbox"],
        ["segmind"],
        ["sandbox"],
        ["segmind"],
    ]
    assert str(config) in said[3].out


async def test_a_setting_that_there_is_not_is_refused_wherever_it_comes_from(config: Path) -> None:
    arguments = ("config", "check", "--config", config)
    typed, exported, halved, wrong, missing = await asyncio.gather(
        run(*arguments, "--set", "listen.prot=1"),
        run(*arguments, GATEWAY_LISTEN__PROT="1"),
        run(*arguments, "--set", "listen.port"),
        run(*arguments, "--set", "listen.port=many"),
        run("config", "check", "--config", config.with_name("gatewai.yaml")),
    )

    for ended in (typed, exported, halved, wrong, missing):
        assert ended.code == 1
        assert "Traceback" not in ended.err
    assert "--set listen.prot" in typed.err
    assert "listen.port" in typed.err
    assert "GATEWAY_LISTEN__PROT" in exported.err
    assert "GATEWAY_LISTEN__PORT" in exported.err
    assert "section.name=value" in halved.err
    assert "--set listen.port" in wrong.err
    assert "gatewai.yaml" in missing.err


async def test_models_are_listed_and_shown_and_the_nearest_is_named() -> None:
    listed, shown, mistyped = await asyncio.gather(
        run("models", "--config", CONFIG),
        run("models", MODEL, "--config", CONFIG),
        run("models", "ltx-2-19b-t2w", "--config", CONFIG),
    )

    assert (listed.code, shown.code, mistyped.code) == (0, 0, 1)
    rows = {line.split()[0]: line for line in listed.out.splitlines()}
    assert set(rows) - {"MODEL"} == {path.stem for path in MODELS.glob("*.yaml")}
    assert "$0.416" in rows[MODEL]
    assert all(len(row.split()) == 4 for name, row in rows.items() if name != "MODEL")
    assert "video/mp4" in rows[MODEL]
    assert "unknown" in rows["eleven-labs-transcript"]
    assert '"guidance_scale"' in shown.out
    assert MODEL in mistyped.err


async def test_help_and_version_say_what_there_is() -> None:
    helped, versioned, strange = await asyncio.gather(run("--help"), run("--version"), run("sreve"))

    for command in ("serve", "sandbox", "keys", "config", "models"):
        assert command in helped.out
    assert re.fullmatch(r"\d+\.\d+\S*", versioned.out.strip())
    assert strange.code != 0
    assert "serve" in strange.out + strange.err
    assert "Traceback" not in strange.out + strange.err


async def test_who_has_read_enough_of_what_a_command_says_is_shown_no_trace(config: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            *MODULE,
            *("config", "check", "--config", str(config)),
            cwd=PROJECT,
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(writing)
    _, err = await process.communicate()

    assert err == b""
    assert process.returncode == 141
