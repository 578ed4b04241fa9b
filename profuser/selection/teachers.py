"""Chooses the teacher of each mode for every corpus row, from the sources' signals and the rewards of their answers.

Legend: N rows of a shard, M sources, S answers per source, R rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from profuser.alignment.spans import misspelt
from profuser.alignment.token_bytes import TokenBytes
from profuser.artifacts.schemas import MODES, ON_POLICY, PAIR
from profuser.engines.signal_tables import candidate_answers
from profuser.errors import ArtifactError
from profuser.recipe.selecting import AVERAGE, SelectConfig
from profuser.rewards.voting import RewardScale, Votes, row_draws, standardised, vote
from profuser.selection.advantage import min_ce, training_advantage
from profuser.selection.pairs import choose_pair, mean_rewards
from profuser.signals.codec import from_list_column

LIGHT_COLUMNS = (
    "row_id",
    "refused",
    "response_bytes",
    "training_nats",
    "training_ids",
    "answers",
    "finish_reasons",
)
"""Columns of a source's signals that the choice needs."""


@dataclass(frozen=True)
class Choice:
    """A training example before its distributions are transported."""

    row: int
    mode: str
    """One of `PARTS`: a mode, one of the answers of a pair, or an answer of the target."""
    teacher: int
    """Source that is best in this mode; in training mode with `training_teacher: average` the others teach too. For an answer of a
    pair, the source that gave it."""
    sample: int
    """Index of the source's answer; 0 in training mode. On policy, that of the target's answer."""
    advantages: list[float]
    response: str
    cut: bool
    """Whether the answer was truncated by its length limit: no end of turn follows."""


@dataclass(frozen=True)
class JudgedAnswers:
    """The answers to the rows of a shard, with their votes. M answers to a row, source by source."""

    answers: list[list[str | None]]
    """The answers of the sources that may teach, `[N][M]`."""
    reasons: list[list[list[str]]]
    """Why each answer ended, `[sources][N][S]`."""
    scores: Float[np.ndarray, "N M R"]
    votes: Votes


@dataclass(frozen=True)
class Chooser:
    """Chooses teachers for the rows of a shard."""

    names: Sequence[str]
    """Names of the M sources."""
    teachers: Sequence[str]
    """Names of the sources that may teach."""
    tokens: Sequence[TokenBytes]
    """Token table of each source's tokenizer."""
    config: SelectConfig
    scales: Sequence[RewardScale]
    """Scale of each reward over the whole run."""
    weights: Sequence[float] | None = None
    """Weight of each reward's vote; equal by default."""
    thresholds: Sequence[float | None] | None = None
    """Reward up to which each verifier rejects an answer; None for a reward that rejects none."""
    num_samples: int = 1
    """Answers per source, S."""
    seed: int = 0
    """Seed that shares out ties."""
    target: int | None = None
    """Index of the source that is the target; None if none is."""

    def choose(
        self,
        corpus: pa.Table,
        collected: Sequence[pa.Table],
        rewards: Sequence[pa.Table],
        own: pa.Table | None = None,
    ) -> tuple[list[Choice], dict[str, float]]:
        """Chooses the teachers of both modes, and pairs of answers and teachers of the target's answers if the recipe wants any.

        Args:
            corpus: corpus rows of the shard.
            collected: each source's signals for them, `[M]`, with at least the `LIGHT_COLUMNS`.
            rewards: each reward's scores of the sources' answers, `[R]`.
            own: the target's signals for them in a later round, whose answers on-policy mode trains; by default those in
                `collected`.

        Returns:
            The choices (both answers of a pair follow one another), and counts: rows, rows that were left out, rows that a source
            misspells, wins (if all sources teach together, the win counts for `average`), and rows whose answers do not teach: all
            rejected, not judged, or tied.

        Raises:
            ArtifactError: the tables do not have the same rows.
        """
        _check_same_rows(corpus, [*collected, *rewards, *([] if own is None else [own])])
        rows = corpus.to_pylist()
        counts: dict[str, float] = {"rows": len(rows)}
        judged = self._judge(rows, collected, rewards)
        training, inference = self._training(rows, collected, counts), self._inference(judged, counts)
        choices = training + inference
        choices += self._pairs(judged, counts) if self.config.preference else []
        if self.config.on_policy:
            chosen = inference if self.config.on_policy.teacher == "inference" else training
            assert self.target is not None
            choices += self._on_policy(chosen, collected[self.target] if own is None else own, counts)
        if self.config.incomplete_rows == "drop":
            incomplete = _incomplete(collected)
            counts["incomplete_rows"] = int(incomplete.sum())
            choices = [choice for choice in choices if not incomplete[choice.row]]
        taught = [(choice.mode, self.teacher_of(choice)) for choice in choices]
        for mode in MODES:
            for name in (*self.names, *([AVERAGE] if self.averages else [])):
                counts[f"wins/{mode}/{name}"] = taught.count((mode, name))
        counts["examples"] = sum(choice.mode in MODES for choice in choices)
        if self.config.preference:
            counts["preference_pairs"] = sum(choice.mode == PAIR[0] for choice in choices)
        if self.config.on_policy:
            counts["on_policy_examples"] = sum(choice.mode == ON_POLICY for choice in choices)
        return choices, counts

    @property
    def averages(self) -> bool:
        """Whether all sources together teach the ground truth."""
        return self.config.training_teacher == AVERAGE

    @property
    def averages_own(self) -> bool:
        """Whether all sources but the target together teach the target's answers."""
        return self.config.on_policy is not None and self.config.on_policy.teacher == AVERAGE

    def teacher_of(self, choice: Choice) -> str:
        """Returns the name of the source that teaches an example, or `average`."""
        together = {"training": self.averages, ON_POLICY: self.averages_own}.get(choice.mode, False)
        return AVERAGE if together else self.names[choice.teacher]

    def readers(self, choice: Choice) -> list[int]:
        """Returns the sources whose distributions along an example's response are wanted."""
        if choice.mode == ON_POLICY and self.averages_own:
            return [source for source in np.flatnonzero(self.allowed).tolist() if source != self.target]
        return [choice.teacher]

    @property
    def allowed(self) -> Bool[np.ndarray, "M"]:
        """Mask of the sources that may teach."""
        return np.array([name in self.teachers for name in self.names])

    def _training(self, rows: list[dict], collected: Sequence[pa.Table], counts: dict[str, float]) -> list[Choice]:
        """Chooses by Min-CE over the sources that did not refuse the row and whose tokens spell the ground truth."""
        nats = np.stack([t["training_nats"].to_numpy(zero_copy_only=False).astype(np.float64) for t in collected], 1)
        num_tokens = np.stack([from_list_column(t["training_ids"]).lengths for t in collected], 1)
        num_bytes = collected[0]["response_bytes"].to_numpy().astype(np.int64)
        for source, table in enumerate(collected):
            taken = np.flatnonzero(~np.isnan(nats[:, source]))
            ids = from_list_column(table["training_ids"].take(pa.array(taken)))
            # If its tokenizer's normaliser changed the text, the source has scored another text than the ground truth.
            wrong = misspelt(self.tokens[source], ids, [rows[row]["response"].encode() for row in taken.tolist()])
            nats[taken[sorted(wrong)], source] = np.nan
            counts[f"misspelt/{self.names[source]}"] = len(wrong)
        counts["misspelt_by_sources"] = sum(counts[f"misspelt/{name}"] for name in self.names)
        advantages = training_advantage(nats, num_tokens, num_bytes, self.config.training_metric)
        teachers = min_ce(np.where(self.allowed, advantages, np.nan))
        return [
            Choice(row, "training", int(teacher), 0, advantages[row].tolist(), rows[row]["response"], False)
            for row, teacher in enumerate(teachers)
            if teacher >= 0
        ]

    def _judge(self, rows: list[dict], collected: Sequence[pa.Table], rewards: Sequence[pa.Table]) -> JudgedAnswers:
        """Lets the rewards vote on the answers of each row."""
        allowed = np.repeat(self.allowed, self.num_samples)
        answers = [
            [answer if may else None for answer, may in zip(row, allowed, strict=True)]
            for row in candidate_answers(collected, self.num_samples)
        ]
        scores = np.stack([np.array(table["scores"].to_pylist(), dtype=np.float64) for table in rewards], axis=2)
        draws = row_draws((row["row_id"] for row in rows), self.seed)
        votes = vote(scores, answers, self.scales, self.config.vote, self.weights, self.thresholds, draws)
        return JudgedAnswers(answers, [table["finish_reasons"].to_pylist() for table in collected], scores, votes)

    def _inference(self, judged: JudgedAnswers, counts: dict[str, float]) -> list[Choice]:
        """Chooses the answer with the most votes of the rewards; counts the rows without one, and ties."""
        answers, result = judged.answers, judged.votes
        has_answer = np.array([any(text is not None for text in row) for row in answers], dtype=bool)
        is_accepted = np.array(
            [
                any(text is not None and not no for text, no in zip(*row, strict=True))
                for row in zip(answers, result.rejected, strict=True)
            ],
            dtype=bool,
        )
        counts["rows_without_accepted_answer"] = int((has_answer & ~is_accepted).sum())
        counts["rows_not_judged"] = int((has_answer & ~result.judged).sum())
        counts["ties_shared_out"] = int((result.tied & (result.winner >= 0)).sum())
        counts["rows_without_majority"] = int((is_accepted & result.judged & (result.winner < 0)).sum())
        winners = enumerate(result.winner.tolist())
        return [self._answer(judged, row, winner, "inference") for row, winner in winners if winner >= 0]

    def _pairs(self, judged: JudgedAnswers, counts: dict[str, float]) -> list[Choice]:
        """Chooses the pairs of preference mode; counts the rows with several answers of which no two make one."""
        config, standard = self.config.preference, standardised(judged.scores, self.scales)
        weights = np.ones(standard.shape[2]) if self.weights is None else np.asarray(self.weights)
        out: list[Choice] = []
        counts["rows_without_pair"] = 0
        for row, answers in enumerate(judged.answers):
            whole = [None if self._is_cut(judged, row, place) else text for place, text in enumerate(answers)]
            means, votes = mean_rewards(standard[row], weights), judged.votes
            pair = config and choose_pair(whole, votes.votes[row], means, votes.rejected[row], self.num_samples, config)
            if pair:
                out += [self._answer(judged, row, place, mode) for place, mode in zip(pair, PAIR, strict=True)]
            elif sum(text is not None for text in answers) > 1:
                counts["rows_without_pair"] += 1
        return out

    def _on_policy(self, chosen: list[Choice], own: pa.Table, counts: dict[str, float]) -> list[Choice]:
        """Gives the target's first answer to each row to the row's teacher; counts answers that are none, and rows without another
        teacher than the target."""
        reasons, by_row = own["finish_reasons"].to_pylist(), {choice.row: choice for choice in chosen}
        out: list[Choice] = []
        names = ("on_policy_without_answer", "on_policy_without_teacher")
        counts |= dict.fromkeys(names, 0)
        for row, answers in enumerate(candidate_answers([own], self.num_samples)):
            text, teacher = answers[0], by_row.get(row)
            if text is None or not text.strip():
                counts["on_policy_without_answer"] += 1
            elif teacher is None or (teacher.teacher == self.target and not self.averages_own):
                counts["on_policy_without_teacher"] += 1
            else:
                out.append(
                    Choice(row, ON_POLICY, teacher.teacher, 0, teacher.advantages, text, _is_cut(reasons[row], 0))
                )
        return out

    def _answer(self, judged: JudgedAnswers, row: int, place: int, mode: str) -> Choice:
        """Returns an answer as a choice."""
        votes, text = judged.votes.votes[row].tolist(), judged.answers[row][place] or ""
        return Choice(row, mode, *divmod(place, self.num_samples), votes, text, self._is_cut(judged, row, place))

    def _is_cut(self, judged: JudgedAnswers, row: int, place: int) -> bool:
        source, sample = divmod(place, self.num_samples)
        return _is_cut(judged.reasons[source][row], sample)


def _is_cut(reasons: Sequence[str], sample: int) -> bool:
    return sample < len(reasons) and reasons[sample] == "length"


def _incomplete(collected: Sequence[pa.Table]) -> Bool[np.ndarray, "N"]:
    """Returns a mask of the rows that at least one source refused."""
    refused = [table["refused"].is_valid().to_numpy() for table in collected]
    return np.logical_or.reduce(refused)


def _check_same_rows(corpus: pa.Table, others: Sequence[pa.Table]) -> None:
    for table in others:
        if not table["row_id"].equals(corpus["row_id"]):
            raise ArtifactError("the shards to join do not have the same rows: an input was made from another corpus")


def add_counts(counts: dict[str, float], more: Mapping[str, float]) -> None:
    """Adds numbers to the counts of the same name."""
    for name, value in more.items():
        counts[name] = counts.get(name, 0) + value
