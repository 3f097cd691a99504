"""Real servers (Kafka, Triton and others) as child processes on one machine, without Docker and without root."""
