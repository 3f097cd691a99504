"""An environment for each peer, apart from ours, of the packages in its own lock file; made when it is first wanted."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from deploy.local import python_environment
from deploy.local.cache import cached
from deploy.local.python_environment import Installer

LOCKS = Path(__file__).resolve().parents[2] / "requirements"
# What all their packages have wheels for.
_PYTHONS = ((3, 12), (3, 11))


def peer_python(name: str) -> Path:
    """The Python of the peer's environment, of `requirements/peers-NAME.txt`. Raises ServerError if it can't be made."""
    lock = LOCKS / f"peers-{name}.txt"
    installer = Installer(f"the peer {name}", _PYTHONS)
    version = installer.version()
    digest = hashlib.sha256(lock.read_bytes() + Path(python_environment.__file__).read_bytes())
    digest.update(f"{platform.machine()} {version}".encode())

    def make(folder: Path) -> None:
        print(f"installing the peer {name} (once)…", flush=True)
        installer.install(folder, version, [lock])

    # An update of the system may take away the Python that it was made with.
    def intact(folder: Path) -> bool:
        return (folder / "bin" / "python3").is_file()

    return cached(f"peers/{name}-{digest.hexdigest()[:16]}", make, intact) / "bin" / "python3"
