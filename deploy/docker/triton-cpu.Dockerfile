# Triton for CPUs, a twelfth of the size of NVIDIA's image: tritonserver and its python backend from a Python package, and
# OpenVINO. For tests, and for those who have no GPU. `docker build -f deploy/docker/triton-cpu.Dockerfile .`
# BASE is the tag that Debian moves with its security fixes; the release workflow resolves it and builds from its digest.
ARG BASE=docker.io/library/debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/uv.txt requirements/triton.txt requirements/triton-server.txt requirements/
RUN python3 -m venv /uv \
 && /uv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements/uv.txt
# The first `python3` on PATH is the one that the python backend takes.
RUN python3 -m venv --without-pip /opt/triton \
 && for lock in triton triton-server; do \
      /uv/bin/uv pip install --no-cache --python /opt/triton --compile-bytecode --no-deps --require-hashes --no-build \
        --requirements "requirements/$lock.txt" || exit; \
    done \
 && packages=$(echo /opt/triton/lib/python3.*/site-packages) \
 && server=$packages/pytriton/tritonserver \
 && cp "$server/python_backend_stubs/3.11/triton_python_backend_stub" "$server/backends/python/" \
 && chmod 755 "$server/bin/tritonserver" "$server/backends/python/triton_python_backend_stub" \
 # Other Pythons' stubs and library, the PyTriton API, and what OpenVINO has for other formats and devices: 160 MB.
 && find "$packages/pytriton" -mindepth 1 -maxdepth 1 ! -name tritonserver -exec rm -r {} + \
 && rm -r "$server/python_backend_stubs" "$packages"/nvidia_pytriton.libs/libpython* \
 && find "$packages/openvino/libs" -regextype egrep \
    -regex '.*_(intel_gpu|intel_npu|tensorflow|tensorflow_lite|pytorch|paddle|jax|gguf)_(plugin|frontend)\.so.*' -delete \
 && rm -r "$packages/openvino/libs/cache.json" "$packages/openvino/include" "$packages/openvino/cmake"

# hadolint ignore=DL3006
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 libpython3.11 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 # NVIDIA's image has this user with this id.
 && useradd --uid 1000 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin triton-server
COPY --from=build /opt/triton /opt/triton
# Where tritonserver looks for its backends, as in NVIDIA's image. Its libraries it finds from where it really is.
RUN ln -s /opt/triton/lib/python3.11/site-packages/pytriton/tritonserver /opt/tritonserver
COPY model_repository /models
ENV PATH=/opt/triton/bin:/opt/tritonserver/bin:/usr/bin:/bin \
    # Models keep there how many streams were fastest; bytecode that isn't there already would go beside the models.
    XDG_CACHE_HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /tmp
EXPOSE 8000 8001 8002
ENTRYPOINT ["tritonserver", "--model-repository=/models"]
CMD ["--model-config-name=cpu", "--allow-gpu-metrics=false"]
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.title="mristream Triton for CPUs" \
      org.opencontainers.image.description="Triton Inference Server with mristream's models in OpenVINO" \
      org.opencontainers.image.source="https://github.com/mristream/mristream" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-3-Clause" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
