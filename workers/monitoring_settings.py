"""What is told of the scans: metrics and traces."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from workers.setting_types import Group


class MonitoringSettings(Group):
    """What the metrics compare today's scans with ([metrics.md](metrics.md))."""

    drift_reference: Path | None = Field(
        None,
        description="JSON file of scans that are as they should be, such as `/drift` of a worker gives; the validation "
        "slices of the shipped models if none",
    )
    drift_scans: int = Field(
        2000, ge=500, description="so many last scans are compared with it; a patient's slices resemble each other"
    )


class TracingSettings(Group):
    """Where spans go, and of how many scans ([tracing.md](tracing.md)). Logins and certificates are given as everywhere in
    OpenTelemetry: `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_CERTIFICATE`."""

    otlp_endpoint: str | None = Field(
        None,
        description="address of a collector that speaks OTLP over HTTP, such as http://collector:4318; none: no traces",
    )
    sample_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of scans that are traced, where their sender hasn't decided it by the flag in `traceparent`",
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_address(cls, given: str | None) -> str | None:
        if not given:  # an environment variable can be empty, but not null
            return None
        try:
            parts = urlsplit(given)
            is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        except ValueError:
            is_plain = False
        if not is_plain:
            raise ValueError("an address such as http://collector:4318 is wanted, without a login in it")
        return given.rstrip("/")

    @property
    def traces_url(self) -> str | None:
        """What spans are posted to: the endpoint with OTLP's own path."""
        if self.otlp_endpoint is None or self.otlp_endpoint.endswith("/v1/traces"):
            return self.otlp_endpoint
        return f"{self.otlp_endpoint}/v1/traces"
