"""OpenTelemetry spans of requests, and W3C trace context in and out (https://www.w3.org/TR/trace-context/).

Off unless a collector is named. OpenTelemetry's SDK is imported by `Tracing.open` alone and is an extra (`tracing`): a
device that traces nothing does not carry it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from toprope_shared.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

FROM_ENVIRONMENT = "otel"
# The end of a process waits for its last spans, so not long for a collector that is away.
SEND_S = 2.0
Kind = Literal["server", "client"]
Attribute = str | int | float | bool


class Traced:
    """One span that was begun."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def headers(self) -> dict[str, str]:
        """Return what makes the next one's span a child of this: `traceparent`, and `tracestate` where there is one."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(self._span))
        return carrier

    def end(self, status: int, attributes: Mapping[str, Attribute] | None = None) -> None:
        """End the span.

        Args:
            status: of HTTP; 0 where there was no answer. From 500 on, and 0, are errors.
            attributes: what else is known now.
        """
        from opentelemetry.trace import StatusCode

        self._span.set_attributes({"http.response.status_code": status, **(attributes or {})})
        if status == 0 or status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Begins spans.

    Args:
        provider: OpenTelemetry's; it samples and sends.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("toprope")

    @classmethod
    def open(cls, endpoint: str, service: str, *, exporter: SpanExporter | None = None) -> Self:
        """Return a tracing that sends spans in batches, beside the event loop, as OTLP over HTTP.

        Args:
            endpoint: the collector's URL for traces, e.g. `http://localhost:4318/v1/traces`; `otel` leaves it, and everything
                else, to OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`).
            service: `service.name` where `OTEL_SERVICE_NAME` does not say another.
            exporter: where spans go instead.

        Raises:
            InputError: the extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InputError(
                f"traces need OpenTelemetry ({error}); install it with: pip install 'toprope-shared[tracing]', "
                "or leave the setting traces empty"
            ) from error
        named = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=named, shutdown_on_exit=False)
        if exporter is None:
            exporter = OTLPSpanExporter() if endpoint == FROM_ENVIRONMENT else OTLPSpanExporter(endpoint, timeout=SEND_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def begin(self, name: str, headers: Mapping[str, str], kind: Kind = "server") -> Traced:
        """Begin a span.

        Args:
            name: what is done, with few values: `infer`, not a path.
            headers: by lower-case name; a `traceparent` in them makes it a child.
            kind: whether it answers or asks.
        """
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        return Traced(self._tracer.start_span(name, parent, SpanKind.SERVER if kind == "server" else SpanKind.CLIENT))

    def close(self) -> None:
        """Send what waits, in a few seconds, and stop; not on the event loop."""
        self._provider.shutdown()
