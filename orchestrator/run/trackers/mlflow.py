"""MLflow. MLFLOW_TRACKING_URI and its credentials are its own; without one it keeps `mlflow.db` where it is started."""

import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from orchestrator.config import ConfigError
from orchestrator.run.trackers.samples import ShownSample
from orchestrator.run.trackers.tracker import Opening

PARAMS_A_CALL = 100


def check() -> None:
    """Raise ConfigError if the address is none that the client knows; whether anyone answers there is seen later."""
    try:
        MlflowClient()
    except (MlflowException, ImportError) as error:
        raise ConfigError(
            f"trackers.use names 'mlflow': {error}; set MLFLOW_TRACKING_URI to a server's address, or to "
            "sqlite:////a/path/mlflow.db"
        ) from error


def open_run(opening: Opening) -> "MlflowRun":
    return MlflowRun(opening)


class MlflowRun:
    def __init__(self, opening: Opening) -> None:
        self._client = MlflowClient()
        if opening.id is not None:
            self.id = opening.id
            self._client.update_run(self.id, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(opening.project)
        experiment = known.experiment_id if known else self._client.create_experiment(opening.project)
        self.id = self._client.create_run(experiment, run_name=opening.name).info.run_id
        params = [Param(key, str(value)) for key, value in opening.settings.items()]
        for first in range(0, len(params), PARAMS_A_CALL):
            self._client.log_batch(self.id, params=params[first : first + PARAMS_A_CALL])

    def log(self, step: int, row: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        self._client.log_batch(self.id, [Metric(name, value, now_ms, step) for name, value in row.items()])

    def log_samples(self, step: int, samples: Sequence[ShownSample]) -> None:
        for number, sample in enumerate(samples):
            if sample.picture is not None:
                self._client.log_image(self.id, sample.picture, key=f"sample-{number}", step=step)
        text = "\n\n".join(f"{sample.caption}\n\n{sample.reply}" for sample in samples)
        self._client.log_text(self.id, text, f"samples/step-{step:06d}.txt")

    def finish(self, ok: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if ok else "FAILED")
