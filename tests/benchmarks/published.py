"""Alignment as described in FuseLLM's paper, as a baseline: dynamic programming over edit distances.

Every pair of tokens costs its edit distance, the cheapest monotone path pairs the positions, and where a position has one
partner its candidates are looked up one by one in the vocabulary mapping. Slow by construction: S x T distances for a row.
"""

from rapidfuzz.distance import Levenshtein


def align(source: list[str], target: list[str]) -> list[list[int]]:
    """Returns the source positions that the cheapest monotone path pairs with each target position."""
    rows, columns = len(source), len(target)
    cost = [[0.0] * columns for _ in range(rows)]
    for s in range(rows):
        for t in range(columns):
            before = [cost[s - 1][t - 1]] if s and t else []
            before += [cost[s - 1][t]] if s else []
            before += [cost[s][t - 1]] if t else []
            cost[s][t] = Levenshtein.distance(source[s], target[t]) + (min(before) if before else 0.0)
    pairs: list[list[int]] = [[] for _ in range(columns)]
    s, t = rows - 1, columns - 1
    while True:
        pairs[t].append(s)
        if s == 0 and t == 0:
            return pairs
        steps = [(s - 1, t - 1)] if s and t else []
        steps += [(s - 1, t)] if s else []
        steps += [(s, t - 1)] if t else []
        s, t = min(steps, key=lambda step: cost[step[0]][step[1]])


def carry(
    source: list[str],
    target: list[str],
    candidates: list[list[int]],
    logprobs: list[list[float]],
    mapping: dict[int, int],
    target_ids: list[int],
) -> list[dict[int, float]]:
    """Returns each target position's candidates: its only partner's, the first of coinciding ones; else the realised token."""
    out = []
    for position, partners in enumerate(align(source, target)):
        if len(partners) != 1:
            out.append({target_ids[position]: 0.0})
            continue
        found: dict[int, float] = {}
        for index, logprob in zip(candidates[partners[0]], logprobs[partners[0]], strict=True):
            goal = mapping.get(index)
            if goal is not None and goal not in found:
                found[goal] = logprob
        out.append(found)
    return out


def nearest(text: str, vocabulary: list[str]) -> str:
    """Returns the piece at the smallest edit distance, by linear search."""
    return min(vocabulary, key=lambda piece: Levenshtein.distance(text, piece))
