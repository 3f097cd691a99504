"""From ONNX to a serialised plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.plan.flavour import Flavour
from workers.errors import UserError

INPUT = "image"
SIDE = 256


@dataclass(frozen=True, slots=True)
class Profile:
    """The batches that a plan takes; it is fastest at `best`."""

    best: int = 16
    largest: int = 64

    def __str__(self) -> str:
        return f"1-{self.best}-{self.largest}"


def build(
    flavour: Flavour, graph: bytes, capability: str, profile: Profile, timing_cache: bytes, *, ahead: bool
) -> tuple[bytes, bytes]:
    """Build a plan for GPUs of this compute capability; returns it and the timing cache to keep.

    `ahead` builds for a GPU that isn't here. Raises UserError naming the node for what the parser doesn't know, the
    capability if it can't be built for, or the builder's own last words.
    """
    trt = flavour.module
    log = _Log.make(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as problem:  # "factory function returned nullptr"
        raise UserError(
            f"{flavour.name} can't start a builder: {log.last or 'no GPU, or no driver for it'}"
        ) from problem
    flags = trt.NetworkDefinitionCreationFlag
    strongly_typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        raise UserError(f"{flavour.name} {flavour.version} can't read the model: {_parse_errors(parser)}")
    config = builder.create_builder_config()
    if ahead:
        _aim(trt, config, capability)
    cache = config.create_timing_cache(timing_cache)
    config.set_timing_cache(cache, ignore_mismatch=True)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(INPUT, *((batch, SIDE, SIDE) for batch in (1, profile.best, profile.largest)))
    config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"{flavour.name} {flavour.version} built no plan: {log.last or 'it gave no reason'}")
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def _aim(trt: Any, config: Any, capability: str) -> None:
    name = f"SM{capability.replace('.', '')}"
    known = [member for member in trt.ComputeCapability.__members__ if member.startswith("SM")]
    if name not in known:
        readable = ", ".join(f"{member[2:-1]}.{member[-1]}" for member in known)
        raise UserError(f"no plan can be built ahead for compute capability {capability}; possible: {readable}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[name], 0)


def _parse_errors(parser: Any) -> str:
    problems = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(
        f"{problem.desc()} (node {problem.node_name() or '?'}, operator {problem.node_operator() or '?'})"
        for problem in problems
    )


class _Log:
    """Keeps TensorRT's last error, which its calls don't return."""

    @staticmethod
    def make(trt: Any) -> Any:
        class Log(trt.ILogger):  # type: ignore[misc]
            last = ""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    self.last = message

        return Log()
