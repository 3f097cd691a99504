import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.Map;

import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * Send one scan: java -cp '/path/to/kafka/libs/*' SendScan.java BOOTSTRAP_SERVERS FILE [PATIENT_KEY]
 *
 * Needs Java 17 and the jars of any Kafka distribution. What the headers mean is in docs/messages.md.
 */
public class SendScan {
    public static void main(String[] args) throws Exception {
        if (args.length < 2 || args.length > 3) {
            System.err.println("usage: SendScan BOOTSTRAP_SERVERS FILE [PATIENT_KEY]");
            System.exit(2);
        }
        Path file = Path.of(args[1]).toAbsolutePath();
        byte[] content = Files.readAllBytes(file);
        // The same file always gets the same id: sending it twice gives two results with one id, and one mask.
        String scanId = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(content));
        String contentType = file.toString().endsWith(".dcm") ? "application/dicom" : Files.probeContentType(file);

        // Scans with the same key stay in order.
        var record = new ProducerRecord<>("scans", args.length == 3 ? args[2] : scanId, content);
        Map.of(
            "ce_specversion", "1.0",
            "ce_type", "mristream.scan.v1",
            "ce_id", scanId,
            "ce_source", "urn:example:my-sender",
            "content-type", contentType == null ? "application/octet-stream" : contentType
        ).forEach((name, value) -> record.headers().add(name, value.getBytes(UTF_8)));

        // The client's own limit is 1 MiB.
        Map<String, Object> settings = Map.of("bootstrap.servers", args[0], "max.request.size", 32 * 1024 * 1024);
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            producer.send(record).get();
        }
        System.out.println(scanId);
    }
}
