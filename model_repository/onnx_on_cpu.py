"""Serves a model version on CPUs: OpenVINO, or ONNX Runtime where OpenVINO has no package.

It runs `model.int8.onnx` where the version has one (half the work, the same masks), else `model.onnx`.

The CPU configurations use it through a two-line `model.py`; on GPUs the same versions are served as TensorRT plans.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# How often each number of streams is tried, and for how many seconds.
ROUNDS = 5
MEASURE_S = 0.1
# How much faster fewer streams have to be.
WORTH = 1.1


class TritonPythonModel:
    """One input and one output, both with the batch as first dimension, named as in the ONNX file."""

    def initialize(self, args):
        """Load the version's ONNX file. Raises TritonModelException naming the file if it can't be loaded."""
        folder = Path(args["model_repository"]) / args["model_version"]
        path = folder / "model.int8.onnx"
        if not path.exists():
            path = folder / "model.onnx"
        # The instances of a model, where there are several, share the cores.
        instances = sum(group.get("count", 1) for group in json.loads(args["model_config"])["instance_group"])
        try:
            self.model = load(path, max(1, usable_cores() // instances))
        except Exception as error:
            raise pb_utils.TritonModelException(f"{path} can't be loaded: {error}") from error

    def execute(self, requests):
        """Run all requests as one batch and hand each its rows back."""
        inputs = [pb_utils.get_input_tensor_by_name(request, self.model.input_name).as_numpy() for request in requests]
        outputs = self.model.infer(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))
        ends = np.cumsum([len(rows) for rows in inputs])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self.model.output_name, rows)])
            for rows in np.split(outputs, ends[:-1])
        ]


def load(path, cores=None):
    """The model in `path`, with `infer(images)`, `input_name` and `output_name`, for so many cores [default: all usable]."""
    cores = cores or usable_cores()
    try:
        import openvino
    except ImportError:
        return _OnnxRuntimeModel(path, cores)
    return _OpenVinoModel(openvino, path, cores)


class _OpenVinoModel:
    """Each image is one request to one of several streams, each of which has its share of the cores.

    The classifier and the U-Net work side by side on the same cores. A stream that spans several cores waits at every layer
    for the one that the other model has just taken; images in streams of their own cores never wait (54 against 41 images/s
    for a U-Net on two busy cores, equal on idle ones). How many streams are best depends on the machine: it is measured.
    """

    def __init__(self, openvino, path, cores):
        model = openvino.Core().read_model(path)
        self.input_name = model.input(0).get_any_name()
        self.output_name = model.output(0).get_any_name()
        self.output_shape = [dimension.get_length() for dimension in list(model.output(0).get_partial_shape())[1:]]
        self.input_shape = [dimension.get_length() for dimension in list(model.input(0).get_partial_shape())[1:]]
        model.reshape([1, *self.input_shape])
        self.output_type = model.output(0).get_element_type().to_dtype()
        self.openvino, self.model, self.cores = openvino, model, cores
        queue_of = functools.cache(self.compile)
        machine = f"{processor()} {self.cores} {openvino.__version__} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        self.queue = queue_of(best_streams(self.cores, lambda streams: self.images_per_s(queue_of(streams)), machine))

    def compile(self, streams):
        """What `infer` needs to compute in that many streams, which share the cores."""
        settings = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": self.cores, "ENABLE_CPU_PINNING": False}
        compiled = self.openvino.Core().compile_model(self.model, "CPU", settings)
        queue = self.openvino.AsyncInferQueue(compiled, streams)
        queue.set_callback(self._keep)
        return queue

    def infer(self, images, queue=None):
        queue = queue or self.queue
        outputs = np.empty((len(images), *self.output_shape), self.output_type)
        for i in range(len(images)):
            queue.start_async([images[i : i + 1]], (outputs, i))
        queue.wait_all()
        return outputs

    def images_per_s(self, queue):
        """Measured over at least `MEASURE_S`, after one batch to get warm."""
        images = np.random.default_rng(0).integers(0, 255, (2 * self.cores, *self.input_shape), np.uint8)
        self.infer(images, queue)
        started, done = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < MEASURE_S:
            self.infer(images, queue)
            done += len(images)
        return done / seconds

    @staticmethod
    def _keep(request, destination):
        outputs, i = destination
        outputs[i] = request.get_output_tensor(0).data[0]


class _OnnxRuntimeModel:
    def __init__(self, path, cores):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_name = self.session.get_inputs()[0].name
        self.output_name = self.session.get_outputs()[0].name

    def infer(self, images):
        return self.session.run([self.output_name], {self.input_name: images})[0]


def best_streams(cores, images_per_s, machine, folder=None):
    """How many streams are fastest by `images_per_s(streams)`: one for each core, or for two, or for all.

    What is found is kept in `folder` (~/.cache/mristream) under a name made of `machine`, so that a server that starts again
    need not measure again; where that can't be written, it does. Models are measured one after the other.
    """
    candidates = sorted({cores, max(1, cores // 2), 1}, reverse=True)
    if len(candidates) == 1:
        return cores
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "mristream"
    kept = folder / f"streams-{hashlib.sha256(machine.encode()).hexdigest()[:16]}"
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context((folder / "streams.lock").open("w")), fcntl.LOCK_EX)
        best = _number_in(kept)
        if best not in candidates:
            best = _fastest(candidates, images_per_s)
            with contextlib.suppress(OSError):
                kept.write_text(str(best))
        return best


def _number_in(path):
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fastest(candidates, images_per_s):
    # In turn, and compared within a turn: a machine that others use too may be half as fast from one second to the next.
    rounds = [{streams: images_per_s(streams) for streams in candidates} for _ in range(ROUNDS)]
    of_each_core = candidates[0]

    def gain(streams):
        return statistics.median(rates[streams] / rates[of_each_core] for rates in rounds)

    # One stream for each core is best where both models are busy; fewer must be clearly faster alone.
    fewer = max(candidates[1:], key=gain)
    return fewer if gain(fewer) > WORTH else of_each_core


def processor(root=Path("/")):
    """The processor's name, as far as the kernel tells."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def usable_cores(root=Path("/")):
    """How many cores this process may keep busy: by its affinity, and by the CPU limit of its container.

    A container that is limited to 2 of 64 cores sees all 64; with 64 threads it would spend most of its time throttled.
    `root` is where /proc and /sys are.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), *_cpu_limits(root))))


def _cpu_limits(root):
    """CPU time per time of this process's control group (version 2 or 1) and of those around it; inf: no limit."""
    yield math.inf
    mounted = root / "sys/fs/cgroup"
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files, base = ("cpu.max",), mounted
        elif "cpu" in controllers.split(","):
            files, base = ("cpu.cfs_quota_us", "cpu.cfs_period_us"), mounted / "cpu"
        else:
            continue
        group = base / path.lstrip("/")
        # Seen from inside a container, its own group may be mounted as the root.
        for folder in (group, *group.parents[: len(group.relative_to(base).parts)]):
            try:
                quota, period = " ".join((folder / name).read_text() for name in files).split()
            except (OSError, ValueError):
                continue
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
