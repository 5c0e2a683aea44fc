"""What the service counts and times, as Prometheus reads it."""

from mrl_jax import extras
from mrl_jax.search.index import Index

with extras.needed("serve", "the service"):
    import prometheus_client

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Measured:
    """Counters and times of one service.

    Attributes:
      queries: counts single queries; each of a batch counts.
      reloads: counts changes of others that were noticed.
      failed_reloads: counts looks at the disk that failed.
    """

    def __init__(self, index: Index):
        self._registry = prometheus_client.CollectorRegistry()
        about = {"registry": self._registry, "namespace": "mrl_jax_search"}
        self._requests = prometheus_client.Counter(
            "requests", "Requests by path and status", ["path", "status"], **about
        )
        self._seconds = prometheus_client.Histogram(
            "request_seconds", "Seconds to an answer", ["path"], buckets=_SECONDS, **about
        )
        self.queries = prometheus_client.Counter("queries", "Queries that were answered", **about)
        self.reloads = prometheus_client.Counter("reloads", "Changes of others noticed", **about)
        self.failed_reloads = prometheus_client.Counter(
            "failed_reloads", "Looks at the index on disk that failed", **about
        )
        gauge = prometheus_client.Gauge("rows", "Vectors that can be found", **about)
        gauge.set_function(lambda: index.rows)
        gauge = prometheus_client.Gauge("version", "Of the index; grows with changes", **about)
        gauge.set_function(lambda: index.version)
        gauge = prometheus_client.Gauge(
            "unlike", "1 if queries score unlike those that the plan was made with", **about
        )
        gauge.set_function(lambda: index.unlike is not None)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All of it."""
        return prometheus_client.generate_latest(self._registry)
