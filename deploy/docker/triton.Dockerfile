# Triton for GPUs: NVIDIA's image with mristream's models. TensorRT serves their plans, which are built on the GPU itself (the
# trainer's image, `mristream plan`); the CPU profile works too (`--model-config-name=cpu`).
# The release workflow builds from the digest of BASE, the same one for this image and the trainer's: a plan is for one
# version of TensorRT, and 26.08 has 11.2.1.
ARG BASE=nvcr.io/nvidia/tritonserver:26.08-py3

# hadolint ignore=DL3006
FROM ${BASE}
COPY requirements/triton.txt /tmp/
# What the CPU profile's models need; Triton's python backend uses the system's Python.
RUN python3 -m pip install --no-cache-dir --break-system-packages --no-deps --require-hashes --only-binary :all: \
    --requirement /tmp/triton.txt \
 && rm /tmp/triton.txt
COPY model_repository /models
ENV XDG_CACHE_HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /tmp
EXPOSE 8000 8001 8002
# Without NVIDIA's own entry point, which prints a banner and writes where a read-only root can't be written.
ENTRYPOINT ["/opt/tritonserver/bin/tritonserver", "--model-repository=/models"]
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.title="mristream Triton" \
      org.opencontainers.image.description="Triton Inference Server with mristream's models" \
      org.opencontainers.image.source="https://github.com/mristream/mristream" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
