"""`mristream topics` against a real Kafka."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from confluent_kafka.admin import AdminClient, ConfigResource

from workers.cli import main
from workers.kafka import LARGEST_MESSAGE, Hidden, connection, find_topics
from workers.settings import Settings


def test_topics_are_made_once_as_they_should_be(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    kafka = settings.kafka
    names = [kafka.scans_topic, kafka.stat_topic, kafka.replay_topic, kafka.results_topic, kafka.dead_topic]

    first = CliRunner().invoke(main, ["topics", "--replication-factor=1", "--retention-hours=48"])
    second = CliRunner().invoke(main, ["topics"])
    too_many = CliRunner().invoke(main, ["topics", "--replication-factor=0"])

    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert first.output.startswith("created: ")
    assert second.output == "all topics are there\n"
    assert too_many.exit_code == 2
    asked = {name: ConfigResource(ConfigResource.Type.TOPIC, name) for name in names if name}
    admin = AdminClient(connection(kafka))
    for name, future in admin.describe_configs(list(asked.values())).items():
        said = future.result(15)
        assert said["max.message.bytes"].value == str(LARGEST_MESSAGE), name
        assert said["retention.ms"].value == str(48 * 3_600_000)
    for topic in find_topics(kafka, list(asked)).values():
        assert not isinstance(topic, Hidden)
        assert len(topic.partitions) == kafka.partitions
        assert len(topic.partitions[0].replicas) == 1
