"""The platform: Kafka in, Triton, masks and results out."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mristream")
except PackageNotFoundError:  # a checkout on PYTHONPATH, not installed
    __version__ = "0+unknown"
