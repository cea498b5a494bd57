"""A hub on the loopback that keeps uploads in memory, with as much of its interface as `push` and `load` use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories, each its files by name; large files arrive apart from the commit that names them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.log: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str) -> str:
        """The name of the last commit: a hash of all files."""
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *given: Any) -> None:
        self.server.log.append(f"{self.command} {self.path}")

    def answer(self, content: Any = b"", status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/":
            return self.answer()
        owner_first = path.removeprefix("/api/models/").strip("/").split("/")
        name = "/".join(owner_first[:2])
        files = self.server.repositories.get(name)
        if files is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        commit = self.server.commit(name)
        if path.startswith("/api/models/"):
            if "/tree/" in path:
                return self.answer(
                    [
                        {"type": "file", "path": file, "size": len(data), "oid": _sha1(data)}
                        for file, data in files.items()
                    ]
                )
            return self.answer(
                {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            )
        file = "/".join(owner_first[4:])  # owner/name/resolve/revision/file
        if file not in files:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        return self.answer(files[file], ETag=f'"{_sha1(files[file])}"', X_Repo_Commit=commit)

    def do_POST(self) -> None:
        path, body = self.path.split("?")[0], self.body()
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.server.tokens:
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            if name in self.server.repositories:
                return self.answer(
                    {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}, 409
                )
            self.server.repositories[name] = {}
            self.server.private[name] = bool(given.get("private") or given.get("visibility") == "private")
            return self.answer({"url": f"{self.server.address}/{name}", "name": name})
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            actions = {"upload": {"href": f"{self.server.address}/large"}}
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/large/{one['oid']}"}}} for one in wanted
            ]
            return self.answer({"transfer": "basic", "objects": objects, "actions": actions})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            kinds = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith("safetensors") else "regular"}
                for one in files
            ]
            return self.answer({"files": [{**one, "shouldIgnore": False} for one in kinds]})
        if "/commit/" in path:
            return self.answer(self.committed(name, body))
        return self.answer({"url": f"{self.server.address}/{name}"})

    def committed(self, name: str, body: bytes) -> dict[str, Any]:
        files = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            given = line["value"]
            if line["key"] == "file":
                files[given["path"]] = base64.b64decode(given["content"])
            elif line["key"] == "lfsFile":
                files[given["path"]] = self.server.large[given["oid"]]
            elif line["key"] == "deletedFile":
                del files[given["path"]]
        commit = self.server.commit(name)
        url = f"{self.server.address}/{name}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.answer()


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
