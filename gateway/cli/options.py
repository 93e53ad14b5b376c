"""What every command takes: where the configuration is, and what is to be said instead of it."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from gateway.settings import CONFIG_VARIABLE, Settings, load_settings

Flag = Annotated[bool, Parameter(negative=())]
"""An option without a value, and without a `--no-` of its own."""

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
"""How many things of a list are shown."""

_DEFAULT_CONFIG = Path("config/gateway.yaml")


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Options:
    """Where the settings come from."""

    config: Annotated[Path, Parameter(env_var=CONFIG_VARIABLE)] = _DEFAULT_CONFIG
    """The configuration file."""

    set: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    """section.name=value instead of what the file says; may be repeated."""

    def having(self, *overrides: str) -> Options:
        """The same, with more to be said instead of what the file says."""
        return replace(self, set=(*self.set, *overrides))

    def arguments(self) -> list[str]:
        """The same, as another `gateway` command is given it."""
        overrides = [argument for override in self.set for argument in ("--set", override)]
        return ["--config", str(self.config), *overrides]

    def settings(self) -> Settings:
        """The settings. Raises DocumentInvalid."""
        return load_settings(self.config, overrides=self.set, environment=os.environ)


FILE_AND_ENVIRONMENT = Options()


def whoever_runs_this() -> str:
    """Who changes something, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        # In a container nobody may have given this user a name.
        return f"cli:{os.getuid()}"
