"""`gateway config`"""

from __future__ import annotations

from cyclopts import App

from gateway.app.opening import declared
from gateway.cli.options import FILE_AND_ENVIRONMENT, Options

config = App(name="config", help="Check the configuration.")


@config.command
def check(options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Read the settings, every model and every tenant, and say what is wrong, by file, line and column."""
    settings = options.settings()
    catalog, tenants = declared(settings)
    models, names = sum(1 for _ in catalog), ", ".join(tenant.name for tenant in tenants)
    print(
        f"{options.config}: in order; {models} models; tenants: {names or 'none'}; upstream: {settings.upstream.kind}."
    )
