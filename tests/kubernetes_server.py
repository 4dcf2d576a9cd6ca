"""A Kubernetes of one node on loopback: an API server that knows pods, and runs their commands as processes.

It answers the calls that dagster-k8s makes, in the shapes of the API's reference (core/v1: Pod, PodStatus,
ContainerStatus, DeleteOptions). A deleted pod gets SIGTERM, as by a kubelet, and is gone once its process has ended.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml


def _default_signals() -> None:
    """A container begins with no signal blocked or ignored, whatever the process of the tests inherited."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Pod:
    """A pod and the process of its one container; `code` replaces the process, as where there is no memory for it."""

    def __init__(self, body: dict[str, Any], code: int | None) -> None:
        self.body = body
        self.code = code
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        if code is None:
            [container] = body["spec"]["containers"]
            given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
            program, *arguments = container["command"]
            assert program == "python"
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **given},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                preexec_fn=_default_signals,
            )
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(f"{datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%S.%f')}000Z {line}")
        self.code = self.process.wait()

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    def described(self) -> dict[str, Any]:
        state: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        if self.code is not None:
            code = self.code if self.code >= 0 else 128 - self.code
            reason = {0: "Completed", 137: "OOMKilled"}.get(code, "Error")
            state = {"terminated": {"exitCode": code, "reason": reason}}
        [container] = self.body["spec"]["containers"]
        status = {"name": container["name"], "image": "i", "imageID": "i", "restartCount": 0, "state": state}
        return {**self.body, "status": {"containerStatuses": [{**status, "ready": self.code is None}]}}


class KubernetesServer:
    """The pods of now, and all that were ever asked for or deleted; `ends_with` makes new ones end at once."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.ends_with: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": self}))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kubeconfig(self, path: Path) -> Path:
        address = f"http://127.0.0.1:{self._server.server_port}"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.created.append(body)
        pod = self.pods[body["metadata"]["name"]] = Pod(body, self.ends_with)
        return pod.described()

    def delete(self, name: str) -> None:
        self.deleted.append(name)
        process = self.pods[name].process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
        threading.Thread(target=self._forget, args=(name,), daemon=True).start()

    def _forget(self, name: str) -> None:
        process = self.pods[name].process
        if process is not None:
            process.wait()
        self.pods.pop(name, None)

    def close(self) -> None:
        for pod in list(self.pods.values()):
            if pod.process is not None and pod.process.poll() is None:
                os.killpg(pod.process.pid, signal.SIGKILL)
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: KubernetesServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(201, self.cluster.create(body))

    def do_GET(self) -> None:
        where, names = urlsplit(self.path), urlsplit(self.path).path.split("/")
        assert names[:4] == ["", "api", "v1", "namespaces"] and names[5] == "pods"
        if names[-1] == "log":
            self._log(self.cluster.pods[names[6]])
            return
        asked = {key: value[0] for key, value in parse_qs(where.query).items()}
        name = asked.get("fieldSelector", "").removeprefix("metadata.name=")
        label, _, value = asked.get("labelSelector", "").partition("=")
        found = [
            pod.described()
            for pod in list(self.cluster.pods.values())
            if (not name or pod.name == name) and (not label or pod.body["metadata"]["labels"].get(label) == value)
        ]
        self._answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})

    def do_DELETE(self) -> None:
        name = urlsplit(self.path).path.rsplit("/", 1)[-1]
        pod = self.cluster.pods.get(name)
        if pod is None:
            self._answer(404, {"kind": "Status", "code": 404, "reason": "NotFound"})
            return
        self.cluster.delete(name)
        self._answer(200, pod.described())

    def _log(self, pod: Pod) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        told = 0
        while True:
            ended = pod.code is not None
            for line in pod.lines[told:]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line.encode()), line.encode()))
                told += 1
            if ended:
                self.wfile.write(b"0\r\n\r\n")
                return
            time.sleep(0.05)

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""
