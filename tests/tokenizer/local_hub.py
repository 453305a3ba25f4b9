"""A small Hugging Face hub on this machine: it can create, fill and read a repository."""

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/motion"
"""The only repository."""


@contextlib.contextmanager
def local_hub(files: dict[str, bytes], cache: Path) -> Iterator[dict[str, str]]:
    """Runs a hub whose one repository has these files; uploads change them.

    Args:
        cache: folder of the client's downloads.

    Yields:
        the environment in which a process uses it as the hub.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
    finally:
        server.shutdown()
        server.server_close()


class _Hub(BaseHTTPRequestHandler):
    files: dict[str, bytes]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            kinds = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in wanted]
            return self._answer({"files": kinds})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer({"success": True, "commitOid": COMMIT, "commitUrl": self._address(f"commit/{COMMIT}")})
        return self._answer({"url": self._address(), "name": REPOSITORY})

    def do_GET(self):
        if match := re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", self.path):
            content = self.files[match[1]]
            headers = {"ETag": f'"{match[1]}"', "X-Repo-Commit": COMMIT}
            return self._answer(content, headers)
        if "/tree/" in self.path:
            files = self.files.items()
            return self._answer([{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in files])
        if self.path.startswith(f"/api/models/{REPOSITORY}"):
            return self._answer(
                {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            )
        return self._answer(b"", {"X-Error-Code": "RepoNotFound"}, status=404)

    do_HEAD = do_GET  # noqa: N815 - http.server calls this name

    def _answer(self, content, headers=None, status=200):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _address(self, path=""):
        return f"http://{self.headers['Host']}/{REPOSITORY}/{path}".rstrip("/")

    def log_message(self, *args):
        pass
