"""The project as it lies on the disk, and the gateway as a stranger starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]

URL = "http://127.0.0.1:8080"
OPERATIONS_URL = "http://127.0.0.1:9464"
"""Where the documentation says that the gateway is: config/gateway.yaml."""

_NOT_OURS = {".git", ".venv", "var", "dist", "node_modules"}


def text_of(path: str) -> str:
    """A file of the project."""
    return (PROJECT / path).read_text(encoding="utf-8")


def files_of_ours() -> Sequence[Path]:
    """Every file that is the project's, by git if there is a git, else by looking; caches are nobody's."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"],
            cwd=PROJECT, capture_output=True, check=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        found = [PROJECT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        found = [path for path in PROJECT.rglob("*") if _NOT_OURS.isdisjoint(path.relative_to(PROJECT).parts)]
    return sorted(
        path for path in found if path.is_file() and not any(part.endswith("cache__") for part in path.parts)
    )


def blocks(document: str, *, language: str, marked: str | None = None) -> list[str]:
    """The fenced blocks of a language in a Markdown text; those alone that follow `<!-- marked -->`, if that is given."""
    before = "" if marked is None else rf"<!-- {re.escape(marked)} -->\n"
    return re.findall(rf"^{before}```{language}\n(.*?)^```$", document, flags=re.MULTILINE | re.DOTALL)


def table_rows(document: str, *, after: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its head."""
    rest = document.partition(f"{after}\n")[2]
    assert rest, f"no heading {after!r}"
    rows: list[list[str]] = []
    for line in rest.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


@dataclass(frozen=True, slots=True)
class ServedGateway:
    """A gateway that was started with the command that the Makefile has."""

    directory: Path
    """Looks like the project to whoever works in it: config/, .venv/bin/gateway."""

    environment: dict[str, str]
    greeting: str
    url: str
    operations_url: str
    key: str

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run shell commands out of a document, as they stand but for the ports."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(script)],
            cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    def here(self, text: str) -> str:
        """A text of the documentation, with the ports that this gateway has."""
        return text.replace(URL, self.url).replace(OPERATIONS_URL, self.operations_url)

    def there(self, text: str) -> str:
        """What this gateway said, with the ports and the key that the documentation has."""
        return (
            text.replace(self.url, URL)
            .replace(self.operations_url, OPERATIONS_URL)
            .replace(self.key, "gwk_...")
        )


@contextmanager
def served_gateway(directory: Path) -> Iterator[ServedGateway]:
    """`gateway serve` with config/gateway.yaml, but for its ports and its directory; a hundred times as fast."""
    (directory / "config").symlink_to(PROJECT / "config")
    command = directory / ".venv" / "bin" / "gateway"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(PROJECT),
        "GATEWAY_STORAGE__DIRECTORY": str(directory / "var"),
        "GATEWAY_LISTEN__PORT": "0",
        "GATEWAY_OPERATIONS__PORT": "0",
        "GATEWAY_SANDBOX__PORT": "0",
        "GATEWAY_SANDBOX__TIME_SCALE": "0.0002",
    }
    with (
        (directory / "log.jsonl").open("w") as log,
        subprocess.Popen(
            [command, "serve", "--config", "config/gateway.yaml"],
            cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while "-d '" not in "".join(lines):
                line = process.stdout.readline()
                assert line, f"the gateway did not start: {(directory / 'log.jsonl').read_text()}"
                lines.append(line)
            greeting = "".join(lines)
            key = _word_after("Tenant key", greeting)
            yield ServedGateway(
                directory,
                environment | {"KEY": key},
                greeting,
                _word_after("Gateway", greeting),
                _word_after("Operations", greeting).removesuffix("/metrics"),
                key,
            )
        finally:
            process.terminate()
            process.communicate(timeout=60)


def _word_after(label: str, greeting: str) -> str:
    found = re.search(rf"^{label}\s+(\S+)", greeting, flags=re.MULTILINE)
    assert found, greeting
    return found[1]
