"""Records what a server gives: found by first requests before anything is paid, and kept in the run's folder."""

from dataclasses import asdict, dataclass
from typing import Any

from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.recipe.models import SourceConfig

LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")
"""Names of the longest answer's field in chat requests: the usual one, and OpenAI's newer one."""

ONLY_TEXTS = "only the texts of its answers are used, by cross-entropy where they win the vote; no part in Min-CE"
TEXT_ONLY = f"no endpoint.tokenizer, and collect.signals is lazy: {ONLY_TEXTS}"
"""What an endpoint without a tokenizer takes part in if no distributions are requested."""
UNASKED = (
    "no endpoint.tokenizer: no part in Min-CE; whether its answers have distributions is asked when the run starts, "
    "or by --dry-run"
)
"""What is known of an endpoint without a tokenizer before it is asked."""


@dataclass(frozen=True)
class EndpointFacts:
    """A server's model and what it gives with answers."""

    model: str
    """Name of the model, as in the recipe."""
    root: str | None = None
    """Model behind that name, as `/v1/models` says (vLLM, SGLang: the folder or Hub name that is served)."""
    max_model_len: int | None = None
    """Longest prompt plus response in tokens, if the server says it."""
    top_logprobs: int | None = None
    """Candidates per position, at most the recipe's `collect.top_k`; None if the server gives no log-probabilities."""
    forces: bool = False
    """Whether it teacher-forces a given response (vLLM's `prompt_logprobs`)."""
    token_ids: bool = False
    """Whether it can name tokens by their ids (vLLM), which is exact for tokens that are parts of a character."""
    seed: bool = True
    """Whether it takes a seed."""
    length_field: str = LENGTH_FIELDS[0]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the results, for fingerprints and to recognise the server."""
        return {name: value for name, value in asdict(self).items() if name in ("root", "top_logprobs", "forces")}

    def differences(self, other: "EndpointFacts") -> list[str]:
        """Returns in what a server that answers now (`other`) differs from these facts."""
        mine, now = self.identity, other.identity
        return [f"{name} was {mine[name]}, is now {now[name]}" for name in mine if mine[name] != now[name]]

    @property
    def served(self) -> str:
        """The model in words."""
        known = [f"model {self.root}"] if self.root not in (None, self.model) else []
        known += [f"up to {self.max_model_len:,} tokens"] if self.max_model_len else []
        return f"{self.model} ({', '.join(known)})" if known else self.model

    def line(self, source: SourceConfig, top_k: int) -> str:
        """Returns in words what the run gets from a source's server.

        Args:
            source: the source.
            top_k: K that the recipe wants; 0 without a tokenizer if signals are lazy.
        """
        assert source.endpoint is not None
        return f"source {source.name}: {source.endpoint.base_url} serves {self.served}; {self._uses(source, top_k)}"

    def judge_line(self, judge: LlmJudgeConfig) -> str:
        """Returns in words what the run gets from a judge's server."""
        assert judge.endpoint is not None
        reads = f"verdicts by the probabilities of {self.top_logprobs} candidates per token"
        if self.top_logprobs is None:
            reads = "it gives no log-probabilities: the verdict that it writes counts, without its probability"
        return f"judge {judge.name}: {judge.endpoint.base_url} serves {self.served}; {reads}"

    def _uses(self, source: SourceConfig, top_k: int) -> str:
        if source.lacks_tokenizer and not top_k:
            return TEXT_ONLY
        if source.lacks_tokenizer and self.top_logprobs is None:
            return f"no endpoint.tokenizer, and it gives no log-probabilities with bytes that join to its answers: {ONLY_TEXTS}"
        if self.top_logprobs is None:
            answers = "it gives no log-probabilities: its answers teach by cross-entropy only"
        elif self.top_logprobs < top_k:
            answers = f"distributions of its answers, of at most {self.top_logprobs} tokens (collect.top_k is {top_k})"
        else:
            answers = f"distributions of its answers, of {self.top_logprobs} tokens"
        answers += ", aligned by their bytes (no endpoint.tokenizer)" if source.lacks_tokenizer else ""
        forced = (
            "it teacher-forces the ground truth"
            if self.forces
            else "it cannot teacher-force the ground truth: no part in Min-CE"
        )
        return f"{answers}; {forced}"
