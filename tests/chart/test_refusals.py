"""Values that can't work are refused before anything is installed, with a sentence that says what to do."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from tests.chart.rendering import Refused, render

WORKS: dict[str, Any] = {
    "kafka": {"bootstrapServers": "kafka:9092", "partitions": 6},
    "store": {"s3": {"bucket": "masks"}},
}
PROMETHEUS = {"address": "http://prometheus.monitoring:9090"}
SECRET = {"name": "a"}


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `more` says in its place, map by map."""
    found = deepcopy(base)
    for name, value in more.items():
        found[name] = merged(found.get(name, {}), value) if isinstance(value, dict) else value
    return found


def test_the_least_values_are_accepted() -> None:
    assert render(WORKS)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kafka": {"bootstrapServers": ""}}, "kafka.bootstrapServers is empty"),
        ({"kafka": {"bootstrapServers": "kafka"}}, "which is not host:port"),
        ({"kafka": {"topics": {"stat": "scans"}}}, "each topic needs a name of its own"),
        ({"kafka": {"strimzi": {"enabled": True}}}, "needs kafka.strimzi.cluster"),
        ({"kafka": {"strimzi": {"enabled": True, "cluster": "a"}, "tls": {"enabled": True}}}, "follow from Strimzi"),
        ({"kafka": {"tls": {"caSecret": SECRET}}}, "mean nothing without kafka.tls.enabled"),
        ({"kafka": {"sasl": {"mechanism": "PLAIN", "username": "a"}}}, "needs kafka.sasl.username and"),
        (
            {"kafka": {"sasl": {"mechanism": "OAUTHBEARER", "username": "a", "passwordSecret": SECRET}}},
            "the mechanism OAUTHBEARER go together",
        ),
        ({"store": {"s3": {"bucket": ""}}}, "masks need a store"),
        ({"store": {"redis": {"host": "redis"}}}, "masks go to one store, and these are 2: masks, redis"),
        ({"store": {"uri": "gs://masks"}}, "masks go to one store"),
        ({"store": {"s3": {"bucket": ""}, "uri": "file:///masks"}}, "a pod's own files end with it"),
        ({"store": {"claim": "masks"}}, "go together"),
        ({"store": {"s3": {"bucket": ""}, "uri": "file:///data", "claim": "masks"}}, "the claim is mounted at /masks"),
        ({"store": {"s3": {"bucket": ""}, "uri": "redis://:secret@redis"}}, "use store.redis.host"),
        ({"allowedPrefixes": ["s3://incoming", "file:///scans"]}, "pods have no volume with scans"),
        ({"store": {"redis": {"tls": {"caSecret": SECRET}}}}, "mean nothing without store.redis.tls.enabled"),
        ({"triton": {"tls": {"enabled": True}}}, "triton.tls.enabled needs triton.tls.serverSecret.name"),
        ({"triton": {"tls": {"serverSecret": SECRET}}}, "mean nothing without triton.tls.enabled"),
        ({"triton": {"profile": "gpu"}}, "the GPU profile has no source of plans"),
        (
            {"triton": {"profile": "gpu"}, "plans": {"cache": {"claim": "a", "uri": "s3://a"}}},
            "plans are kept in one place",
        ),
        (
            {"triton": {"profile": "gpu"}, "plans": {"gpus": [{"name": "l4"}, {"name": "l4"}]}},
            "each kind of GPU needs a name of its own",
        ),
        ({"plans": {"gpus": [{"name": "l4"}]}}, "plans.gpus are for the GPU profile"),
        ({"models": {"use": 4}}, "models.use is 4, which is not in models.load"),
        ({"worker": {"replicas": 7}}, "worker.replicas is 7, and kafka.partitions is 6"),
        ({"autoscaling": {"enabled": True}}, "needs autoscaling.prometheus.address"),
        (
            {"autoscaling": {"enabled": True, "maxReplicas": 7, "prometheus": PROMETHEUS}},
            "autoscaling.maxReplicas is 7, and kafka.partitions is 6: a partition is one worker's",
        ),
        (
            {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4, "prometheus": PROMETHEUS}},
            "autoscaling.minReplicas is more than autoscaling.maxReplicas",
        ),
        (
            {"autoscaling": {"enabled": True, "fallbackReplicas": 7, "prometheus": PROMETHEUS}},
            "autoscaling.fallbackReplicas is more",
        ),
        (
            {"autoscaling": {"enabled": True, "minReplicas": 0, "prometheus": PROMETHEUS}},
            "set lagExporter.enabled",
        ),
        (
            {
                "autoscaling": {
                    "enabled": True,
                    "prometheus": PROMETHEUS,
                    "schedule": [{"start": "0 7 * * *", "end": "0 8 * * *", "timezone": "UTC", "replicas": 7}],
                }
            },
            "autoscaling.schedule asks for more workers",
        ),
        ({"triton": {"autoscaling": {"enabled": True, "minReplicas": 5}}}, "triton.autoscaling.minReplicas is more"),
        ({"settings": {"kafka": {"password": "secret"}}}, "would put a secret into a ConfigMap"),
        ({"settings": {"worker": {"http_port": 1}}}, "has a value of its own in this chart"),
        ({"settings": {"kafka": {"scans_topic": "heads"}}}, "settings.kafka.scans_topic: other objects follow from it"),
        ({"settings": {"store": {"uri": "s3://heads"}}}, "settings.store.uri: other objects follow from it"),
        (
            {
                "kafka": {
                    "topics": {"replicationFactor": 1},
                    "strimzi": {"enabled": True, "cluster": "a"},
                }
            },
            "no scan could be written",
        ),
        (
            {"autoscaling": {"enabled": True, "prometheus": {"address": "http://prometheus:9090"}}},
            "write http://host.namespace:port",
        ),
        ({"autoscaling": {"enabled": True, "trigger": "kafka"}}, "write host.namespace:port"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_combination_that_can_not_work_is_refused_with_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        render(merged(WORKS, values))

    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"kafka": {"bootstrapServer": "kafka:9092"}},
        {"kafka": {"partitions": 0}},
        {"kafka": {"topics": {"replicationFactor": 0}}},
        {"kafka": {"groupProtocol": "eager"}},
        {"triton": {"profile": "tpu"}},
        {"worker": {"image": {"digest": "sha256:abc"}}},
        {"plans": {"fallback": "maybe"}},
        {"autoscaling": {"trigger": "cpu"}},
        {"store": {"uri": "ftp://masks"}},
        {"models": {"load": ["newest"]}},
        {"triton": {"autoscaling": {"minReplicas": 0}}},
        {"autoscaling": {"scaleDown": {"pods": 0}}},
        {"networkPolicy": {"dnsPorts": []}},
    ],
    ids=str,
)
def test_a_value_that_is_misspelt_or_out_of_bounds_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="values don't meet the specifications of the schema"):
        render(merged(WORKS, values))
