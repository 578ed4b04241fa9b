"""NeMo-RL's cross-tokenizer losses (X-Token), from its guide, documentation and source, and the paper's abstract, arXiv:2605.21699.

A sparse matrix W of the student's by the teacher's vocabulary maps each student token to teacher tokens: the same bytes
with weight 1; else the tokens of its text in the teacher's tokenizer, weights falling tenfold from one to the next; and, in
the other direction, teacher tokens whose text the student writes in several. The four largest of a row are kept. Over each group of
bytes (`groups.py`) the positions of either side are averaged, then compared:

- `p_kl`: student probabilities carried over by W, their mean normalised, against the mean of the teacher's
  log-probabilities, on the teacher's 8,192 most probable tokens of the batch.
- `h_kl`: KL between the means of the log-probabilities of tokens that correspond one to one (weight at least 0.6), plus
  the L1 distance of all other probabilities, sorted.

Differences from theirs: tokens are compared by bytes (theirs: by a canonical spelling), groups are exact (theirs: found by dynamic
programming), rows of W sum to 1, a token claimed twice goes to the larger weight, and special tokens except the end of turn have no
counterpart. A batch is one row of the corpus, the temperature is 1, and the cross-entropy that is added to both is left out.

Legend: T student and S teacher tokens of a row, V_t and V_s their vocabularies, G groups, K kept tokens.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from profuser.alignment.token_bytes import TokenBytes
from tests.benchmarks.peers.groups import Groups

ROW_TOKENS, DECAY, LEAST_WEIGHT = 4, 0.1, 0.6
TOP_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Projection:
    """W, and its pairs that correspond one to one."""

    weights: dict[int, dict[int, float]]
    """Entries of each student token that has any."""
    student_common: Int[Tensor, "pairs"]
    teacher_common: Int[Tensor, "pairs"]

    @classmethod
    def build(cls, student: TokenBytes, teacher: TokenBytes) -> "Projection":
        exact = {i: j for data, i in student.id_of.items() if (j := teacher.id_of.get(data)) is not None}
        if student.end_ids and teacher.end_ids:
            exact[student.end_ids[0]] = teacher.end_ids[0]
        rows: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for i, pieces in _spelt(student, teacher, exact.keys()):
            for j, weight in zip(pieces, decay(len(pieces)), strict=True):
                rows[i][j] += weight
        for j, pieces in _spelt(teacher, student, set(exact.values())):
            for i, weight in zip(pieces, decay(len(pieces)), strict=True):
                rows[i][j] += weight
        rows |= {i: {j: 1.0} for i, j in exact.items()}
        weights = {i: _cut(row) for i, row in rows.items()}
        pairs = _one_to_one(weights, exact)
        return cls(weights, *(torch.tensor([pair[side] for pair in pairs], dtype=torch.long) for side in (0, 1)))

    @cached_property
    def entries(self) -> tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Float[Tensor, "nnz"]]:
        """Returns student token, teacher token and weight of every entry of W."""
        flat = [(i, j, weight) for i, row in self.weights.items() for j, weight in row.items()]
        i, j, weight = (torch.tensor(each) for each in zip(*flat, strict=True))
        return i, j, weight

    def columns(self, kept: Int[Tensor, "K"], num_student: int, num_teacher: int) -> Tensor:
        """Returns W restricted to some teacher tokens, transposed: sparse, [K, V_t]."""
        place = torch.full((num_teacher,), -1)
        place[kept] = torch.arange(len(kept))
        i, j, weight = self.entries
        chosen = place[j] >= 0
        where = torch.stack([place[j[chosen]], i[chosen]])
        size = (len(kept), num_student)
        return torch.sparse_coo_tensor(where, weight[chosen], size, check_invariants=False).coalesce()


def decay(num: int) -> list[float]:
    """Returns weights of a token's pieces, each a tenth of the previous one, that sum to 1."""
    weights = np.float64(DECAY) ** np.arange(num)
    return (weights / weights.sum()).tolist()


def _spelt(source: TokenBytes, other: TokenBytes, done) -> list[tuple[int, list[int]]]:
    """Yields tokens of `source` that are text and not done, with their tokens in the other tokenizer."""
    found = []
    for index in np.flatnonzero(source.lengths).tolist():
        if index not in done:
            try:
                found.append((index, (source[index] or b"").decode()))
            except UnicodeDecodeError:
                continue
    if other.bare is None:
        return []
    encoded = other.bare.encode_batch_fast([text for _, text in found], add_special_tokens=False)
    return [(index, each.ids) for (index, _), each in zip(found, encoded, strict=True)]


def _cut(row: dict[int, float]) -> dict[int, float]:
    best = sorted(row.items(), key=lambda pair: (-pair[1], pair[0]))[:ROW_TOKENS]
    total = sum(weight for _, weight in best)
    return {j: weight / total for j, weight in best}


def _one_to_one(weights: dict[int, dict[int, float]], exact: dict[int, int]) -> list[tuple[int, int]]:
    """Returns the exact pairs, and each other student token with its heaviest teacher token if that weighs enough; a teacher token
    goes to the exact claim, else to the heaviest.
    """
    claims: dict[int, tuple[float, int]] = {j: (1.0, i) for i, j in exact.items()}
    for i, row in sorted(weights.items()):
        j, weight = max(row.items(), key=lambda pair: pair[1])
        if weight >= LEAST_WEIGHT and weight > claims.get(j, (0.0, 0))[0]:
            claims[j] = (weight, i)
    return sorted((i, j) for j, (_, i) in claims.items())


def means(values: Float[Tensor, "T V"], bounds: Int[np.ndarray, "G+1"]) -> Float[Tensor, "G V"]:
    """Returns the mean over the positions of each group."""
    sizes = torch.from_numpy(np.diff(bounds))
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    used = values[int(bounds[0]) : int(bounds[-1])]
    total = torch.zeros(len(sizes), values.shape[1], dtype=values.dtype).index_add(0, owner, used)
    return total / sizes[:, None]


def most_probable(teacher: Float[Tensor, "S V_s"]) -> Int[Tensor, "K"]:
    """Returns the teacher's tokens that are the most probable anywhere in a batch."""
    return teacher.max(0).values.topk(min(TOP_TOKENS, teacher.shape[1])).indices


def p_kl(
    logits: Float[Tensor, "T V_t"],
    teacher: Float[Tensor, "S V_s"],
    groups: Groups,
    projection: Projection,
    kept: Int[Tensor, "K"],
) -> Float[Tensor, ""]:
    """Mean over groups of `sum p (log p - log q)`, p the teacher's mean over the kept tokens, q the projected student's."""
    columns = projection.columns(kept, logits.shape[1], teacher.shape[1])
    projected = torch.sparse.mm(columns, logits.softmax(-1).T).T
    q = means(projected, groups.target)
    q = q / (q.sum(-1, keepdim=True) + 1e-10)
    log_p = means(teacher[:, kept].log_softmax(-1), groups.source)
    return (log_p.exp() * (log_p - (q + 1e-10).log())).sum(-1).mean()


def h_kl(
    logits: Float[Tensor, "T V_t"], teacher: Float[Tensor, "S V_s"], groups: Groups, projection: Projection
) -> Float[Tensor, ""]:
    """Mean over groups of the KL over common tokens (not normalised over them) plus the sorted L1 distance of the others."""
    log_q, log_p = means(logits.log_softmax(-1), groups.target), means(teacher, groups.source)
    common_q, common_p = log_q[:, projection.student_common], log_p[:, projection.teacher_common]
    kl = (common_p.exp() * (common_p - common_q)).sum(-1)
    others = []
    for values, common in ((log_q, projection.student_common), (log_p, projection.teacher_common)):
        mask = torch.ones(values.shape[1], dtype=torch.bool)
        mask[common] = False
        others.append(values[:, mask].exp())
    num = min(TOP_TOKENS, *(other.shape[1] for other in others))
    q, p = (other.topk(num, dim=-1).values for other in others)
    return (kl + (q - p).abs().sum(-1)).mean()
