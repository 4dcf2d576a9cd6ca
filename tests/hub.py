"""A stand-in for the Hugging Face Hub's API on the loopback: one data set or model, its tree, and its files."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

REPOSITORY = "owner/name"


class Hub(ThreadingHTTPServer):
    """The files of `owner/name` by path, a repository of this kind; what was asked for, and with which token."""

    daemon_threads = True

    def __init__(self, kind: str = "datasets") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind = kind
        self.refusal = ""
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        below = [path for path in sorted(self.files) if path.startswith(prefix)]
        folders = {"/".join(path.split("/")[:number]) for path in below for number in range(1, path.count("/") + 1)}
        folders = {name for name in folders if name.startswith(prefix) and name != folder}
        found = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
        found += [self.entry(path) for path in below]
        return [entry for entry in found if recursive or "/" not in entry["path"].removeprefix(prefix)]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self._send([self.server.entry(path) for path in wanted if path in self.server.files])

    def do_GET(self) -> None:
        self._note()
        address = urlsplit(self.path)
        path = unquote(address.path)
        api = f"/api/{self.server.kind}/{REPOSITORY}"
        files = f"/{'datasets/' if self.server.kind == 'datasets' else ''}{REPOSITORY}/resolve/"
        if self.server.refusal:
            self._send({"error": self.server.refusal}, 403)
        elif path.startswith(f"{api}/tree/"):
            _, _, folder = path.removeprefix(f"{api}/tree/").partition("/")
            is_recursive = parse_qs(address.query).get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = self.server.tree(folder, is_recursive)
            is_there = entries or not folder
            self._send(entries if is_there else {"error": "no such entry"}, 200 if is_there else 404)
        elif path == api or path.startswith(f"{api}/revision/"):
            found = {"_id": "1", "id": REPOSITORY, "sha": self.server.commit}
            names = [{"rfilename": name} for name in sorted(self.server.files)]
            self._send(found | {"private": False, "siblings": names, "tags": []})
        elif path.startswith(files):
            name = path.removeprefix(files).partition("/")[2]
            self._send_file(self.server.files[name])
        else:
            self._send({"error": "Repository not found"}, 404)

    def _note(self) -> None:
        self.server.requests.append((self.command, self.path))
        self.server.tokens.add(self.headers.get("Authorization", ""))

    def _send_file(self, content: bytes) -> None:
        begin, end = 0, len(content)
        wanted = self.headers.get("Range", "")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), int(last) + 1 if last else len(content)
        part = content[begin:end]
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.commit)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(content)}")
        self._finish(part)

    def _send(self, value: object, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 403:
            self.send_header("X-Error-Code", self.server.refusal)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound" if "/tree/" in self.path else "RepoNotFound")
        self._finish(json.dumps(value).encode())

    def _finish(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def hub_server(kind: str = "datasets") -> Iterator[Hub]:
    """The hub, answering."""
    with Hub(kind) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@contextlib.contextmanager
def hub_of_models(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model, which the libraries ask in place of huggingface.co, and an empty cache."""
    with hub_server("models") as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield server
