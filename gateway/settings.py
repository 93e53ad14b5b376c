"""One typed tree of settings: YAML in, unknown names refused by line, secrets named and never written.

A setting comes from the file; `GATEWAY_SECTION__NAME` in the environment comes before the file, and
`--set section.name=value` before both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gateway.documents.pydantic_models import parse
from gateway.documents.spelling import remedy
from gateway.documents.yaml_files import DocumentInvalid, Mistake, read, read_text
from gateway.domain.generation import Json

ENVIRONMENT_PREFIX = "GATEWAY_"
CONFIG_VARIABLE = "GATEWAY_CONFIG"

_NOTHING = ("", "~", "null")
"""What YAML calls so; as a whole document it would be an empty file."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or (unit := match[2].upper()) not in _UNITS:
        raise ValueError(
            f"{value!r} is not a size; write bytes, or a number with KiB, MiB, GiB or TiB: `20GiB`"
        )
    return int(float(match[1]) * _UNITS[unit])


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", value):
        raise ValueError(f"{value!r} is not an address such as https://gateway.example.com")
    return value.rstrip("/")


def _webhook_url(value: str) -> str:
    # What is said of it does not repeat it: an address may hold a secret.
    wrong = ValueError("should be an address such as https://alerts.example.com/gateway")
    if not re.fullmatch(r"https?://[^/?#\s@]+(/[^#\s]*)?", value):
        raise wrong
    try:
        has_host = bool(urlsplit(value).hostname) and urlsplit(value).port != 0
    except ValueError:
        has_host = False
    if not has_host:
        raise wrong
    return value


Bytes = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=int | str), Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Url = Annotated[str, AfterValidator(_url)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ListenSettings(_Section):
    """Where callers reach the gateway."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 for every address of the machine."""

    port: Port = 8080
    """The port to listen on; 0 for one that the system chooses."""

    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """How many processes serve the port; also `gateway serve --workers`. One that dies is replaced."""

    public_url: Url | None = None
    """How callers reach the gateway, for the links in its answers; without it, the host that the caller named."""

    max_body_bytes: Bytes = 32 * 2**20
    """The largest request body; images may travel in one as base64."""

    body_timeout_seconds: Seconds = 30.0
    """How long a caller may take to send its body."""

    keepalive_seconds: Seconds = 75.0
    """How long an idle connection stays open."""

    hit_path: bool = True
    """Whether plain requests for what is cached are answered from memory, on the connection itself; false to do without:
    every answer is the same, and comes later."""

    hit_path_max_bytes: Bytes = 64 * 2**20
    """How much memory the hit path may use for small media, and for request bodies as much again."""


class OperationsSettings(_Section):
    """Where metrics and health are served, apart from the callers."""

    host: str = "127.0.0.1"
    """The address to listen on."""

    port: Port = 9464
    """The port to listen on; 0 for one that the system chooses."""


class AdminSettings(_Section):
    """Where tenants and keys are administered over HTTP, with keys of the role admin."""

    served_on: Literal["operations", "listen", "nowhere"] = "operations"
    """On which listener /admin is: the operators' own, the callers', or on none."""


class StorageSettings(_Section):
    """What is kept on disk."""

    directory: Path = Path("../var")
    """Where ledger, cache and media lie; relative to the configuration file."""

    max_bytes: Bytes = 20 * 2**30
    """How many bytes of media are kept; what was used least recently goes first."""

    entries_max_bytes: Bytes = 256 * 2**20
    """How many bytes of cache entries are kept, at a few hundred a generation."""


class UpstreamSettings(_Section):
    """Who makes the media."""

    kind: Literal["segmind", "sandbox"] = "segmind"
    """`segmind` for an account there, `sandbox` for the stand-in that the gateway starts itself."""

    base_url: Url = "https://api.segmind.com"
    """Where the upstream is; not used with the sandbox."""

    history_url: Url | None = None
    """Where the account's request history is, for results whose record has expired; without it, Segmind's own for
    Segmind and base_url for anything else."""

    api_key_env: str | None = "SEGMIND_API_KEY"
    """The environment variable that holds the account's key: secrets are named here, never written."""

    api_key_file: Path | None = None
    """The file that holds the account's key; comes before api_key_env."""

    result_hosts: frozenset[str] = frozenset({"images.segmind.com", "api.segmind.com"})
    """The hosts from which results may be downloaded; the account's key is never sent to them."""

    slots: Annotated[int, Field(ge=0)] = 0
    """How many generations each worker may have under way at once; 0 for no limit. Tenants take turns for them."""

    most_waiting: Annotated[int, Field(ge=0)] = 1000
    """How many generations may wait for a slot of a worker; the next is refused with 503."""

    connect_timeout_seconds: Seconds = 5.0
    """How long connecting may take."""

    answer_timeout_seconds: Seconds = 60.0
    """How long one short answer of the upstream may take: to a submit, a poll, a question."""

    connections: Annotated[int, Field(ge=1)] = 100
    """How many connections to the upstream may be open for each kind of call."""

    submit_attempts: Annotated[int, Field(ge=1)] = 3
    """How often a purchase is tried that proved not to have been made (refused connections, 429, 500, 503)."""

    poll_first_seconds: Seconds = 0.25
    """The pause after the first poll, and the shortest between any two."""

    poll_longest_seconds: Seconds = 10.0
    """The longest pause between polls. They come close together when a model's expected_seconds are nearly over."""

    polls_per_second: Annotated[float, Field(ge=0)] = 50.0
    """How often each worker polls in all, however many generations it waits for; 0 for no limit."""

    recollect_seconds: Seconds = 7 * 24 * 3600.0
    """For how long after it was made a lost result is fetched again rather than bought again."""


class SandboxSettings(_Section):
    """The stand-in for the upstream; used with upstream.kind sandbox, and by `gateway sandbox`."""

    host: str = "127.0.0.1"
    """The address to listen on."""

    port: Port = 9191
    """The port to listen on."""

    time_scale: Annotated[float, Field(ge=0)] = 0.02
    """How long it takes, as a share of the real model's time: 0.02 makes two seconds of 103."""

    directory: Path | None = None
    """Where its jobs, bill and media lie; by default `sandbox` under storage.directory."""


class LinkSettings(_Section):
    """Links to media, which work without a key."""

    lifetime_seconds: Seconds = 7 * 24 * 3600.0
    """How long a link works after the request that it answers."""


class ChargebackSettings(_Section):
    """What tenants owe each other for what one of them has paid for: in reports; budgets know nothing of it."""

    payers: Literal["first", "split"] = "first"
    """Who pays for a generation that several tenants asked for while it was made: the `first`, or all of them alike."""

    hit_price: Annotated[float, Field(ge=0, le=1)] = 0
    """What a hit costs another tenant than the one who paid, as a fraction of the original's cost; goes to who paid."""


class RequestSettings(_Section):
    """The resources behind /v2/requests/{id}."""

    retention_seconds: Seconds = 30 * 24 * 3600.0
    """How long a concluded request can be asked for."""


class LedgerSettings(_Section):
    """The journal of purchases."""

    lease_seconds: Seconds = 15.0
    """After how long of silence a process's open purchases may be adopted by another."""


class PriceSettings(_Section):
    """What is held for a request before its cost is known."""

    hold: Literal["learned", "rule"] = "learned"
    """`learned` holds what nearly all purchases of the same shape have cost lately, and no less than the catalogue's rule
    until there are enough of them; `rule` holds what the rule says."""


class ReconcileSettings(_Section):
    """What is done about purchases of which nobody knows whether they were made."""

    interval_seconds: Seconds = 30.0
    """How often the upstream's own history is asked about them."""

    history_lag_seconds: Seconds = 7200.0
    """How late the history may be: what it does not show by then was not bought."""

    wait_seconds: Seconds = 60.0
    """How long an identical request waits for the answer before it gets a 504."""

    on_unknown: Literal["wait", "buy_again"] = "wait"
    """`buy_again` takes an unknown purchase for lost as soon as the same is asked for again, and pays twice."""


class AlertSettings(_Section):
    """What is told of budgets before they are used up."""

    webhook_url: Annotated[str, AfterValidator(_webhook_url)] | None = None
    """Where alerts are sent, signed as Standard Webhooks has it; without it they are in the log and the metrics alone."""

    webhook_secret_env: str | None = "ALERTS_WEBHOOK_SECRET"  # noqa: S105 -- the name of a variable
    """The environment variable that holds the secret that signs (`whsec_...`): it is named here, never written."""

    webhook_secret_file: Path | None = None
    """The file that holds the secret; comes before webhook_secret_env."""

    thresholds: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (50, 80, 100)
    """At which hundredths of a limit an alert is raised, for budgets without an alert_at of their own."""

    projected: bool = True
    """Whether one is raised, too, when a budget will be used up before its window ends, at the present pace."""

    interval_seconds: Seconds = 5.0
    """How often the books are looked at."""

    timeout_seconds: Seconds = 15.0
    """How long the receiver may take to answer; after that it is tried again later."""

    retention_seconds: Seconds = 90 * 24 * 3600.0
    """How long an alert can be looked at; what is still to be sent, and the newest of each threshold, is kept."""


class ShutdownSettings(_Section):
    """What happens on SIGTERM."""

    grace_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long generations under way may take to land; what has not is gone on with after the restart."""


class LogSettings(_Section):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written; a line a request is written at info."""


class Settings(_Section):
    """All of them."""

    listen: ListenSettings = ListenSettings()
    operations: OperationsSettings = OperationsSettings()
    admin: AdminSettings = AdminSettings()
    storage: StorageSettings = StorageSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    sandbox: SandboxSettings = SandboxSettings()
    models: Path = Path("models/")
    """The directory with a file for each model; relative to the configuration file."""

    tenants: Path = Path("tenants.yaml")
    """The file with the tenants and their budgets; relative to the configuration file."""

    links: LinkSettings = LinkSettings()
    chargeback: ChargebackSettings = ChargebackSettings()
    requests: RequestSettings = RequestSettings()
    ledger: LedgerSettings = LedgerSettings()
    prices: PriceSettings = PriceSettings()
    reconcile: ReconcileSettings = ReconcileSettings()
    alerts: AlertSettings = AlertSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    log: LogSettings = LogSettings()

    @property
    def sandbox_directory(self) -> Path:
        """Where the sandbox keeps its things."""
        return self.sandbox.directory or self.storage.directory / "sandbox"


def load_settings(path: Path, *, overrides: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings in the file `path`, with what the environment and `--set` say instead.

    Paths in it are relative to the file. Raises DocumentInvalid with every mistake that there is.
    """
    document = read(path)
    for place, text, where in (*_from_environment(environment), *_from_overrides(overrides)):
        value = None if text.strip() in _NOTHING else read_text(text, name=where).value
        document = document.having(place, value, where=where)
    return _anchored(parse(document, Settings), path.parent)


def setting_names() -> Iterator[str]:
    """Every setting, as `--set` names it: `listen.port`."""
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            yield from (f"{name}.{inner}" for inner in section.model_fields)
        else:
            yield name


def _from_overrides(overrides: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    known = list(setting_names())
    mistakes = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            mistakes.append(Mistake(f"--set {override}", "write section.name=value"))
        elif name not in known:
            mistakes.append(Mistake(f"--set {name}", f"unknown setting {name}{remedy(name, known)}"))
        else:
            yield tuple(name.split(".")), text, f"--set {name}"
    if mistakes:
        raise DocumentInvalid(mistakes)


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    # Only names with a double underscore are ours: an orchestrator may set GATEWAY_PORT for its own ends.
    known = {ENVIRONMENT_PREFIX + name.upper().replace(".", "__"): name for name in setting_names()}
    mistakes = []
    for variable, text in sorted(environment.items()):
        if variable in known:
            yield tuple(known[variable].split(".")), text, variable
        elif variable.startswith(ENVIRONMENT_PREFIX) and "__" in variable:
            mistakes.append(Mistake(variable, f"unknown setting {variable}{remedy(variable, known)}"))
    if mistakes:
        raise DocumentInvalid(mistakes)


def _anchored(settings: Settings, directory: Path) -> Settings:
    """The same settings, with every path as it is seen from the configuration file."""

    def anchor(value: Json | object) -> object:
        match value:
            case Path():
                return directory / value
            case _Section():
                return value.model_copy(
                    update={name: anchor(getattr(value, name)) for name in type(value).model_fields}
                )
            case _:
                return value

    anchored = anchor(settings)
    assert isinstance(anchored, Settings)  # noqa: S101 -- for the type checker: anchor keeps the type
    return anchored
