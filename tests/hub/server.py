"""A stand-in for the hub on this machine: the HTTP interface that huggingface_hub uses, over temporary files.

Repositories have commits, branches, tags, privacy and gates; large files go through the LFS protocol and are served
from another address, as on the hub. Every request is logged, and connections can be made to fail.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".h5", ".onnx")
"""Kinds of files that are kept as LFS objects."""


class Blob(NamedTuple):
    """The contents of a file in a commit."""

    sha256: str
    oid: str
    size: int
    large: bool


class Asked(NamedTuple):
    """A request that the server got."""

    method: str
    path: str
    range: str | None
    token: str | None

    @property
    def file(self) -> str | None:
        """The file that was asked for, None for anything else."""
        found = re.match(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", self.path)
        return found[1] if found else None


@dataclass
class Repository:
    """A repository: commits by hash, and the names (branches, tags) that point at them."""

    name: str
    owner: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a hash names."""
        known = {**self.branches, **self.tags}
        return known.get(revision, revision if revision in self.commits else None)

    def add(self, branch: str, files: dict[str, Blob], message: str, parent: str | None = None) -> str:
        """Put a commit with all `files` on a branch and return its hash."""
        parts = [parent or self.branches.get(branch, ""), message, repr(sorted(files.items())), str(len(self.commits))]
        commit = hashlib.sha1("\n".join([self.name, *parts]).encode()).hexdigest()
        self.commits[commit], self.messages[commit], self.branches[branch] = files, message, commit
        return commit


class Refusal(Exception):
    """An answer that is an error: status, the hub's code for it, and words."""

    def __init__(self, status: int, code: str | None = None, words: str = "") -> None:
        super().__init__(words)
        self.status, self.code, self.words = status, code, words


class Hub:
    """The running stand-in.

    Attributes:
        url, store: its address, and that of large files, to which a client sends no token.
        log: the requests in their order.
        users, organizations: token -> user name, name -> members.
        drops: file name -> numbers of bytes after which the connection is cut, one for each of the next transfers.
        down: whether every request is answered with 503.
        delay: seconds that every transfer of a file takes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, Repository] = {}
        self.users = {"hf_me": "me", "hf_other": "other"}
        self.organizations = {"my-org": ["me"]}
        self.log: list[Asked] = []
        self.drops: dict[str, list[int]] = {}
        self.down = False
        self.delay = 0.0
        self.lock = threading.RLock()
        self.connections: list[socket.socket] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Answers,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.store = self.url.replace("127.0.0.1", "localhost")
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the address and all connections; later ones are refused."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # What tests do -----------------------------------------------------------------------------------------------

    def publish(self, name: str, folder: Path | Mapping[str, bytes], *, branch: str = "main", **facts: Any) -> str:
        """Commit the files of a folder, or given ones, as the whole contents of a branch; return the commit."""
        if isinstance(folder, Path):
            paths = (path for path in folder.rglob("*") if path.is_file())
            folder = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault(name, Repository(name, name.partition("/")[0]))
        for key, value in facts.items():
            setattr(repository, key, value)
        return repository.add(branch, {path: self.keep(path, data) for path, data in folder.items()}, "published")

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision with their contents."""
        repository = self.repositories[name]
        commit = repository.commit_of(revision)
        assert commit is not None
        return {path: self.object(blob.sha256).read_bytes() for path, blob in repository.commits[commit].items()}

    def fetched(self) -> list[str]:
        """Return the names of the files whose contents were asked for, sorted, each once."""
        return sorted({asked.file for asked in self.log if asked.method == "GET" and asked.file})

    # Storage -----------------------------------------------------------------------------------------------------

    def object(self, sha256: str) -> Path:
        """Return where an object with this hash lies."""
        return self.folder / sha256

    def keep(self, path: str, data: bytes) -> Blob:
        """Store the contents of a file."""
        sha256 = hashlib.sha256(data).hexdigest()
        large = path.endswith(LARGE)
        stored = pointer(sha256, len(data)) if large else data
        oid = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
        self.object(sha256).write_bytes(data)
        return Blob(sha256, oid, len(data), large)

    def user(self, token: str | None) -> str | None:
        """Return the user of a token, None for nobody.

        Raises:
            Refusal: for a token that nobody has.
        """
        if token is None:
            return None
        if token not in self.users:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return self.users[token]

    def may_write(self, owner: str, user: str | None) -> bool:
        """Tell whether a user may write into a namespace."""
        return user is not None and (owner == user or user in self.organizations.get(owner, ()))


def pointer(sha256: str, size: int) -> bytes:
    """Return the file that git keeps in place of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Answers(BaseHTTPRequestHandler):
    """The requests of the interface, one method per line of `ROUTES`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, *arguments: object) -> None:
        """Say nothing on the terminal."""

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        """Find the answer for a request, and write it or its error."""
        split = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(split.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        header = self.headers.get("Authorization") or ""
        self.token = header.removeprefix("Bearer ") if header else None
        self.hub.log.append(Asked(self.command, split.path, self.headers.get("Range"), self.token))
        try:
            if self.hub.down:
                raise Refusal(503, None, "The hub is down")
            for method, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, split.path)
                if found and self.command in method:
                    answer(self, **{name: unquote(text) for name, text in found.groupdict().items()})
                    return
            raise Refusal(404, None, "No such address")
        except Refusal as refusal:
            words = {"X-Error-Message": refusal.words}
            codes = {"X-Error-Code": refusal.code} if refusal.code else {}
            self.send({"error": refusal.words}, status=refusal.status, headers={**words, **codes})

    def send(self, value: object = None, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Write an answer: bytes as they are, anything else as JSON."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Rights ----------------------------------------------------------------------------------------------------------

    def repository(self, repo: str, *, contents: bool = False, write: bool = False) -> Repository:
        """Return a repository that the caller may see, and read or write if asked.

        Raises:
            Refusal: as the hub does: what is hidden does not exist.
        """
        user = self.hub.user(self.token)
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and not self.hub.may_write(found.owner, user)):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if contents and found.gated and not self.hub.may_write(found.owner, user):
            raise Refusal(403 if user else 401, "GatedRepo", f"Access to model {repo} is restricted")
        if write and not self.hub.may_write(found.owner, user):
            raise Refusal(403 if user else 401, None, f"You have no right to write to {repo}")
        return found

    def commit(self, found: Repository, revision: str) -> str:
        """Return the commit of a revision."""
        commit = found.commit_of(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Reading ---------------------------------------------------------------------------------------------------------

    def info(self, repo: str, revision: str = "main") -> None:
        found = self.repository(repo)
        commit = self.commit(found, revision)
        siblings = [{"rfilename": path} for path in sorted(found.commits[commit])]
        facts = {"id": repo, "private": found.private, "gated": "manual" if found.gated else False, "tags": []}
        self.send({**facts, "sha": commit, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        found = self.repository(repo)
        files = found.commits[self.commit(found, revision)]
        self.send([entry(path, blob) for path, blob in sorted(files.items())])

    def paths(self, repo: str, revision: str) -> None:
        found = self.repository(repo)
        files = found.commits[self.commit(found, revision)]
        asked = json.loads(self.body)["paths"]
        self.send([entry(path, files[path]) for path in asked if path in files])

    def refs(self, repo: str) -> None:
        found = self.repository(repo)
        kinds: Iterable[tuple[str, str, dict[str, str]]] = (
            ("branches", "heads", found.branches),
            ("tags", "tags", found.tags),
        )
        self.send(
            {
                kind: [
                    {"name": name, "ref": f"refs/{ref}/{name}", "targetCommit": commit}
                    for name, commit in names.items()
                ]
                for kind, ref, names in kinds
            }
            | {"converts": []}
        )

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self.repository(repo, contents=True)
        commit = self.commit(found, revision)
        blob = found.commits[commit].get(path)
        if blob is None:
            self.send(b"", status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        facts = {"X-Repo-Commit": commit, "ETag": f'"{blob.oid}"'}
        if blob.large:
            facts |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            where = f"{self.hub.store}/objects/{blob.sha256}/{path}"
            self.send(b"", status=302, headers={**facts, "Location": where})
        else:
            self.transfer(blob, path, facts)

    def large(self, sha256: str, path: str) -> None:
        self.transfer(Blob(sha256, sha256, self.hub.object(sha256).stat().st_size, True), path, {"ETag": f'"{sha256}"'})

    def transfer(self, blob: Blob, path: str, facts: Mapping[str, str]) -> None:
        """Send the contents of a file, from the asked byte on, and cut the connection where `drops` says so."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        with self.hub.object(blob.sha256).open("rb") as file:
            file.seek(start)
            data = file.read()
        headers = {**facts, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{blob.size - 1}/{blob.size}"
        if self.command == "HEAD":
            self.send_response(200)
            for name, text in {**headers, "Content-Length": str(blob.size)}.items():
                self.send_header(name, text)
            self.end_headers()
            return
        time.sleep(self.hub.delay)
        with self.hub.lock:
            cuts = self.hub.drops.get(path) or []
            cut = cuts.pop(0) if cuts else None
        if cut is None:
            self.send(data, status=206 if asked else 200, headers=headers)
            return
        self.send_response(206 if asked else 200)
        for name, text in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data[:cut])
        self.wfile.flush()
        self.close_connection = True

    # Writing ---------------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        user = self.hub.user(self.token)
        if user is None:
            raise Refusal(401, None, "Invalid username or password.")
        groups = [{"name": name} for name, members in self.hub.organizations.items() if user in members]
        self.send({"type": "user", "name": user, "orgs": groups, "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        asked = json.loads(self.body)
        user = self.hub.user(self.token)
        if user is None:
            raise Refusal(401, None, "Invalid username or password.")
        owner = asked.get("organization") or user
        repo = f"{owner}/{asked['name']}"
        if not self.hub.may_write(owner, user):
            raise Refusal(403, None, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        with self.hub.lock:
            status = 409 if repo in self.hub.repositories else 200
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            if status == 200:
                made = self.hub.repositories[repo] = Repository(repo, owner, private)
                made.add("main", {".gitattributes": self.hub.keep(".gitattributes", b"")}, "initial commit")
        self.send({"url": f"{self.hub.url}/{repo}", "name": repo}, status=status)

    def branch(self, repo: str, name: str) -> None:
        found = self.repository(repo, write=True)
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        found.branches[name] = self.commit(found, start)
        self.send({})

    def tag(self, repo: str, revision: str) -> None:
        found = self.repository(repo, write=True)
        found.tags[json.loads(self.body)["tag"]] = self.commit(found, revision)
        self.send({})

    def validate(self) -> None:
        text = json.loads(self.body)["content"]
        fine = text.startswith("---\n") and "\n---\n" in text
        self.send({"errors": [] if fine else [{"message": "no metadata"}], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        found = self.repository(repo, write="create_pr" not in self.query)
        present = found.commits[self.commit(found, revision)]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": present[file["path"]].oid if file["path"] in present else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.send({"files": modes})

    def batch(self, repo: str) -> None:
        self.repository(repo)
        objects = []
        for item in json.loads(self.body)["objects"]:
            known = self.hub.object(item["oid"]).is_file()
            action = {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}"}}
            objects.append({"oid": item["oid"], "size": item["size"], **({} if known else {"actions": action})})
        self.send({"transfer": "basic", "objects": objects})

    def upload(self, sha256: str) -> None:
        data = self.body or self.chunks()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Refusal(400, None, "The contents have another hash")
        self.hub.object(sha256).write_bytes(data)
        self.send({})

    def chunks(self) -> bytes:
        """Read a body that comes in chunks."""
        data = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return data

    def add_commit(self, repo: str, revision: str) -> None:
        request = "create_pr" in self.query
        found = self.repository(repo, write=not request)
        with self.hub.lock:
            parent = self.commit(found, revision)
            files, summary = dict(found.commits[parent]), ""
            for line in self.body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    summary = value["summary"]
                elif item["key"] == "file":
                    files[value["path"]] = self.hub.keep(value["path"], base64.b64decode(value["content"]))
                elif item["key"] == "lfsFile":
                    files[value["path"]] = self.hub.keep(value["path"], self.hub.object(value["oid"]).read_bytes())
                elif item["key"] == "deletedFile":
                    del files[value["path"]]
            branch = revision
            if request:
                branch = f"refs/pr/{len(found.requests) + 1}"
                found.requests.append(branch)
            commit = found.add(branch, files, summary, parent)
        address = f"{self.hub.url}/{repo}/discussions/{len(found.requests)}" if request else None
        self.send(
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}",
                "pullRequestUrl": address,
            }
        )


def entry(path: str, blob: Blob) -> dict[str, Any]:
    """Return a file as the tree lists it."""
    facts = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.large:
        facts["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(pointer(blob.sha256, blob.size))}
    return facts


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = rf"/api/models/{REPO}"
ROUTES: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("GET", API, Answers.info),
    ("GET", rf"{API}/revision/(?P<revision>[^/]+)", Answers.info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)", Answers.tree),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", Answers.paths),
    ("GET", rf"{API}/refs", Answers.refs),
    ("GET HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Answers.resolve),
    ("GET HEAD", r"/objects/(?P<sha256>\w{64})/(?P<path>.+)", Answers.large),
    ("GET", r"/api/whoami-v2", Answers.whoami),
    ("POST", r"/api/repos/create", Answers.create),
    ("POST", r"/api/validate-yaml", Answers.validate),
    ("POST", rf"{API}/branch/(?P<name>[^/]+)", Answers.branch),
    ("POST", rf"{API}/tag/(?P<revision>[^/]+)", Answers.tag),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", Answers.preupload),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", Answers.add_commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Answers.batch),
    ("PUT", r"/upload/(?P<sha256>\w{64})", Answers.upload),
)
