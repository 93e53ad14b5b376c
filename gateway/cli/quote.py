"""`gateway quote`"""

from __future__ import annotations

import json as json_
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Annotated, Any
from urllib.parse import quote as escaped

from cyclopts import Parameter

from gateway.cli.options import FILE_AND_ENVIRONMENT, Flag, Options
from gateway.cli.tables import aligned
from gateway.domain.errors import CannotStart
from gateway.domain.money import Money
from gateway.settings import Settings

KEY_VARIABLE = "GATEWAY_API_KEY"

_PATIENCE_SECONDS = 30.0
_HEADER = ("BUDGET", "OF", "LEFT", "AFTERWARDS", "FITS", "RESETS", "RUNS OUT")
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 -- where a gateway listens that listens everywhere


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key along to wherever that leads."""

    def redirect_request(self, *_: object) -> None:
        return None


def quote(
    model: str,
    parameters: Annotated[str, Parameter(allow_leading_hyphen=True)] = "-",
    *,
    url: str | None = None,
    json: Flag = False,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """Ask the running gateway what a request would come to; nothing is bought. Whose request: GATEWAY_API_KEY says.

    Parameters
    ----------
    model
        The model.
    parameters
        The request's JSON; - reads it from standard input.
    url
        Where the gateway is; by default where the settings say that it listens.
    json
        Print the gateway's answer as it is.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise CannotStart(
            f"Put the key of whoever asks into the environment variable {KEY_VARIABLE}; `gateway keys create` makes one."
        )
    if not key.isascii() or not key.isprintable():
        # The library would say so, too, and show it.
        raise CannotStart(f"What is in {KEY_VARIABLE} is no key: it is one line of letters and digits.")
    body = sys.stdin.read() if parameters == "-" else parameters
    address = url.rstrip("/") if url else _address(options.settings())
    told = _asked(f"{address}/v1/{escaped(model, safe='')}/quote", key, body)
    print(json_.dumps(told, indent=2) if json else "\n".join(_lines(told)))


def _address(settings: Settings) -> str:
    listen = settings.listen
    return f"http://{_ANYWHERE.get(listen.host, listen.host)}:{listen.port}"


def _asked(url: str, key: str, body: str) -> Any:
    if not url.startswith(("http://", "https://")):
        raise CannotStart(
            f"--url {url} is no address: write http://127.0.0.1:8080, or wherever the gateway is."
        )
    request = urllib.request.Request(  # noqa: S310 -- http and https alone, as was seen to above
        url, body.encode(), {"x-api-key": key, "Content-Type": "application/json"}
    )
    try:
        with urllib.request.build_opener(_Unmoved).open(request, timeout=_PATIENCE_SECONDS) as answer:
            return json_.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            raise CannotStart(_reason(refused)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CannotStart(
            f"No quote from {url}: {reason}. Is the gateway running there? --url says where else."
        ) from None


def _reason(refused: urllib.error.HTTPError) -> str:
    try:
        return str(json_.load(refused)["error"])
    except (ValueError, KeyError, TypeError):
        return f"The answer from {refused.url} was {refused.status}: that is no gateway."


def _lines(told: Any) -> Iterator[str]:
    price, evidence, seconds, place = told["price"], told["evidence"], told["seconds"], told["queue"]["place"]
    seen = (
        f"{evidence['purchases']} like it since {evidence['since']}" if evidence["purchases"] else "none yet"
    )
    yield f"{told['model']}: {told['outcome'].replace('_', ' ')}"
    yield f"held       {_usd(price, 'held')}"
    yield f"expected   {_usd(price, 'expected')}"
    yield f"evidence   {seen}; the rule says {_usd(price, 'rule')}"
    yield f"takes      {seconds['p50']:.4g} s, seldom more than {seconds['p95']:.4g} s"
    yield f"waits      {f'for a slot, as number {place} in the line' if place else 'for nobody'}"
    yield f"fits       {'yes' if told['fits'] else 'no: it would be refused'}"
    if told["budgets"]:
        yield ""
        yield from aligned(_HEADER, map(_cells, told["budgets"]), right=("LEFT", "AFTERWARDS"))


def _cells(budget: Any) -> Sequence[object]:
    return (
        budget["name"],
        budget["of"],
        _usd(budget, "remaining"),
        _usd(budget, "remaining_after"),
        "yes" if budget["fits"] else "no",
        budget["resets_at"] or "-",
        budget["runs_out_at"] or "-",
    )


def _usd(amounts: Any, name: str) -> str:
    return str(Money(amounts[f"{name}_micros"]))
