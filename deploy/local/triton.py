"""A real Triton Inference Server from PyPI, with its python backend."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from deploy.local.server import Report, Server, free_ports, open_local, silent
from deploy.local.triton_environment import TritonEnvironment, triton_environment

_PROBE_TIMEOUT_S = 1.0
# Requests that are still running when it is asked to stop get this long.
_EXIT_TIMEOUT_S = 3
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps what shm_open() names
# Triton logs it as an error that a machine has no GPU, and then works without one.
_NO_GPU = ("CudaDriverHelper", "CUDA driver version is insufficient")
_MODEL_ROW = re.compile(r"^\| *(\S*) *\| *(\S*) *\| (.*?) *\|$")


@dataclass(frozen=True, slots=True)
class TritonSecurity:
    """What `Triton(…, security=…)` needs for gRPC with TLS. All files are PEM.

    `server` and `client` are certificate and private key; `ca_file` signed both. Who has no such certificate is turned
    away.
    """

    ca_file: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]

    def arguments(self) -> list[str]:
        """Options of tritonserver."""
        cert_file, key_file = self.server
        return [
            "--grpc-use-ssl=true",
            "--grpc-use-ssl-mutual=true",
            f"--grpc-server-cert={cert_file}",
            f"--grpc-server-key={key_file}",
            f"--grpc-root-cert={self.ca_file}",
        ]


class Triton(Server):
    """Triton on free ports of 127.0.0.1, with every model of `model_repository`.

    `model_config_name` chooses among the models' configurations (`configs/NAME.pbtxt`); `arguments` are further
    options of tritonserver. By default gRPC is open to all, without TLS; `security` changes that. `traces_url` is where its
    spans are posted to: those of requests that come with a trace context. A model that can't be loaded is a ServerError
    with its reason.
    """

    name = "triton"

    def __init__(
        self,
        folder: Path,
        model_repository: Path,
        model_config_name: str = "cpu",
        *,
        arguments: Sequence[str] = (),
        security: TritonSecurity | None = None,
        traces_url: str | None = None,
    ) -> None:
        super().__init__(folder)
        self._security = security
        self._model_repository = model_repository.resolve()
        self._model_config_name = model_config_name
        self._arguments = (*(_tracing(traces_url) if traces_url else ()), *arguments)
        # The python backend talks to its models through files in shared memory, and forgets them when it is interrupted.
        self._shared_memory = f"mristream-{uuid.uuid4().hex[:12]}-"
        self._installed: TritonEnvironment | None = None
        self._ports: list[int] = []

    @property
    def grpc_url(self) -> str:
        """`host:port` for gRPC clients."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def http_url(self) -> str:
        """Address of the HTTP protocol."""
        return f"http://127.0.0.1:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        """What Prometheus scrapes."""
        return f"http://127.0.0.1:{self._ports[2]}/metrics"

    def provision(self, report: Report = silent) -> None:
        """Install Triton if the cache hasn't got it."""
        self._installed = triton_environment(report)

    def prepare(self) -> list[str]:
        """Choose ports; the command."""
        if not self._same_address:
            self._ports = free_ports(3)
        grpc, http, metrics = self._ports
        server = self._environment().server
        return [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={self._model_repository}",
            f"--model-config-name={self._model_config_name}",
            f"--backend-directory={server / 'backends'}",
            f"--cache-directory={server / 'caches'}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc}",
            "--http-address=127.0.0.1",
            f"--http-port={http}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={metrics}",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            *(self._security.arguments() if self._security else ()),
            *self._arguments,
        ]

    def stop(self) -> None:
        """Stop it, and give back the memory that it shared with its models."""
        super().stop()
        for region in _SHARED_MEMORY.glob(f"{self._shared_memory}*"):
            region.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """Ours, but with the models' Python first."""
        installed = self._environment()
        return {
            **os.environ,
            "PATH": f"{installed.bin}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": str(installed.libraries),
        }

    def ready(self) -> bool:
        """Whether the server is ready by gRPC, which it is when each of its models is, and shows its metrics."""
        # gRPC would ask the network's proxy for 127.0.0.1 too.
        cert_file, key_file = self._security.client if self._security else (None, None)
        client = tritonclient.grpc.InferenceServerClient(
            self.grpc_url,
            ssl=self._security is not None,
            root_certificates=self._security.ca_file if self._security else None,
            certificate_chain=cert_file,
            private_key=key_file,
            channel_args=[("grpc.enable_http_proxy", 0)],
        )
        try:
            if not client.is_server_ready(client_timeout=_PROBE_TIMEOUT_S):
                return False
            # It starts with gRPC and ends with these.
            with open_local(self.metrics_url, _PROBE_TIMEOUT_S):
                return True
        except (InferenceServerException, OSError):
            return False
        finally:
            client.close()

    def explanation(self, log: str) -> list[str]:
        """Each model that is not ready and why, from the table that Triton prints; else its errors."""
        problems: list[str] = []
        continues = False
        for row in map(_MODEL_ROW.match, log.splitlines()):
            if row is None:
                continue
            model, version, text = row.groups()
            if model:
                continues = text.startswith("UNAVAILABLE")
                if continues:
                    problems.append(f"model {model}, version {version}: {text}")
            elif continues and not text.lstrip().startswith("<frozen"):
                problems[-1] = f"{problems[-1]} {text.strip()}".rstrip()
        errors = [
            line
            for line in log.splitlines()
            if re.match(r"E\d{4} |error:", line) and not any(sign in line for sign in _NO_GPU)
        ]
        return problems or errors[-8:] or super().explanation(log)

    def _environment(self) -> TritonEnvironment:
        if self._installed is None:
            self._installed = triton_environment()
        return self._installed


def _tracing(url: str) -> list[str]:
    """Options of tritonserver."""
    return [
        "--trace-config=mode=opentelemetry",
        f"--trace-config=opentelemetry,url={url}",
        "--trace-config=opentelemetry,resource=service.name=triton",
        "--trace-config=level=TIMESTAMPS",
        # No request but those that bring a context, which are traced whatever the rate.
        "--trace-config=rate=0",
    ]
