"""A small server that speaks the endpoints of the Hugging Face Hub which its client uses for vectors."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_API = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
_RESOLVE = r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"


class StandInHub:
    """Repositories in memory: commits by id, and branches that name one.

    Attributes:
        requests: "METHOD path" of everything that was asked.
        claimed_sizes: what is said of a file's length, by its path, where that is not the truth.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict]] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.claimed_sizes: dict[str, int] = {}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def create(self, repo_id: str) -> None:
        self.repos.setdefault(repo_id, {"commits": {}, "branches": {}, "private": {}})
        if not self.repos[repo_id]["branches"]:
            self.commit(repo_id, "main", {".gitattributes": b""})

    def commit(self, repo_id: str, branch: str, files: dict[str, bytes]) -> str:
        repo = self.repos.setdefault(repo_id, {"commits": {}, "branches": {}})
        whole = self.files(repo_id, branch) | files if branch in repo["branches"] else dict(files)
        sha = hashlib.sha1(repr((repo_id, sorted(whole.items()), len(repo["commits"]))).encode()).hexdigest()
        repo["commits"][sha] = whole
        repo["branches"][branch] = sha
        return sha

    def sha(self, repo_id: str, revision: str) -> str | None:
        repo = self.repos.get(repo_id, {"commits": {}, "branches": {}})
        return revision if revision in repo["commits"] else repo["branches"].get(revision)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return self.repos[repo_id]["commits"][self.sha(repo_id, revision)]


class _Handler(BaseHTTPRequestHandler):
    server_hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        hub.tokens.append(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo_id in hub.repos:
                return self.send(409, {"error": "exists", "url": f"{hub.url}/{repo_id}"})
            hub.create(repo_id)
            hub.repos[repo_id]["private"] = asked.get("private") or asked.get("visibility")
            return self.send(200, {"url": f"{hub.url}/{repo_id}"})
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(_RESOLVE, path):
            return self.resolve(found["id"], found["revision"], found["path"])
        if found := re.fullmatch(_API + r"(?:/(?P<verb>[a-z]+)/(?P<revision>[^/]+)(?P<rest>/.*)?)?", path):
            return self.api(found["id"], found["verb"], found["revision"] or "main", body)
        return self.send(404, {"error": f"no {path}"})

    def api(self, repo_id: str, verb: str | None, revision: str, body: bytes) -> None:
        hub = self.server_hub
        if repo_id not in hub.repos:
            return self.send(404, {"error": "no repository"}, {"X-Error-Code": "RepoNotFound"})
        if verb == "branch":
            if revision in hub.repos[repo_id]["branches"]:
                return self.send(409, {"error": "exists"})
            hub.repos[repo_id]["branches"][revision] = hub.sha(repo_id, "main")
            return self.send(200, {})
        if hub.sha(repo_id, revision) is None:
            return self.send(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        if verb == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.send(200, {"files": files})
        if verb == "commit":
            return self.commit(repo_id, revision, body)
        files = hub.files(repo_id, revision)
        if verb == "tree":
            return self.send(200, [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in sorted(files.items())
            ])  # fmt: skip
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self.send(200, {"id": repo_id, "sha": hub.sha(repo_id, revision), "siblings": siblings, "tags": []})

    def commit(self, repo_id: str, revision: str, body: bytes) -> None:
        hub = self.server_hub
        lines = [json.loads(line) for line in body.splitlines() if line]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        as_request = "create_pr" in parse_qs(urlsplit(self.path).query)
        branch = "refs%2Fpr%2F1" if as_request else revision
        if as_request:
            hub.repos[repo_id]["branches"][branch] = hub.sha(repo_id, revision)
        sha = hub.commit(repo_id, branch, files)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo_id}/commit/{sha}"}
        if as_request:
            answer["pullRequestUrl"] = f"{hub.url}/{repo_id}/discussions/1"
        self.send(200, answer)

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        hub = self.server_hub
        if repo_id not in hub.repos:
            return self.send(404, {"error": "no repository"}, {"X-Error-Code": "RepoNotFound"})
        sha = hub.sha(repo_id, revision)
        if sha is None:
            return self.send(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        content = hub.files(repo_id, sha).get(path)
        if content is None:
            return self.send(404, {"error": "no file"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self.send_bytes(200, content, headers, hub.claimed_sizes.get(path))

    def send(self, status: int, value, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def send_bytes(self, status: int, content: bytes, headers: dict[str, str], size: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
