"""Our own images, built and run by podman as a cluster runs them: without rights, on a read-only root."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import tritonclient.grpc

from deploy.local.server import free_port, free_ports
from tests.kubernetes import images
from tests.kubernetes.kube import eventually

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(3600)]

MB = 1_000_000
# As the chart runs them.
RESTRICTED = ("--read-only", "--tmpfs=/tmp:size=256m", "--cap-drop=ALL", "--security-opt=no-new-privileges")
# On the machine's network, where the tests can reach it; with explicit limits, because some machines refuse to raise theirs.
HOST = ("--network=host", "--runtime=runc", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


@pytest.fixture(scope="module")
def worker() -> images.Image:
    """The worker's image."""
    return images.build(images.WORKER)


@pytest.fixture(scope="module")
def triton() -> images.Image:
    """The image of Triton for CPUs."""
    return images.build(images.TRITON)


def test_the_worker_is_small_and_has_no_compiler_no_torch_and_no_models(worker: images.Image) -> None:
    found = said(
        worker,
        "sh",
        "-c",
        "for each in cc gcc c++ make pip uv git; do command -v $each; done; "
        "python3 -c 'import torch' 2>/dev/null && echo torch; find / -xdev -name '*.onnx' -o -xdev -name '*.pt'; true",
    )

    assert found == ""
    print(f"worker: {worker.size_bytes / MB:.0f} MB")
    assert worker.size_bytes < 700 * MB


def test_the_worker_runs_as_a_user_of_its_own_and_cannot_write(worker: images.Image) -> None:
    assert said(worker, "id", "-u") == "10001"
    assert "Read-only" in said(worker, "sh", "-c", "touch /opt/mristream/x 2>&1; true")


def test_the_worker_tells_its_version_and_checks_what_it_needs(worker: images.Image) -> None:
    assert said(worker, "mristream", "version").startswith("mristream ")
    # Nothing is there: it says so for each, in sentences.
    checks = json.loads(said(worker, "sh", "-c", "mristream doctor --json || true"))
    assert {check["name"].partition(" ")[0] for check in checks if not check["ok"]} == {"kafka", "triton"}


def test_the_worker_is_up_before_kafka_is_and_ends_when_told(worker: images.Image) -> None:
    port = free_port()
    environment = {"MRISTREAM_WORKER__HTTP_PORT": str(port), "MRISTREAM_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    with running(worker, environment) as name:
        seconds = answered(name, port, "/healthz")
        assert status(port, "/readyz") == 503
        began = time.monotonic()
        podman("stop", "--time=60", name)
        ended = time.monotonic() - began
        print(f"worker: healthy after {seconds:.1f} s; ended {ended:.1f} s after SIGTERM")
        assert podman("inspect", "--format={{.State.ExitCode}}", name) == "0"


def test_triton_serves_every_model_on_a_read_only_root(triton: images.Image) -> None:
    http, grpc, metrics = free_ports(3)
    ports = (f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}")
    with running(
        triton, {}, "--model-config-name=cpu", "--allow-gpu-metrics=false", *ports, options=("--shm-size=256m",)
    ) as name:
        seconds = answered(name, http, "/v2/health/ready")
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc}")
        image = tritonclient.grpc.InferInput("image", [1, 256, 256], "UINT8")
        image.set_data_from_numpy(np.full((1, 256, 256), 60, np.uint8))
        probabilities = client.infer("brain_mri_classifier", [image]).as_numpy("probabilities")
        mask = client.infer("tumor_segmentation", [image]).as_numpy("mask")
        client.close()
    print(f"triton-cpu: {triton.size_bytes / MB:.0f} MB, ready after {seconds:.1f} s")
    assert probabilities is not None
    assert probabilities.sum() == pytest.approx(1, abs=1e-3)
    assert mask is not None
    assert mask.shape == (1, 8192)
    assert triton.size_bytes < 700 * MB


@pytest.mark.parametrize("kind", ["worker", "triton"])
def test_an_image_says_what_it_is(kind: str, request: pytest.FixtureRequest) -> None:
    image: images.Image = request.getfixturevalue(kind)

    labels = json.loads(podman("image", "inspect", "--format={{json .Labels}}", image.name))

    assert labels["org.opencontainers.image.licenses"].startswith("Apache-2.0")
    assert labels["org.opencontainers.image.title"].startswith("mristream")


def said(image: images.Image, *command: str) -> str:
    """What the command prints in a container of the image."""
    return podman("run", "--rm", "--entrypoint=", *HOST, *RESTRICTED, image.name, *command)


@contextmanager
def running(
    image: images.Image, environment: dict[str, str], *arguments: str, options: tuple[str, ...] = ()
) -> Iterator[str]:
    """A container of the image; its name."""
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    name = podman("run", "--detach", *HOST, *RESTRICTED, *options, *variables, image.name, *arguments)
    try:
        yield name
    finally:
        podman("rm", "--force", "--time=0", name)


def answered(name: str, port: int, page: str) -> float:
    """Wait until the container's page answers with 200; how long that took, in seconds."""

    def answers() -> bool:
        assert podman("inspect", "--format={{.State.Running}}", name) == "true", log(name)
        return status(port, page) == 200

    return eventually(answers, f"{page} is 200", 300, lambda: log(name))


def status(port: int, page: str) -> int | None:
    """HTTP status of a page; None while nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def log(name: str) -> str:
    """What a container has printed."""
    done = subprocess.run(["podman", "logs", name], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr)[-4000:]


def podman(*arguments: str) -> str:
    """What podman prints. Fails with its complaint."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout.strip()
