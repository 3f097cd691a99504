"""The platform: Kafka in, Triton, masks and results out."""
