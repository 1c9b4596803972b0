"""A Hugging Face hub on this machine, which serves folders as repositories of models and data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(models: Mapping[str, Path], datasets: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serves repositories by id; every revision holds the same files.

    Yields:
        The address, for HF_ENDPOINT, and the requests so far.
    """
    repositories = {"models": models, "datasets": datasets}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            url = urlsplit(self.path)
            asked.append(f"{self.command} {url.path}")
            parts = unquote(url.path).strip("/").split("/")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.is_recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
            found = self.api(parts[1:], body) if parts[0] == "api" else self.file(parts)
            if found is None:
                self.answer(b'{"error": "Repository not found"}', 404, X_Error_Code="RepoNotFound")

        def api(self, parts: list[str], body: bytes) -> bool | None:
            kind, folder = parts[0], repositories.get(parts[0], {}).get("/".join(parts[1:3]))
            if folder is None:
                return None
            what = parts[3] if len(parts) > 3 else "revision"
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            entries = [
                {"type": "file", "oid": _etag(path), "size": path.stat().st_size, "path": str(path.relative_to(folder))}
                for path in files
            ]
            entries += [
                {"type": "directory", "oid": SHA, "size": 0, "path": str(path.relative_to(folder))}
                for path in sorted(folder.rglob("*"))
                if path.is_dir()
            ]
            if what == "tree":
                below = folder.joinpath(*parts[5:]).relative_to(folder)
                inside = [entry for entry in entries if below in Path(entry["path"]).parents]
                self.json([entry for entry in inside if self.is_recursive or Path(entry["path"]).parent == below])
            elif what == "paths-info":
                wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
                self.json([entry for entry in entries if entry["path"] in wanted])
            else:
                siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
                self.json(
                    {
                        "_id": "1",
                        "id": "/".join(parts[1:3]),
                        "sha": _commit(parts[-1]),
                        "siblings": siblings,
                        "tags": [],
                        "kind": kind,
                    }
                    | {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
                )
            return True

        def json(self, value: object) -> None:
            self.answer(json.dumps(value).encode(), Content_Type="application/json")

        def file(self, parts: list[str]) -> bool | None:
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            folder = repositories[kind].get("/".join(parts[:2]))
            path = folder and folder / "/".join(parts[4:])
            if path is None or not path.is_file():
                self.answer(b"", 404, X_Error_Code="EntryNotFound")
            else:
                self.answer(path.read_bytes(), ETag=f'"{_etag(path)}"', X_Repo_Commit=_commit(parts[3]))
            return True

        do_GET = do_HEAD = do_POST = handle_request  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _commit(revision: str) -> str:
    """The commit of a revision, which may be one already."""
    return revision if len(revision) == 40 else SHA


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
