# The worker, and every other command that needs no server of its own: docker build -f deploy/docker/worker.Dockerfile .
# BASE is the tag that Debian moves with its security fixes; the release workflow resolves it and builds from its digest.
ARG BASE=docker.io/library/debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/uv.txt requirements/build.txt requirements/worker.txt requirements/
RUN python3 -m venv /uv \
 && /uv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements/uv.txt
# Packages change less often than our code: a layer of their own.
RUN python3 -m venv --without-pip /opt/mristream \
 && /uv/bin/uv pip install --no-cache --python /opt/mristream --compile-bytecode --require-hashes --no-build \
    --requirements requirements/worker.txt
COPY pyproject.toml README.md LICENSE ./
COPY requirements/triton.txt requirements/triton-server.txt requirements/
COPY workers workers
COPY trainer trainer
COPY deploy/__init__.py deploy/
COPY deploy/local deploy/local
# The models are in Triton's images, and checkpoints are for training.
RUN mkdir model_repository && rm -r trainer/checkpoints \
 && /uv/bin/uv pip install --no-cache --python /opt/mristream --compile-bytecode --no-deps \
    --build-constraints requirements/build.txt .

# hadolint ignore=DL3006
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mristream
COPY --from=build /opt/mristream /opt/mristream
ENV PATH=/opt/mristream/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["mristream"]
CMD ["worker"]
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.title="mristream worker" \
      org.opencontainers.image.description="Takes brain MRI scans from Kafka through Triton: one final result for each" \
      org.opencontainers.image.source="https://github.com/mristream/mristream" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
