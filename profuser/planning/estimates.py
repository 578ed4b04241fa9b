"""What a run will take, extrapolated with error bars from a probe of some of its rows.

Legend: N rows that were probed, R rows that the run will collect.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

CONFIDENCE = 0.9
"""Of every interval."""
STEPS_PER_TOKEN = 0.9 * 0.037
"""Next steps that `select.condition: exact` asks for, per response token. Of Alpaca's answers 3.7 % of the tokens begin inside a
source token (from a byte-level BPE of 50,000 to a SentencePiece BPE of 32,000; 0.4 % from the latter to one of 131,000), and 0.9
candidates are used up at each in a model's distributions (0.3 in those of a trigram source)."""
STEP_TOKENS = 9
"""Tokens that an engine reads for a step: the candidate, and half a block of 16 of what its prefix cache does not hold whole. An
engine without such a cache (Transformers) reads the prompt and half the response."""


@dataclass(frozen=True)
class Extrapolation:
    """A total over all rows."""

    value: float
    margin: float | None
    """Half the width of the 90 % interval; None where a single row says nothing of it."""

    @property
    def low(self) -> float | None:
        """Lower end of the interval; no quantity is below 0."""
        return None if self.margin is None else max(0.0, self.value - self.margin)

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.margin is None else self.value + self.margin

    def covers(self, measured: float) -> bool | None:
        """Whether the interval holds a measured value; None where there is no interval."""
        if self.margin is None:
            return None
        # An exact plan is not missed by a rounding.
        return bool(abs(measured - self.value) <= self.margin + 1e-9 * abs(self.value))


@dataclass(frozen=True)
class FileSize:
    """Bytes of a shard's file as a straight line over the tokens in it."""

    fixed: float
    """What the smallest file takes."""
    per_token: float

    @classmethod
    def through(cls, small: tuple[int, int], large: tuple[int, int]) -> "FileSize":
        """The line through two files, each given as tokens and bytes."""
        (tokens, size), (more_tokens, more) = small, large
        if more_tokens <= tokens:
            return cls(0.0, more / max(1, more_tokens))
        slope = max(0, more - size) / (more_tokens - tokens)
        return cls(max(0.0, size - slope * tokens), slope)


@dataclass(frozen=True)
class Probe:
    """What one source did with the N rows. A row that it refused has no tokens."""

    prompt_tokens: Int[np.ndarray, "N"]
    training_tokens: Int[np.ndarray, "N"]
    """Of the ground truth."""
    inference_tokens: Int[np.ndarray, "N"]
    """Of all answers together."""
    seconds: float
    """Collecting all N rows at once, engine start-up apart."""
    with_topk: FileSize
    """Of a shard of `collect` under eager signals."""
    without_topk: FileSize
    """The same under lazy ones."""
    distributions: FileSize
    """Of a shard of `signals`."""
    signals_seconds: float = 0.0
    """Lazy signals: teacher-forcing one response of every row in both modes, all at once."""
    start_seconds: float = 0.0
    """From asking for the actor until its engine has answered a first row."""


@dataclass(frozen=True)
class Setting:
    """How the run will put its rows to a source."""

    num_shards: int
    num_samples: int
    """Answers per row."""
    num_actors: int
    devices: float
    """GPUs that an actor reserves; CPUs where it reserves no GPU."""
    price: float | None
    """Of a device-hour."""
    share: float
    """Of all responses that are taught, those which this source is expected to teach."""
    lazy: bool
    """Whether distributions wait until it is known who teaches."""
    steps_per_token: float = 0.0
    """Next steps after used-up candidates, per response token; 0 where none are asked for."""


@dataclass(frozen=True)
class Cost:
    """What one stage takes, by quantity: so much for each of the N rows, and so much once."""

    per_row: Mapping[str, Float[np.ndarray, "N"]]
    once: Mapping[str, float]


def extrapolate(per_row: Float[np.ndarray, "N"], num_rows: int, once: float = 0.0) -> Extrapolation:
    """The total of a quantity over R rows, from N of them that were drawn at random, none twice.

    `once + R * mean`, give or take `t * R * s / sqrt(N) * sqrt(1 - N / R)`: Student's t for N - 1 degrees of freedom, s the rows'
    standard deviation, and the last factor because what was probed is known (Cochran, Sampling Techniques, 2.8).
    """
    num = len(per_row)
    total = once + num_rows * float(per_row.mean())
    if num >= num_rows:
        return Extrapolation(total, 0.0)
    if num == 1:
        return Extrapolation(total, None)
    error = num_rows * float(per_row.std(ddof=1)) * math.sqrt((1 - num / num_rows) / num)
    return Extrapolation(total, student_quantile((1 + CONFIDENCE) / 2, num - 1) * error)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution: exact for 1 and 2 degrees of freedom, else Abramowitz and Stegun 26.7.5."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def collect_cost(probe: Probe, setting: Setting) -> Cost:
    """What `collect` takes for one source. Seconds are shared out among rows by the tokens that the engine handles for them."""
    response = probe.training_tokens + probe.inference_tokens
    work = (1 + setting.num_samples) * probe.prompt_tokens + response
    time = _time(setting, probe.start_seconds, probe.seconds * work / work.sum())
    tokens = {name: getattr(probe, name) * 1.0 for name in ("prompt_tokens", "training_tokens", "inference_tokens")}
    disk = _disk(setting, probe.without_topk if setting.lazy else probe.with_topk, response)
    return Cost({**tokens, **time.per_row, **disk.per_row}, {**time.once, **disk.once})


def signals_cost(probe: Probe, setting: Setting) -> Cost:
    """What `signals` takes for one source where signals are lazy: a pass over the responses that it is chosen to teach.

    The next steps of `select.condition: exact` were not probed; they are priced as that many more tokens of the pass.
    """
    response = _one_response(probe, setting)
    work, steps = 2 * probe.prompt_tokens + response, setting.steps_per_token * response
    seconds = probe.signals_seconds * (work + STEP_TOKENS * steps) / work.sum()
    time = _time(setting, probe.start_seconds, setting.share * seconds)
    disk = _disk(setting, probe.distributions, setting.share * (response + steps))
    return Cost({**time.per_row, **disk.per_row}, {**time.once, **disk.once})


def disk_costs(probe: Probe, setting: Setting) -> dict[str, Cost]:
    """Disk of a source were signals `eager`, and were they `lazy`."""
    response = probe.training_tokens + probe.inference_tokens
    taught = setting.share * _one_response(probe, setting) * (1 + setting.steps_per_token)
    lazy = [_disk(setting, probe.without_topk, response), _disk(setting, probe.distributions, taught)]
    return {"eager": _disk(setting, probe.with_topk, response), "lazy": add_costs(lazy)}


def add_costs(costs: Sequence[Cost]) -> Cost:
    """Several costs as one, row by row: the stages see the same rows, so their errors do not cancel."""
    names = dict.fromkeys(name for cost in costs for name in cost.per_row)
    per_row = {name: np.sum([c.per_row[name] for c in costs if name in c.per_row], axis=0) for name in names}
    return Cost(per_row, {name: sum(cost.once.get(name, 0.0) for cost in costs) for name in names})


def estimate(cost: Cost, num_rows: int) -> dict[str, Extrapolation]:
    """Every quantity of a cost over R rows."""
    return {name: extrapolate(values, num_rows, cost.once.get(name, 0.0)) for name, values in cost.per_row.items()}


def _one_response(probe: Probe, setting: Setting) -> Float[np.ndarray, "N"]:
    """Tokens of the ground truth and of one answer."""
    return probe.training_tokens + probe.inference_tokens / setting.num_samples


def _time(setting: Setting, start_seconds: float, seconds: Float[np.ndarray, "N"]) -> Cost:
    """Wall time of all actors side by side, each of which starts an engine; what they occupy, and what that costs."""
    device_hours = setting.devices * seconds / 3600
    start_hours = setting.devices * setting.num_actors * start_seconds / 3600
    per_row = {"seconds": seconds / setting.num_actors, "device_hours": device_hours}
    once = {"seconds": start_seconds, "device_hours": start_hours}
    if setting.price is not None:
        per_row["money"], once["money"] = setting.price * device_hours, setting.price * start_hours
    return Cost(per_row, once)


def _disk(setting: Setting, file: FileSize, tokens: np.ndarray) -> Cost:
    return Cost({"disk_bytes": file.per_token * tokens}, {"disk_bytes": file.fixed * setting.num_shards})
