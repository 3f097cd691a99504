"""What is done to the system: a seeded schedule of faults, and how each is done and undone."""

from __future__ import annotations

import random
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import redis
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from benchmarks.chaos.null_models import SLOW_MODEL, set_delay
from benchmarks.chaos.stack import SESSION_TIMEOUT_S, ChaosStack
from benchmarks.chaos.supervisor import Supervisor
from deploy.local.redis import Redis
from deploy.local.server import ServerError

# What happens how often: mostly kills, mostly of workers. A broker takes seconds of CPU to come back, a worker one.
WEIGHTS = {
    "kill worker": 40,
    "kill triton": 4,
    "kill broker": 2,
    "kill store": 5,
    "freeze worker": 5,
    "freeze triton": 1,
    "freeze broker": 1,
    "freeze store": 1,
    "cut triton": 1,
    "cut broker": 1,
    "cut store": 1,
    "reset triton": 1,
    "reset broker": 1,
    "reset store": 1,
    "hold triton": 1,
    "hold broker": 1,
    "hold store": 1,
    "delay triton": 1,
    "delay broker": 1,
    "delay store": 1,
    "reload triton": 1,
    "overload triton": 1,
    "fill store": 2,
    "scale worker": 2,
}
# The worker that comes and goes.
EXTRA_WORKER = "worker-extra"
_MODEL_CALL_TIMEOUT_S = 20.0

Undo = Callable[[], None]


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault: `after_s` after the one before, `verb` done to `target` for `seconds`. `chance` is 0..1, to choose by."""

    number: int
    after_s: float
    verb: str
    target: str
    seconds: float
    chance: float

    @property
    def kind(self) -> str:
        """As in `WEIGHTS`: the verb, and what kind of thing it is done to."""
        return f"{self.verb} {self.target.partition('-')[0]}"

    def __str__(self) -> str:
        lasting = "" if self.verb in ("kill", "reset", "reload") else f" for {self.seconds:.1f} s"
        return f"{self.verb} {self.target}{lasting}"


def schedule(seed: int, *, workers: int, brokers: int, store: str, interval_s: float) -> Iterator[PlannedFault]:
    """An endless schedule, the same for the same arguments; `interval_s` is the mean time between two faults."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    names = {
        "worker": [f"worker-{n}" for n in range(1, workers + 1)],
        "broker": [f"broker-{n}" for n in range(1, brokers + 1)],
    }
    # A folder has no process and no network; that it is full is seen by the workers.
    kinds = [kind for kind in WEIGHTS if store != "file" or not kind.endswith("store") or kind.startswith("fill")]
    number = 0
    while True:
        number += 1
        verb, _, role = chance.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0].partition(" ")
        seconds = chance.uniform(0.5, 4.0)
        if verb == "freeze" and role == "worker" and chance.random() < 0.5:
            # Long enough for its partitions to be another's when it wakes up.
            seconds = chance.uniform(1.2, 2.2) * SESSION_TIMEOUT_S
        if verb == "scale":
            seconds = chance.uniform(8, 20)
        target = EXTRA_WORKER if verb == "scale" else chance.choice(names.get(role, [role]))
        yield PlannedFault(number, chance.expovariate(1 / interval_s), verb, target, seconds, chance.random())


def inject(fault: PlannedFault, stack: ChaosStack) -> Undo | None:
    """Do it. Returns how to undo it, or None where it can't be done now: what it is meant for is down itself.

    Kills and freezes are undone by the supervisors.
    """
    match fault.verb:
        case "kill":
            return _nothing if _supervisor(stack, fault).kill() else None
        case "freeze":
            return _nothing if _supervisor(stack, fault).freeze(fault.seconds) else None
        case "cut" | "hold" | "delay" | "reset":
            return _disturb(fault, stack)
        case "reload":
            return _reload(stack)
        case "overload":
            set_delay(stack.models, 1 + 4 * fault.chance)
            return lambda: set_delay(stack.models, 0)
        case "fill":
            return _fill(stack)
        case "scale":
            return _scale(stack)
        case _:
            raise ValueError(f"{fault.verb} is no fault")


def _nothing() -> None:
    pass


def _supervisor(stack: ChaosStack, fault: PlannedFault) -> Supervisor:
    return {**stack.servers, **stack.workers}[fault.target]


def _disturb(fault: PlannedFault, stack: ChaosStack) -> Undo:
    proxy = stack.proxies[fault.target]
    match fault.verb:
        case "cut":
            proxy.cut()
        case "hold":
            proxy.hold()
        case "delay":
            proxy.delay(0.02 + 0.4 * fault.chance)
        case _:
            proxy.reset()
    return proxy.heal


def _reload(stack: ChaosStack) -> Undo | None:
    """Take a model out of service and put it back, as an update does."""
    if not stack.servers["triton"].up:
        return None
    client = tritonclient.grpc.InferenceServerClient(
        stack.triton.grpc_url, channel_args=[("grpc.enable_http_proxy", 0)]
    )

    def reload() -> None:
        # Where Triton is killed meanwhile, it loads all models when it comes back.
        with client, suppress(InferenceServerException):
            client.unload_model(SLOW_MODEL, client_timeout=_MODEL_CALL_TIMEOUT_S)
            client.load_model(SLOW_MODEL, client_timeout=_MODEL_CALL_TIMEOUT_S)

    thread = threading.Thread(target=reload, name="reload", daemon=True)
    thread.start()
    return lambda: thread.join(2 * _MODEL_CALL_TIMEOUT_S)


def _fill(stack: ChaosStack) -> Undo | None:
    """No room for another mask: Redis at its memory limit; else nobody's files may grow, as on a full disk."""
    if isinstance(stack.store, Redis):
        return _fill_redis(stack.store)
    if stack.store is not None:
        filled = [stack.store.pid] if stack.servers["store"].up else []
    else:
        filled = [slot.server.pid for slot in stack.workers.values() if slot.up]
    for pid in filled:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    if not filled:
        return None

    def free() -> None:
        for pid in filled:
            # Whoever has died meanwhile came back without the limit.
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    return free


def _fill_redis(server: Redis) -> Undo | None:
    client = redis.Redis(port=server.port, password=server.password, socket_timeout=2)
    try:
        client.config_set("maxmemory", 1)
    except redis.RedisError:
        return None

    def free() -> None:
        # Where it was killed meanwhile, it came back without a limit; where it doesn't answer, it is asked again.
        for _ in range(20):
            try:
                client.config_set("maxmemory", 0)
            except redis.RedisError:
                threading.Event().wait(0.5)
            else:
                return

    return free


def _scale(stack: ChaosStack) -> Undo | None:
    """One worker more for a while; it goes politely."""
    slot = stack.workers[EXTRA_WORKER]
    with suppress(ServerError):
        slot.start()
        return slot.stop
    return None
