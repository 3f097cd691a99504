"""DICOM files with known names, ids and paths go through everything, and nothing that is shown or kept says any of it."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from confluent_kafka import TopicPartition
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, RTPlanStorage

from deploy.local.stack import Stack
from deploy.local.triton import Triton
from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import page, read_all_results
from tests.integration.tracing.collector import Collector
from workers.cli import main
from workers.kafka import create_topics, make_reader
from workers.messages import ScanResult, Status
from workers.report import RunFacts, write_report
from workers.settings import KafkaSettings, Settings
from workers.stores import open_store
from workers.submission import read_sent

# What each file says of its patient; letters that come up nowhere else.
FIELDS = {
    "PatientName": "ZQNAME^ZQGIVEN",
    "PatientID": "ZQPATIENT-4711",
    "OtherPatientNames": "ZQMAIDEN^ZQGIVEN",
    "AccessionNumber": "ZQACCESSION",
    "StudyID": "ZQSTUDY",
    "InstitutionName": "ZQINSTITUTION",
    "ReferringPhysicianName": "ZQDOCTOR^ZQWHO",
    "StudyDescription": "ZQDESCRIPTION",
    "PatientComments": "ZQCOMMENT",
    "DeviceSerialNumber": "ZQSERIAL",
}
UIDS = {
    "SOPInstanceUID": "1.2.826.0.1.777141592653.1",
    "SeriesInstanceUID": "1.2.826.0.1.777141592653.2",
    "StudyInstanceUID": "1.2.826.0.1.777141592653.3",
    "FrameOfReferenceUID": "1.2.826.0.1.777141592653.4",
}
HEADER_MARKERS = (
    *("ZQNAME", "ZQGIVEN", "ZQMAIDEN", "ZQDOCTOR", "ZQWHO", "ZQAETITLE", "ZQCOLOR", "777141592653"),
    *FIELDS.values(),
)
FOLDER, FILE = "ZQFOLDER-ZQNAME", "ZQFILE"
MARKERS = (*HEADER_MARKERS, FOLDER, FILE, "ZQTEXT")
# Ids that a sender chose, who had been asked for pseudonyms: they are in keys, headers and results, and nowhere else.
CHOSEN = ("ZQSCANID", "ZQKEY")
# Small enough that some files travel by reference.
MAX_INLINE_BYTES = 100_000


def dicom(file: bytes, syntax: str = ExplicitVRLittleEndian, side: int = 256, **fields: object) -> Dataset:
    """A slice as a scanner writes it, with everything that a scanner says of the patient."""
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    pixels = cv2.resize(pixels, (side, side))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UIDS["SOPInstanceUID"]
    dataset.file_meta.SourceApplicationEntityTitle = "ZQAETITLE"
    for name, value in {**FIELDS, **UIDS}.items():
        setattr(dataset, name, value)
    dataset.Rows = dataset.Columns = side
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelSpacing = [0.9, 0.9]
    dataset.PixelData = pixels.tobytes()
    for name, odd in fields.items():
        setattr(dataset, name, odd)
    return dataset


def write(folder: Path, name: str, dataset: Dataset) -> Path:
    """The data set as a file."""
    path = folder / f"{FILE}-{name}.dcm"
    dataset.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return path


@pytest.fixture
def scans(slices: list[Path], tmp_path: Path) -> Path:
    """Good files, inline and by reference, and one for each way in which a file goes wrong."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    slice_ = slices[0].read_bytes()
    small = write(folder, "small", dicom(slice_))
    write(folder, "large", dicom(slice_, side=512))
    write(folder, "vanished", dicom(slice_, side=400))
    write(folder, "changed", dicom(slice_, side=401))
    write(folder, "syntax", dicom(slice_, syntax="1.2.826.0.1.777141592653.9"))
    write(folder, "frames", dicom(slice_, NumberOfFrames=3))
    write(folder, "size", dicom(slice_, Rows=300))
    write(folder, "color", dicom(slice_, PhotometricInterpretation="ZQCOLOR"))
    plan = dicom(slice_, SOPClassUID=RTPlanStorage)
    plan.file_meta.MediaStorageSOPClassUID = RTPlanStorage
    del plan.PixelData, plan.Rows
    write(folder, "plan", plan)
    (folder / f"{FILE}-cut.dcm").write_bytes(small.read_bytes()[:30_000])
    (folder / f"{FILE}-header-cut.dcm").write_bytes(small.read_bytes()[:400])
    (folder / f"{FILE}-empty.dcm").write_bytes(b"")
    (folder / f"{FILE}-text.jpg").write_text("ZQTEXT of ZQNAME")
    (folder / f"{FILE}-png.png").write_bytes(b"\x89PNG\r\n\x1a\nZQTEXT")
    return folder


def leaks(text: str | bytes, markers: tuple[str, ...] = MARKERS) -> list[str]:
    """Which of the markers are in it, in whatever case, as text or as the hexadecimal digits of it."""
    content = (text if isinstance(text, bytes) else text.encode()).lower()
    found = []
    for marker in markers:
        forms = [marker.lower().encode(), marker.encode().hex().encode(), marker.encode("utf-16-le").lower()]
        if any(form in content for form in forms):
            found.append(marker)
    return found


def messages(kafka: KafkaSettings, topic: str) -> Iterator[tuple[bytes, bytes]]:
    """Of each message of a topic what stands beside its value, and the value."""
    consumer = make_reader(kafka, f"patient-data-{topic}")
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        ends = 0
        while ends < len(partitions):
            message = consumer.poll(10)
            assert message is not None, f"{topic} can't be read to its end"
            if message.error() is not None:
                ends += 1
                continue
            headers = b"\n".join(name.encode() + b": " + bytes(value or b"") for name, value in message.headers() or [])
            yield bytes(message.key() or b"") + b"\n" + headers, bytes(message.value() or b"")
    finally:
        consumer.close()


def test_no_name_id_or_path_of_a_patient_is_seen_anywhere_but_in_the_scan_itself(
    traced: Settings, scans: Path, collector: Collector, triton: Triton, stack: Stack, tmp_path: Path
) -> None:
    worker_settings = traced.worker.model_copy(update={"log_level": "DEBUG"})
    kafka = traced.kafka.model_copy(update={"max_inline_bytes": MAX_INLINE_BYTES})
    settings = traced.model_copy(update={"worker": worker_settings, "kafka": kafka})
    environment = os.environ | settings.environment()
    create_topics(settings.kafka)

    def mristream(*arguments: str) -> str:
        done = CliRunner().invoke(main, arguments, env=environment)
        assert done.exit_code == 0, done.output
        return done.stdout

    sent = tmp_path / "sent.jsonl"
    chosen = tmp_path / "manifest.jsonl"
    chosen.write_text(
        "".join(
            json.dumps(
                {"path": str(scans / f"{FILE}-{name}.dcm"), "scan_id": f"ZQSCANID-{name}", "patient_key": "ZQKEY"}
            )
            + "\n"
            for name in ("small", "cut")
        )
    )
    mristream("submit", "--manifest", str(chosen))
    sent.write_text(mristream("submit", "--json", str(scans)))
    names = {scan_id: source.rpartition("/")[2] for scan_id, source in read_sent(sent).items()}
    (scans / f"{FILE}-vanished.dcm").unlink()
    (scans / f"{FILE}-changed.dcm").write_bytes(b"ZQTEXT" * 1000)
    with WorkerProcess(tmp_path / "worker", settings) as worker:
        wait_for(lambda: len(read_all_results(settings.kafka)) == len(names) + 2, "a result for each scan")
        wait_for(lambda: "mristream_scans_total" in page(worker, "/metrics"), "metrics")
        pages = [page(worker, name) for name in ("/", "/status.json", "/metrics", "/drift", "/readyz", "/healthz")]
        openmetrics = urllib.request.Request(
            worker.url("/metrics"), headers={"Accept": "application/openmetrics-text;version=1.0.0"}
        )
        with urllib.request.urlopen(openmetrics, timeout=10) as answer:
            pages.append(answer.read().decode())
        with urllib.request.urlopen(triton.metrics_url, timeout=10) as answer:
            pages.append(answer.read().decode())
        wait_for(lambda: spans_of_scans(collector, settings) == len(names) + 2, "a span of each scan")
    everything = read_all_results(settings.kafka)
    results = {names[result.scan_id]: result for result in everything if result.scan_id in names}

    # It was what it should be: both ways of travelling, and all of these ways to fail.
    became = {name.removeprefix(f"{FILE}-"): outcome(result) for name, result in results.items()}
    assert became == {
        "small.dcm": "segmented",
        "large.dcm": "segmented",
        "vanished.dcm": "not_found",
        "changed.dcm": "digest_mismatch",
        "syntax.dcm": "unsupported_format",
        "frames.dcm": "unsupported_format",
        "size.dcm": "damaged",
        "color.dcm": "damaged",
        "plan.dcm": "no_pixel_data",
        "cut.dcm": "damaged",
        "header-cut.dcm": "damaged",
        "empty.dcm": "empty",
        "text.jpg": "unsupported_format",
        "png.png": "damaged",
    }
    topics = {
        topic: list(messages(settings.kafka, topic))
        for topic in (kafka.scans_topic, kafka.results_topic, kafka.dead_topic)
    }
    values = b"".join(value for _, value in topics[kafka.scans_topic])
    assert set(leaks(values)) == set(MARKERS), "the search finds what is there"
    for topic, all_ in topics.items():
        assert leaks(b"\n".join(beside for beside, _ in all_)) == [], f"keys and headers of {topic}"
    assert leaks(b"\n".join(value for _, value in topics[kafka.results_topic])) == []
    assert leaks(b"\n".join(part for parts in messages(settings.kafka, "__consumer_offsets") for part in parts)) == []
    logs = [worker.log, collector.log, triton.log, *stack.kafka.folder.rglob("*.log")]
    for log in logs:
        if not log.stem.isdigit():  # else it is a segment, where Kafka keeps the scans themselves
            assert leaks(log.read_bytes(), (*MARKERS, *CHOSEN)) == [], log.name
    lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
    rejected = [line for line in lines if line["message"].startswith("a scan is rejected")]
    assert {line["trace_id"] for line in rejected} == {r.trace_id for r in everything if r.reason}
    assert [leaks(text, (*MARKERS, *CHOSEN)) for text in pages] == [[]] * len(pages)
    assert leaks(collector.file.read_bytes(), (*MARKERS, *CHOSEN)) == []
    shown = [mristream("results"), mristream("results", "--json"), mristream("dead", "list")]
    shown += [mristream("dead", "show", r.scan_id) for r in results.values() if r.status is Status.REJECTED]
    assert [leaks(text) for text in shown] == [[]] * len(shown)
    masks = [str(path.relative_to(tmp_path)) for path in (tmp_path / "masks").rglob("*.png")]
    assert len(masks) == 3
    assert leaks("\n".join(masks), (*MARKERS, *CHOSEN)) == []
    reasons = [(r.reason.message, r.reason.step) for r in everything if r.reason]
    assert leaks(str(reasons), (*MARKERS, *CHOSEN)) == []


def test_the_report_names_files_as_they_are_called_and_says_nothing_of_what_stands_in_them(
    traced: Settings, scans: Path, tmp_path: Path
) -> None:
    settings = traced.model_copy(
        update={"kafka": traced.kafka.model_copy(update={"max_inline_bytes": MAX_INLINE_BYTES})}
    )
    environment = os.environ | settings.environment()
    create_topics(settings.kafka)
    sent = tmp_path / "sent.jsonl"
    sent.write_text(CliRunner().invoke(main, ["submit", "--json", str(scans)], env=environment).stdout)
    sources = read_sent(sent)
    with WorkerProcess(tmp_path / "worker", settings):
        wait_for(lambda: len(read_all_results(settings.kafka)) == len(sources), "a result for each scan")
    results = [
        result.model_copy(update={"source": sources[result.scan_id]}) for result in read_all_results(settings.kafka)
    ]

    with open_store(settings.store) as masks:
        out = tmp_path / "out"
        out.mkdir()
        write_report(results, out, masks, RunFacts(seconds=1.0, missing=()))

    report = (out / "report.html").read_text()
    assert f"{FILE}-small.dcm" in report
    assert leaks(report, (*HEADER_MARKERS, FOLDER, "ZQTEXT")) == []
    for overlay in (out / "overlays").iterdir():
        assert leaks(overlay.read_bytes()) == []


def outcome(result: ScanResult) -> str:
    """What became of it."""
    return result.reason.code if result.reason else result.status


def spans_of_scans(collector: Collector, settings: Settings) -> int:
    """How many of this test's scans have a span."""
    topic = settings.kafka.scans_topic
    return sum(
        span.name == "scan" and span.attributes["messaging.destination.name"] == topic for span in collector.spans()
    )
