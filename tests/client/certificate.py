"""`write_certificate`: a certificate of this machine's own for tests of TLS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cascade")])
now = datetime.datetime.now(datetime.timezone.utc)
names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
made = made.add_extension(names, False).add_extension(x509.BasicConstraints(True, None), True)
open(sys.argv[1], "wb").write(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
open(sys.argv[2], "wb").write(key.private_bytes(serialization.Encoding.PEM, *form))
"""


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, which is its own authority, and its key, as PEM files in a folder."""
    paths = folder / "cert.pem", folder / "key.pem"
    subprocess.run([sys.executable, "-c", _SCRIPT, *map(str, paths)], check=True, timeout=60)
    return paths
