"""The ablation: the runs of each arm, what they share, the time left, and the table of made-up scores."""

import contextlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from profuser.ablation.arms import find_arms, plan_ablation, time_left
from profuser.ablation.plot import ablation_plot
from profuser.ablation.results import ORACLE, TARGET_TITLE, Measured, compare_all, gather_results
from profuser.ablation.table import as_json, flat_rows, markdown, notes, table_cost
from profuser.config import flatten, identity
from profuser.errors import UserError
from profuser.lab.twins import build_twins
from profuser.recipe.layers import read_tree
from profuser.report.measures import BITS_PER_BYTE, EXACT_MATCH
from profuser.run.stages import FUSED, TARGET
from profuser.run.tokenizers import read_tokenizer_pairs
from ray_jobs.cli.options import RECIPES

EVERY = find_arms(["all", "homogeneous"], RECIPES)
SAME_SELECT = {arm.name for arm in EVERY if read_tree(arm.file).keys() <= {"fuse"}}
"""Arms that change only the training."""
NUM_ROWS, RESPONSE_BYTES = 60, 10
ONE_JUDGE = ["rewards=[{kind: exact_match, name: exact}]"]


def plan(storage, *names, num_seeds=1, settings=()):
    return plan_ablation("demo", [f"storage={storage}", *settings], find_arms(names, RECIPES), num_seeds, RECIPES)


@pytest.fixture(scope="module", autouse=True)
def outside_the_checkout(tmp_path_factory):
    """Changes to an empty folder: every manifest asks git for the commit, which is slow in a large checkout."""
    with contextlib.chdir(tmp_path_factory.mktemp("elsewhere")):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All arms, none of them started."""
    return plan(tmp_path_factory.mktemp("nothing"), "all", "homogeneous")


def by_name(ablation):
    return {each.recipe.name: each for each in ablation.runs}


def test_groups_and_names_are_found_without_duplicates():
    names = [arm.name for arm in EVERY]
    assert names[:2] == ["progressive", "sft-gt"]
    assert len(set(names)) == len(names)
    both = find_arms(["schedules", "ablations,k-1", "search"], RECIPES)
    assert both == find_arms(["all"], RECIPES)
    assert [arm.name for arm in EVERY if arm not in both] == ["homogeneous"], "its sources do not ship"
    assert [arm.name for arm in find_arms(["k-1, sft-gt"], RECIPES)] == ["sft-gt", "k-1"]
    with pytest.raises(
        UserError, match="--arms k-2: no such arm or group; available: schedules, ablations, search, all, average"
    ):
        find_arms(["k-2"], RECIPES)
    with pytest.raises(UserError, match="at least one arm"):
        find_arms([","], RECIPES)


@pytest.mark.parametrize("arm", EVERY, ids=lambda arm: arm.name)
def test_every_arm_has_equal_updates_and_tokens_and_a_description(arm, whole):
    assert arm.about[:1].isupper()
    fuse, plain = by_name(whole)[f"demo.{arm.name}.s0"].recipe.fuse, whole.base.recipe.fuse
    for name in ("duration", "batch_tokens", "max_tokens", "optimizer", "validation_rows", "seed"):
        assert getattr(fuse, name) == (0 if name == "seed" else getattr(plain, name))


@pytest.mark.parametrize("arm", [arm for arm in EVERY if arm.is_ablation], ids=lambda arm: arm.name)
def test_an_ablation_differs_from_the_progressive_arm_only_in_its_own_settings(arm, whole):
    runs = by_name(whole)
    mine, other = (flatten(identity(runs[f"demo.{name}.s0"].recipe)) for name in (arm.name, "progressive"))
    changed = {key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key)} - {"name"}
    own = {".".join(key.split(".")[:2]) for key in flatten(read_tree(arm.file))}
    assert changed
    assert {key.split(".")[0] for key in changed} == {key.split(".")[0] for key in own}
    lists = {"sources", "rewards"}
    assert all(key.split(".")[0] in lists or ".".join(key.split(".")[:2]) in own for key in changed)


def test_runs_are_named_by_arm_and_seed_and_reuse_the_base_and_their_first_seed(tmp_path):
    ablation = plan(tmp_path, "sft-gt,k-5", num_seeds=2, settings=["reuse=[earlier]", "name=mine"])
    assert ablation.base.recipe.name == "mine.base"
    assert ablation.folder.uri == f"{tmp_path}/mine.ablation"
    assert [(each.recipe.name, each.recipe.reuse, each.recipe.fuse.seed) for each in ablation.runs] == [
        ("mine.sft-gt.s0", ("mine.base", "earlier"), 0),
        ("mine.k-5.s0", ("mine.base", "earlier"), 0),
        ("mine.sft-gt.s1", ("mine.base", "mine.sft-gt.s0", "earlier"), 1),
        ("mine.k-5.s1", ("mine.base", "mine.k-5.s0", "earlier"), 1),
    ]


def test_an_arms_own_settings_override_the_command_lines(tmp_path):
    runs = by_name(plan(tmp_path, "sft-gt,beta-1,reversed", settings=["fuse.beta=0.3", "fuse.duration.value=7"]))
    assert {name: each.recipe.fuse.beta for name, each in runs.items()} == {
        "demo.sft-gt.s0": 0.0,
        "demo.beta-1.s0": 1.0,
        "demo.reversed.s0": 0.3,
    }
    assert {each.recipe.fuse.duration.value for each in runs.values()} == {7}


def test_an_arm_cannot_pick_a_source_that_the_recipe_lacks(tmp_path):
    with pytest.raises(
        UserError, match="--arms without-mpt: sources: the recipe has none named 'neox'; available: llama"
    ):
        plan(tmp_path, "without-mpt", settings=["sources=[{name: llama, model: lab://sources/llama}]"])
    with pytest.raises(UserError, match="too long"):
        plan(tmp_path, "sft-gt", settings=[f"name={'a' * 60}"])


def test_the_teachers_pass_is_shared_unless_its_settings_differ(whole):
    base, runs = whole.base, by_name(whole)
    collected = [artifact.fingerprint for artifact in base.artifacts("collect")]
    selected = base.select().fingerprint
    for name, each in runs.items():
        arm = name.split(".", 1)[1].removesuffix(".s0")
        if arm == "homogeneous":
            continue
        not_shared = [a.stage for a in each.run.artifacts("collect") if a.fingerprint not in collected]
        assert bool(not_shared) == (arm.startswith("k-") or "on-policy" in arm), name
        if arm in SAME_SELECT:
            assert each.run.select().fingerprint == selected, name
        elif each.arm.is_ablation:
            assert each.run.select().fingerprint != selected, name
        assert each.run.evaluate(TARGET).fingerprint == base.evaluate(TARGET).fingerprint


# Made-up runs: real artifacts with invented scores.

HALF = ("progressive", "sft-gt", "reversed", "sft-voted")


def scores(bits_per_row, num_right):
    """Returns the NUM_ROWS records of an evaluate table."""
    nats = np.full(NUM_ROWS, bits_per_row * np.log(2)) + np.linspace(-0.3, 0.3, NUM_ROWS)
    records = [
        {
            "row_id": f"{row:03d}",
            "category": None,
            "refused": None,
            "prediction": "a",
            "correct": row < num_right,
            "nats": nats[row],
            "response_bytes": RESPONSE_BYTES,
        }
        for row in range(NUM_ROWS)
    ]
    return records


def write_scores(artifact, records, seconds=2.0):
    artifact.write_shard(0, pa.Table.from_pylist(records, schema=artifact.schema), {"rows": len(records)})
    artifact.finish([{"rows": len(records)}], seconds)


def write_heldout(artifact):
    messages, place = [{"role": "user", "content": "Which letter?"}], {"source_file": "rows.jsonl", "source_line": 1}
    rows = [{"row_id": f"{row:03d}", "messages": messages, "response": "a", **place} for row in range(NUM_ROWS)]
    artifact.write_shard(0, pa.Table.from_pylist(rows, schema=artifact.schema), {"rows": NUM_ROWS})


def finish_base(ablation):
    write_heldout(ablation.shared["prepare/heldout"])
    for artifact in ablation.shared.values():
        if not artifact.stage.startswith("evaluate"):
            artifact.finish([], 5.0, device_seconds=10.0)
    for name, bits, right in ((TARGET, 9.0, 10), ("mpt", 8.0, 5), ("neox", 7.0, 20)):
        records = scores(bits, right)
        if name == "mpt":  # correct where no other model is
            records[-1]["correct"] = True
        write_scores(ablation.shared[f"evaluate/{name}"], records)


def finish_arm(each, bits, num_right, updates=3):
    fuse, evaluate, report = (each.parts[stage] for stage in ("fuse", f"evaluate/{FUSED}", "report"))
    fuse.folder.write_bytes("metrics.jsonl", b'{"sequence_tokens": 1000}\n' * updates)
    fuse.finish([], 60.0, device_seconds=120.0)
    write_scores(evaluate, scores(bits, num_right))
    report.finish([], 1.0)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Four arms with two seeds: the first seed of three is finished, and the second of one; one arm made fewer updates."""
    ablation = plan(tmp_path_factory.mktemp("half"), *HALF, num_seeds=2, settings=ONE_JUDGE)
    finish_base(ablation)
    runs = by_name(ablation)
    finish_arm(runs["demo.progressive.s0"], 4.0, 40)
    finish_arm(runs["demo.progressive.s1"], 4.02, 44)
    finish_arm(runs["demo.sft-gt.s0"], 5.0, 38)
    finish_arm(runs["demo.sft-voted.s0"], 6.0, 30, updates=2)
    return ablation


@pytest.fixture
def half(made_up, tmp_path):
    """A copy of `made_up` that a test may change."""
    shutil.copytree(made_up.base.recipe.storage, tmp_path, dirs_exist_ok=True)
    return plan(tmp_path, *HALF, num_seeds=2, settings=ONE_JUDGE)


def test_the_time_left_is_estimated_from_the_finished_runs(half):
    runs = by_name(half)
    runs["demo.reversed.s0"].run.folder.write_bytes("recipe.yaml", b"{}")
    assert {name for name, each in runs.items() if each.state == "finished"} == {
        each.recipe.name for each in half.finished()
    }
    assert runs["demo.reversed.s0"].state == "begun"
    assert runs["demo.reversed.s1"].state == "waiting"
    assert len(half.finished()) == 4
    # Four runs, each with fuse, evaluate and report; the teachers' pass is finished.
    left = time_left(half)
    assert left.unknown == ()
    assert left.seconds == pytest.approx(4 * (60 + 2 + 1))


def test_a_teachers_pass_of_an_arm_is_estimated_once_for_all_seeds(tmp_path):
    ablation = plan(tmp_path, "progressive,k-5", num_seeds=2, settings=ONE_JUDGE)
    finish_base(ablation)
    for each in ablation.runs:
        if each.arm.name == "progressive":
            finish_arm(each, 4.0, 40)
    teachers_pass = 3 * 5.0 + 5.0 + 5.0  # collect, rewards, select
    assert time_left(ablation).seconds == pytest.approx(teachers_pass + 2 * (60 + 2 + 1))


def test_changed_settings_under_the_same_name_are_refused(made_up):
    storage = made_up.base.recipe.storage
    other = plan(storage, "progressive", settings=[*ONE_JUDGE, "fuse.duration.value=5"])
    with pytest.raises(UserError, match=r"fuse.duration.value: 300 -> 5"):
        other.check()


def test_the_table_has_every_model_the_oracle_and_the_finished_arms(made_up):
    results = gather_results(made_up)
    assert [each.name for each in results.measured] == [
        *(TARGET_TITLE, "mpt", "neox", ORACLE, "progressive", "sft-gt", "sft-voted")
    ]
    assert results.num_rows == NUM_ROWS
    rows = {row["name"]: row for row in flat_rows(results)}
    assert rows[TARGET_TITLE]["bits_per_byte"] == pytest.approx(0.9)
    assert rows[ORACLE]["bits_per_byte"] == pytest.approx(0.7), "neox is best on all rows"
    assert rows[ORACLE]["exact_match"] == pytest.approx(100 * 21 / NUM_ROWS), "neox, and mpt where it alone is right"
    assert (rows["progressive"]["seeds"], rows["progressive"]["updates"], rows["progressive"]["tokens"]) == (2, 3, 3000)
    assert rows["progressive"]["device_hours"] == pytest.approx(120 / 3600)
    assert rows["progressive"]["bits_per_byte"] == pytest.approx(0.401)
    assert rows["progressive"]["bits_per_byte_min"] == pytest.approx(0.40)
    assert rows["progressive"]["bits_per_byte_max"] == pytest.approx(0.402)


def test_differences_have_the_right_sign_and_unmatched_arms_are_not_compared(made_up):
    results = gather_results(made_up)
    difference = results.comparisons["bits per byte", "progressive", "sft-gt"]
    assert difference.difference == pytest.approx(-0.099)
    assert difference.verdict == "better"
    assert difference.low <= difference.difference <= difference.high
    backwards = results.comparisons["bits per byte", "sft-gt", "progressive"]
    assert (backwards.difference, backwards.verdict) == (pytest.approx(0.099), "worse")
    assert results.comparisons["exact match", TARGET_TITLE, "sft-gt"].difference == pytest.approx(
        100 * (10 - 38) / NUM_ROWS
    )
    assert results.comparisons["bits per byte", "sft-voted", "sft-gt"] is None
    assert any("not step-matched" in note for note in notes(results))
    assert any("one seed" in note for note in notes(results))


def test_a_chance_difference_among_many_arms_is_not_after_holm():
    generator = np.random.default_rng(0)
    num_bytes = np.full(NUM_ROWS, RESPONSE_BYTES)
    reference = generator.normal(5, 1, (1, NUM_ROWS))
    correct = np.zeros((1, NUM_ROWS), dtype=bool)

    def arm(name, bits):
        return Measured(name, "schedule", bits, correct, (3,), (3000,))

    others = [arm(f"arm{n}", reference + generator.normal(0, 1, (1, NUM_ROWS))) for n in range(60)]
    found = compare_all([arm("sft-gt", reference), *others], num_bytes)
    verdicts = [found["bits per byte", other.name, "sft-gt"].verdict for other in others]
    assert "not after Holm" in verdicts
    assert "better" not in verdicts
    assert "worse" not in verdicts


def test_rows_that_one_model_refused_are_left_out_for_all(half):
    runs = by_name(half)
    records = scores(4.0, 40)
    records[0] |= {"refused": "too long", "correct": None, "nats": None}
    finish_arm(each := runs["demo.reversed.s0"], 4.0, 40)
    write_scores(each.parts[f"evaluate/{FUSED}"], records)
    assert gather_results(half).num_rows == NUM_ROWS - 1


def test_the_files_agree_with_the_results_and_state_the_cost(made_up):
    results, made = gather_results(made_up), table_cost(made_up, "2 CPU cores")
    shared = 8 * 5.0 + 3 * 2.0  # three of prepare, three sources, a reward, select; three models evaluated
    assert made.shared_seconds == pytest.approx(shared)
    assert made.stage_seconds == pytest.approx(shared + 4 * 63.0)
    assert made.device_seconds == pytest.approx(8 * 10 + 4 * 120)
    text = markdown("demo.ablation", results, made)
    assert "| progressive | 2 | 3 | 3 | 0.033 | 0.401 | 0.400 - 0.402 | -0.099 [" in text
    assert "| sft-voted | 1 | 2 | 2 | 0.033 | 0.600 | - | not step-matched | not step-matched |" in text
    assert "- **sft-gt**: Plain fine-tuning on the ground truth" in text
    tree = json.loads(json.dumps(as_json("demo.ablation", results, made)))
    assert tree["rows"][4]["per_seed"]["bits_per_byte"] == pytest.approx([0.40, 0.402])
    assert tree["made"]["machine"] == "2 CPU cores"


def test_the_picture_shows_every_row_in_both_metrics(made_up):
    results = gather_results(made_up)
    panels = ablation_plot(results).axes
    assert [axes.get_xlabel() for axes in panels] == [f"{m.title} ({m.hint})" for m in (BITS_PER_BYTE, EXACT_MATCH)]
    for axes in panels:
        assert [label.get_text() for label in axes.get_yticklabels()] == [each.name for each in results.measured]


def test_there_is_no_table_before_the_base_is_measured(tmp_path):
    with pytest.raises(UserError, match=r"demo.base: target is not measured yet"):
        gather_results(plan(tmp_path, "sft-gt"))


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A laboratory with nearly untrained twins."""
    folder = tmp_path_factory.mktemp("twins")
    build_twins(folder, num_steps={"mpt": 1, "neox": 1}, num_tested=6, progress=lambda _: None)
    return folder


@pytest.mark.slow
def test_twins_share_the_targets_tokenizer_and_leave_the_base_unchanged(twins, tmp_path):
    assert json.loads((twins / "lab.json").read_text())["exact_match"].keys() >= {"llama", "llama-mpt", "llama-neox"}
    with pytest.raises(UserError, match="already contains a laboratory"):
        build_twins(twins)
    plain, with_twins = (plan(tmp_path, "homogeneous", settings=more) for more in ((), [f"lab={twins}"]))
    marks = [[artifact.fingerprint for artifact in each.shared.values()] for each in (plain, with_twins)]
    assert marks[0] == marks[1], "the shipped models are copies"
    pairs = read_tokenizer_pairs(with_twins.runs[0].run)
    assert [projection.counts()["exact"] for projection in pairs.projections] == [
        pairs.projections[0].counts()["exact"]
    ] * 3
    assert all(projection.counts()["first_token"] == 0 for projection in pairs.projections)
    with pytest.raises(UserError, match="llama-mpt' is not a model"):
        plain.check()
