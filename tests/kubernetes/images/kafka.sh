# Writes the configuration and formats the data folder as the official image's start does, then serves.
# No globbing: the star is for Java.
set -ef
java="/opt/java/bin/java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp /opt/kafka/libs/*"
mkdir -p /tmp/config /tmp/mounted
export CLUSTER_ID=${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}
$java kafka.docker.KafkaDockerWrapper setup --default-configs-dir /opt/kafka/defaults --mounted-configs-dir /tmp/mounted \
  --final-configs-dir /tmp/config
exec $java -Xmx"${HEAP:-512m}" -Dlog4j2.configurationFile=/tmp/config/log4j2.yaml kafka.Kafka /tmp/config/server.properties
