"""A cluster for these tests: the one that KUBECONFIG names, else one of our own on this machine; and what runs in it."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.cache import cache_folder
from deploy.local.go_programs import find_go, program
from deploy.local.server import free_port
from tests.kubernetes import images
from tests.kubernetes.kube import Kube
from tests.kubernetes.platform import Platform

# For a cluster that KUBECONFIG names: a command that takes the archive of an image into it, such as
# `kind load image-archive` or `minikube image load`. Our own cluster needs none.
LOAD = os.environ.get("CLUSTER_LOAD")


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """The cluster's. One that was started here is stopped at the end, unless it ran before."""
    if given := os.environ.get("KUBECONFIG"):
        if not Path(given).is_file():
            pytest.fail(f"KUBECONFIG names {given}, which is not a file")
        yield Path(given)
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "cluster.lock").open("w") as lock:
        # Another run of these tests on this machine would stop the cluster at its end.
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = subprocess.run([images.CLUSTER, "running"], check=False).returncode == 0
        _cluster("up")
        yield Path(_cluster("kubeconfig"))
        if not ran:
            _cluster("down")


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path) -> Kube:
    """Its namespace `default`, in which nothing of these tests stays."""
    return Kube(kubeconfig, shutil.which("kubectl") or _cluster("kubectl"), str(program("helm")), "default")


@pytest.fixture(scope="session")
def loaded(kubeconfig: Path) -> None:
    """All images, built and in the cluster."""
    for name in (images.WORKER, images.TRITON, images.KAFKA, images.REDIS, images.PROMETHEUS):
        images.build(name)
        if os.environ.get("KUBECONFIG"):
            _load(name)
        else:
            _cluster("load", name)


@pytest.fixture
def kube(cluster: Kube, loaded: None, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace of its own, gone afterwards. If the test fails, what was in it is in its output."""
    found = Kube(cluster.kubeconfig, cluster.kubectl_program, cluster.helm_program, f"mristream-{uuid.uuid4().hex[:6]}")
    found.make_namespace()
    try:
        yield found
    finally:
        if request.session.testsfailed:
            print(found.state())
        found.delete_namespace()


@pytest.fixture(scope="session")
def keda(kubeconfig: Path) -> None:
    """KEDA's operator and adapter: those that the cluster has, else ones of our own."""
    if os.environ.get("KUBECONFIG"):
        have = subprocess.run(["kubectl", "get", "crd", "scaledobjects.keda.sh"], capture_output=True, check=False)
        if have.returncode != 0:
            pytest.fail("the cluster that KUBECONFIG names has no KEDA: install it there", pytrace=False)
    else:
        _cluster("keda")


@pytest.fixture
def platform(kube: Kube) -> Iterator[Platform]:
    """Kafka and Redis in the namespace, reachable from here."""
    with Platform(kube, kafka_port=free_port()) as running:
        yield running


def _cluster(*arguments: str) -> str:
    """The last line that our own cluster's script prints. Where it can't make one, its last sentence is the failure."""
    path = f"{Path(find_go()).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [images.CLUSTER, *arguments], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"{images.CLUSTER} {' '.join(arguments)} failed"]
        pytest.fail("\n".join(lines[-5:]), pytrace=False)
    return done.stdout.strip().rpartition("\n")[2]


def _load(name: str) -> None:
    if LOAD is None:
        pytest.fail(
            "KUBECONFIG names a cluster: say in CLUSTER_LOAD how images get into it, such as `kind load image-archive`",
            pytrace=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "image.tar"
        subprocess.run(["podman", "save", "--quiet", "--output", archive, name], check=True)
        subprocess.run([*shlex.split(LOAD), archive], check=True)
