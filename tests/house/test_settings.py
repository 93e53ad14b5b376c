"""The examples of the configuration say everything that there is to say, and nothing else."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from gateway.app.opening import declared
from gateway.domain.generation import Json
from gateway.settings import Settings, load_settings, setting_names
from gateway.tenants.declarations import BudgetEntry, KeyEntry, RateEntry, TenantEntry
from gateway.tenants.yaml_files import TenantsFile
from tests.house.project import PROJECT, table_rows, text_of

EXAMPLE = "config/production.example.yaml"

DELIBERATE = {
    "listen.public_url": "https://gateway.example.com",
    "storage.directory": "/var/lib/gateway",
}
"""Where the example says something else than the default, and what."""


def named_values(settings: BaseModel) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found |= {f"{name}.{inner}": deeper for inner, deeper in named_values(value).items()}
        else:
            found[name] = value
    return found


def written_names(value: Json, prefix: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {prefix}
    return set().union(
        *(written_names(inner, f"{prefix}.{name}".strip(".")) for name, inner in value.items())
    )


def test_the_example_has_every_setting_and_no_other() -> None:
    assert written_names(yaml.safe_load(text_of(EXAMPLE))) == set(setting_names())


def test_the_example_has_the_defaults_but_where_it_says_so() -> None:
    defaults = named_values(Settings())
    example = named_values(Settings.model_validate(yaml.safe_load(text_of(EXAMPLE))))

    deviations = {name: str(value) for name, value in example.items() if value != defaults[name]}

    assert deviations == DELIBERATE


@pytest.mark.parametrize("name", DELIBERATE)
def test_a_deviation_of_the_example_names_the_default_in_its_comment(name: str) -> None:
    default = named_values(Settings())[name]
    comment = _comment_of(name)

    assert f"Default: {'null' if default is None else default}" in comment


@pytest.mark.parametrize("name", sorted(setting_names()))
def test_every_setting_of_the_example_has_a_comment_of_its_own(name: str) -> None:
    assert len(_comment_of(name)) > len("# The port")


def test_every_setting_in_the_code_has_a_docstring_too() -> None:
    sections: list[type[BaseModel]] = [Settings]
    while sections:
        section = sections.pop()
        assert section.__doc__
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                sections.append(field.annotation)
            else:
                assert _docstring(section, name), f"{section.__name__}.{name}"


def _docstring(section: type[BaseModel], name: str) -> str | None:
    """The text under an attribute, which nobody reads while the gateway runs."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    for statement, below in itertools.pairwise(definition.body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=found)), ast.Expr(ast.Constant(str(text))) if found == name:
                return text
    return None


@pytest.mark.parametrize("config", ["config/gateway.yaml", EXAMPLE])
def test_config_check_accepts_the_files_without_any_key(config: str) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "gateway", "config", "check", "--config", config],
        cwd=PROJECT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert checked.returncode == 0, checked.stderr
    assert "in order" in checked.stdout


def test_the_tenants_of_the_example_are_accepted_with_the_catalogue() -> None:
    overrides = ["tenants=tenants.example.yaml"]
    _, tenants = declared(load_settings(PROJECT / "config/gateway.yaml", overrides=overrides, environment={}))

    assert len(list(tenants)) >= 3


def test_the_example_of_tenants_shows_everything_that_can_be_said() -> None:
    file = yaml.safe_load(text_of("config/tenants.example.yaml"))
    entries = list(file["tenants"].values())
    budgets = [budget for entry in entries for budget in entry.get("budgets", ())]
    keys = [key for entry in entries for key in entry.get("keys", ())]

    assert set(file) == set(TenantsFile.model_fields)
    assert set().union(*entries) == set(TenantEntry.model_fields)
    assert set().union(*budgets) == set(BudgetEntry.model_fields)
    assert set().union(*keys) == set(KeyEntry.model_fields)
    assert set().union(*(key["rate"] for key in keys)) == set(RateEntry.model_fields)
    assert {budget.get("per") for budget in budgets} == {
        *(None, "day", "week", "month", "quarter", "year", "total")
    }
    assert any(entry.get("budgets") == [] for entry in entries)


def test_every_way_to_give_a_setting_in_the_documentation_gives_the_same(tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    for cells in table_rows(text_of("docs/configuration.md"), after="## What comes before what"):
        in_the_file, in_the_environment, on_the_command_line = (cell.strip("`") for cell in cells)
        file.write_text(in_the_file, encoding="utf-8")
        ways = [load_settings(file, overrides=[], environment={})]
        file.write_text("", encoding="utf-8")
        override = re.sub(r"^--set ", "", on_the_command_line).strip("'")
        ways.append(load_settings(file, overrides=[override], environment={}))
        if in_the_environment != "-":
            variable, _, value = in_the_environment.partition("=")
            environment = {variable: value.strip("'")}
            ways.append(load_settings(file, overrides=[], environment=environment))
        assert all(way == ways[0] for way in ways), in_the_file


@pytest.mark.parametrize("nothing", ["", "null", "~", " null "])
def test_nothing_may_be_said_in_every_way_in_which_yaml_says_it(tmp_path: Path, nothing: str) -> None:
    file = tmp_path / "house.yaml"
    file.write_text("upstream: {api_key_env: SOMETHING}", encoding="utf-8")
    variable = {"GATEWAY_UPSTREAM__API_KEY_ENV": nothing}
    ways = [
        load_settings(file, overrides=[f"upstream.api_key_env={nothing}"], environment={}),
        load_settings(file, overrides=[], environment=variable),
    ]

    assert [way.upstream.api_key_env for way in ways] == [None, None]


def _comment_of(name: str) -> str:
    """The comment lines right above a setting."""
    section, _, field = name.rpartition(".")
    lines = text_of(EXAMPLE).splitlines()
    start = lines.index(f"{section}:") if section else 0
    indent = "  " if section else ""
    at = next(n for n, line in enumerate(lines) if n >= start and line.startswith(f"{indent}{field}:"))
    comment: list[str] = []
    for line in reversed(lines[:at]):
        if not line.strip().startswith("#"):
            break
        comment.insert(0, line.strip())
    return "\n".join(comment)
