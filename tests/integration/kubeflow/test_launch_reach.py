"""How Kubeflow is reached: tokens that leak nowhere, certificates, and a port-forward that ends with us."""

import ipaddress
import json
import os
import signal
import ssl
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hardcase.cli.forwarding import forward
from hardcase.cli.launching import Reach, build_order, send, translate
from hardcase.errors import InputError
from hardcase.kubeflow.address import Absent, Refused
from hardcase.kubeflow.client import Client
from tests.support.kubeflow_server import kubeflow_server

# Hands connections on as `kubectl port-forward` does, and says so in its words; notes its pid and arguments.
KUBECTL = """#!{python}
import json, os, socket, sys, threading
with open(os.environ["NOTES"], "a") as notes:
    print(json.dumps([os.getpid(), *sys.argv[1:]]), file=notes)
port = int(sys.argv[-1].partition(":")[0] or 0)
server = socket.create_server(("127.0.0.1", port))
print(f"Forwarding from 127.0.0.1:{{server.getsockname()[1]}} -> 3000", flush=True)
def pipe(one, other):
    while data := one.recv(65536):
        other.sendall(data)
    other.close()
while True:
    near, _ = server.accept()
    far = socket.create_connection(("127.0.0.1", int(os.environ["TARGET"])))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pipe, args=pair, daemon=True).start()
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("HARDCASE_", "KF_")):
            monkeypatch.delenv(name)


@pytest.fixture
def kubectl(kubeflow, tmp_path, monkeypatch):
    """A `kubectl` on the path; the starts it noted."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable))
    program.chmod(0o755)
    notes = tmp_path / "notes"
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setenv("TARGET", kubeflow.url.rpartition(":")[2])
    return lambda: [json.loads(line) for line in notes.read_text().splitlines()]


def address_of(host, **more):
    """The address that the options describe."""
    return Reach(host=host, **more).find_address()


def look(client, run_id="run-0"):
    return client.ask("GET", f"runs/{run_id}")["run_id"]


def alive(pid):
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(true, seconds=10):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_token_comes_from_the_environment(kubeflow, monkeypatch):
    monkeypatch.setenv("HARDCASE_KFP_TOKEN", "sesame\n")
    address = address_of(kubeflow.url)
    with pytest.raises(Refused):
        look(Client(address), "x")
    assert kubeflow.tokens == ["Bearer sesame"]
    assert "sesame" not in repr(address)


def test_token_that_is_none_is_refused_and_not_shown(kubeflow, monkeypatch):
    monkeypatch.setenv("HARDCASE_KFP_TOKEN", "ses\name")
    with pytest.raises(Refused, match="HARDCASE_KFP_TOKEN: there is no token in it") as refused:
        look(Client(address_of(kubeflow.url)), "x")
    assert "ses" not in str(refused.value)


def test_token_file_is_read_at_each_request_for_it_is_rotated(kubeflow, tmp_path):
    path = tmp_path / "token"
    path.write_text("old\n")
    kubeflow.create_run({"display_name": "x"})
    client = Client(address_of(kubeflow.url, token_file=path))
    look(client)
    path.write_text("new\n")
    look(client)
    assert kubeflow.tokens == ["Bearer old", "Bearer new"]


def test_without_a_token_none_is_sent(kubeflow):
    kubeflow.create_run({"display_name": "x"})
    look(Client(address_of(kubeflow.url)))
    assert kubeflow.tokens == [""]


def test_pod_uses_its_projected_token_and_kubeflows_service(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("projected")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(path))
    address = address_of("", in_cluster=True)
    assert address.url == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    assert address.token() == "projected"


def test_outside_a_pod_its_way_is_refused():
    with pytest.raises(Refused, match=r"/var/run/secrets/kubeflow/pipelines/token: the token cannot be read"):
        address_of("", in_cluster=True)


@pytest.mark.parametrize(
    ("host", "in_cluster"),
    [
        ("http://kubeflow.example", False),
        ("http://127.evil.example", False),
        ("http://ml-pipeline.kubeflow.svc:8888", False),
        ("http://kubeflow.example", True),
        ("http://ml-pipeline.kubeflow.svc.example.com", True),
    ],
)
def test_token_does_not_go_over_plain_http(host, in_cluster, tmp_path):
    path = tmp_path / "token"
    path.write_text("sesame")
    with pytest.raises(Refused, match="plain http"):
        address_of(host, token_file=path, in_cluster=in_cluster)
    address_of(host)


@pytest.mark.parametrize(
    "host",
    ["https://kubeflow.example", "kubeflow.example", "http://localhost:8080", "http://127.0.0.1", "http://[::1]:1"],
)
def test_token_goes_by_tls_or_to_this_machine(host, tmp_path):
    path = tmp_path / "token"
    path.write_text("sesame")
    address = address_of(host, token_file=path)
    assert address.url == (host if "://" in host else f"https://{host}")


@pytest.mark.parametrize("content", ["", "  \n", "two\nlines", "café"])
def test_file_without_a_token_is_refused_and_not_shown(content, tmp_path):
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(Refused, match="there is no token in it") as refused:
        address_of("https://kubeflow.example", token_file=path)
    assert "lines" not in str(refused.value)


def test_password_in_the_host_is_refused_and_not_shown():
    with pytest.raises(Refused, match="names a user or a password; use a token") as refused:
        address_of("https://user:secret@kubeflow.example")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "host",
    [
        "ftp://kubeflow.example",
        "https://",
        "https://a b",
        "https://h:x",
        "h?x=1",
        "https://h/#/runs",
        "h/#/",
    ],
)
def test_host_that_is_no_url_is_refused(host):
    with pytest.raises(Refused, match="not a URL of Kubeflow's API"):
        address_of(host)


def test_without_a_host_it_is_said_how_to_name_one():
    with pytest.raises(InputError, match="--host URL, --port-forward or --in-cluster, or set HARDCASE_KFP_HOST"):
        address_of("")


def test_links_go_to_the_ui(kubeflow):
    assert address_of("https://h/pipeline/").link("a-1") == "https://h/pipeline/#/runs/details/a-1"
    assert address_of("https://h", ui="https://ui/p/").link("a-1") == "https://ui/p/#/runs/details/a-1"


@pytest.fixture
def certificate(tmp_path):
    """Self-signed, for 127.0.0.1: certificate and key in one file."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kfp")]),
    )
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, *form)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_self_signed_server_is_trusted_only_by_its_certificate(certificate, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with kubeflow_server(context) as kubeflow:
        kubeflow.create_run({"display_name": "x"})
        assert look(Client(address_of(kubeflow.url, ca=certificate))) == "run-0"
        with pytest.raises(Refused, match=r"its certificate is not trusted") as untrusted:
            look(Client(address_of(kubeflow.url)))
        assert str(translate(untrusted.value)).endswith("name its authority by --ca")
        (bad := tmp_path / "bad.pem").write_text("no certificate")
        with pytest.raises(Refused, match="no certificates can be read"):
            look(Client(address_of(kubeflow.url, ca=bad)))
    with pytest.raises(InputError, match="no such file"):
        address_of("https://h", ca=tmp_path / "nosuch.pem")


def test_port_forward_is_on_loopback_and_ends_with_us(kubeflow, kubectl):
    kubeflow.create_run({"display_name": "x"})
    with Reach(port_forward=True, context="dev").opened() as client:
        assert look(client) == "run-0"
        [(pid, *arguments)] = kubectl()
        assert alive(pid)
    assert not alive(pid)
    assert arguments == [
        *("--context", "dev", "--namespace", "kubeflow", "port-forward", "--address", "127.0.0.1"),
        *("svc/ml-pipeline-ui", ":80"),
    ]


def test_port_forward_that_broke_is_started_again_on_its_port(kubeflow, kubectl):
    kubeflow.create_run({"display_name": "x"})
    with Reach(port_forward=True).opened() as client:
        look(client)
        os.kill(kubectl()[0][0], signal.SIGKILL)
        until(lambda: not alive(kubectl()[0][0]))
        assert look(client) == "run-0"
        port = client.address.url.rpartition(":")[2]
        assert [each[-1] for each in kubectl()] == [":80", f"{port}:80"]
    assert not any(alive(each[0]) for each in kubectl())


def test_port_forward_that_breaks_at_the_worst_moment_loses_no_request(kubeflow, kubectl, little):
    """It ends after it was looked at, and before the request."""
    with Reach(port_forward=True, namespace="n").opened() as opened:
        address, looked = opened.address, []

        def keep():
            address.before()
            if not looked:
                looked.append(kubectl()[0][0])
                os.kill(looked[0], signal.SIGKILL)
                until(lambda: not Path(f"/proc/{looked[0]}/fd/1").exists())

        package, order = build_order(str(little), [], [], key="k", experiment="e")
        client = Client(replace(address, before=keep, pause=0.01))
        assert send(package, order, client).thing["run_id"] == "run-0"
    assert (len(kubectl()), len(kubeflow.runs)) == (2, 1)


def test_port_forward_does_not_outlive_a_killed_launch(kubeflow, kubectl, machine, little):
    kubeflow.before_get = lambda run: run.update(state="RUNNING")
    with machine.start("launch", "--port-forward", "--pipeline", str(little)) as process:
        until(lambda: kubeflow.made("GET runs/run-0"), 60)
        process.kill()
    [(pid, *_)] = kubectl()
    until(lambda: not alive(pid))


def test_without_kubectl_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Absent, match="kubectl is not on the path") as absent, forward():
        pass
    assert translate(absent.value).exit_code == 2


def test_kubectl_without_a_cluster_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nosuch"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with pytest.raises(Absent, match=r"--port-forward: kubectl ended with 1: .*(refused|config)"), forward():
        pass
