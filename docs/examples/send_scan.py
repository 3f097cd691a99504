"""Send one scan with a plain Kafka client: python send_scan.py BOOTSTRAP_SERVERS FILE [PATIENT_KEY]

Needs only `pip install confluent-kafka`. What the headers mean is in docs/messages.md.
"""

import hashlib
import mimetypes
import sys
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer


def main(bootstrap_servers: str, file: str, patient_key: str | None = None) -> str | None:
    """Send the file. Returns None, or a sentence on what went wrong."""
    path = Path(file).resolve()
    content = path.read_bytes()
    # The same file always gets the same id: sending it twice gives two results with one id, and one mask.
    scan_id = hashlib.sha256(content).hexdigest()
    content_type = "application/dicom" if path.suffix == ".dcm" else mimetypes.guess_type(path)[0]
    failures: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failures.append(f"not sent: {error.str()}")

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            # With more on their way, a scan that a broker refuses may be reported as delivered.
            "max.in.flight.requests.per.connection": 1,
            # The client's own limit is 1 MB.
            "message.max.bytes": 32 * 1024 * 1024,
        }
    )
    producer.produce(
        "scans",
        # Scans with the same key stay in order.
        key=patient_key or scan_id,
        value=content,
        headers={
            "ce_specversion": "1.0",
            "ce_type": "mristream.scan.v1",
            "ce_id": scan_id,
            "ce_source": "urn:example:my-sender",
            "content-type": content_type or "application/octet-stream",
        },
        on_delivery=delivered,
    )
    if producer.flush(10):
        return f"not sent: no answer from {bootstrap_servers} within 10 s"
    if failures:
        return failures[0]
    print(scan_id)
    return None


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
