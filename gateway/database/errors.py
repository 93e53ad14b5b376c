"""What can be wrong with a database before it is used."""

from __future__ import annotations


class DatabaseTooNew(Exception):
    """The file was written by a newer gateway; opening it with this one could lose what it does not know."""
