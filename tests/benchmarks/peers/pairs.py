"""An ordered pair of models with its shared objects, and an answer as read by both sides."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from profuser.alignment.vocab_projection import VocabProjection
from tests.benchmarks.peers import gold, xtoken
from tests.benchmarks.peers.carried import Carried, MinEdit, exactly, fusellm, ours
from tests.benchmarks.peers.continuations import Continuer
from tests.benchmarks.peers.models import Model, Reading

K = 10


@dataclass(eq=False)
class Pair:
    """An ordered pair of models and its shared objects."""

    source: Model
    target: Model

    def __post_init__(self) -> None:
        self.projection = VocabProjection.build(self.source.tokens, self.target.tokens)
        self.min_edit = MinEdit(self.source.tokens, self.target.tokens)

    @property
    def name(self) -> str:
        return f"{self.source.name} -> {self.target.name}"

    @cached_property
    def xtoken(self) -> xtoken.Projection:
        return xtoken.Projection.build(self.target.tokens, self.source.tokens)

    @cached_property
    def gold(self) -> dict[str, gold.Gold] | str:
        """GOLD's losses, or the reason why there are none."""
        if gold.version() is None:
            return "TRL is not installed"
        try:
            return {mode: gold.Gold(self.source, self.target, mode) for mode in gold.MODES}
        except NotImplementedError as error:
            return f"refused by TRL {gold.version()}: {str(error).split('(')[0].strip()}"


@dataclass(eq=False)
class Answer:
    """One answer as read by both sides of a pair."""

    text: str
    pair: Pair
    source: Reading
    target: Reading
    continuer: Callable[[], Continuer]

    @cached_property
    def num_bytes(self) -> int:
        return len(self.text.encode())

    def ours(self, top_k: int = K) -> Carried:
        return ours(self.source, self.target, self.text, self.pair.projection, top_k)

    def exactly(self, top_k: int = K) -> Carried:
        sides = self.pair.source.tokens, self.pair.target.tokens
        return exactly(self.source, self.target, self.text, self.pair.projection, sides, self.continuer(), top_k)

    @cached_property
    def all_carried(self) -> dict[str, Carried]:
        """The three methods that carry distributions to the target's positions, K = 10."""
        mapping = self.pair.min_edit.with_tokens(self.source.topk(K).ids)
        return {
            "ours": self.ours(),
            "min_edit": ours(self.source, self.target, self.text, mapping, K),
            "FuseLLM": fusellm(self.source, self.target, (self.pair.source, self.pair.target), mapping),
        }
