"""Says in an event of our own pod what is wrong with its plans, where `kubectl describe pod` shows it."""

from __future__ import annotations

import json
import logging
import os
import ssl
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

# Where Kubernetes puts what a pod needs to speak with it.
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 10.0
# The API server refuses longer ones.
_LONGEST = 1024


def say_in_event(reason: str, message: str, account: Path = _ACCOUNT) -> None:
    """Create a warning event of the pod that POD_NAME, POD_NAMESPACE and POD_UID name.

    That it can't be created is logged, and no error: it is not why we are here.
    """
    try:
        namespace, name = os.environ["POD_NAMESPACE"], os.environ["POD_NAME"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{name}.", "namespace": namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": name,
                "namespace": namespace,
                "uid": os.environ["POD_UID"],
            },
            "type": "Warning",
            "reason": reason,
            "message": message[:_LONGEST],
            "source": {"component": "mristream"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        request = urllib.request.Request(
            f"https://{f'[{host}]' if ':' in host else host}:{port}/api/v1/namespaces/{namespace}/events",
            data=json.dumps(event).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
            },
        )
        context = ssl.create_default_context(cafile=str(account / "ca.crt"))
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        direct.open(request, timeout=_TIMEOUT_S).close()
    except KeyError as problem:
        log.warning("no event: the variable %s is not set, so this is no pod that may write one", problem)
    except OSError as problem:
        log.warning("no event: Kubernetes does not take it (%s)", problem)
