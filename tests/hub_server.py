"""A hub on this computer's loopback, as huggingface_hub 2.4 asks one, with the faults of real networks."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "clinic/health-GGUF"
LOGIN_PAGE = b"<!DOCTYPE html><html><title>Hotel Wi-Fi</title>Please log in</html>"


@dataclass
class Asked:
    """One request that arrived."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Faults:
    """What goes wrong."""

    cut_at: list[int] = field(default_factory=list)
    """Position in the file at which each download in turn is cut."""
    hold: threading.Event | None = None
    """Wait for it at the cut instead of closing."""
    held: threading.Event = field(default_factory=threading.Event)
    say_no_length: bool = False
    flip_bit_at: int | None = None
    page_instead: bool = False
    page_from_api: bool = False
    api_answer: Any = None
    ignore_range: bool = False
    gated: bool = False
    private: bool = False
    status: int = 0
    statuses: list[int] = field(default_factory=list)
    """Answers to the first downloads."""
    extra_bytes: int = 0


class LoopbackHub:
    """Two servers, as on the real hub: one knows the repository and sends the asker on to one with the files."""

    def __init__(self, files: dict[str, bytes], card: dict[str, Any] | None = None) -> None:
        self.files = files
        self.card = card
        self.faults = Faults()
        self.turns: list[Faults] = []
        """What goes wrong from the next question to the API on, from the one after it on, and so on."""
        self.asked: list[Asked] = []
        self.forget_lfs: set[str] = set()
        self.revisions = {"main": COMMIT, COMMIT: COMMIT, "v1": COMMIT}
        self.servers = [_Server(self, _Front), _Server(self, _Store)]

    @property
    def address(self) -> str:
        """Return what HF_ENDPOINT must be."""
        return self.servers[0].address

    def ranges(self) -> list[str | None]:
        """Return the Range of each download that reached the store."""
        return [asked.range for asked in self.asked if asked.path.startswith("/store/")]

    def info(self) -> Any:
        """Return the answer of the model API."""
        if self.faults.api_answer is not None:
            return self.faults.api_answer
        siblings: list[dict[str, Any]] = []
        for name, data in self.files.items():
            lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append({"rfilename": name, "size": len(data), "blobId": "ab" * 20})
            if name not in self.forget_lfs:
                siblings[-1]["lfs"] = lfs
        return {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "cardData": self.card}


@contextmanager
def running(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Serve until the end of the block."""
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in hub.servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        if hub.faults.hold:
            hub.faults.hold.set()
        for server in hub.servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: LoopbackHub, handler: type["_Handler"]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service for this computer's name.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub

    @property
    def faults(self) -> Faults:
        """Return what goes wrong now."""
        return self.hub.faults

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append(
            Asked(self.command, self.path, self.headers["Range"], self.headers["Authorization"])
        )
        self.answer(unquote(urlsplit(self.path).path))

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class _Front(_Handler):
    def answer(self, path: str) -> None:
        if path.startswith("/api/") and self.hub.turns:
            self.hub.faults = self.hub.turns.pop(0)
        if self.faults.status:
            self.send(self.faults.status, b'{"error": "\\u001b]0;HACKED\\u0007"}')
        elif path.startswith("/api/models/"):
            self._answer_api(path.removeprefix("/api/models/"))
        else:
            self._answer_file(path)

    def _answer_api(self, rest: str) -> None:
        repository, _slash, revision = rest.partition("/revision/")
        if self.faults.page_from_api:
            self.send(200, LOGIN_PAGE, Content_Type="text/html")
        elif repository != REPOSITORY or (self.faults.private and not self.headers["Authorization"]):
            self.send(401, b'{"error": "Repository not found"}', X_Error_Code="RepoNotFound")
        elif (revision or "main") not in self.hub.revisions:
            self.send(404, b'{"error": "Invalid rev id"}', X_Error_Code="RevisionNotFound")
        else:
            answer = json.dumps(self.hub.info()).encode()
            self.send(200, answer, Content_Type="application/json", X_HF_Warning="old; \x1b[2J HACKED")

    def _answer_file(self, path: str) -> None:
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if self.faults.gated:
            self.send(403, b"", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif name not in self.hub.files:
            self.send(404, b"", X_Error_Code="EntryNotFound")
        else:
            data = self.hub.files[name]
            sha256 = hashlib.sha256(data).hexdigest()
            self.send(
                302,
                Location=f"{self.hub.servers[1].address}/store/{name}",
                X_Repo_Commit=COMMIT,
                X_Linked_Etag=f'"{sha256}"',
                X_Linked_Size=str(len(data)),
                ETag='"of-the-redirect"',
            )


class _Store(_Handler):
    def answer(self, path: str) -> None:
        if self.faults.statuses:
            self.send(self.faults.statuses.pop(0))
            return
        if self.faults.page_instead:
            self.send(200, LOGIN_PAGE, Content_Type="text/html")
            return
        data = bytearray(self.hub.files[path.removeprefix("/store/")])
        if self.faults.flip_bit_at is not None:
            data[self.faults.flip_bit_at] ^= 1
        data += b"\0" * self.faults.extra_bytes
        begin = 0
        if self.headers["Range"] and not self.faults.ignore_range:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self._send_file(bytes(data), begin)

    def _send_file(self, data: bytes, begin: int) -> None:
        if begin:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if not self.faults.say_no_length:
            self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("Connection", "close")
        self.end_headers()
        end = self.faults.cut_at.pop(0) if self.faults.cut_at else len(data)
        try:
            self.wfile.write(data[begin:end])
            self.wfile.flush()
            if end < len(data) and self.faults.hold:
                self.faults.held.set()
                self.faults.hold.wait(30)
        except OSError:
            pass  # The asker is gone.
        self.close_connection = True
