"""A stand-in for the Hugging Face Hub's API on the loopback: repositories that are created and pushed to.

The requests and answers are those that huggingface_hub exchanges with the Hub for `repo_info`, `create_repo` and
`create_commit` (with Git LFS, not Xet).
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

TOKEN = "hf_" + "x" * 34
_INFO = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(/revision/main)?")
_PREUPLOAD = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)/preupload/main")
_COMMIT = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)/commit/main")
_BATCH = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Repository:
    """A repository: its files, those in Git LFS, and the titles of its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files.items()))).encode()).hexdigest()

    def oid(self, path: str) -> str | None:
        """The hash of a file as the Hub tells it: in Git LFS that of the content, else Git's own."""
        if path not in self.files:
            return None
        content = self.files[path]
        if path in self.lfs:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repositories(ThreadingHTTPServer):
    """Repositories by path, `owner/name` or `datasets/owner/name`; requests in `refused` get that status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.found: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.refused: dict[tuple[str, str], int] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def writes(self) -> list[str]:
        """The paths of all requests that are not reads."""
        return [path for method, path in self.requests if method != "GET"]


class _Handler(BaseHTTPRequestHandler):
    server: Repositories
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._refuses():
            return
        if (match := _INFO.fullmatch(self.path)) and (found := self._repository(match)):
            siblings = [{"rfilename": path} for path in found.files]
            self._send({"id": match[2], "sha": found.commit, "private": found.private, "siblings": siblings})
        else:
            self._send({"error": "Repository not found"}, 404, "RepoNotFound")

    def do_PUT(self) -> None:
        content = self._body()
        if not self._refuses():
            self.server.objects[self.path.rsplit("/", 1)[1]] = content
            self._send({})

    def do_POST(self) -> None:
        body = self._body()
        if self._refuses():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._send({})
        elif match := _PREUPLOAD.fullmatch(self.path):
            self._preupload(self._repository(match), json.loads(body))
        elif _BATCH.fullmatch(self.path):
            self._send({"objects": [self._lfs_object(found) for found in json.loads(body)["objects"]]})
        elif match := _COMMIT.fullmatch(self.path):
            self._commit(match, [json.loads(line) for line in body.splitlines()])
        else:
            self._send({"error": "no such path"}, 404)

    def _create(self, wanted: dict[str, str]) -> None:
        path = ("datasets/" if wanted.get("type") == "dataset" else "") + f"{wanted['organization']}/{wanted['name']}"
        if path in self.server.found:
            self._send({"error": "You already created this repo"}, 409)
        else:
            self.server.found[path] = Repository(private=wanted["visibility"] == "private")
            self._send({"url": f"{self.server.endpoint}/{path}"})

    def _preupload(self, found: Repository, wanted: dict[str, list[dict[str, str]]]) -> None:
        modes = {file["path"]: file["path"].endswith((".safetensors", ".parquet")) for file in wanted["files"]}
        files = [
            {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": found.oid(path)}
            for path, lfs in modes.items()
        ]
        self._send({"files": files})

    def _lfs_object(self, wanted: dict[str, str]) -> dict[str, object]:
        if wanted["oid"] in self.server.objects:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"}}}

    def _commit(self, match: re.Match[str], lines: list[dict[str, dict[str, str]]]) -> None:
        found = self._repository(match)
        for value, key in ((line["value"], line["key"]) for line in lines):
            if key == "header":
                found.commits.append(value["summary"])
            elif key == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                found.files[value["path"]] = self.server.objects[value["oid"]]
                found.lfs.add(value["path"])
            elif key == "deletedFile":
                del found.files[value["path"]]
        url = f"{self.server.endpoint}/{_path(match)}/commit/{found.commit}"
        self._send({"success": True, "commitUrl": url, "commitOid": found.commit})

    def _repository(self, match: re.Match[str]) -> Repository | None:
        return self.server.found.get(_path(match))

    def _refuses(self) -> bool:
        self.server.requests.append((self.command, self.path))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not self.path.startswith("/lfs/"):
            self._send({"error": "Invalid username or password."}, 401)
            return True
        if status := self.server.refused.get((self.command, self.path)):
            self._send({"error": "refused"}, status)
        return bool(status)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, value: object, status: int = 200, code: str = "") -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)


def _path(match: re.Match[str]) -> str:
    return ("datasets/" if match[1] == "dataset" else "") + match[2]


@contextlib.contextmanager
def hub_repositories(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    """A Hub without repositories, to which the library goes in place of huggingface.co, and a token for it."""
    with Repositories() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(directory / "no-token"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
