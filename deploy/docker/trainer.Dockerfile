# The trainer and the builder of TensorRT plans: `mristream train|export|plan`.
# On the same base as Triton's image, because a plan runs only in the TensorRT that built it; the release workflow gives
# both the same digest.
ARG BASE=nvcr.io/nvidia/tritonserver:26.08-py3

# hadolint ignore=DL3006
FROM ${BASE}
WORKDIR /src
COPY requirements/uv.txt requirements/build.txt requirements/trainer.txt requirements/tensorrt.txt requirements/
RUN python3 -m pip install --no-cache-dir --target /uv --require-hashes --only-binary :all: --requirement requirements/uv.txt \
 && /uv/bin/uv venv --no-cache --python /usr/bin/python3 /opt/mristream \
 && /uv/bin/uv pip install --no-cache --python /opt/mristream --require-hashes --no-build \
    --requirements requirements/trainer.txt --requirements requirements/tensorrt.txt
# The bindings are a package, the library is the base's: built from another base than they are for, this image is refused.
RUN ["/opt/mristream/bin/python", "-c", "import ctypes, tensorrt_bindings as t; n = ctypes.CDLL('libnvinfer.so.' + t.__version__.split('.')[0]).getInferLibVersion(); assert t.__version__.startswith(f'{n // 10000}.{n // 100 % 100}.{n % 100}'), f'the base has TensorRT {n}, requirements/tensorrt.txt {t.__version__}'"]
COPY pyproject.toml README.md LICENSE ./
COPY requirements/triton.txt requirements/triton-server.txt requirements/
COPY workers workers
COPY trainer trainer
COPY deploy/__init__.py deploy/
COPY deploy/local deploy/local
COPY deploy/samples deploy/samples
COPY model_repository model_repository
RUN /uv/bin/uv pip install --no-cache --python /opt/mristream --no-deps --build-constraints requirements/build.txt . \
 && rm -r /uv /src
ENV PATH=/opt/mristream/bin:${PATH} \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["mristream"]
CMD ["plan", "--help"]
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.title="mristream trainer" \
      org.opencontainers.image.description="Trains mristream's models and builds TensorRT plans of them" \
      org.opencontainers.image.source="https://github.com/mristream/mristream" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
