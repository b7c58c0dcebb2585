"""A server on loopback that fails in every way a server can."""

import hashlib
import http.server
import re
import threading
from collections.abc import Callable
from typing import Any

from data.fetch import Remote

CONTENT = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(320))


class Server:
    """Serves one content to whoever asks; `faults` are taken one a request, then all is well."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.files: dict[str, bytes] = {}
        """Other contents by path."""
        self.ranges, self.etag = True, '"one"'
        self.asked: list[tuple[str, str]] = []
        """(path, Range) of each request."""
        self.authorization: list[str | None] = []
        self.faults: list[Callable[[Any], bool]] = []
        self.always: Callable[[Any], bool] | None = None
        self.guard = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                with server.guard:
                    server.asked.append((self.path, self.headers.get("Range", "")))
                    server.authorization.append(self.headers.get("Authorization"))
                    fault = server.faults.pop(0) if server.faults else server.always
                if fault is None or not fault(self):
                    server.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def body(self, handler: Any) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of a right answer."""
        path = handler.path.partition("?")[0]
        if self.files and path not in self.files:
            return 404, b"", {}
        content = self.files.get(path, self.content)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if not self.ranges or not found or handler.headers.get("If-Range", self.etag) != self.etag:
            return 200, content, {}
        first, last = int(found[1]), min(int(found[2]), len(content) - 1)
        if first >= len(content):
            return 416, b"", {}
        headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "ETag": self.etag}
        return 206, content[first : last + 1], headers

    def serve(self, handler: Any, cut: int | None = None, **more: str) -> None:
        status, body, headers = self.body(handler)
        handler.send_response(status)
        headers = {"Content-Length": str(len(body)), **headers}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[:cut])

    def cut(self, at: int) -> Callable[[Any], bool]:
        """Break off after so many bytes of an answer; the probe of one byte is left alone."""

        def fault(handler: Any) -> bool:
            if handler.headers.get("Range") == "bytes=0-0":
                return False
            self.serve(handler, cut=at)
            return True

        return fault

    def remote(self, **known: Any) -> Remote:
        return Remote(f"{self.url}/a.bin", "a.bin", **known)


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[Any], bool]:
    def fault(handler: Any) -> bool:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return fault
