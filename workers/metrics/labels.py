"""The labels that metrics may have, and the values that these may have."""

from __future__ import annotations

from workers.errors import Reason
from workers.messages import LABELS, Flag, Status
from workers.messages import Lane as LaneName
from workers.metrics.definitions import Label

DEPENDENCIES = ("triton", "store", "source", "decoder", "kafka")
STEPS = ("read", "decode", "classify", "segment", "store", "commit")
# What a partition's new owner finds noted beside its offset (caution.py).
FOUND = ("closed", "left_open", "suspect")

STATUS = Label("status", "final status of a scan", tuple(Status))
LANE = Label("lane", "how a scan came in", tuple(LaneName))
STEP = Label("step", "one of the six steps", STEPS)
REASON = Label("reason", "why a scan was rejected, as in its result", tuple(Reason))
CLASS = Label("class", "likeliest class of the classifier", LABELS)
FLAG = Label("flag", "what a person should look at", tuple(Flag))
DEPENDENCY = Label("dependency", "what the worker depends on", DEPENDENCIES)
OPERATION = Label("operation", "name of the model, `metadata` of the models, or `put` of masks")
OUTCOME = Label("outcome", "`failed`: gone, overloaded, an error or too late", ("ok", "failed"))
NOTE = Label("found", "how the partition was left by its last worker", FOUND)
FEATURE = Label(
    "feature", "what is compared", ("class", "mask_area", "gate", "mask_confidence", "brightness", "contrast")
)
TOPIC = Label("topic", "a topic of scans")
PARTITION = Label("partition", "number of a partition of the topic")
MODEL = Label("model", "name in Triton")
VERSION = Label("version", "of the model in Triton, or of mristream")
DIGEST = Label("digest", "first 12 characters of the SHA-256 of the model's weights")
