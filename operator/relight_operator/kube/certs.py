"""The coordinator's certificates: an own CA, kept in a Secret, and leaves that live in memory only.

The CA is made once, whichever replica comes first. Past two thirds of its life the leader makes a new one; until the old one
ends, agents are given both, so that nobody meets a certificate that it cannot check.
"""

import base64
import datetime as dt
import ipaddress
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relight_operator.kube.client import SECRETS, Client
from relight_operator.kube.errors import AlreadyExists, NotFound

CA_DAYS = 3650
LEAF_DAYS = 30
_SKEW = dt.timedelta(minutes=5)  # other machines' clocks


@dataclass(frozen=True)
class Authority:
    """PEM; `previous` is the certificate that this one follows, empty where there is none."""

    certificate: bytes
    key: bytes
    previous: bytes = b""

    def bundle(self) -> str:
        """What agents trust."""
        return (self.certificate + self.previous).decode()

    def is_aging(self, now: dt.datetime) -> bool:
        """Whether a new one should follow it."""
        certificate = x509.load_pem_x509_certificate(self.certificate)
        born, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return now >= born + (ends - born) * 2 / 3


def new_authority(now: dt.datetime, previous: bytes = b"") -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relight-coordinator-ca")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _key_pem(key), previous)


def new_leaf(authority: Authority, hosts: Iterable[str], now: dt.datetime) -> bytes:
    """Certificate and key in one PEM, for a server that is reached by any of `hosts` (names or addresses)."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relight-coordinator")])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        _builder(name, issuer.subject, key.public_key(), now, LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_san(h) for h in hosts]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pem(certificate) + _key_pem(key)


async def ensure_authority(client: Client, namespace: str, name: str, now: dt.datetime) -> Authority:
    """The CA in the Secret `name`, made there if it is not. Raises KubeError."""
    try:
        return authority_of(await client.get(SECRETS, namespace, name))
    except NotFound:
        made = new_authority(now)
    metadata = {"name": name, "namespace": namespace}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": secret_data(made)}
    try:
        await client.create(SECRETS, namespace, body)
    except AlreadyExists:
        return authority_of(await client.get(SECRETS, namespace, name))
    return made


async def renewed_authority(client: Client, namespace: str, name: str, now: dt.datetime) -> Authority:
    """The CA in the Secret, followed by a new one there if it is aging: for the leader only. Raises KubeError."""
    secret = await client.get(SECRETS, namespace, name)
    authority = authority_of(secret)
    if not authority.is_aging(now):
        return authority
    made = new_authority(now, previous=authority.certificate)
    version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
    await client.patch(SECRETS, namespace, name, {"metadata": version, "data": secret_data(made)})
    return made


def authority_of(secret: Mapping[str, Any]) -> Authority:
    """Raises KeyError or ValueError for a Secret that is not ours."""
    data = secret["data"]
    keys = ("ca.crt", "ca.key", "previous.crt")
    return Authority(*(base64.b64decode(data.get(k, "") if k == "previous.crt" else data[k]) for k in keys))


def secret_data(authority: Authority) -> dict[str, str]:
    values = {"ca.crt": authority.certificate, "ca.key": authority.key, "previous.crt": authority.previous}
    return {name: base64.b64encode(value).decode() for name, value in values.items()}


def load_into(context: ssl.SSLContext, leaf: bytes) -> None:
    """New connections of a server that uses `context` meet `leaf` from now on."""
    with tempfile.TemporaryDirectory() as folder:  # the ssl module reads files only
        path = Path(folder) / "leaf.pem"
        path.touch(mode=0o600)
        path.write_bytes(leaf)
        context.load_cert_chain(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
