"""Time as an argument."""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since the Unix epoch, UTC. Production passes the system's clock, a test its own."""
