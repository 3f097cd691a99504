"""An authority of our own, and certificates that it signs, made with openssl: RSA keys, files in PEM."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """A certificate and its private key (PKCS 8); `both` is a file that holds the two."""

    cert_file: Path
    key_file: Path
    both: Path


class Authority:
    """Signs certificates in `folder`; `ca_file` is what others need to trust them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._issued: dict[str, Certificate] = {}
        self.ca_file = folder / "ca.pem"
        self._key_file = folder / "ca.key"
        _openssl("req", "-x509", *_new_key(self._key_file), "-subj", "/CN=authority", "-out", str(self.ca_file))

    def issue(self, name: str, hosts: str = "IP:127.0.0.1,DNS:localhost") -> Certificate:
        """The certificate of the subject `CN=name`, valid for `hosts` and for one day."""
        if name in self._issued:
            return self._issued[name]
        issued = Certificate(*(self._folder / f"{name}.{ending}" for ending in ("pem", "key", "both.pem")))
        signed_by = ("-CA", str(self.ca_file), "-CAkey", str(self._key_file))
        # Without the first of these it could sign others, and some clients trust no such server.
        extensions = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName={hosts}")
        subject = ("-subj", f"/CN={name}", "-days", "1", *extensions, "-out", str(issued.cert_file))
        _openssl("req", "-x509", *_new_key(issued.key_file), *signed_by, *subject)
        issued.both.write_bytes(issued.key_file.read_bytes() + issued.cert_file.read_bytes())
        self._issued[name] = issued
        return issued


def sign(key_file: Path, content: bytes) -> bytes:
    """The RS256 signature of `content`."""
    return _openssl("dgst", "-sha256", "-sign", str(key_file), content=content)


def modulus(key_file: Path) -> bytes:
    """The number that, with the exponent 65537, is the public key."""
    return bytes.fromhex(_openssl("rsa", "-in", str(key_file), "-noout", "-modulus").decode().partition("=")[2])


def _new_key(key_file: Path) -> tuple[str, ...]:
    return "-newkey", "rsa:2048", "-nodes", "-keyout", str(key_file)


def _openssl(*arguments: str, content: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=content, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
