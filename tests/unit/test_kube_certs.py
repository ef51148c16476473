"""The coordinator's certificates, checked by the ssl module that agents use."""

import asyncio
import datetime as dt
import socket
import ssl
import threading

import pytest
from kube_fake import FakeClient

from relight_operator.kube import certs

pytestmark = pytest.mark.timeout(30)
NOW = dt.datetime.now(dt.UTC)


def handshake(server: ssl.SSLContext, bundle: str, host: str) -> None:
    """Raises what a client that trusts `bundle` and wants `host` raises."""
    client = ssl.create_default_context(cadata=bundle)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as wrapped:
                wrapped.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=host) as wrapped:
            wrapped.send(b"x")
    finally:
        ours.close()
        thread.join()


def server_with(authority: certs.Authority, *hosts: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certs.load_into(context, certs.new_leaf(authority, hosts, NOW))
    return context


@pytest.mark.parametrize("host", ["relight-coordinator.relight.svc", "10.1.2.3", "fd00::1"])
def test_a_leaf_is_good_for_its_hosts(host: str) -> None:
    authority = certs.new_authority(NOW)
    handshake(server_with(authority, host), authority.bundle(), host)


def test_a_leaf_is_no_good_for_another_host_or_another_ca() -> None:
    authority = certs.new_authority(NOW)
    server = server_with(authority, "a.svc")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, authority.bundle(), "b.svc")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, certs.new_authority(NOW).bundle(), "a.svc")


def test_after_a_rotation_both_old_and_new_leaves_are_trusted() -> None:
    old = certs.new_authority(NOW)
    new = certs.new_authority(NOW, previous=old.certificate)
    for authority in (old, new):
        handshake(server_with(authority, "a.svc"), new.bundle(), "a.svc")


def test_a_new_leaf_is_met_by_new_connections_of_the_same_server() -> None:
    old, new = certs.new_authority(NOW), certs.new_authority(NOW)
    server = server_with(old, "a.svc")
    certs.load_into(server, certs.new_leaf(new, ["a.svc"], NOW))
    handshake(server, new.bundle(), "a.svc")


def test_replicas_that_start_together_share_one_ca() -> None:
    async def body() -> None:
        client = FakeClient()
        made = await asyncio.gather(*(certs.ensure_authority(client, "ns", "ca", NOW) for _ in range(5)))
        assert len(set(made)) == 1
        assert len(client.all("secrets")) == 1

    asyncio.run(body())


def test_an_aging_ca_is_followed_by_a_new_one_and_a_young_one_is_not() -> None:
    async def body() -> None:
        client = FakeClient()
        first = await certs.ensure_authority(client, "ns", "ca", NOW)
        assert await certs.renewed_authority(client, "ns", "ca", NOW) == first
        later = NOW + dt.timedelta(days=certs.CA_DAYS * 0.7)
        second = await certs.renewed_authority(client, "ns", "ca", later)
        assert second.previous == first.certificate
        assert await certs.renewed_authority(client, "ns", "ca", later) == second

    asyncio.run(body())
