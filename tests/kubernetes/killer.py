"""Deletes and kills pods at random, seeded."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.history import Fault
from tests.kubernetes.kube import Kube, KubeError, Object
from tests.kubernetes.platform import now_ms

MANIFEST = Path(__file__).parent / "manifests" / "killer.yaml"
# Ends every process of a container, as the kernel does when memory runs out. Run in a pod that sees the node's processes.
_KILL = """
import os, pathlib, sys
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if sys.argv[1] in (process / "cgroup").read_text():
            os.kill(int(process.name), 9)
    except OSError:
        pass
"""


class Killer(threading.Thread):
    """Every few seconds takes a pod of one of the deployments and deletes it, deletes it without grace, or kills its
    processes; until stopped. `faults` says what it did.

    Killing processes needs a pod with the rights for it, in the namespace `default`.
    """

    def __init__(self, kube: Kube, deployments: Sequence[str], *, every_s: tuple[float, float], seed: int) -> None:
        super().__init__(name="killer", daemon=True)
        self._kube = kube
        self._cluster = Kube(kube.kubeconfig, kube.kubectl_program, kube.helm_program, "default")
        self._deployments = deployments
        self._every_s = every_s
        self._chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._stopping = threading.Event()
        self.faults: list[Fault] = []

    def run(self) -> None:
        """Kill until stopped."""
        self._cluster.apply(MANIFEST)
        self._cluster.rolled_out("deployment/mristream-test-killer")
        try:
            while not self._stopping.wait(self._chance.uniform(*self._every_s)):
                self._strike()
        finally:
            self._cluster.kubectl("delete", "--filename", str(MANIFEST), "--grace-period=1")

    def stop(self) -> None:
        """Kill no more."""
        self._stopping.set()
        self.join()

    def _strike(self) -> None:
        deployment = self._chance.choice(self._deployments)
        kind = self._chance.choice(["deleted", "deleted without grace", "killed"])
        pods = [pod for pod in self._kube.pods_of(deployment) if "deletionTimestamp" not in pod["metadata"]]
        if not pods:
            return
        pod = self._chance.choice(pods)
        name, began = pod["metadata"]["name"], now_ms()
        try:
            if kind == "killed":
                self._kill(pod)
            elif kind == "deleted":
                self._kube.kubectl("delete", "pod", name, "--wait=false")
            else:
                self._kube.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
        except KubeError as error:
            if "NotFound" in str(error):
                return  # a rollout was quicker
            raise
        self.faults.append(Fault(f"{deployment.rpartition('-')[2]} {kind}", name, began, now_ms()))

    def _kill(self, pod: Object) -> None:
        for container in pod["status"].get("containerStatuses", []):
            if identity := container.get("containerID", "").rpartition("/")[2]:
                command = ("python3", "-c", _KILL, identity)
                self._cluster.kubectl("exec", "deployment/mristream-test-killer", "--", *command)
