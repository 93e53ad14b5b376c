"""`python -m gateway` is the `gateway` command."""

from __future__ import annotations

from gateway.cli.main import main

if __name__ == "__main__":
    main()
