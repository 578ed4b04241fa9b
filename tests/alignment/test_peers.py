"""Tests the benchmark's peers and measures on cases small enough to work out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.alignment.spans import Spans
from profuser.alignment.token_bytes import TokenBytes
from profuser.signals.codec import TopK
from tests.alignment.test_dense import END, PIECES, Source, piece, vocabulary
from tests.alignment.test_transport_oracle import table_of
from tests.benchmarks import published
from tests.benchmarks.peers import report, xtoken
from tests.benchmarks.peers.carried import Carried, MinEdit, own_top_k_bits, worth
from tests.benchmarks.peers.continuations import Walk, bucket_distance, distance
from tests.benchmarks.peers.ends import Ends, fit
from tests.benchmarks.peers.figures import ratio
from tests.benchmarks.peers.groups import Groups, steps
from tests.benchmarks.peers.models import Reading


def reading(ids: list[int], probabilities: list[list[float]]) -> Reading:
    places = np.zeros(len(ids), dtype=np.int64)
    return Reading([0], np.array(ids), Spans(places, places, {}), torch.tensor(probabilities).log())


def topk(rows: list[dict[int, float]], width: int) -> TopK:
    ids, logprobs = np.zeros((len(rows), width), dtype=np.int32), np.full((len(rows), width), -np.inf)
    for place, row in enumerate(rows):
        ids[place, : len(row)], logprobs[place, : len(row)] = list(row), np.log(list(row.values()))
    return TopK(ids, logprobs)


TARGET = reading([1, 3, 0], [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])


def test_bits_of_a_listed_token_a_tail_token_and_a_position_without_a_distribution():
    carried = Carried(topk([{1: 0.5, 0: 0.25}, {0: 0.75}, {}], 2), np.array([True, True, False]))
    result = worth(carried, TARGET)
    # Listed: 1/2. In the tail: mass 1/4 times the target's share 0.1 / (1 - 0.4). None: the target's own 1/4.
    assert result.student_bits == pytest.approx([1.0, -np.log2(0.25 * 0.1 / 0.6), 2.0], abs=1e-5)
    assert result.uniform_bits == pytest.approx([1.0, 2.0 + 16.0, 2.0], abs=1e-5)
    assert result.in_tail.tolist() == [False, True, False]


def test_the_step_of_a_transported_distribution_matches_autograd():
    carried = Carried(topk([{1: 0.5, 0: 0.25}, {0: 0.75}, {}], 2), np.array([True, True, False]))
    logits = TARGET.logprobs.clone().requires_grad_()
    log_q = logits.log_softmax(-1)
    tail = [(log_q[0, 2:].logsumexp(0), 0.25), (log_q[1, 1:].logsumexp(0), 0.25)]
    cross_entropy = -(0.5 * log_q[0, 1] + 0.25 * log_q[0, 0] + 0.75 * log_q[1, 0] + sum(p * q for q, p in tail))
    (gradient,) = torch.autograd.grad(cross_entropy, logits)
    assert worth(carried, TARGET).step == pytest.approx(steps(gradient, TARGET), abs=1e-5)


def test_own_top_k_bits():
    source = reading([3, 0], [[0.125, 0.125, 0.25, 0.5], [0.125, 0.125, 0.25, 0.5]])
    assert own_top_k_bits(source, 2) == pytest.approx([1.0, 2.0 + 16.0], abs=1e-5)


def test_groups_are_split_at_common_boundaries():
    # abc|d|ef against ab|cd|ef: one group abcd of two tokens on each side, and ef.
    groups = Groups.find(np.array([3, 4, 6]), np.array([2, 4, 6]))
    assert groups.source.tolist() == [0, 2, 3]
    assert groups.target.tolist() == [0, 2, 3]
    assert groups.one_to_one.tolist() == [False, True]
    assert groups.moved(np.array([0.5, -0.25, 1.0])).tolist() == [0.25, 1.0]
    last = groups.some(np.array([False, True]))
    assert (last.groups.source.tolist(), last.groups.target.tolist()) == ([0, 1], [0, 1])
    assert (last.source.tolist(), last.target.tolist()) == ([2], [2])


def test_steps_are_the_first_order_change_of_log_probabilities():
    gradient = torch.tensor([[0.3, -0.1, 0.0, 0.2], [0.0, 0.5, -0.2, 0.1], [0.1, 0.1, 0.1, 0.1]])
    rate = 1e-3
    moved = (TARGET.logprobs.double() - rate * gradient).log_softmax(-1)[torch.arange(3), torch.tensor(TARGET.ids)]
    assert (moved.numpy() - TARGET.own) / rate == pytest.approx(steps(gradient, TARGET), abs=1e-3)


def test_fusellm_pairs_tokens_at_minimum_cost_and_keeps_the_truth_where_tokens_split():
    assert published.align(["ab", "c"], ["ab", "c"]) == [[0], [1]]
    assert published.align(["ab", "c"], ["abc"]) == [[1, 0]]
    carried = published.carry(["ab", "c"], ["abc"], [[1], [2]], [[-0.1], [-0.2]], {1: 5, 2: 6}, [7])
    assert carried == [{7: 0.0}]
    carried = published.carry(["ab"], ["ab"], [[1, 2, 3]], [[-0.1, -2.0, -3.0]], {1: 5, 2: 5, 3: 6}, [5])
    assert carried == [{5: -0.1, 6: -3.0}]


def test_min_edit_maps_tokens_that_occur_to_the_nearest_token():
    source, target = table([None, b"ab", b"abd", b"zz"]), table([None, b"ab", b"abc", b"y"])
    projection = MinEdit(source, target).with_tokens(np.array([[0, 1, 2]]))
    assert projection.whole.tolist() == [0, 1, 1, -1]


def table(pieces: list[bytes | None]) -> TokenBytes:
    return TokenBytes.from_table(pieces, end_ids=[0])


def test_weights_of_pieces_decay_tenfold_and_sum_to_one():
    assert xtoken.decay(1) == [1.0]
    assert xtoken.decay(3) == pytest.approx([100 / 111, 10 / 111, 1 / 111])


def test_the_projection_maps_equal_bytes_splits_other_tokens_and_pairs_the_heaviest(byte_level, llama_like):
    student = TokenBytes.from_tokenizer(llama_like, len(llama_like))
    teacher = TokenBytes.from_tokenizer(byte_level, len(byte_level))
    projection = xtoken.Projection.build(student, teacher)
    pairs = dict(zip(projection.student_common.tolist(), projection.teacher_common.tolist(), strict=True))
    same = student.id_of[b"a"]
    assert projection.weights[same] == {teacher.id_of[b"a"]: 1.0}
    assert pairs[same] == teacher.id_of[b"a"]
    assert pairs[student.end_ids[0]] == teacher.end_ids[0]
    assert len(set(pairs.values())) == len(pairs)
    for row in projection.weights.values():
        assert len(row) <= xtoken.ROW_TOKENS
        assert sum(row.values()) == pytest.approx(1.0)


IDENTITY = xtoken.Projection({i: {i: 1.0} for i in range(3)}, torch.arange(3), torch.arange(3))


def p_kl(logits, teacher, groups, projection):
    return xtoken.p_kl(logits, teacher, groups, projection, xtoken.most_probable(teacher))


def test_p_kl_and_h_kl_are_zero_at_agreement_and_equal_the_kl_where_tokens_correspond():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    groups = Groups(np.array([0, 1]), np.array([0, 1]))
    kl = 0.5 * np.log(2) - 0.25 * np.log(2)
    for loss in (p_kl, xtoken.h_kl):
        assert float(loss(p.log(), p.log(), groups, IDENTITY)) == pytest.approx(0.0, abs=1e-6)
        assert float(loss(q.log(), p.log(), groups, IDENTITY)) == pytest.approx(kl, abs=1e-6)


def test_p_kl_averages_probabilities_of_the_student_and_log_probabilities_of_the_teacher():
    student = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    teacher = torch.tensor([[0.5, 0.25, 0.25]])
    q = np.array([0.375, 0.25, 0.375])
    wanted = (teacher[0].numpy() * np.log(teacher[0].numpy() / q)).sum()
    found = p_kl(student.log(), teacher.log(), Groups(np.array([0, 1]), np.array([0, 2])), IDENTITY)
    assert float(found) == pytest.approx(wanted, abs=1e-6)


def test_h_kl_compares_uncommon_tokens_in_sorted_order():
    common = xtoken.Projection({0: {0: 1.0}}, torch.tensor([0]), torch.tensor([0]))
    student, teacher = torch.tensor([[0.5, 0.1, 0.4]]), torch.tensor([[0.5, 0.2, 0.3]])
    found = xtoken.h_kl(student.log(), teacher.log(), Groups(np.array([0, 1]), np.array([0, 1])), common)
    # The common token agrees; 0.4, 0.1 against 0.3, 0.2.
    assert float(found) == pytest.approx(0.2, abs=1e-6)


def exact(source, target, consumed):
    """Returns the distribution of the target's next token after these bytes, however the target tokenized them."""
    longest, found = max(len(data) for data in target.table if data), {}

    def walk(history, text, mass):
        ended = history[-1:] == (END,)
        if ended or (history and len(text) >= len(consumed) + longest):
            rest = text[len(consumed) :]
            goal = target.first(rest) if rest else target.end
            found[goal] = found.get(goal, 0.0) + mass
            return
        for index, probability in enumerate(source.distribution(history)):
            longer = text + piece(source.vocabulary, index)
            agrees = longer.startswith(consumed) if len(longer) >= len(consumed) else consumed.startswith(longer)
            if agrees and not (index == END and len(text) < len(consumed)):
                walk((*history, index), longer, mass * probability)

    walk((), b"", 1.0)
    return {index: mass / sum(found.values()) for index, mass in found.items()}


@settings(max_examples=40, deadline=None)
@given(ours=PIECES, theirs=PIECES, consumed=st.sampled_from([b"", b"a", b"ab"]), seed=st.integers(0, 1 << 16))
def test_the_walk_finds_the_exact_distribution(ours, theirs, consumed, seed):
    source, target = Source(vocabulary(*ours), seed), vocabulary(*theirs)
    wanted = exact(source, target, consumed)
    walk = Walk(table_of(source.vocabulary), table_of(target))
    found = walk(
        source.distribution(()),
        consumed,
        lambda nodes: [source.distribution(tokens) for tokens in nodes],
        1e-9,
        5000,
        judged=False,
    )
    assert found.residual < 1e-6
    assert found.exact() == pytest.approx(wanted, abs=1e-6)


def test_a_walk_without_budget_reports_the_residual():
    # The root determines b (1/4) and the end (1/4); a (1/2) may still become ab.
    source, target = table([None, b"a", b"b"]), table([None, b"a", b"b", b"ab"])
    found = Walk(source, target)(np.array([0.25, 0.5, 0.25]), b"", lambda nodes: [], 0.0, 0)
    assert found.residual == pytest.approx(0.5)
    assert found.exact() == {0: 0.5, 2: 0.5}


def test_continuations_that_the_target_would_not_have_split_are_ruled_out():
    # After `a` the target has emitted a: ab and a, b are impossible, because it would have written them as ab.
    source, target = table([None, b"a", b"b", b"ab", b"ac"]), table([None, b"a", b"b", b"c", b"ab"])
    root = np.array([0.0, 0.0, 0.2, 0.5, 0.3])
    found = Walk(source, target)(root, b"a", lambda nodes: [], 0.0, 0)
    assert found.exact() == {3: 1.0}
    found = Walk(source, target)(root, b"a", lambda nodes: [], 0.0, 0, judged=False)
    assert found.exact() == pytest.approx({2: 0.625, 3: 0.375})


def test_distances():
    assert distance([1, 2], [0.5, 0.25], {1: 0.5, 3: 0.5}) == pytest.approx(0.5)
    assert bucket_distance([1, 2], [0.5, 0.25], {1: 0.5, 3: 0.5}) == pytest.approx(0.25)


def test_calibration_finds_a_known_shift_and_scale():
    rng = np.random.default_rng(0)
    x = rng.normal(-1, 2, 200_000)
    ended = rng.random(len(x)) < 1 / (1 + np.exp(-(0.5 * x + 1)))
    assert fit(x, ended, scaled=True) == pytest.approx((0.5, 1.0), abs=0.03)
    ended = rng.random(len(x)) < 1 / (1 + np.exp(-(x - 2)))
    assert fit(x, ended, scaled=False) == pytest.approx((1.0, -2.0), abs=0.03)


def test_ends_count_every_position_and_compare_with_the_target():
    ends = Ends()
    for _ in range(2):
        ends.add(np.array([0.25, 0.5]), np.array([0.5, 0.25]))
    assert ends.ended.tolist() == [False, True, False, True]
    bits = ends.bits()
    assert bits["as carried"] == pytest.approx([-np.log2(0.75) + 1.0] * 2)
    assert bits["target"] == pytest.approx([1.0 + 2.0] * 2)
    assert ends.at_ends()["carried where the target goes on"] == 0.5
    assert [row["positions"] for row in ends.reliability()] == [2, 2]


def test_a_ratio_is_of_sums_and_its_interval_holds_it():
    found = ratio("", [1.0, 3.0], [1.0, 3.0], "")
    assert (found.value, found.low, found.high, found.num) == (1.0, 1.0, 1.0, 4)


def test_the_tables_in_the_document_match_the_report_of_the_committed_results():
    folder = Path(__file__).parents[2] / "notebooks"
    names = ("bits_speed", "ends", "gradients", "exactness")
    results = [json.loads((folder / "results" / "peers" / f"{name}.json").read_text()) for name in names]
    printed = "\n".join(report.tables(report.Figures(results)))
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) > 100
    assert set(lines) <= set((folder / "README.md").read_text().splitlines())
