"""A small Hugging Face Hub on this machine: what the unmodified clients need to push, load and go wrong.

    with Hub() as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(home, "ada")})

Repositories of models, data sets and Spaces with commits, branches and tags; regular and LFS files (which
are served from another host name, as the real Hub's are); users by token; faults on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LICENCES = ("apache-2.0", "cc-by-4.0", "mit", "other", "unknown")
TOKENS = {"hf_adaAdaAdaAdaAdaAda1": "ada", "hf_bobBobBobBobBobBob2": "bob"}
READ_ONLY = "hf_readReadReadReadRead3"
"""A token of ada's that may read."""
ORGANISATIONS = {"ada": ["makers"]}
LFS = (".safetensors", ".png", ".parquet", ".bin", ".pt", ".pth")
MAIN = "main"


@dataclass
class Repo:
    """One repository; a commit is a mapping of paths to contents.

    Attributes:
        sdk: of a Space, what shows it.
        commits: id -> path -> bytes.
        branches, tags: name -> id of a commit.
    """

    private: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        seed = repr((len(self.commits), sorted((name, git_id(data)) for name, data in files.items())))
        commit = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        self.messages.append(message)
        return commit

    def find(self, revision: str) -> str | None:
        name = unquote(revision)
        return self.branches.get(name) or self.tags.get(name) or (name if name in self.commits else None)

    def files(self, revision: str = MAIN) -> dict[str, bytes]:
        return self.commits[self.find(revision) or ""]

    def after(self, message: str) -> dict[str, bytes]:
        """The files as the commit of that message left them."""
        return list(self.commits.values())[self.messages.index(message)]


@dataclass
class Answer:
    """What the server says instead of what it should, after so many seconds."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0


class Hub:
    """The server, its repositories, and what was sent to it.

    Attributes:
        repos: "models/ada/x", "datasets/ada/y" or "spaces/ada/z" -> repository.
        blobs: LFS objects by SHA-256, whether committed or not.
        received: every byte of every request body, for tests that look for secrets.
        faults: "lfs", "commit", "preupload" or "download" -> how many of the next such requests are cut
            (or answered with the status given by `answers`); "answer" -> those to commits that are made.
        trouble: gets method and path of every request, and says what is answered instead.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.received: list[bytes] = []
        self.faults: dict[str, int] = {}
        self.answers: dict[str, int] = {}
        self.trouble: Callable[[str, str], Answer | None] = lambda method, path: None
        self.lock = threading.RLock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.cdn = f"http://localhost:{self.http.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.http.shutdown()
        self.http.server_close()

    def environment(self, home: Path, user: str | None = None) -> dict[str, str]:
        """The variables that lead a process here, logged in as `user`."""
        token = next((token for token, name in TOKENS.items() if name == user), "")
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> Repo:
        """A repository with one commit; `name` as in `repos`."""
        repo = self.repos[name] = Repo(private)
        repo.commit(MAIN, files, "initial commit")
        return repo


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # ---- Answers

    def send(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        self.send({"error": message}, status, **headers)

    def cut(self) -> None:
        """Ends the connection in the middle of a request."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def fails(self, kind: str) -> bool:
        """Whether this request is one to go wrong; it is cut or answered then."""
        with self.hub.lock:
            if not self.hub.faults.get(kind):
                return False
            self.hub.faults[kind] -= 1
        if kind in self.hub.answers:
            self.body()
            self.refuse(self.hub.answers[kind], "as the test asked for")
        else:
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self.cut()
        return True

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.received.append(data)
        return data

    @property
    def user(self) -> str | None:
        """Who asks; "?" for a token that nobody has."""
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return {**TOKENS, READ_ONLY: "ada"}.get(sent, "?") if sent else None

    @property
    def may_write(self) -> list[str]:
        """The names under which whoever asks may write."""
        if self.user is None or READ_ONLY in (self.headers.get("Authorization") or ""):
            return []
        return [self.user, *ORGANISATIONS.get(self.user, [])]

    # ---- Routes

    def answer(self) -> None:
        path = urlsplit(self.path).path
        if self.user == "?":
            self.body()
            return self.refuse(401, "Invalid credentials in Authorization header")
        if (trouble := self.hub.trouble(self.command, self.path)) is not None:
            self.body()
            time.sleep(trouble.seconds)
            return self.send(trouble.body, trouble.status, **trouble.headers)
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, path):
                with self.hub.lock:
                    return getattr(self, method)(*found.groups())
        self.body()
        return self.refuse(404, f"no such page: {path}")

    def whoami(self) -> None:
        if self.user is None:
            return self.refuse(401, "Invalid username or password.")
        self.send({"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}})

    def device(self) -> None:
        """A log-in by a browser, whose user agrees at once."""
        self.body()
        page = {"user_code": "ABCD-EFGH", "verification_uri": f"{self.hub.url}/device"}
        self.send({"device_code": "device", "expires_in": 900, "interval": 0, **page})

    def token(self) -> None:
        self.body()
        self.send({"access_token": next(iter(TOKENS)), "token_type": "bearer"})

    def create(self) -> None:
        asked = json.loads(self.body())
        if self.user is None:
            return self.refuse(401, "Invalid username or password.")
        owner = asked.get("organization") or self.user
        if owner not in self.may_write:
            return self.refuse(
                403, f"You don't have the rights to create a model under the namespace {owner!r}"
            )
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{name if kind == 'models' else f'{kind}/{name}'}"
        if f"{kind}/{name}" in self.hub.repos:
            return self.send({"error": "You already created this model repo", "url": url}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        if kind == "spaces" and not asked.get("sdk"):
            return self.refuse(400, "a Space needs an sdk")
        self.hub.add(f"{kind}/{name}", {".gitattributes": b""}, private).sdk = asked.get("sdk")
        self.send({"url": url, "name": name, "private": private})

    def validate(self) -> None:
        licence = re.search(r"^license: (.*)$", json.loads(self.body())["content"], re.MULTILINE)
        if licence and licence[1] not in LICENCES:
            errors = [{"message": f'"license" must be one of {LICENCES}, not {licence[1]}'}]
            return self.send({"errors": errors, "warnings": []}, 400)
        return self.send({"errors": [], "warnings": []})

    def found(self, kind: str, name: str, write: bool = False) -> Repo | None:
        """The repository, if it is there and the user may see (or change) it; otherwise answers so."""
        repo = self.hub.repos.get(f"{kind}/{name}")
        owner = name.split("/")[0]
        readable = [self.user, *ORGANISATIONS.get(self.user or "", [])]
        if repo is None or (repo.private and owner not in readable):
            if write:
                self.body()
            if self.user is None:
                self.refuse(401, "Invalid username or password.", "RepoNotFound")
            else:
                self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        if write and owner not in self.may_write:
            self.body()
            self.refuse(403, "You don't have write access to this repository")
            return None
        return repo

    def info(self, kind: str, name: str, _: str | None = None, revision: str | None = None) -> None:
        if (repo := self.found(kind, name)) is None:
            return
        commit = repo.find(revision or MAIN)
        if commit is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        siblings = [{"rfilename": path} for path in sorted(repo.commits[commit])]
        facts = {"id": name, "sha": commit, "private": repo.private, "gated": False, "siblings": siblings}
        facts |= {"sdk": repo.sdk} if repo.sdk else {}
        self.send({**facts, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "lastModified": DATE})

    def refs(self, kind: str, name: str) -> None:
        if (repo := self.found(kind, name)) is None:
            return
        kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
        self.send(
            {
                "converts": [],
                **{
                    word: [
                        {"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": c} for n, c in refs.items()
                    ]
                    for word, (folder, refs) in kinds.items()
                },
            }
        )

    def branch(self, kind: str, name: str, branch: str) -> None:
        if (repo := self.found(kind, name, write=True)) is None:
            return
        self.body()
        if " " in unquote(branch):  # which git refuses, among others
            return self.refuse(400, f"Invalid reference name: {branch}")
        if unquote(branch) in repo.branches:
            return self.refuse(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[unquote(branch)] = repo.branches[MAIN]
        self.send({})

    def tag(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.found(kind, name, write=True)) is None:
            return
        asked, commit = json.loads(self.body())["tag"], repo.find(revision)
        if commit is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if asked in repo.tags:
            return self.refuse(409, f"Tag reference exists already: refs/tags/{asked}")
        repo.tags[asked] = commit
        self.send({})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        if self.fails("preupload") or (repo := self.found(kind, name, write=True)) is None:
            return
        asked, commit = json.loads(self.body())["files"], repo.find(revision)
        if commit is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = repo.commits[commit]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
                **({"oid": content_id(file["path"], files[file["path"]])} if file["path"] in files else {}),
            }
            for file in asked
        ]
        self.send({"files": modes})

    def batch(self, prefix: str | None, name: str) -> None:
        if self.found(prefix or "models", name, write=True) is None:
            return
        objects = json.loads(self.body())["objects"]
        for entry in objects:
            if entry["oid"] not in self.hub.blobs:
                href = f"{self.hub.cdn}/lfs/{entry['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.hub.url}/verify"}}
        self.send({"transfer": "basic", "objects": objects})

    def blob(self, oid: str) -> None:
        if self.command == "PUT":
            if self.fails("lfs"):
                return
            data = self.body()
            if hashlib.sha256(data).hexdigest() != oid:
                return self.refuse(400, "the hash of the content isn't the one announced")
            self.hub.blobs[oid] = data
            return self.send(b"")
        self.content(self.hub.blobs[oid], ETag=f'"{oid}"')

    def verify(self) -> None:
        asked = json.loads(self.body())
        if len(self.hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            return self.refuse(404, "the object isn't there")
        self.send({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        if self.fails("commit") or (repo := self.found(kind, name, write=True)) is None:
            return
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        branch = unquote(revision)
        if branch not in repo.branches:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files, message = dict(repo.files(branch)), ""
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.hub.received.append(files[value["path"]])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                return self.refuse(404, "A file with this name doesn't exist", "EntryNotFound")
        commit = repo.commit(branch, files, message)
        if self.hub.faults.get("answer"):
            self.hub.faults["answer"] -= 1
            return self.cut()
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self.send({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        if (repo := self.found(kind, name)) is None:
            return
        commit, inside = repo.find(revision), f"{unquote(folder)}/" if folder else ""
        if commit is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        names = [path for path in sorted(repo.commits[commit]) if path.startswith(inside)]
        if inside and not names:
            return self.refuse(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        recursive = "recursive" in parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        deeper = {inside + rest.split("/")[0] for path in names if "/" in (rest := path[len(inside) :])}
        entries = [
            {"type": "directory", "path": path, "oid": git_id(path.encode())} for path in sorted(deeper)
        ]
        shown = [path for path in names if recursive or "/" not in path[len(inside) :]]
        self.send(entries + [entry_of(path, repo.commits[commit][path]) for path in shown])

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.found(kind, name)) is None:
            return
        data = self.body().decode()
        asked = json.loads(data)["paths"] if data.startswith("{") else parse_qs(data).get("paths", [])
        files = repo.files(revision)
        entries = [entry_of(path, files[path]) for path in asked if path in files]
        for path in asked:
            if path not in files and any(name.startswith(f"{path}/") for name in files):
                entries.append({"type": "directory", "path": path, "oid": git_id(path.encode())})
        self.send(entries)

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        if (repo := self.found(kind or "models", name)) is None:
            return
        commit, path = repo.find(revision), unquote(path)
        if commit is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if path not in repo.commits[commit]:
            missing = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": commit}
            return self.send({"error": "Entry not found"}, 404, **missing)
        if self.command == "GET" and self.fails("download"):
            return
        data = repo.commits[commit][path]
        if not path.endswith(LFS):
            return self.content(data, ETag=f'"{git_id(data)}"', X_Repo_Commit=commit)
        oid = hashlib.sha256(data).hexdigest()
        self.hub.blobs[oid] = data
        linked = {"X_Linked_ETag": f'"{oid}"', "X_Linked_Size": str(len(data)), "X_Repo_Commit": commit}
        self.send(b"", 302, Location=f"{self.hub.cdn}/lfs/{oid}", **linked)

    def content(self, data: bytes, **headers: str) -> None:
        """A file, or the part of it that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if self.command == "HEAD" or not wanted:
            self.send_response(200)
            part = data
        else:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)


KIND, NAME, REV = r"/api/(models|datasets|spaces)", r"([\w.-]+/[\w.-]+)", r"([^/]+)"
DATE = "2026-01-01T00:00:00.000Z"
ROUTES = (
    (r"/api/whoami-v2", "whoami"),
    (r"/oauth/device", "device"),
    (r"/oauth/token", "token"),
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate"),
    (rf"{KIND}/{NAME}", "info"),
    (rf"{KIND}/{NAME}/(revision)/{REV}", "info"),
    (rf"{KIND}/{NAME}/refs", "refs"),
    (rf"{KIND}/{NAME}/branch/{REV}", "branch"),
    (rf"{KIND}/{NAME}/tag/{REV}", "tag"),
    (rf"{KIND}/{NAME}/preupload/{REV}", "preupload"),
    (rf"{KIND}/{NAME}/commit/{REV}", "commit"),
    (rf"{KIND}/{NAME}/tree/{REV}(?:/(.+))?", "tree"),
    (rf"{KIND}/{NAME}/paths-info/{REV}", "paths_info"),
    (rf"/(?:(datasets|spaces)/)?{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"/lfs/([0-9a-f]{64})", "blob"),
    (r"/verify", "verify"),
    (rf"/(?:(datasets|spaces)/)?{NAME}/resolve/{REV}/(.+)", "resolve"),
)


def git_id(data: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def content_id(path: str, data: bytes) -> str:
    """What clients compare to see whether a file has changed."""
    return hashlib.sha256(data).hexdigest() if path.endswith(LFS) else git_id(data)


def entry_of(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": git_id(data), "size": len(data)}
    if path.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
