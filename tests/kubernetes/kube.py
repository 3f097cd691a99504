"""kubectl and helm, as far as these tests need them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.server import DIES_WITH_PARENT, free_port

Object = dict[str, Any]
# Under load, on two cores, a pod takes its time.
_READY_TIMEOUT_S = 300


class KubeError(AssertionError):
    """A command failed, or something did not come about; with what the cluster says of it."""


@dataclass(frozen=True, slots=True)
class Kube:
    """One namespace of the cluster that `kubeconfig` names."""

    kubeconfig: Path
    kubectl_program: str
    helm_program: str
    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace; its output. Raises KubeError with what it complained of."""
        return self._run(self.kubectl_program, *arguments, stdin=stdin)

    def helm(self, *arguments: str) -> str:
        """Run helm in the namespace; its output. Raises KubeError."""
        return self._run(self.helm_program, *arguments)

    def make_namespace(self) -> None:
        """Make the namespace, in which pods must keep to the restricted Pod Security Standard."""
        self.kubectl("create", "namespace", self.namespace)
        self.kubectl("label", "namespace", self.namespace, "pod-security.kubernetes.io/enforce=restricted")

    def delete_namespace(self) -> None:
        """Delete it and all that is in it, without waiting for graceful ends."""
        self.kubectl("delete", "pods", "--all", "--grace-period=0", "--force", "--ignore-not-found")
        self.kubectl("delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=180s")

    def apply(self, manifest: Path, **values: object) -> None:
        """Apply a manifest in which `${name}` stands for the value of that name."""
        text = re.sub(r"\$\{(\w+)\}", lambda match: str(values[match.group(1)]), manifest.read_text())
        self.kubectl("apply", "--filename=-", stdin=text)

    def objects(self, kind: str, selector: str = "") -> list[Object]:
        """Objects of a kind that have the labels."""
        options = [f"--selector={selector}"] if selector else []
        found: list[Object] = json.loads(self.kubectl("get", kind, "--output=json", *options))["items"]
        return found

    def rolled_out(self, *workloads: str, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Wait until each (`deployment/triton`) has what it asks for, ready. Raises KubeError saying what its pods lack."""
        for workload in workloads:
            try:
                self.kubectl("rollout", "status", workload, f"--timeout={timeout_s:.0f}s")
            except KubeError as error:
                raise KubeError(f"{error}\n{self.state()}") from None

    def replicas(self, deployment: str) -> int:
        """Pods of it that exist and aren't on their way out."""
        return len([pod for pod in self.pods_of(deployment) if "deletionTimestamp" not in pod["metadata"]])

    def pods_of(self, deployment: str) -> list[Object]:
        """Its pods."""
        labels = json.loads(self.kubectl("get", "deployment", deployment, "--output=json"))["spec"]["selector"]
        return self.objects("pods", ",".join(f"{name}={value}" for name, value in labels["matchLabels"].items()))

    def state(self) -> str:
        """For a failure's message: pods, events and the last lines of each pod that is not ready."""
        said = [
            self.kubectl("get", "pods", "--output=wide"),
            self.kubectl("get", "events", "--sort-by=.lastTimestamp")[-4000:],
        ]
        for pod in self.objects("pods"):
            name = pod["metadata"]["name"]
            if not all(each["ready"] for each in pod["status"].get("containerStatuses", [])):
                with contextlib.suppress(KubeError):
                    said.append(f"{name}:\n" + self.kubectl("logs", name, "--all-containers", "--tail=30"))
        return "\n".join(said)

    @contextlib.contextmanager
    def forward(self, service: str, port: int, local_port: int = 0) -> Iterator[int]:
        """A port of this machine that leads to the service's; started again whenever it breaks off.

        `local_port` 0 takes a free one.
        """
        local = local_port or free_port()
        loop = 'while :; do "$0" "$@"; sleep 0.2; done'
        command = [self.kubectl_program, *self._options(), "port-forward", f"service/{service}", f"{local}:{port}"]
        process = subprocess.Popen(
            [*DIES_WITH_PARENT, "sh", "-c", loop, *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield local
        finally:
            _end_group(process)

    def _options(self) -> Sequence[str]:
        return (f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}")

    def _run(self, program: str, *arguments: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            [program, *self._options(), *arguments], input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise KubeError(f"{Path(program).name} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


def eventually(condition: Callable[[], bool], what: str, timeout_s: float, state: Callable[[], str] = str) -> float:
    """Look until it holds; how long that took, in seconds. Raises KubeError naming `what` and the state after the time-out."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise KubeError(f"{what}: not within {timeout_s:.0f} s\n{state()}")
        time.sleep(0.25)
    return time.monotonic() - began


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()
