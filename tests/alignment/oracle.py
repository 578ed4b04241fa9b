"""A slow and simple transport of one row, with dicts, byte strings and loops. A vocabulary is a list; None is a special."""

import math
from dataclasses import dataclass

from profuser.signals.rules import Rule


@dataclass
class Vocabulary:
    table: list[bytes | None]
    end: int

    def first(self, data: bytes) -> int | None:
        """Returns the token of these bytes, or the longest one that is a prefix of them."""
        for length in range(len(data), 0, -1):
            if data[:length] in self.table:
                return self.table.index(data[:length])
        return None

    def splits(self, data: bytes, place: int) -> bool:
        """Returns whether a token begins at `place` if the bytes are split greedily into the longest tokens."""
        begin = 0
        while begin < place:
            index = self.first(data[begin:])
            assert index is not None
            begin += len(self.table[index] or b"")
        return begin == place


def bounds(vocabulary: Vocabulary, ids: list[int], response: bytes) -> list[int]:
    spelt = [vocabulary.table[index] or b"" for index in ids]
    places = [len(response) - sum(map(len, spelt))]
    assert places[0] in (0, -1)
    for piece in spelt:
        places.append(places[-1] + len(piece))
    return places


def transport_row(source, target, source_ids, logprobs, candidates, target_ids, response, off=(), steps=None):
    """Returns the rule of each target position and a dict of target id to mass.

    `candidates` holds a dict of source id to probability per source position; `off` names the rules that are off; `steps` holds a
    dict of the next tokens by source position and candidate.
    """
    begin, here = bounds(source, source_ids, response), bounds(target, target_ids, response)
    out = []
    for t, index in enumerate(target_ids):
        found = find(begin, source_ids, source.end, here[t], t == 0, index == target.end)
        if found is None:
            out.append((Rule.NONE, {}))
            continue
        s, used, prefix, suffix = found
        beyond = here[t + 1] > begin[s + 1]
        rule = Rule.CHAIN if beyond else Rule.END if index == target.end else Rule.CONDITION if used else Rule.PROJECT
        if rule.name.lower() in off or (used and "condition" in off):
            out.append((Rule.NONE, {}))
            continue
        mass = dict(candidates[s])
        realised = source_ids[s]
        if rule in (Rule.CONDITION, Rule.CHAIN):
            mass.setdefault(realised, math.exp(logprobs[s]))
        paths = {(candidate,): p for candidate, p in mass.items()}
        if used:
            paths = given(
                source, target, mass, realised, used, {c: q for (at, c), q in (steps or {}).items() if at == s}
            )
        projected: dict[int, float] = {}
        for path, p in paths.items():
            candidate = path[-1]
            if rule == Rule.CHAIN and path == (realised,):
                goal, p = index, p * continuation(source, source_ids, logprobs, candidates, begin, s + 1, here[t + 1])
            elif candidate == source.end:
                goal = target.end
            elif source.table[candidate] is None:
                goal = None
            else:
                data = source.table[candidate][used if len(path) == 1 else 0 :]
                data = suffix + (data[len(prefix) :] if prefix and data.startswith(prefix) else data)
                goal = target.first(data) if data else None
            if goal is not None:
                projected[goal] = projected.get(goal, 0.0) + p
        out.append((rule if projected else Rule.NONE, projected))
    return out


def find(begin, source_ids, end, place, first, at_end):
    """Returns source position, consumed bytes and, at the beginning, the space to strip and the space to add."""
    for s, index in enumerate(source_ids):
        if begin[s] == place and (index == end) == at_end:
            return s, 0, b"", b""
    if first and source_ids and (source_ids[0] == end) == at_end and begin[0] != place:
        return (0, 0, b" ", b"") if begin[0] < place else (0, 0, b"", b" ")
    for s, index in enumerate(source_ids):
        if begin[s] < place < begin[s + 1] and (index == end) == at_end:
            return s, place - begin[s], b"", b""
    return None


def given(source, target, mass, realised, used, steps):
    """Returns masses of candidates, and of used-up ones with their next token, that agree with the consumed bytes and splits."""
    prefix, out = source.table[realised][:used], {}
    for c, p in mass.items():
        data = source.table[c]
        if data is None or not data.startswith(prefix):
            continue
        if target.splits(source.table[realised], used) and not target.splits(data, used):
            continue
        if len(data) == used and c in steps:
            for y, q in steps[c].items():
                if source.table[y] is None or target.splits(data + source.table[y], used):
                    out[c, y] = p * q
            p *= 1 - sum(steps[c].values())
        out[(c,)] = p
    return {path: p / sum(out.values()) for path, p in out.items()}


def continuation(source, source_ids, logprobs, candidates, begin, s, stop):
    """Returns the probability of the source's tokens from s up to the byte `stop`."""
    product = 1.0
    while begin[s] < stop:
        if begin[s + 1] <= stop:
            product *= math.exp(logprobs[s])
        else:
            mass = {source_ids[s]: math.exp(logprobs[s])} | candidates[s]
            prefix = source.table[source_ids[s]][: stop - begin[s]]
            alike = [p for c, p in mass.items() if (source.table[c] or b"").startswith(prefix)]
            product *= sum(alike)
        s += 1
        if s == len(source_ids):
            break
    return min(product, 1.0)
