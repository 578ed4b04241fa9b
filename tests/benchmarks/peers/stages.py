"""Measurements per answer and ordered pair of models, and the figures computed from them."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from profuser.signals.codec import TopK, to_columns
from profuser.signals.rules import Rule
from tests.benchmarks.peers import xtoken
from tests.benchmarks.peers.carried import own_top_k_bits, worth
from tests.benchmarks.peers.ends import Ends
from tests.benchmarks.peers.exactness import RULES, Exactness, Sample
from tests.benchmarks.peers.figures import Figure, Table, ratio
from tests.benchmarks.peers.groups import Chosen, Groups, steps
from tests.benchmarks.peers.models import MANY, Reading
from tests.benchmarks.peers.pairs import Answer, K

WIDTHS = (5, K, 32, 64, 128)
PER_RULE = 2
SINGLE_GROUPS = 8
"""Random groups of one token on each side in which an answer's gradients are judged; all other groups are judged."""


class Bits:
    """Bits per byte of the ground truth, coverage, and the cost of K."""

    def __init__(self) -> None:
        self.table = Table()

    def add(self, answer: Answer) -> None:
        pair, source, target = answer.pair, answer.source, answer.target
        sums: dict[str, float] = {"bytes": answer.num_bytes, "positions": len(target.ids), "tokens": len(source.ids)}
        sums |= {"source": -source.own.sum() / np.log(2), "target": -target.own.sum() / np.log(2)}
        carried = answer.all_carried | {f"top-{k}": answer.ours(k) for k in WIDTHS if k != K}
        carried["exact"] = answer.exactly()
        for name, each in carried.items():
            value = worth(each, target)
            sums |= {f"{name} student": value.student_bits.sum(), f"{name} uniform": value.uniform_bits.sum()}
            sums |= {f"{name} taught": each.taught.sum(), f"{name} in tail": value.in_tail.sum()}
        for k in WIDTHS:
            topk = source.topk(k)
            columns = to_columns(
                "topk", [TopK(topk.ids, topk.logprobs.astype(np.float16))], pair.source.tokens.vocab_size
            )
            sums[f"own {k}"] = own_top_k_bits(source, k).sum()
            sums[f"codec {k}"] = sum(column.values.nbytes for column in columns.values())
        self.table.add(pair.name, **sums)

    def figures(self) -> list[Figure]:
        return [figure for pair in self.table.names() for figure in self._of(pair)]

    def _of(self, pair: str) -> list[Figure]:
        def per_byte(name: str, of: str, **more: Any) -> Figure:
            return ratio(f"{pair}, {name}", self.table(pair, of), num_bytes, "bits/byte", **more)

        num_bytes, positions = self.table(pair, "bytes"), self.table(pair, "positions")
        out = [per_byte("the source itself", "source"), per_byte("the target itself", "target")]
        for method in ("ours", "min_edit", "FuseLLM"):
            for what in ("taught", "in tail"):
                share = self.table(pair, f"{method} {what}")
                out.append(ratio(f"{pair}, {method}, positions {what}", 100 * share, positions, "%"))
            out += [per_byte(f"{method}, tail as {tail}", f"{method} {tail}") for tail in ("student", "uniform")]
        for k in WIDTHS:
            name, own = "ours" if k == K else f"top-{k}", float(self.table(pair, f"own {k}").sum() / num_bytes.sum())
            reach = {"reach": "<= 1 x"} if k == K else {}
            title = f"carried top-{k} against the source's own, tail as uniform"
            out.append(per_byte(title, f"{name} uniform", baseline=own, **reach))
            out.append(per_byte(f"carried top-{k}, tail as student", f"{name} student"))
            if k == K:
                title = f"carried top-{k} under condition: exact against the source's own, tail as uniform"
                out.append(per_byte(title, "exact uniform", baseline=own, reach="<= 1 x"))
            size = self.table(pair, f"codec {k}")
            out.append(ratio(f"{pair}, codec at K = {k}", size, self.table(pair, "tokens"), "bytes/token"))
        return out


class Gradients:
    """Agreement of a step of each method with the byte-level teacher, over groups of bytes."""

    def __init__(self) -> None:
        self.table, self.refused = Table(), {}
        self.rng = np.random.default_rng(0)

    def add(self, answer: Answer) -> None:
        source, target = answer.source, answer.target
        every = Groups.find(source.ends, target.ends)
        single = every.one_to_one
        chosen = ~single
        chosen[self.rng.permutation(np.flatnonzero(single))[:SINGLE_GROUPS]] = True
        wanted = every.wanted(source, target)
        sums: dict[str, float] = {"single": (chosen & single).sum(), "several": (~single).sum()}
        sums["size"] = np.abs(wanted[~single]).sum()
        for name, step in self._steps(answer, every.some(chosen)).items():
            agrees = chosen & (np.sign(every.moved(step)) == np.sign(wanted))
            sums |= {f"{name} single": (agrees & single).sum(), f"{name} several": (agrees & ~single).sum()}
            sums[f"{name} size"] = np.abs(wanted[agrees & ~single]).sum()
        self.table.add(answer.pair.name, **sums)

    def _steps(self, answer: Answer, chosen: Chosen) -> dict[str, Float[np.ndarray, "T"]]:
        """Returns the changes of the target's tokens by each method; X-Token's, a sum over groups, only at the chosen ones."""
        source, target, pair = answer.source, answer.target, answer.pair
        found = {name: worth(each, target).step for name, each in answer.all_carried.items()}
        teacher, kept = source.logprobs[chosen.source], xtoken.most_probable(source.logprobs)
        given = teacher, chosen.groups, pair.xtoken
        part = target.at(chosen.target)
        for name, step in (
            ("NeMo-RL P-KL", _step(part, lambda logits: xtoken.p_kl(logits, *given, kept))),
            ("NeMo-RL H-KL", _step(part, lambda logits: xtoken.h_kl(logits, *given))),
        ):
            found[name] = np.zeros(len(target.ids))
            found[name][chosen.target] = step
        if isinstance(pair.gold, str):
            self.refused[pair.name] = pair.gold
        else:
            for mode, loss in pair.gold.items():
                found[f"GOLD ({mode})"] = _step(target, lambda logits, loss=loss: loss(logits, source, target))
        return found

    def figures(self) -> list[Figure]:
        out = []
        for pair in self.table.names():
            names = [
                name.removesuffix(" several")
                for p, name in self.table.values
                if p == pair and name.endswith(" several")
            ]
            for name in names:
                for kind, title in (("several", "where tokens do not match one to one"), ("single", "elsewhere")):
                    parts, wholes = self.table(pair, f"{name} {kind}"), self.table(pair, kind)
                    out.append(
                        ratio(f"{pair}, {name}, agreement {title}", 100 * parts, wholes, "%", num=int(wholes.sum()))
                    )
                parts, wholes = self.table(pair, f"{name} size"), self.table(pair, "size")
                title = f"{pair}, {name}, agreement where tokens do not match, weighted by what there is to move"
                out.append(ratio(title, 100 * parts, wholes, "%"))
        return out


def _step(target: Reading, loss: Callable[[Tensor], Tensor]) -> Float[np.ndarray, "T"]:
    logits = target.logprobs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    return steps(gradient, target)


class Exact:
    """Transport against brute force."""

    def __init__(self) -> None:
        self.samplers: dict[str, Exactness] = {}
        self.samples: dict[str, list[Sample]] = defaultdict(list)

    def add(self, answer: Answer) -> None:
        pair = answer.pair
        if pair.name not in self.samplers:
            self.samplers[pair.name] = Exactness(pair.source, pair.target, pair.projection)
        sampler = self.samplers[pair.name]
        found = sampler.sample(answer.source, answer.target, answer.text, answer.continuer(), PER_RULE)
        self.samples[pair.name] += found

    def figures(self) -> list[Figure]:
        out = []
        everything = [sample for samples in self.samples.values() for sample in samples]
        for pair, samples in (*self.samples.items(), ("all pairs", everything)):
            for rule in RULES:
                some = [sample for sample in samples if sample.rule == rule]
                if some:
                    out += self._of(f"{pair}, {rule.name.lower()}", some, rule)
        return out

    def _of(self, title: str, some: list[Sample], rule: Rule) -> list[Figure]:
        ones, followed = np.ones(len(some)), []
        if rule == Rule.CONDITION:
            exact, few = [s.followed for s in some], [s.followed_few for s in some]
            name = "total variation under condition: exact"
            followed.append(ratio(f"{title}, {name}, K = {MANY:,}", exact, ones, "", reach="< 0.1"))
            followed.append(ratio(f"{title}, {name}, of the loss's categories, K = {K}", few, ones, ""))
        return [
            ratio(f"{title}, total variation, K = {MANY:,}", [s.many for s in some], ones, ""),
            *followed,
            ratio(f"{title}, total variation of the loss's categories, K = {K}", [s.few for s in some], ones, ""),
            ratio(f"{title}, realised token's mass, off by", [abs(s.realised) for s in some], ones, ""),
            ratio(f"{title}, residual of the brute force", [s.residual for s in some], ones, ""),
        ]


class EndsOfTurn:
    """The carried end of turn, as defined in `ends.py`."""

    def __init__(self) -> None:
        self.ends: dict[str, Ends] = defaultdict(Ends)

    def add(self, answer: Answer) -> None:
        carried = answer.ours(MANY).topk
        ends = np.array(answer.pair.target.tokens.end_ids)
        mass = np.where(np.isin(carried.ids, ends), np.exp(carried.logprobs), 0.0).sum(1)
        own = answer.target.logprobs[:, torch.from_numpy(ends)].exp().sum(1).numpy()
        self.ends[answer.pair.name].add(mass, own)

    def figures(self) -> list[Figure]:
        out = []
        for pair, ends in self.ends.items():
            out += [Figure(f"{pair}, end of turn, {name}", value, "") for name, value in ends.at_ends().items()]
            bits = ends.bits()
            ones = np.ones(len(ends.carried))
            out += [ratio(f"{pair}, end of turn, {name}", each, ones, "bits/answer") for name, each in bits.items()]
            for name in ("shift", "scale"):
                gain = bits["as carried"] - bits[name]
                out.append(ratio(f"{pair}, end of turn, gained by a {name}", gain, ones, "bits/answer"))
        return out
