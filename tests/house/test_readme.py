"""What the README says is what happens: its commands and its snippet run, its output is the program's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.project import PROJECT, ServedGateway, blocks, served_gateway, table_rows, text_of

README = text_of("README.md")
COMMANDS = blocks(README, language="sh", marked="tested")
OUTPUT = blocks(README, language="console")
SNIPPETS = blocks(README, language="python", marked="tested")
SMALL_VIDEO = (
    """curl -sS http://127.0.0.1:8080/v1/ltx-2-19b-t2v -H "x-api-key: $KEY" -H 'Content-Type: application/json' """
    """-d '{"prompt": "A paper hat", "width": 256, "height": 256, "num_frames": 9}' -D - -o hat.mp4"""
)
RELATIVE_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    with served_gateway(tmp_path_factory.mktemp("readme")) as served:
        # Whoever reads the README from the top has used it before the metrics are shown.
        bought = served.run(SMALL_VIDEO)
        assert bought.stdout.startswith("HTTP/1.1 200 OK"), bought.stdout
        yield served


def run_snippet(gateway: ServedGateway, snippet: str) -> subprocess.CompletedProcess[str]:
    given = gateway.here(snippet).replace("gwk_...", gateway.key)
    return subprocess.run(
        [sys.executable, "-c", given], cwd=gateway.directory, capture_output=True, text=True, timeout=90, check=False,
        env=gateway.environment,
    )  # fmt: skip


def test_the_greeting_is_the_one_that_the_readme_shows(gateway: ServedGateway) -> None:
    assert gateway.there(gateway.greeting).rstrip() == OUTPUT[0].removeprefix("$ make run\n").rstrip()


def test_the_curl_line_that_is_printed_works_when_it_is_pasted(gateway: ServedGateway) -> None:
    command = gateway.greeting.partition("  curl ")[2]

    first, second = gateway.run(f"curl {command}"), gateway.run(f"curl {command}")

    assert "fwd=miss; stored" in first.stdout, first.stderr
    assert "gateway; hit" in second.stdout
    assert (gateway.directory / "lighthouse.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_headers_side_by_side_are_those_of_a_miss_and_a_hit(gateway: ServedGateway) -> None:
    body = '{"prompt": "A lighthouse in a storm, waves breaking over the rocks", "seed": 77}'
    command = (
        "curl -sS http://127.0.0.1:8080/v1/ltx-2-19b-t2v -D - -o other.mp4 "
        f"""-H "x-api-key: $KEY" -H 'Content-Type: application/json' -d '{body}'"""
    )
    answers = [_headers(gateway.run(command).stdout) for _ in range(2)]
    rows = table_rows(README, after="## A miss and a hit")
    shown = {
        row[0].strip("`"): [cell.strip("`") for cell in row[1:]] for row in rows if row[0].startswith("`")
    }

    assert len(shown) > 5
    for name, cells in shown.items():
        for cell, answer in zip(cells, answers, strict=True):
            assert name.lower() in answer, name
            if name in ("x-cost", "Cache-Status"):
                pattern = re.sub(r"[0-9a-f]{8}…", "[0-9a-f]{64}", re.escape(cell).replace("\\…", "…"))
                assert re.fullmatch(pattern, answer[name.lower()]), (name, answer[name.lower()])
    assert shown["ETag"][0] == shown["ETag"][1]
    assert answers[0]["etag"] == answers[1]["etag"]


@pytest.mark.parametrize("commands", COMMANDS, ids=lambda commands: commands.strip().splitlines()[0][:60])
def test_every_marked_command_of_the_readme_runs(gateway: ServedGateway, commands: str) -> None:
    ran = gateway.run(commands)

    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert ran.stdout.strip()
    assert '"code"' not in ran.stdout, ran.stdout
    assert "FAILED" not in ran.stdout, ran.stdout
    if "/v2/" in commands:
        assert '"status":"COMPLETED"' in ran.stdout, ran.stdout


def test_every_command_that_can_be_run_is_marked() -> None:
    unmarked = set(blocks(README, language="sh")) - set(COMMANDS)

    assert len(COMMANDS) >= 5
    # What needs an account cannot be run here.
    assert all("SEGMIND_API_KEY" in commands for commands in unmarked), unmarked


def test_the_snippet_saves_a_playable_file_and_the_same_again(gateway: ServedGateway) -> None:
    (snippet,) = SNIPPETS

    files = []
    for _ in range(2):
        ran = run_snippet(gateway, snippet)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
        files.append((gateway.directory / "video.mp4").read_bytes())

    assert files[0][4:8] == b"ftyp"
    assert files[0] == files[1]


def test_the_snippet_as_the_page_has_it_works_with_one_more_header(gateway: ServedGateway) -> None:
    (snippet,) = SNIPPETS
    content_type = '"Content-Type": "application/json"'
    asked = snippet.replace(content_type, f'{content_type},\n    "Accept": "application/json"')
    writes = re.compile(r"    with open.*\n        file\.write.*\n")
    as_the_page_has_it, changed = writes.subn(
        "    result = response.json()\n    print(json.dumps(result, indent=2))\n", asked
    )
    assert changed == 1

    ran = run_snippet(gateway, as_the_page_has_it)

    assert json.loads(ran.stdout)["status"] == "COMPLETED", ran.stderr
    assert '"Accept": "application/json"' in README


def test_the_snippet_differs_from_the_page_in_url_key_and_what_it_does_with_the_answer() -> None:
    (snippet,) = SNIPPETS

    assert snippet.startswith("import requests\nimport json\n")
    assert 'url = "http://127.0.0.1:8080/v1/ltx-2-19b-t2v"' in snippet
    assert '"x-api-key": "gwk_..."' in snippet
    assert "requests.post(url, headers=headers, json=data)" in snippet
    assert "file.write(response.content)" in snippet


@pytest.mark.parametrize("command", ["run", "test", "check"])
def test_the_make_commands_of_the_readme_are_in_the_makefile(command: str) -> None:
    assert f"make {command}" in README
    assert re.search(rf"^{command}:", text_of("Makefile"), flags=re.MULTILINE)


def test_the_map_of_rooms_has_every_room_and_no_other() -> None:
    drawn = set(re.findall(r"^[├└]── ([a-z_]+)(?:/|\.py)", README, flags=re.MULTILINE))
    package = PROJECT / "gateway"
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}

    assert drawn == rooms | {"app", "settings"}


@pytest.mark.parametrize(
    "document",
    ["README.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md"))],
)
def test_links_within_the_documents_lead_somewhere(document: str) -> None:
    for target, anchor in RELATIVE_LINK.findall(text_of(document)):
        path = (PROJECT / document).parent / target if target else PROJECT / document
        assert path.exists(), target
        if anchor:
            assert anchor in _anchors(path), f"{target}#{anchor}"


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _headers(dump: str) -> dict[str, str]:
    return {
        name.lower(): value.strip()
        for name, colon, value in (line.partition(":") for line in dump.splitlines())
        if colon
    }
