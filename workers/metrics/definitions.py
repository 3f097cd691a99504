"""How a metric is defined: once, with its help text and its labels, in a catalogue that the documentation is made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Kind = Literal["counter", "gauge", "histogram"]
# Values of a gauge's labels, in their order, and the value itself.
Sample = tuple[Sequence[str], float]


@dataclass(frozen=True, slots=True)
class Label:
    """What a label says and the `values` that it can have. None: what the deployment has of it, a handful, such as the
    partitions of the topics; never anything of a scan."""

    name: str
    meaning: str
    values: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric. `name` is that of the samples; of a histogram without `_bucket`, `_sum` and `_count`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    upper_bounds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Metrics that answer one question."""

    title: str
    definitions: list[Definition]


class Catalogue:
    """Makes metrics in a registry, and knows what it has made, by section."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.sections: list[Section] = []

    @property
    def definitions(self) -> list[Definition]:
        """Of all sections."""
        return [definition for section in self.sections for definition in section.definitions]

    def begin_section(self, title: str) -> None:
        """What is defined from now on belongs there."""
        self.sections.append(Section(title, []))

    def counter(self, name: str, help_text: str, *labels: Label) -> Counter:
        """Something that only grows; the name ends in `_total`."""
        self._define(Definition(name, "counter", help_text, labels))
        return Counter(name, help_text, [label.name for label in labels], registry=self.registry)

    def gauge(self, name: str, help_text: str, *labels: Label) -> Gauge:
        """Something that goes up and down."""
        self._define(Definition(name, "gauge", help_text, labels))
        return Gauge(name, help_text, [label.name for label in labels], registry=self.registry)

    def histogram(self, name: str, help_text: str, *labels: Label, upper_bounds: Sequence[float]) -> Histogram:
        """How often values up to each bound were seen; one for what is beyond the last is added."""
        self._define(Definition(name, "histogram", help_text, labels, tuple(upper_bounds)))
        names = [label.name for label in labels]
        return Histogram(name, help_text, names, buckets=upper_bounds, registry=self.registry)

    def computed(self, name: str, help_text: str, *labels: Label, samples: Callable[[], Iterable[Sample]]) -> None:
        """A gauge whose samples are worked out whenever somebody asks, on the thread of whoever asks.

        Where a value is not known its sample is missing.
        """
        definition = Definition(name, "gauge", help_text, labels)
        self._define(definition)
        self.registry.register(_Computed(definition, samples))

    def _define(self, definition: Definition) -> None:
        self.sections[-1].definitions.append(definition)


class _Computed(Collector):
    def __init__(self, definition: Definition, samples: Callable[[], Iterable[Sample]]) -> None:
        self._definition = definition
        self._samples = samples

    def describe(self) -> Iterable[Metric]:
        """The name, which the registry keeps from being taken twice."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """The samples of this moment."""
        family = self._family()
        for values, value in self._samples():
            if not math.isnan(value):
                family.add_metric(values, value)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        names = [label.name for label in self._definition.labels]
        return GaugeMetricFamily(self._definition.name, self._definition.help, labels=names)
