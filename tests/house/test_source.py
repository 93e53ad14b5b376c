"""The rules of the source that no linter knows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import __version__
from tests.house.project import PROJECT, files_of_ours, text_of

PACKAGE = PROJECT / "gateway"
MOST_LINES = 600

# Spelt in pieces, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(?:" + "|".join(["wor" + "k/", "roo" + "t/", "hom" + "e/\\w", "Use" + "rs/\\w"]) + ")"
)
REGISTRIES = re.compile(
    "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "docker" + r"\.io/", r"ghcr\.", "quay" + r"\.io"])
)
UPSTREAM_KEY = re.compile(r"\bSG_[0-9A-Fa-f]{16,}\b")
TENANT_KEY = re.compile(r"\bgwk_[0-9A-Za-z]{20,}\b")
PRIVATE_KEY = re.compile("BEGIN [A-Z ]*PRIVATE" + " KEY")
INVENTED = re.compile(
    r"SG_(?:0123456789abcdef|fedcba9876543210|(.)\1+|[0-9a-f]*(?:0123|abcd|dead|beef|cafe|feed)[0-9a-f]*)"
    r"|gwk_(.)\2{15,}\w*"
)
"""The sandbox's own key, and those that nobody would take for a real one."""

TEXTS = [
    path for path in files_of_ours() if path.suffix not in (".mp4", ".png", ".jpg", ".mp3", ".wav", ".webp")
]


def test_importing_the_application_needs_nothing_and_writes_nothing(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "def audit(event, arguments):\n"
        "    if event.startswith('socket.') and event not in ('socket.__new__', 'socket.gethostname'):\n"
        "        raise SystemExit(f'{event} {arguments}')\n"
        "    if event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+'):\n"
        "        raise SystemExit(f'writes {arguments[0]}')\n"
        "    if event in ('subprocess.Popen', 'os.mkdir', 'sqlite3.connect', 'os.remove', 'os.rename'):\n"
        "        raise SystemExit(f'{event} {arguments}')\n"
        "sys.addaudithook(audit)\n"
        "import gateway.app.running, gateway.cli.main\n"
    )
    ran = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", program],
        cwd=tmp_path, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_the_init_files_are_empty_but_for_the_version(path: Path) -> None:
    expected = f'__version__ = "{__version__}"' if path.parent == PACKAGE else ""

    assert path.read_text(encoding="utf-8").strip() == expected


def test_no_file_of_the_gateway_is_longer_than_a_reader_can_bear() -> None:
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")
    }

    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_the_changelog_has_an_unreleased_section_in_the_past_tense() -> None:
    unreleased = text_of("CHANGELOG.md").partition("## [Unreleased]\n")[2].partition("\n## ")[0]
    first_words = re.findall(r"^- (\w+)", unreleased, flags=re.MULTILINE)

    assert re.findall(r"^### (\w+)$", unreleased, flags=re.MULTILINE)
    assert first_words
    irregular = {"Held", "Paid", "Made", "Told", "Kept", "Gave", "Wrote"}
    assert [word for word in first_words if not word.endswith("ed") and word not in irregular] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_no_file_names_a_machine_a_registry_or_a_key(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    keys = {*UPSTREAM_KEY.findall(text), *TENANT_KEY.findall(text)}

    assert MACHINE_PATHS.findall(text) == []
    assert REGISTRIES.findall(text) == []
    assert PRIVATE_KEY.findall(text) == []
    assert [key for key in keys if not INVENTED.fullmatch(key)] == []


def _tests() -> Iterator[tuple[str, str]]:
    for path in sorted((PROJECT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield path.relative_to(PROJECT).as_posix(), node.name


def test_the_names_of_tests_are_sentences_of_at_least_four_words() -> None:
    short = [f"{path}: {name}" for path, name in _tests() if len(name.removeprefix("test_").split("_")) < 4]

    assert short == []


def test_the_tests_of_a_module_have_names_of_their_own() -> None:
    named = list(_tests())

    assert {pair for pair in named if named.count(pair) > 1} == set()


def test_the_command_knows_its_version_and_helps() -> None:
    for argument, expected in (("--version", __version__), ("--help", "serve")):
        ran = subprocess.run(
            [sys.executable, "-m", "gateway", argument],
            cwd=PROJECT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert expected in ran.stdout


def test_every_decision_has_its_number_its_reasons_and_its_price() -> None:
    pages = sorted((PROJECT / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]

    assert numbers == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(page.name[:4])}. "), page.name
        for heading in ("## Context", "## Decision", "## Consequences", "## Not chosen"):
            assert f"\n{heading}\n" in text, (page.name, heading)


def test_the_picture_of_the_layers_is_the_contract_that_is_checked() -> None:
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    checked = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    picture = text_of("docs/architecture.md").partition("## Layers\n")[2].split("```")[1].strip().splitlines()
    drawn = [re.split(r"\s{2,}|(?<=upstream) ", line)[0] for line in picture]

    # The picture draws the two ways in on one line.
    assert [set(re.split(r" \| ", line)) for line in drawn] == [
        {"__main__", "cli"},
        *({room.strip() for room in layer.split("|")} for layer in checked[2:]),
    ]
