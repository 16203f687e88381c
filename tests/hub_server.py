"""A Hugging Face hub of one's own: the few requests that an upload and a download make."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as constants
import pytest

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory, ``owner/name`` to file names and contents."""

    repositories: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            files = self.repositories.get(name)
            if files is None:
                return self.missing("RepoNotFound")
            listed = [{"rfilename": each} for each in files]
            if "/tree/" in path:
                return self.answer(
                    [
                        {
                            "type": "file",
                            "path": each,
                            "size": len(content),
                            "oid": hashlib.sha1(content).hexdigest(),
                        }
                        for each, content in files.items()
                    ]
                )
            return self.answer({"id": name, "sha": COMMIT, "siblings": listed})
        owner, name, _, _, *rest = path.strip("/").split("/")
        content = self.repositories.get(f"{owner}/{name}", {}).get("/".join(rest))
        if content is None:
            return self.missing("EntryNotFound")
        return self.send(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        name = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repositories.setdefault(name, {})
            return self.answer({"url": f"{constants.ENDPOINT}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(sent)["files"]
            ]
            return self.answer({"files": files})
        for line in sent.splitlines():
            each = json.loads(line)
            if each["key"] == "file":
                content = base64.b64decode(each["value"]["content"])
                self.repositories[name][each["value"]["path"]] = content
        return self.answer({"commitUrl": f"{constants.ENDPOINT}/{name}", "commitOid": COMMIT})

    def answer(self, value: object) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self, code: str) -> None:
        self.send(b"", {"X-Error-Code": code, "X-Error-Message": code}, 404)

    def send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "X-Repo-Commit": COMMIT}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[dict[str, dict[str, bytes]]]:
    """Serve on this machine, with an empty cache; the repositories to look into."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.repositories = {}
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Hub.repositories
    finally:
        server.shutdown()
        server.server_close()
