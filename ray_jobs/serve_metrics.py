"""What an engine that serves tells Prometheus: vLLM's metrics, through Ray's agent on every node."""

import time

from vllm.v1.metrics.ray_wrappers import RayGaugeWrapper, RayPrometheusStatLogger

INTERVAL_SECONDS = 1.0


class SparseGauge(RayGaugeWrapper):
    """A gauge that is told once a second, and at once when it falls to 0: vLLM sets it with every token, which Ray makes dear."""

    _told, _next = 0.0, 0.0

    def set(self, value: int | float) -> None:
        """Sets it, if it is time."""
        now = time.monotonic()
        if now >= self._next or (value == 0 and self._told):
            self._told, self._next = value, now + INTERVAL_SECONDS
            super().set(value)


class EngineStatLogger(RayPrometheusStatLogger):
    """vLLM's own logger for Ray, with sparse gauges."""

    _gauge_cls = SparseGauge
