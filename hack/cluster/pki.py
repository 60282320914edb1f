"""Certificates and kubeconfig files, made with openssl: one authority per cluster, valid for a year."""

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.instance import NODE_NAME, Instance, address

# Who each component is to the API server: its certificate's subject.
IDENTITIES = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE_NAME}",
    "kwok": "/O=system:masters/CN=kwok",
    "kubelet-client": "/O=system:masters/CN=kube-apiserver-kubelet-client",
}


def _openssl(folder: Path, *arguments: str) -> None:
    result = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"openssl {arguments[0]} failed:\n{result.stderr}")


def _certificate(folder: Path, name: str, subject: str, extensions: Sequence[str]) -> None:
    (folder / f"{name}.ext").write_text("\n".join(extensions))
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
    _openssl(folder, "req", *key, "-subj", subject, "-out", f"{name}.csr")
    signer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "365"]
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.crt", "-extfile", f"{name}.ext")


def _kubeconfig(instance: Instance, identity: str) -> None:
    """Everything inline, so that the file can be copied. JSON is YAML."""
    pki = instance.folder / "pki"
    ca, certificate, key = (
        base64.b64encode((pki / file).read_bytes()).decode()
        for file in ("ca.crt", f"{identity}.crt", f"{identity}.key")
    )
    server = f"https://127.0.0.1:{instance.ports['apiserver']}"
    context = f"nas-{instance.name}"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context, "cluster": {"server": server, "certificate-authority-data": ca}}],
        "users": [{"name": identity, "user": {"client-certificate-data": certificate, "client-key-data": key}}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": identity}}],
        "current-context": context,
    }
    target = instance.folder / f"{identity}.kubeconfig"
    target.touch(mode=0o600)
    target.write_text(json.dumps(document, indent=1))


def make(instance: Instance) -> None:
    """All keys, certificates and kubeconfig files of a new cluster."""
    pki = instance.folder / "pki"
    pki.mkdir(mode=0o700)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key"]
    _openssl(pki, "req", "-x509", *key, "-out", "ca.crt", "-days", "365", "-subj", "/CN=nas-cluster-ca")
    _openssl(pki, "genrsa", "-out", "sa.key", "2048")
    _openssl(pki, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
    service = "kubernetes.default.svc"
    names = [
        "IP:127.0.0.1",
        f"IP:{instance.node_ip}",
        f"IP:{address(instance.service_cidr, 1)}",
        *(
            f"DNS:{name}"
            for name in ("localhost", "kubernetes", "kubernetes.default", service, f"{service}.cluster.local")
        ),
    ]
    serving = "extendedKeyUsage=serverAuth"
    _certificate(pki, "apiserver", "/CN=kube-apiserver", [serving, f"subjectAltName={','.join(names)}"])
    kubelet_names = f"subjectAltName=IP:127.0.0.1,IP:{instance.node_ip},DNS:{NODE_NAME}"
    _certificate(pki, "kubelet-server", f"/CN={NODE_NAME}", [serving, kubelet_names])
    for identity, subject in IDENTITIES.items():
        _certificate(pki, identity, subject, ["extendedKeyUsage=clientAuth"])
        _kubeconfig(instance, identity)
