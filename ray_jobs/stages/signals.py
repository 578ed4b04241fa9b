"""Stage `signals`, once per source, where signals are lazy: collects the distributions of the chosen teachers.

The choice of teachers needs no distributions, only cross-entropies, answers and votes. So each source reads a second time
only the responses that it was chosen to teach: 1/M of the disk space, for one teacher-forced pass over them. With
`select.condition: exact` it also predicts the next token after each candidate that is used up inside a token.
"""

from functools import partial

import pyarrow as pa
import ray

from profuser.alignment.next_steps import find_used_up
from profuser.alignment.source_signals import NextSteps
from profuser.artifacts.artifact import Artifact, Manifest
from profuser.artifacts.schemas import MODES, ON_POLICY, REWARDS
from profuser.engines.base import Response, Usage
from profuser.engines.collecting import RowDone
from profuser.engines.crash_guard import Attempt
from profuser.engines.loading import ReadModel
from profuser.engines.signal_tables import read_own_ids, signals_table, to_source_signals
from profuser.recipe.models import Recipe, SourceConfig
from profuser.rewards.voting import RewardScale
from profuser.run.choosing import make_chooser, reward_scales
from profuser.run.endpoints import endpoint_access
from profuser.run.fusion_run import FusionRun
from profuser.run.tokenizers import read_target, read_tokens
from profuser.selection.examples import Target, response_ids
from profuser.selection.teachers import LIGHT_COLUMNS, Choice
from profuser.signals.rules import AlignmentRules
from ray_jobs.runtime.concurrency import engines_at_once
from ray_jobs.runtime.engine_fit import fit_engine
from ray_jobs.runtime.engine_worker import EngineWorker
from ray_jobs.runtime.shards import OnDraining, finish, run_shards


class SignalsWorker(EngineWorker):
    """Turns shards of choices into shards of one source's distributions."""

    def __init__(
        self,
        source: Artifact,
        output: Artifact,
        model: ReadModel,
        collected: list[Artifact],
        rewards: list[Artifact],
        recipe: Recipe,
        name: str,
        tokens: ray.ObjectRef,
        scales: list[RewardScale],
        target: ray.ObjectRef | None,
        own: list[Artifact],
    ):
        super().__init__(source, output, model)
        self.own, self.modes = own, (ON_POLICY,) if own else (*MODES, ON_POLICY)
        self.collected, self.rewards, self.top_k = collected, rewards, recipe.collect.top_k
        self.chooser = make_chooser(recipe, ray.get(tokens), scales)
        self.teacher = self.chooser.names.index(name)
        self.rules = AlignmentRules.only(recipe.select.alignment_rules)
        self.target: Target | None = ray.get(target) if target else None
        """Set where the steps after used-up candidates are needed."""

    def make(self, shard: int, rows: pa.Table, attempt: Attempt) -> dict[str, float]:
        """Teacher-forces the responses of one shard that the source was chosen to teach."""
        collected = [artifact.read_shard(shard, list(LIGHT_COLUMNS)) for artifact in self.collected]
        rewards = [artifact.read_shard(shard, REWARDS.names) for artifact in self.rewards]
        renewed = next((artifact.read_shard(shard, list(LIGHT_COLUMNS)) for artifact in self.own), None)
        choices, _ = self.chooser.choose(rows, collected, rewards, renewed)
        own = [c for c in choices if c.mode in self.modes and self.teacher in self.chooser.readers(c)]
        answers = self.collected[self.teacher].read_shard(shard, ["training_ids", "inference_ids", "answer_tokens"])
        row_done = self.row_counter(shard, rows.num_rows, num_answers=len(own))
        usage: list[Usage] = []
        tables = [self._force(rows, answers, [c for c in own if c.mode == m], m, row_done, usage) for m in self.modes]
        table = pa.concat_tables([table for table in tables if table] or [self.output.schema.empty_table()])
        counts = {"rows": rows.num_rows, "responses": len(table), **sum(usage, Usage()).counts}
        if self.target:
            counts["steps"] = len(table["step_positions"].combine_chunks().flatten())
        self.output.write_shard(shard, table, counts)
        return {"rows": rows.num_rows, "training_tokens": len(table["response_ids"].combine_chunks().flatten())}

    def _force(
        self,
        rows: pa.Table,
        answers: pa.Table,
        choices: list[Choice],
        mode: str,
        row_done: RowDone | None,
        usage: list[Usage],
    ) -> pa.Table | None:
        if not choices:
            return None
        records = rows.take([choice.row for choice in choices]).to_pylist()
        part = answers.take([choice.row for choice in choices])
        if mode == ON_POLICY:
            # The target's answers, in this source's tokens.
            encoded = self.reader.encode_answers(records, [c.response for c in choices], [c.cut for c in choices])
            kept = [place for place, one in enumerate(encoded) if one is not None]
            if not kept:
                return None
            choices, records = [choices[place] for place in kept], [records[place] for place in kept]
            ids = [one for one in encoded if one is not None]
        else:
            ids = read_own_ids(part, mode, [choice.sample for choice in choices])
        responses = self.reader.force(records, ids, self.top_k, mode != "training", row_done)
        usage += [response.usage for response in responses if response.usage]
        steps = self._steps(rows, records, choices, responses) if self.target else None
        return signals_table([r["row_id"] for r in records], mode, responses, self.reader.engine.vocab_size, steps)

    def _steps(
        self, rows: pa.Table, records: list[dict], choices: list[Choice], responses: list[Response]
    ) -> NextSteps:
        """Returns the source's predictions after the candidates that are used up where target tokens begin inside its own."""
        assert self.target is not None
        found, target_ids = to_source_signals(responses), response_ids(self.target.encode(rows.to_pylist(), choices))
        texts = [choice.response.encode() for choice in choices]
        tables = self.chooser.tokens[self.teacher], self.target.tokens
        used_up = find_used_up(found, target_ids, texts, *tables, self.rules)
        return self.reader.step_after(records, found, used_up, self.top_k, choices[0].mode != "training")


def signals(
    run: FusionRun, source: SourceConfig, round_number: int = 1, draining: OnDraining | None = None
) -> Manifest:
    """Runs the stage for one source; `draining` as in `collect`. In later rounds it reads the target's answers only."""
    output, recipe, rewards = run.signals(source, round_number), run.recipe, run.artifacts("rewards")
    path = run.model(source).path
    fitted = fit_engine(run, source, path, engines_at_once(run.recipe, source))
    counts, seconds = run_shards(
        output,
        run.corpus(),
        partial(
            SignalsWorker,
            run.corpus(),
            output,
            ReadModel(path, fitted.model, run.template(source), endpoint_access(run, source)),
            collected=run.artifacts("collect"),
            rewards=rewards,
            recipe=recipe,
            name=source.name,
            tokens=ray.put(read_tokens(run)),
            scales=reward_scales(rewards),
            target=ray.put(read_target(run)) if recipe.select.condition == "exact" else None,
            own=run.own_answers(round_number),
        ),
        fitted.pool,
        fitted.num_gpus,
        source.engine.shards_in_flight,
        draining,
        needs=fitted.needs,
    )
    return finish(output, counts, seconds)
