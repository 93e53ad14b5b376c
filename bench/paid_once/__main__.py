"""How often is one video paid for? The gateway beside what a user would pick instead: `python -m bench.paid_once --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from bench.paid_once import peer_library, scenes
from bench.paid_once.ours import PROJECT, Gateway
from bench.paid_once.programs import DidNotStart
from bench.paid_once.report import Row, page
from bench.paid_once.scenes import SLOW_UPSTREAM_SECONDS, UPSTREAM_SECONDS, Running, Scene
from bench.paid_once.servers import Nginx, Varnish, nginx_version, varnish_version
from gateway import __version__

_HERE = Path(__file__).parent
_QUICK_SCALE = 0.1
_SCENE_BOUND_SECONDS = 420.0
_ROOM_FOR_TWO_USD = 1.0
CANDIDATES = ("gateway", "nginx", "varnish", "litellm")


class Setup(Protocol):
    """A candidate in one configuration."""

    @property
    def name(self) -> str: ...

    def running(
        self, root: Path, *, delay_seconds: float, scale: float
    ) -> AbstractAsyncContextManager[Running]: ...


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table, before it was seen."""

    setup: Setup
    told: str
    scene: Scene
    upstream_seconds: float = UPSTREAM_SECONDS


_HERD = "20 identical requests at once"
_AGAIN = "the same 20 again, later"
_HANG_UP = "one begins, 19 join, the first hangs up"
_RETRY = "slow upstream; one caller, who retries once"
_SLOW = "slow upstream; 20 identical requests at once"
_CRASH = "20 identical requests; SIGKILL half-way, restart, all ask again"
_BUDGET = "20 different requests at once, room for 2 in the budget"

_LOCKED = Nginx("nginx, lock on", lock=True)
_TUNED = Nginx("nginx, lock and time-outs tuned", lock=True, tuned=True)
_BEST = Nginx("nginx, tuned, ignores hang-ups", lock=True, tuned=True, ignores_hang_ups=True)
_PLAIN = Nginx("nginx, cache on, defaults")
_POST = Varnish("Varnish, POST", method="POST")
_GET = Varnish("Varnish, GET", method="GET")
_PATIENT = Varnish("Varnish, GET, time-out tuned", method="GET", tuned=True)
_NGINX = (_PLAIN, _LOCKED, _TUNED, _BEST)
_VARNISH = (_POST, _GET, _PATIENT)


def _lines_of_nginx() -> Sequence[Line]:
    return [
        Line(_PLAIN, _HERD, scenes.herd),
        Line(_LOCKED, _HERD, scenes.herd),
        Line(_TUNED, _HERD, scenes.herd),
        Line(_TUNED, _HANG_UP, scenes.hang_up),
        Line(_BEST, _HANG_UP, scenes.hang_up),
        Line(_PLAIN, _RETRY, scenes.retry, SLOW_UPSTREAM_SECONDS),
        Line(_BEST, _RETRY, scenes.retry, SLOW_UPSTREAM_SECONDS),
        Line(_BEST, _CRASH, scenes.crash),
    ]


def _lines_of_varnish() -> Sequence[Line]:
    return [
        Line(_POST, _HERD, scenes.herd),
        Line(_GET, _HERD, scenes.herd),
        Line(_GET, _HANG_UP, scenes.hang_up),
        Line(_GET, _SLOW, scenes.herd, SLOW_UPSTREAM_SECONDS),
        Line(_PATIENT, _SLOW, scenes.herd, SLOW_UPSTREAM_SECONDS),
        Line(_PATIENT, _CRASH, scenes.crash),
    ]


def _lines_of_ours() -> Sequence[Line]:
    one = Gateway("**gateway, 1 worker**", 1)
    two = Gateway("**gateway, 2 workers**", 2)
    return [
        Line(one, _HERD, scenes.herd),
        Line(one, _AGAIN, scenes.again),
        Line(one, _HANG_UP, scenes.hang_up),
        Line(one, _RETRY, scenes.retry, SLOW_UPSTREAM_SECONDS),
        Line(one, _SLOW, scenes.herd, SLOW_UPSTREAM_SECONDS),
        Line(one, _CRASH, scenes.crash),
        Line(two, _HERD, scenes.herd),
        Line(two, _HANG_UP, scenes.hang_up),
        Line(two, _SLOW, scenes.herd, SLOW_UPSTREAM_SECONDS),
        Line(two, _CRASH, scenes.crash),
        Line(replace(two, limit_usd=_ROOM_FOR_TWO_USD), _BUDGET, scenes.budget),
    ]


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="paid-once-") as name:
        root = Path(name)
        # The peers do not run as root, and have to get to what is theirs.
        root.chmod(0o755)
        yield root


async def _see(line: Line, scale: float) -> Row:
    with _scratch() as root:
        try:
            async with (
                asyncio.timeout(_SCENE_BOUND_SECONDS),
                line.setup.running(
                    root, delay_seconds=line.upstream_seconds * scale, scale=scale
                ) as candidate,
            ):
                return Row(line.setup.name, line.told, await line.scene(candidate, scale))
        except (DidNotStart, TimeoutError) as error:
            return Row(line.setup.name, line.told, None, f"{type(error).__name__} {error}"[-300:])


async def _litellm(python: Path, scale: float) -> Sequence[Row]:
    rows = []
    for kind, name in (
        ("chat", "LiteLLM, local cache, acompletion"),
        ("video", "LiteLLM, local cache, avideo_generation"),
    ):
        try:
            seen = await peer_library.calls(python, kind, scale)
        except DidNotStart as error:
            rows.append(Row(name, _HERD, None, str(error)[-300:]))
        else:
            rows += [Row(name, _HERD, seen["cold"]), Row(name, _AGAIN, seen["again"])]
    name = "LiteLLM, budget reservation"
    try:
        models, nothing = await peer_library.estimates(python)
    except DidNotStart as error:
        rows.append(Row(name, _BUDGET, None, str(error)[-300:]))
    else:
        held = f"its estimate, asked directly, is $0.00 for {nothing} of the {models} video models of its price list"
        rows.append(Row(name, _BUDGET, None, f"not run; {held}"))
    for row in rows:
        _tell(row)
    return rows


async def _rows(name: str, title: str, version: str | None, options: argparse.Namespace) -> Sequence[Row]:
    """All that is seen of one candidate, one scene after the other."""
    if version is None:
        return [Row(title, "all", None, "not installed")]
    if name == "litellm":
        return await _litellm(options.litellm_python, options.scale)
    lines = {"gateway": _lines_of_ours, "nginx": _lines_of_nginx, "varnish": _lines_of_varnish}[name]()
    rows = []
    for line in lines:
        if options.scene in line.told:
            rows.append(await _see(line, options.scale))
            _tell(rows[-1])
    return rows


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 -- this is a coroutine
    # Told to stop, it stops what it has started first.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    scale = options.scale
    asked = {
        "gateway": ("gateway", __version__),
        "nginx": ("nginx", await nginx_version()),
        "varnish": ("Varnish", await varnish_version()),
        "litellm": ("LiteLLM", await peer_library.version(options.litellm_python)),
    }
    asked = {name: asked[name] for name in CANDIDATES if name in options.only}
    # Each has an upstream of its own, and mostly waits: all candidates at once disturb no count.
    rows = await asyncio.gather(*(_rows(name, *told, options) for name, told in asked.items()))
    text = page(
        [row for of_one in rows for row in of_one],
        scale=scale,
        command=_command(options, scale),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        versions=dict(asked.values()),
        configuration=_configuration(options.only, scale),
    )
    results = options.results or _HERE / ("RESULTS.md" if scale == 1 else "RESULTS-quick.md")
    results.write_text(text, encoding="utf-8")
    _say(f"\n{text}\nWritten to {results}")


def _configuration(only: Sequence[str], scale: float) -> Sequence[tuple[str, Sequence[str]]]:
    told: list[tuple[str, Sequence[str]]] = []
    if "gateway" in only:
        told.append(("gateway", [] if scale == 1 else Gateway.settings(scale)))
    if "nginx" in only:
        told += [(setup.name, setup.settings(scale)) for setup in _NGINX]
    if "varnish" in only:
        told += [(setup.name, setup.settings(scale)) for setup in _VARNISH]
    if "litellm" in only:
        told.append(("LiteLLM", ['litellm.cache = Cache(type="local")', "caching=True (video)"]))
    return told


def _command(options: argparse.Namespace, scale: float) -> str:
    words = ["python -m bench.paid_once"]
    if scale != _QUICK_SCALE:
        words.append("--full" if scale == 1 else f"--scale {scale:g}")
    if tuple(options.only) != CANDIDATES:
        words += ["--only", *options.only]
    if options.scene:
        words.append(f"--scene '{options.scene}'")
    return " ".join(words)


def _tell(row: Row) -> None:
    seen = row.seen
    result = (
        row.remark
        if seen is None
        else f"paid {seen.bill.calls}, delivered {seen.delivered} of {len(seen.answers)}"
    )
    _say(f"{row.setup}: {row.scene}: {result}")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 -- a command prints


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.paid_once", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--scale", type=float, default=_QUICK_SCALE, help="of the real lengths (default: %(default)s)"
    )
    length.add_argument(
        "--full", dest="scale", action="store_const", const=1.0, help="12 s and 70 s; all defaults left alone"
    )
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=CANDIDATES, metavar="CANDIDATE")
    parser.add_argument("--scene", default="", help="only scenes whose description has this in it")
    parser.add_argument("--results", type=Path, help="where the table goes; beside this program if left out")
    parser.add_argument(
        "--litellm-python",
        type=Path,
        default=PROJECT / "var" / "bench" / "litellm" / "bin" / "python",
        help="the interpreter of the environment that has LiteLLM (default: where install-peers puts it)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(_run(_options()))
