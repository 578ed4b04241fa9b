"""Names that are stored outside the code: a change of one would hide what earlier runs wrote."""

from profuser.artifacts import artifact, lock, schemas, tracking
from profuser.run import finding, fusing_artifacts
from profuser.run.stages import STAGES
from profuser.signals.rules import Rule


def test_names_in_shards_folders_and_mlflow_are_those_of_earlier_runs():
    assert (artifact.COUNTS_KEY, artifact.FINGERPRINT_KEY) == (b"profuser.counts", b"profuser.kind")
    assert (artifact.SETTINGS_KEY, artifact.MANIFEST) == (b"profuser.settings", "manifest.json")
    assert (tracking.PARENT_TAG, tracking.STAGE_TAG) == ("profuser.run", "profuser.stage")
    assert (fusing_artifacts.MODEL, fusing_artifacts.TRAINING_METRICS, finding.RECIPE) == (
        "model",
        "metrics.jsonl",
        "recipe.yaml",
    )
    assert schemas.MODES == ("training", "inference")
    assert {rule.name: int(rule) for rule in Rule} == {"NONE": 0, "PROJECT": 1, "CONDITION": 2, "CHAIN": 3, "END": 4}
    assert " ".join(STAGES) == "prepare collect rewards signals select rounds fuse evaluate benchmarks judge report"
    assert lock.LOCK == "lock.json"
