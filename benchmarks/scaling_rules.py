"""The chart's scaling rules, read from the objects that helm renders, and what Kubernetes and KEDA make of them."""

from __future__ import annotations

import math
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.local.go_programs import program
from workers.messages import Lane

CHART = Path(__file__).resolve().parents[1] / "helm" / "mristream"
HPA_SYNC_S = 15.0
# The share by which usage must miss its target before a HorizontalPodAutoscaler acts (its default).
TOLERANCE = 0.1


def rendered(values: Path) -> list[dict[str, Any]]:
    """The chart's objects, as helm makes them."""
    command = [program("helm", print), "template", "day", CHART, "--kube-version=1.37", "--values", values]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [each for each in yaml.safe_load_all(text) if each]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How fast a HorizontalPodAutoscaler goes one way: pods within a period, after a window in which no other was asked for."""

    pods: int
    period_s: float
    window_s: float

    @classmethod
    def read(cls, rules: dict[str, Any]) -> Behaviour:
        """Of one direction in an object's `behavior`."""
        [policy] = rules["policies"]
        assert policy["type"] == "Pods"
        return cls(policy["value"], policy["periodSeconds"], rules["stabilizationWindowSeconds"])


@dataclass(frozen=True, slots=True)
class Rules:
    """Bounds and behaviour of one of the two deployments."""

    least: int
    most: int
    up: Behaviour
    down: Behaviour
    # Of workers: seconds of lag for a worker by lane, how often KEDA looks, how long nothing waits before none is left, and
    # (first hour, last hour, workers) by the clock. Of Tritons: the time in the queue, in seconds.
    targets: dict[str, float]
    polling_s: float = 0.0
    cooldown_s: float = 0.0
    schedule: tuple[tuple[float, float, int], ...] = ()


def rules_of(objects: Sequence[dict[str, Any]]) -> tuple[Rules, Rules, float]:
    """Rules for workers and for Tritons, and how often Prometheus looks, from the chart's objects."""
    scaled = next(each["spec"] for each in objects if each["kind"] == "ScaledObject")
    behaviour = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    targets, schedule = {}, []
    for trigger in scaled["triggers"]:
        about = trigger["metadata"]
        if trigger["type"] == "prometheus":
            lane = next(lane for lane in Lane if f'lane="{lane}"' in about["query"])
            targets[str(lane)] = float(about["threshold"])
        elif trigger["type"] == "cron":
            schedule.append((_hour(about["start"]), _hour(about["end"]), int(about["desiredReplicas"])))
    workers = Rules(
        scaled["minReplicaCount"],
        scaled["maxReplicaCount"],
        Behaviour.read(behaviour["scaleUp"]),
        Behaviour.read(behaviour["scaleDown"]),
        targets,
        scaled["pollingInterval"],
        scaled["cooldownPeriod"],
        tuple(schedule),
    )
    hpa = next(each["spec"] for each in objects if each["kind"] == "HorizontalPodAutoscaler")
    [metric] = hpa["metrics"]
    tritons = Rules(
        hpa["minReplicas"],
        hpa["maxReplicas"],
        Behaviour.read(hpa["behavior"]["scaleUp"]),
        Behaviour.read(hpa["behavior"]["scaleDown"]),
        {"queue": int(metric["pods"]["target"]["averageValue"].removesuffix("m")) / 1000},
    )
    monitor = next(each for each in objects if each["kind"] == "PodMonitor")
    scrape_s = float(monitor["spec"]["podMetricsEndpoints"][0]["interval"].removesuffix("s"))
    return workers, tritons, scrape_s


def _hour(cron: str) -> float:
    minute, hour, *_ = cron.split()
    return int(hour) + int(minute) / 60


class Pods:
    """One deployment under its autoscaler: pods that are wanted, and since when each has been."""

    def __init__(self, rules: Rules, start_s: float, pods: int) -> None:
        self.rules = rules
        self._start_s = start_s
        # When each pod was created; those of the beginning long ago.
        self.born_s = [-math.inf] * pods
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()
        self.pod_s = 0.0

    @property
    def wanted(self) -> int:
        """Pods that exist, ready or not."""
        return len(self.born_s)

    def ready(self, now_s: float) -> int:
        """Pods that have had the time to start."""
        return sum(now_s - born_s >= self._start_s for born_s in self.born_s)

    def set(self, now_s: float, pods: int) -> None:
        """Make or end pods at once. The youngest go first."""
        if pods != self.wanted:
            self._changes.append((now_s, pods - self.wanted))
        self.born_s = self.born_s[:pods] + [now_s] * (pods - self.wanted)

    def recommend(self, now_s: float, desired: int) -> None:
        """What a HorizontalPodAutoscaler does with what its metrics ask for: windows, policies, bounds."""
        rules = self.rules
        desired = max(rules.least, 1, min(rules.most, desired))
        self._recommended.append((now_s, desired))
        longest_s = max(rules.up.window_s, rules.down.window_s)
        while self._recommended[0][0] < now_s - longest_s:
            self._recommended.popleft()
        # Down: the most that was asked for within the window; up: the least.
        most = max(each for at_s, each in self._recommended if at_s >= now_s - rules.down.window_s)
        least = min(each for at_s, each in self._recommended if at_s >= now_s - rules.up.window_s)
        if least > self.wanted:
            self.set(now_s, min(least, self._limit(now_s, rules.up, 1)))
        elif most < self.wanted:
            self.set(now_s, max(most, self._limit(now_s, rules.down, -1)))

    def _limit(self, now_s: float, behaviour: Behaviour, sign: int) -> int:
        while self._changes and self._changes[0][0] < now_s - 3600:
            self._changes.popleft()
        recent = sum(
            change for at_s, change in self._changes if at_s > now_s - behaviour.period_s and change * sign > 0
        )
        return max(0, self.wanted - recent + sign * behaviour.pods)


def within_tolerance(ratio: float) -> bool:
    """Whether a HorizontalPodAutoscaler leaves things as they are."""
    return abs(ratio - 1) <= TOLERANCE
