"""The `gateway` command."""

from __future__ import annotations

import os
import sys

from cyclopts import App

from gateway import __version__
from gateway.cli.collector import leave_alone
from gateway.database.errors import DatabaseTooNew
from gateway.documents.yaml_files import DocumentInvalid
from gateway.domain.errors import CannotStart, GatewayError

app = App(
    name="gateway",
    help="A caching gateway in front of paid generative-media APIs: an identical request is paid for once.",
    version=__version__,
)
# By name: a command brings only what it needs itself, and the sandbox needs a video encoder.
app.command("gateway.cli.serve:serve", help="Run the gateway.")
app.command("gateway.cli.sandbox:sandbox", help="Run the stand-in for the upstream alone, on a port.")
app.command(
    "gateway.cli.tenants:tenants", help="Apply, list, move and top up tenants; show who changed what."
)
app.command("gateway.cli.keys:keys", help="Make, list, rotate and revoke tenants' keys.")
app.command("gateway.cli.usage:usage", help="Say who has used how much, and when each budget runs out.")
app.command("gateway.cli.purchases:purchases", help="List, show and resolve purchases.")
app.command("gateway.cli.ledger:ledger", help="Examine the ledger, or copy it.")
app.command("gateway.cli.alerts:alerts", help="List what was told of budgets; try whether somebody listens.")
app.command("gateway.cli.config:config", help="Check the configuration.")
app.command("gateway.cli.models:models", help="List the models, or show one.")
app.command("gateway.cli.quote:quote", help="Ask the running gateway what a request would come to.")


def main() -> None:
    """Run the command that was asked for; what is wrong is said on standard error, in a line or a few."""
    # Before the command is loaded, which is most of what there is to load.
    leave_alone()
    try:
        try:
            app()
        finally:
            # Here, where it can still be told that nobody reads any more.
            sys.stdout.flush()
    except (CannotStart, DatabaseTooNew, DocumentInvalid, GatewayError) as error:
        sys.exit(f"gateway: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever reads has seen enough (`| head`). What is still to be written goes nowhere, without another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
