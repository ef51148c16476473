"""Keys and certificates of one cluster, made anew each time it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.testbed.configs import certificate_names
from tests.testbed.shell import sh

if TYPE_CHECKING:
    from pathlib import Path

DAYS = "30"


def make_keys(folder: Path) -> None:
    """Writes the CA, the API server's certificates and the key that signs service accounts' tokens into `folder`."""
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256")
    sh(
        *("openssl", "req", "-x509", *new_key, "-days", DAYS, "-subj", "/CN=relight-testbed"),
        *("-keyout", folder / "ca.key", "-out", folder / "ca.crt"),
    )
    subjects = {
        "apiserver": ("/CN=kube-apiserver", f"subjectAltName={certificate_names()}\nextendedKeyUsage=serverAuth\n"),
        "kubelet-client": ("/O=system:masters/CN=kube-apiserver-kubelet-client", "extendedKeyUsage=clientAuth\n"),
    }
    for name, (subject, extensions) in subjects.items():
        request, written = folder / f"{name}.csr", folder / f"{name}.ext"
        written.write_text(extensions)
        sh("openssl", "req", *new_key, "-subj", subject, "-keyout", folder / f"{name}.key", "-out", request)
        sh(
            *("openssl", "x509", "-req", "-sha256", "-days", DAYS, "-in", request, "-out", folder / f"{name}.crt"),
            *("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial", "-extfile", written),
        )
    private = folder / "service-accounts.key"
    sh("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private)
    sh("openssl", "ec", "-in", private, "-pubout", "-out", folder / "service-accounts.pub")
