"""How long, how often and how much."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """None of these ends a purchase: they end one call, or one wait between calls."""

    connections: int = 100
    """Open connections, for purchases, questions and downloads each. A poll is short: a few serve thousands of waits."""

    connect_seconds: float = 5.0
    """From asking for a connection to having it, the wait for a free one included."""

    answer_seconds: float = 60.0
    """For the whole of a short answer: a submit, a poll, a result, the history, the credits."""

    answer_max_bytes: int = 64 * 1024**2
    """The longest such answer, unpacked; media may be inside as base64."""

    submit_attempts: int = 3
    """How often a submit is sent in all, if each time before proved not to be a purchase and may pass."""

    submit_backoff_seconds: float = 0.5
    """The wait before the second attempt; doubled before each further one."""

    submit_patience_seconds: float = 10.0
    """When a rate limit asks for a longer wait than this, the caller is told instead."""

    rate_limit_seconds: float = 10.0
    """The wait after a rate limit that does not say for how long."""

    poll_first_seconds: float = 0.25
    """The wait before the second poll; no other is shorter."""

    poll_factor: float = 1.25
    """Each further wait is so many times the one before, where nobody knows how long it usually takes."""

    poll_longest_seconds: float = 10.0
    """No wait between polls is longer (a rate limit's own word excepted, and the wait for a turn)."""

    polls_per_second: float = 50.0
    """Of all purchases together; 0 for no limit. Beyond it, those wait longest that could wait longest anyway."""

    poll_patience_seconds: float = 60.0
    """How far a rate limit's own word may stretch a wait between polls."""

    missing_grace_seconds: float = 60.0
    """How long the upstream must go on not knowing a ticket before it counts as forgotten: its records may lag."""

    download_attempts: int = 4
    """How often a file is asked for until its first bytes are there."""

    download_backoff_seconds: float = 0.5
    """The wait before the second such attempt; doubled before each further one."""

    download_read_seconds: float = 60.0
    """The longest silence within a download."""

    artifact_max_bytes: int = 8 * 1024**3
    """The longest file that is taken."""

    v1_answer_seconds: float = 900.0
    """From sending a v1 call to the head of its answer: the model works in between."""

    v1_held_seconds: float = 300.0
    """How long a v1 answer is held open for `collect` to fetch it."""


def growing(first_seconds: float, factor: float = 2.0, longest_seconds: float = 60.0) -> Iterator[float]:
    """Waits, each longer than the one before, up to the longest; shaken, so that many waiters spread. Never ends."""
    wait_seconds = first_seconds
    while True:
        yield wait_seconds * random.uniform(0.8, 1.2)  # noqa: S311 -- spreads load, hides nothing
        wait_seconds = min(wait_seconds * factor, longest_seconds)
