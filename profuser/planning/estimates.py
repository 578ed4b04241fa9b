"""Extrapolates what a run will cost, with error bars, from a probe of some of its rows.

Legend: N probed rows, R rows that the run will collect.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

CONFIDENCE = 0.9
"""Confidence level of every interval."""
STEPS_PER_TOKEN = 0.9 * 0.037
"""Next steps that `select.condition: exact` requests, per response token. In Alpaca's answers 3.7 % of the tokens begin inside a
source token (from a byte-level BPE of 50,000 to a SentencePiece BPE of 32,000; 0.4 % from the latter to one of 131,000), and 0.9
candidates are used up at each in a model's distributions (0.3 in those of a trigram source)."""
STEP_TOKENS = 9
"""Tokens that an engine reads per step: the candidate, and half a 16-token block that its prefix cache does not hold whole. An
engine without such a cache (Transformers) reads the prompt and half the response."""


@dataclass(frozen=True)
class Extrapolation:
    """A total over all rows."""

    value: float
    margin: float | None
    """Half the width of the 90 % interval; None if only one row was probed."""

    @property
    def low(self) -> float | None:
        """Lower end of the interval; quantities are never negative."""
        return None if self.margin is None else max(0.0, self.value - self.margin)

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.margin is None else self.value + self.margin

    def covers(self, measured: float) -> bool | None:
        """Returns whether the interval contains a measured value; None if there is no interval."""
        if self.margin is None:
            return None
        # Tolerate rounding where the margin is 0.
        return bool(abs(measured - self.value) <= self.margin + 1e-9 * abs(self.value))


@dataclass(frozen=True)
class FileSize:
    """Linear model of a shard file's bytes as a function of its tokens."""

    fixed: float
    """Bytes per file, independent of its tokens."""
    per_token: float

    @classmethod
    def through(cls, small: tuple[int, int], large: tuple[int, int]) -> "FileSize":
        """Returns the line through two files, each given as (tokens, bytes)."""
        (tokens, size), (more_tokens, more) = small, large
        if more_tokens <= tokens:
            return cls(0.0, more / max(1, more_tokens))
        slope = max(0, more - size) / (more_tokens - tokens)
        return cls(max(0.0, size - slope * tokens), slope)


@dataclass(frozen=True)
class Probe:
    """Measurements of one source on the N rows. A row that it refused has no tokens."""

    prompt_tokens: Int[np.ndarray, "N"]
    training_tokens: Int[np.ndarray, "N"]
    """Tokens of the ground truth."""
    inference_tokens: Int[np.ndarray, "N"]
    """Tokens of all answers together."""
    seconds: float
    """Time to collect all N rows at once, without engine start-up."""
    with_topk: FileSize
    """Size of a `collect` shard with eager signals."""
    without_topk: FileSize
    """Size of a `collect` shard with lazy signals."""
    distributions: FileSize
    """Size of a `signals` shard."""
    signals_seconds: float = 0.0
    """With lazy signals: time to teacher-force one response of every row in both modes, all at once."""
    start_seconds: float = 0.0
    """Time from requesting the actor until its engine has answered a first row."""
    token_money: Float[np.ndarray, "N"] | None = None
    """Price of the tokens that an endpoint counted for each row; None without one."""


@dataclass(frozen=True)
class SourceSetting:
    """Settings of a source in the run that is estimated."""

    num_shards: int
    num_samples: int
    """Answers per row."""
    num_actors: int
    devices: float
    """GPUs that an actor reserves; CPUs if it reserves no GPU."""
    price: float | None
    """Price of a device-hour."""
    share: float
    """Share of all taught responses that this source is expected to teach."""
    lazy: bool
    """Whether distributions are fetched only after teachers are chosen."""
    own_share: float = 0.0
    """Share of the target's answers that this source is expected to read, for on-policy mode."""
    steps_per_token: float = 0.0
    """Next steps after used-up candidates, per response token; 0 if none are requested."""


@dataclass(frozen=True)
class Cost:
    """Cost of one stage, by quantity: an amount for each of the N rows, and a fixed amount."""

    per_row: Mapping[str, Float[np.ndarray, "N"]]
    once: Mapping[str, float]


def extrapolate(per_row: Float[np.ndarray, "N"], num_rows: int, once: float = 0.0) -> Extrapolation:
    """Returns a quantity's total over R rows, from N rows drawn at random without replacement.

    The interval is `once + R * mean +- t * R * s / sqrt(N) * sqrt(1 - N / R)`: Student's t with N - 1 degrees of freedom, s the
    rows' standard deviation, and the last factor the finite population correction (Cochran, Sampling Techniques, 2.8).
    """
    num = len(per_row)
    total = once + num_rows * float(per_row.mean())
    if num >= num_rows:
        return Extrapolation(total, 0.0)
    if num == 1:
        return Extrapolation(total, None)
    error = num_rows * float(per_row.std(ddof=1)) * math.sqrt((1 - num / num_rows) / num)
    # Imported here: SciPy takes a while, and a plan without a probe needs none.
    from scipy.special import stdtrit

    return Extrapolation(total, float(stdtrit(num - 1, (1 + CONFIDENCE) / 2)) * error)


def collect_cost(probe: Probe, setting: SourceSetting) -> Cost:
    """Returns the cost of `collect` for one source. Seconds are split among rows in proportion to the tokens processed."""
    response = probe.training_tokens + probe.inference_tokens
    work = (1 + setting.num_samples) * probe.prompt_tokens + response
    time = _time(setting, probe.start_seconds, probe.seconds * work / work.sum())
    tokens = {name: getattr(probe, name) * 1.0 for name in ("prompt_tokens", "training_tokens", "inference_tokens")}
    disk = _disk(setting, probe.without_topk if setting.lazy else probe.with_topk, response)
    found = Cost({**tokens, **time.per_row, **disk.per_row}, {**time.once, **disk.once})
    return found if probe.token_money is None else add_costs([found, Cost({"money": probe.token_money}, {})])


def signals_cost(probe: Probe, setting: SourceSetting) -> Cost:
    """Returns the cost of `signals` for one source with lazy signals: a pass over the responses that it is chosen to teach.

    The next steps of `select.condition: exact` were not probed; they are priced as additional tokens of the pass. Nor were the
    target's answers, which are taken to be as long as the source's own.
    """
    response = _one_response(probe, setting)
    work, steps = 2 * probe.prompt_tokens + response, setting.steps_per_token * response
    own = setting.own_share * probe.inference_tokens / setting.num_samples
    read = setting.share * (work + STEP_TOKENS * steps) + setting.own_share * probe.prompt_tokens + own
    time = _time(setting, probe.start_seconds, probe.signals_seconds * read / work.sum())
    disk = _disk(setting, probe.distributions, setting.share * (response + steps) + own)
    return Cost({**time.per_row, **disk.per_row}, {**time.once, **disk.once})


def disk_costs(probe: Probe, setting: SourceSetting) -> dict[str, Cost]:
    """Returns a source's disk use with `eager` and with `lazy` signals."""
    response = probe.training_tokens + probe.inference_tokens
    taught = setting.share * _one_response(probe, setting) * (1 + setting.steps_per_token)
    taught = taught + setting.own_share * probe.inference_tokens / setting.num_samples
    lazy = [_disk(setting, probe.without_topk, response), _disk(setting, probe.distributions, taught)]
    return {"eager": _disk(setting, probe.with_topk, response), "lazy": add_costs(lazy)}


def add_costs(costs: Sequence[Cost]) -> Cost:
    """Adds costs row by row: the stages see the same rows, so their errors do not cancel."""
    names = dict.fromkeys(name for cost in costs for name in cost.per_row)
    per_row = {name: np.sum([c.per_row[name] for c in costs if name in c.per_row], axis=0) for name in names}
    return Cost(per_row, {name: sum(cost.once.get(name, 0.0) for cost in costs) for name in names})


def estimate(cost: Cost, num_rows: int) -> dict[str, Extrapolation]:
    """Extrapolates every quantity of a cost to R rows."""
    return {name: extrapolate(values, num_rows, cost.once.get(name, 0.0)) for name, values in cost.per_row.items()}


def _one_response(probe: Probe, setting: SourceSetting) -> Float[np.ndarray, "N"]:
    """Returns the tokens of the ground truth and of one answer."""
    return probe.training_tokens + probe.inference_tokens / setting.num_samples


def _time(setting: SourceSetting, start_seconds: float, seconds: Float[np.ndarray, "N"]) -> Cost:
    """Returns the wall time with all actors in parallel, each starting an engine, and their device-hours and price."""
    device_hours = setting.devices * seconds / 3600
    start_hours = setting.devices * setting.num_actors * start_seconds / 3600
    per_row = {"seconds": seconds / setting.num_actors, "device_hours": device_hours}
    once = {"seconds": start_seconds, "device_hours": start_hours}
    if setting.price is not None:
        per_row["money"], once["money"] = setting.price * device_hours, setting.price * start_hours
    return Cost(per_row, once)


def _disk(setting: SourceSetting, file: FileSize, tokens: np.ndarray) -> Cost:
    return Cost({"disk_bytes": file.per_token * tokens}, {"disk_bytes": file.fixed * setting.num_shards})
