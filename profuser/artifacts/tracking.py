"""Tracks runs in MLflow: one parent run per fusion, one child per stage. The driver creates runs; workers reopen them by id."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from profuser.artifacts.artifact import digest
from profuser.config import flatten
from profuser.errors import UserError, one_line

PARENT_TAG = "profuser.run"
STAGE_TAG = "profuser.stage"
MAX_PARAM_CHARS = 500
SQLITE = "sqlite:///"


def tracking_uri(storage: str) -> str:
    """Returns MLFLOW_TRACKING_URI if set, else a SQLite file in the storage folder (in `./runs` for object storage)."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return os.environ["MLFLOW_TRACKING_URI"]
    folder = _own_folder(storage)
    folder.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{folder / 'mlflow.db'}"


def artifact_root(storage: str) -> str:
    """Returns the folder of artifacts if there is no server: next to the SQLite file. (For an object store MLflow needs boto3.)"""
    return str(_own_folder(storage) / "mlflow-artifacts")


def _own_folder(storage: str) -> Path:
    return Path("runs" if "://" in storage else storage).expanduser().absolute()


@dataclass(frozen=True)
class RunHandle:
    """A run that another process can reopen."""

    uri: str
    run_id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers, e.g. of one training step."""
        self._client().log_batch(self.run_id, metrics=_metrics(metrics, step))

    def last_step(self, name: str) -> int:
        """Returns the last step at which a metric was logged; -1 if none was."""
        return max((metric.step for metric in self._client().get_metric_history(self.run_id, name)), default=-1)

    def log_missing(self, records: Iterable[Mapping[str, float]], name: str) -> None:
        """Logs those of a run's `step` records that come after the last one at which a metric was logged."""
        last = self.last_step(name)
        for record in records:
            if record["step"] > last:
                self.log_metrics(record, int(record["step"]))

    def is_here(self) -> bool:
        """Returns whether this machine can reach the run: a SQLite file exists only on the driver's machine."""
        return not self.uri.startswith(SQLITE) or Path(self.uri.removeprefix(SQLITE)).is_file()

    def log_artifacts(self, folder: Path, to: str | None = None) -> None:
        """Logs all files in a local folder."""
        self._client().log_artifacts(self.run_id, str(folder), to)

    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)


@dataclass(frozen=True)
class Tracker:
    """The parent run of a fusion."""

    uri: str
    experiment_id: str
    parent: RunHandle
    run_name: str

    @classmethod
    def open(cls, uri: str, experiment: str, run_name: str, recipe: Mapping[str, Any], artifact_root: str) -> "Tracker":
        """Finds or creates the parent run of this name, with the recipe as its parameters.

        Raises:
            UserError: the tracking server does not answer or refuses, or its artifacts cannot be written from here; raised within
                seconds.
        """
        from mlflow.exceptions import MlflowException

        try:
            with _without_retry():
                return cls._open(uri, experiment, run_name, recipe, artifact_root)
        except MlflowException as error:
            remedy = "check that it runs and MLFLOW_TRACKING_URI (and _USERNAME, _PASSWORD) are right, or unset it"
            raise UserError(f"tracking: MLflow at {uri}: {_reason(error)}; {remedy}") from None

    @classmethod
    def _open(
        cls, uri: str, experiment: str, run_name: str, recipe: Mapping[str, Any], artifact_root: str
    ) -> "Tracker":
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        local = artifact_root if uri.startswith("sqlite") else None
        experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifact_location=local)
        _check_artifacts(uri, client.get_experiment(experiment_id).artifact_location)
        runs = client.search_runs([experiment_id], f"tags.`{PARENT_TAG}` = '{run_name}' and tags.`{STAGE_TAG}` = 'run'")
        if runs:
            run_id = runs[0].info.run_id
        else:
            tags = {PARENT_TAG: run_name, STAGE_TAG: "run"}
            run_id = client.create_run(experiment_id, run_name=run_name, tags=tags).info.run_id
        client.update_run(run_id, status="RUNNING")
        known = client.get_run(run_id).data.params
        parameters = {key: str(value)[:MAX_PARAM_CHARS] for key, value in flatten(recipe).items()}
        client.log_batch(run_id, params=_params({k: v for k, v in parameters.items() if k not in known}))
        return cls(uri, experiment_id, RunHandle(uri, run_id), run_name)

    @contextmanager
    def stage(self, name: str) -> Iterator[RunHandle]:
        """Opens the child run of a stage; it ends as finished, or as failed if the body raises."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        parent = self.parent.run_id
        children = client.search_runs(
            [self.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}' and tags.`{STAGE_TAG}` = '{name}'"
        )
        if children:
            run_id = children[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            tags = {"mlflow.parentRunId": parent, STAGE_TAG: name}
            # Both names, for the legends of charts that show a stage of several runs.
            title = f"{name} ({self.run_name})"
            run_id = client.create_run(self.experiment_id, run_name=title, tags=tags).info.run_id
        try:
            yield RunHandle(self.uri, run_id)
        except BaseException:
            _fail(RunHandle(self.uri, run_id))
            raise
        client.set_terminated(run_id, "FINISHED")

    def log_dataset(self, name: str, source: str, fingerprint: str) -> None:
        """Logs the corpus as a dataset input of the fusion, with its digest."""
        from mlflow import MlflowClient
        from mlflow.entities import Dataset, DatasetInput

        dataset = Dataset(name=name, digest=digest(fingerprint)[:8], source_type="local", source=source)
        MlflowClient(self.uri).log_inputs(self.parent.run_id, [DatasetInput(dataset, [])])

    def register(self, name: str, source: str) -> str:
        """Registers the model in a folder as a model version, once per run and folder; returns the version's number.

        Raises:
            UserError: the registry refuses it; running again retries.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(self.uri)
        with suppress(MlflowException):  # It exists already.
            client.create_registered_model(name)
        run_id = self.parent.run_id
        try:
            for known in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
                if known.source == source:
                    return str(known.version)
            return str(client.create_model_version(name, source, run_id).version)
        except MlflowException as error:
            raise UserError(f"tracking.registered_model: {name}: {self.uri} refuses it: {_reason(error)}") from None

    def end(self, failed: bool = False) -> None:
        """Marks the fusion as finished or failed."""
        from mlflow import MlflowClient

        if failed:
            _fail(self.parent)
        else:
            MlflowClient(self.uri).set_terminated(self.parent.run_id, "FINISHED")


def _check_artifacts(uri: str, location: str) -> None:
    """Raises UserError if artifacts cannot be written: with --default-artifact-root, clients write to S3 themselves."""
    if location.startswith("s3://") and find_spec("boto3") is None:
        remedy = "pip install boto3, or start the server with --artifacts-destination"
        raise UserError(
            f"tracking: MLflow at {uri} keeps artifacts at {location}, but boto3 is not installed; {remedy}"
        )


@contextmanager
def _without_retry() -> Iterator[None]:
    """Limits MLflow to one retry, unless the environment sets another limit: its default takes minutes."""
    own = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    own = {name: value for name, value in own.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _reason(error: Exception) -> str:
    return one_line(error, 200)


def _fail(run: RunHandle) -> None:
    """Marks a run as failed if the server can still be reached, without hiding the error that is being raised."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # MLflow also logs what it raises, with the traceback.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with suppress(MlflowException):
        MlflowClient(run.uri).set_terminated(run.run_id, "FAILED")


def _metrics(metrics: Mapping[str, float], step: int | None) -> list[Any]:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name.replace("=", "_"), float(value), now, step or 0) for name, value in metrics.items()]


def _params(parameters: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, value) for key, value in parameters.items()]
