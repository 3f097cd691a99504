import sys
from pathlib import Path

# A __pycache__ folder in the repository would look like a model to Triton.
sys.dont_write_bytecode = True
sys.path.append(str(Path(__file__).resolve().parents[2]))

from onnx_on_cpu import TritonPythonModel  # noqa: E402, F401
