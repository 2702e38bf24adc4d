"""The metrics page of Ray."""

from ray.util.metrics import Gauge


class RayMetrics:
    """Numbers of the run as gauges `star_r1_*` on the metrics port of the driver's node (Ray adds `ray_` in front)."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def publish(self, row: dict[str, float]) -> None:
        for key, value in row.items():
            name = "star_r1_" + key.replace("/", "_").replace(" ", "_")
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description=f"{key} of the newest step")
            self._gauges[name].set(value)
