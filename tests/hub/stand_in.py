"""A stand-in for Hugging Face's hub on loopback: repositories, branches, commits and LFS files.

It keeps what it is sent, as the hub does: text by the commit, large files by LFS first. Only what
a push and a download of models ask for is there.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"
TOKEN = "hf_write"


class Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Commit:
    sha: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> Commit:
        number = f"{branch} {len(self.commits)}"
        made = Commit(hashlib.sha1(number.encode()).hexdigest(), files)
        self.branches[branch] = self.commits[made.sha] = made
        return made


class Hub:
    """What it holds, and how it misbehaves."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.before_commit: Callable[[Repo], Any] = lambda repo: None
        """Called as a commit arrives: what somebody else does at that moment."""
        self.fail: dict[str, int] = {}
        """A part of a path -> the status that it gives."""
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = self.chunks()
                hub.asked.append(f"{self.command} {self.path}")
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                try:
                    status, head, content = hub.handle(self.command, self.path, token, body)
                except Refusal as refusal:
                    head = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                    status, content = refusal.status, json.dumps({"error": refusal.message})
                data = content if isinstance(content, bytes) else content.encode()
                self.send_response(status)
                for name, value in head.items():
                    self.send_header(name, value)
                if "Content-Length" not in head:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

            def chunks(self) -> bytes:
                whole = b""
                while size := int(self.rfile.readline(), 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def handle(
        self, method: str, path: str, token: str, body: bytes
    ) -> tuple[int, dict[str, str], str | bytes]:
        path = path.partition("?")[0]
        for part, status in self.fail.items():
            if part in path:
                raise Refusal(status, "", "as the test asks")
        routes = {
            ("POST", r"/api/repos/create"): self.create,
            ("POST", r"/api/validate-yaml"): self.validate,
            ("GET", rf"/api/models/{REPOSITORY}(/revision/(?P<rev>[^/]+))?"): self.info,
            ("POST", rf"/api/models/{REPOSITORY}/branch/(?P<rev>.+)"): self.branch,
            ("GET", rf"/api/models/{REPOSITORY}/tree/(?P<rev>[^/]+)"): self.tree,
            ("POST", rf"/api/models/{REPOSITORY}/preupload/(?P<rev>.+)"): self.preupload,
            ("POST", rf"/{REPOSITORY}.git/info/lfs/objects/batch"): self.lfs,
            ("PUT", r"/objects/(?P<oid>\w+)"): self.put,
            ("POST", rf"/api/models/{REPOSITORY}/commit/(?P<rev>.+)"): self.take_commit,
            ("GET", rf"/{REPOSITORY}/resolve/(?P<rev>[^/]+)/(?P<file>.+)"): self.file,
            ("HEAD", rf"/{REPOSITORY}/resolve/(?P<rev>[^/]+)/(?P<file>.+)"): self.file,
        }
        for (verb, pattern), action in routes.items():
            found = re.fullmatch(pattern, path)
            if found and verb == method:
                if method in ("POST", "PUT") and "objects/" not in path and token != TOKEN:
                    raise Refusal(401, "", "Invalid username or password.")
                return action(body=body, **found.groupdict())
        raise Refusal(404, "", f"no such place: {method} {path}")

    # Repositories ---------------------------------------------------------------------------

    def repo_at(self, repo: str) -> Repo:
        if repo not in self.repos:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return self.repos[repo]

    def at(self, repo: str, rev: str | None) -> Commit:
        found = self.repo_at(repo)
        rev = (rev or "main").replace("%2F", "/")
        commit = found.branches.get(rev) or found.commits.get(rev)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return commit

    def create(self, body: bytes) -> tuple[int, dict[str, str], str]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "org":
            raise Refusal(403, "", "You don't have the rights to create a model here")
        if name in self.repos:
            raise Refusal(409, "", "You already created this model repo")
        self.repos[name] = Repo(bool(asked.get("private")) or asked.get("visibility") == "private")
        self.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return 200, {}, json.dumps({"url": f"{self.url}/{name}"})

    def validate(self, body: bytes) -> tuple[int, dict[str, str], str]:
        """The card's front matter."""
        _, front, _ = json.loads(body)["content"].split("---\n", 2)
        errors = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "no map"}]
        return 200, {}, json.dumps({"errors": errors, "warnings": []})

    def branch(self, repo: str, rev: str, body: bytes) -> tuple[int, dict[str, str], str]:
        found = self.repo_at(repo)
        found.branches[rev.replace("%2F", "/")] = found.branches["main"]
        return 200, {}, "{}"

    def info(
        self, repo: str, body: bytes, rev: str | None = None
    ) -> tuple[int, dict[str, str], str]:
        commit = self.at(repo, rev)
        said = {
            "id": repo, "modelId": repo, "sha": commit.sha, "private": self.repos[repo].private,
            "siblings": [{"rfilename": name} for name in commit.files], "tags": [],
        }  # fmt: skip
        return 200, {}, json.dumps(said)

    def tree(self, repo: str, rev: str, body: bytes) -> tuple[int, dict[str, str], str]:
        files = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.at(repo, rev).files.items()
        ]
        return 200, {}, json.dumps(files)

    def file(
        self, repo: str, rev: str, file: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        commit = self.at(repo, rev)
        if file not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        data = commit.files[file]
        etag = hashlib.sha256(data).hexdigest()
        head = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"', "Content-Length": str(len(data))}
        return 200, head, data

    # Commits --------------------------------------------------------------------------------

    def preupload(self, repo: str, rev: str, body: bytes) -> tuple[int, dict[str, str], str]:
        self.at(repo, rev)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {}, json.dumps({"files": modes})

    def lfs(self, repo: str, body: bytes) -> tuple[int, dict[str, str], str]:
        objects = []
        for asked in json.loads(body)["objects"]:
            there = asked["oid"] in self.objects
            upload = {"upload": {"href": f"{self.url}/objects/{asked['oid']}"}}
            objects.append({**asked, **({} if there else {"actions": upload})})
        return 200, {}, json.dumps({"transfer": "basic", "objects": objects})

    def put(self, oid: str, body: bytes) -> tuple[int, dict[str, str], str]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "", "what came is not what was announced")
        self.objects[oid] = body
        return 200, {}, ""

    def take_commit(self, repo: str, rev: str, body: bytes) -> tuple[int, dict[str, str], str]:
        lines = [json.loads(line) for line in body.splitlines()]
        self.before_commit(self.repos[repo])
        parent = self.at(repo, rev)
        if lines[0]["value"].get("parentCommit", parent.sha) != parent.sha:
            raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self.objects[value["oid"]]
        made = self.repos[repo].commit(rev.replace("%2F", "/"), files)
        url = f"{self.url}/{repo}/commit/{made.sha}"
        return 200, {}, json.dumps({"commitUrl": url, "commitOid": made.sha, "success": True})
