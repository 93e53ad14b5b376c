"""What can be made to go wrong, and whether it does so now.

A fault is switched on with a `probability`, a `count` of occurrences, or both; it may be narrowed to one `model` and
tuned by knobs of its own. What counts as an occurrence is the fault's `strikes`: faults of a job are drawn once, when the
job is accepted, and stay with it over restarts; all others are drawn anew for each request on the wire.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from gateway.domain.generation import Json

KnobValue: TypeAlias = bool | int | float | str


class BadSetting(Exception):
    """A setting that no fault understands; the text says what is wrong and names what is near."""


@dataclass(frozen=True, slots=True)
class Knob:
    name: str
    default: KnobValue
    meaning: str
    choices: tuple[KnobValue, ...] = ()
    """The values it can take; empty for any of its type (numbers: not below zero)."""

    def read(self, fault: str, given: Json) -> KnobValue:
        """`given`, checked. Raises BadSetting."""
        if self.choices and given not in self.choices:
            allowed = ", ".join(str(choice) for choice in self.choices)
            raise BadSetting(f"{fault}: {self.name} is one of {allowed}, not {given!r}")
        if isinstance(self.default, bool):
            if isinstance(given, bool):
                return given
        elif isinstance(self.default, str):
            if isinstance(given, str):
                return given
        elif isinstance(given, int | float) and not isinstance(given, bool) and given >= 0:
            return given
        kind = {bool: "true or false", str: "a text"}.get(type(self.default), "a number that is not below 0")
        raise BadSetting(f"{fault}: {self.name} is {kind}, not {given!r}")


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    strikes: str
    """Where an occurrence is drawn: `submit`, `poll`, `result`, `job`, `v1 job`, `v2 job` or `download`."""

    does: str
    knobs: tuple[Knob, ...] = ()


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One time that a fault has struck, with its knobs as they stood."""

    knobs: Mapping[str, KnobValue]

    def number(self, knob: str) -> float:
        return float(self.knobs[knob])

    def status(self) -> int:
        return int(self.knobs["status"])

    def text(self, knob: str) -> str:
        return str(self.knobs[knob])


_GATEWAY_STATUS = Knob("status", 504, "502 or 504", (502, 504))

FAULTS = (
    Fault("submit_rate_limited", "submit", "429 in place of an answer; nothing is queued or billed.",
          (Knob("reset_seconds", 30, "how far ahead x-rate-limit-reset-at-utc points"),)),
    Fault("submit_refused", "submit", "500 or 503 before queueing; nothing is queued or billed.",
          (Knob("status", 503, "500 or 503", (500, 503)),)),
    Fault("model_retired", "submit", "410 before queueing: the model is gone."),
    Fault("insufficient_credits", "submit", "Refused for want of credits, whatever the balance is.",
          (Knob("status", 402, "402 or 406", (402, 406)),)),
    Fault("submit_dropped", "submit", "Queued and billed, but the connection is closed without an answer."),
    Fault("submit_error", "submit", "502 or 504 after queueing: the job runs and is billed all the same.",
          (_GATEWAY_STATUS,)),
    Fault("submit_slow", "submit", "Queued at once, answered late.", (Knob("seconds", 5, "how late"),)),
    Fault("poll_rate_limited", "poll", "429 to a poll.",
          (Knob("reset_seconds", 30, "how far ahead x-rate-limit-reset-at-utc points"),)),
    Fault("poll_error", "poll", "502 or 504 to a poll, of the status or of an unfinished result.",
          (_GATEWAY_STATUS,)),
    Fault("unknown_status", "poll", "A status that nobody documents, while the job runs.",
          (Knob("value", "WARMING_UP", "the status"),)),
    Fault("result_error", "result", "502 or 504 to the question for a finished result.", (_GATEWAY_STATUS,)),
    Fault("result_missing", "result", "404 to the question for a finished result, for a while from the first time on.",
          (Knob("seconds", 2, "for how long"),)),
    Fault("record_expired", "job", "The request's record is gone early: 404 to polls and results, for ever.",
          (Knob("seconds", 0, "how long after the submit"),)),
    Fault("failed", "job", "The job ends FAILED, unbilled (v1: a plain 500).",
          (Knob("status", 422, "the HTTP status of a FAILED v2 job, 422 or 200", (422, 200)),
           Knob("error", "The model crashed.", "what the upstream says"))),
    Fault("moderation", "job", "The job ends FAILED with content_policy_violation; the same request passes next time.",
          (Knob("status", 422, "the HTTP status of a FAILED v2 job, 422 or 200", (422, 200)),)),
    Fault("cold_start", "job", "The job stays QUEUED for longer, unbilled, whatever the time scale.",
          (Knob("seconds", 60, "for how long"),)),
    Fault("different_bytes", "job", "Other bytes than the last time for the same parameters and seed."),
    Fault("wrong_size", "job", "Pictures and videos of half the width and height that were asked for."),
    Fault("off_grid", "job", "What becomes of sizes and frame counts beside the model's grid (default: snapped down).",
          (Knob("mode", "exact", "exact: made as asked; reject: the job fails", ("exact", "reject")),)),
    Fault("cost_missing", "job", "Neither metrics.cost nor x-cost is told; it is billed all the same."),
    Fault("history_lag", "job", "The request history does not show the job yet.",
          (Knob("seconds", 60, "how long after the submit it appears"),)),
    Fault("hex_request_id", "job", "A request id of 32 hexadecimal digits without dashes."),
    Fault("output_as_list", "v2 job", "`output` is a list of one URL."),
    Fault("output_as_object", "v2 job", "`output` is an object with a `url`."),
    Fault("foreign_result_host", "v2 job", "Result URLs point to another host.",
          (Knob("host", "results.elsewhere.example", "the host's name"),)),
    Fault("json_instead_of_media", "v1 job", "200 and JSON without any media, billed."),
    Fault("download_slow", "download", "The bytes trickle.", (Knob("seconds", 5, "for how long altogether"),)),
    Fault("download_truncated", "download", "The full length is announced, and the connection closed before it is sent.",
          (Knob("fraction", 0.5, "how much of it is sent"),)),
    Fault("download_corrupted", "download", "One byte is another one, in this delivery only.",
          (Knob("at", 0.5, "where it is, as a fraction of the length: 0 is in the file's own header"),)),
    Fault("file_gone", "download", "404 or 403 for a result file before its time.",
          (Knob("status", 404, "404 or 403", (404, 403)),)),
    Fault("insufficient_credits_as_406", "submit", "Want of credits on v2 is a 406, as documented, not the 402 that was seen."),
    Fault("rate_limit", "submit", "A limit for each account in calendar minutes; what is above it gets a 429.",
          (Knob("per_minute", 60, "how many requests"),
           Knob("polls", False, "whether polls count, too"))),
)  # fmt: skip
"""Every fault there is, in the order of a job's life."""


@dataclass(slots=True)
class Setting:
    """A fault that is switched on."""

    probability: float
    remaining: int | None
    """How many more times it strikes; None for no end."""

    model: str | None
    knobs: dict[str, KnobValue] = field(default_factory=dict)


class Faults:
    """The switchboard. `chance` gives a number from 0 up to 1 for each draw with a probability."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._settings: dict[str, Setting] = {}

    def draw(self, name: str, model: str) -> Occurrence | None:
        """Whether the fault strikes now. An occurrence is used up."""
        setting = self._settings.get(name)
        if setting is None or setting.model not in {None, model}:
            return None
        if setting.probability < 1 and self._chance() >= setting.probability:
            return None
        if setting.remaining is not None:
            setting.remaining -= 1
            if setting.remaining <= 0:
                del self._settings[name]
        return Occurrence(dict(setting.knobs))

    def draw_for_job(self, model: str, api: str) -> dict[str, Occurrence]:
        """What goes wrong with one job, by the faults' names."""
        drawn = {
            fault.name: self.draw(fault.name, model)
            for fault in FAULTS
            if fault.strikes in {"job", f"{api} job"} and fault.name in self._settings
        }
        return {name: occurrence for name, occurrence in drawn.items() if occurrence is not None}

    def put(self, given: Mapping[str, Json]) -> None:
        """Switch faults on (`{name: {probability | count, model, ...knobs}}`) or off (`{name: {}}`).

        Faults that are not named stay as they are. All or nothing: raises BadSetting and changes nothing.
        """
        read = [(_known(name), _setting(_known(name), setting)) for name, setting in given.items()]
        for fault, setting in read:
            if setting is None:
                self._settings.pop(fault.name, None)
            else:
                self._settings[fault.name] = setting

    def clear(self) -> None:
        self._settings.clear()

    def listed(self) -> dict[str, Json]:
        """Every fault with its knobs, what it does, and how it is set."""
        return {
            fault.name: {
                "does": fault.does,
                "strikes": f"each {fault.strikes}",
                "knobs": {
                    knob.name: {"default": knob.default, "meaning": knob.meaning}
                    | ({"choices": list(knob.choices)} if knob.choices else {})
                    for knob in fault.knobs
                },
                "setting": _shown(self._settings.get(fault.name)),
            }
            for fault in FAULTS
        }


def _known(name: str) -> Fault:
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise BadSetting(f"there is no fault {name!r}{_did_you_mean(name, (fault.name for fault in FAULTS))}")


def _setting(fault: Fault, given: Json) -> Setting | None:
    """The setting that `given` stands for; None for one that switches the fault off."""
    if not isinstance(given, dict):
        raise BadSetting(f"{fault.name}: a setting is an object, like {{'probability': 0.1}}, not {given!r}")
    knobs = {knob.name: knob for knob in fault.knobs}
    for name in given:
        if name not in knobs and name not in {"probability", "count", "model"}:
            raise BadSetting(
                f"{fault.name} has no knob {name!r}{_did_you_mean(name, ('probability', 'count', 'model', *knobs))}"
            )
    probability, count, model = given.get("probability", 1), given.get("count"), given.get("model")
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise BadSetting(f"{fault.name}: probability is a number from 0 to 1, not {probability!r}")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise BadSetting(f"{fault.name}: count is a whole number that is not below 0, not {count!r}")
    if model is not None and not isinstance(model, str):
        raise BadSetting(f"{fault.name}: model is a model's name, not {model!r}")
    if not given or probability == 0 or count == 0:
        return None
    values = {name: knob.read(fault.name, given.get(name, knob.default)) for name, knob in knobs.items()}
    return Setting(float(probability), count, model, values)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    # A cutoff of 0: there is always a nearest one, and naming it never hurts.
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _shown(setting: Setting | None) -> Json:
    if setting is None:
        return None
    shown: dict[str, Json] = {"probability": setting.probability, **setting.knobs}
    if setting.remaining is not None:
        shown["count"] = setting.remaining
    if setting.model is not None:
        shown["model"] = setting.model
    return shown
