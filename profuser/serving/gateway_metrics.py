"""Prometheus metrics of the gateway. Ray's agent on every node exports the engines' metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
"""Bounds of the histograms' buckets."""


class GatewayMetrics:
    """Metrics of one replica of the gateway, since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "profuser_requests_total",
            "Requests that have ended; status 499: the client disconnected.",
            ("model", "path", "key", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "profuser_request_seconds", "Request duration.", ("model",), buckets=SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "profuser_first_piece_seconds",
            "Time until a stream's first piece.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.gauge = Gauge("profuser_requests_in_flight", "Requests in flight.", ("key",), registry=self.registry)

    def count(self, model: str, path: str, key: str, status: int, seconds: float | None = None) -> None:
        """Counts a request that has ended; model and key are empty and `seconds` is None if it ended before they were known."""
        self.requests.labels(model, path, key, str(status)).inc()
        if model and seconds is not None:
            self.seconds.labels(model).observe(seconds)

    def first_piece(self, model: str, seconds: float) -> None:
        """Records the time to the first piece of a stream."""
        self.first.labels(model).observe(seconds)

    def in_flight(self, key: str, change: int) -> None:
        """Records that a request begins (1) or ends (-1)."""
        self.gauge.labels(key).inc(change)

    def text(self) -> bytes:
        """Returns the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
