"""What a word costs in elia, answered by a server on this machine that writes as fast as `tests.slow_app`.

python -m tests.measurements.peer_streaming PROGRAM
"""

import http.server
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.measurements.chat_figures import WORDS, cpu_seconds, say
from tests.terminal import Terminal


class OpenAIServer(http.server.BaseHTTPRequestHandler):
    """Answers each chat request with the same words, 20 a second."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(WORDS + 1):
            time.sleep(0.05)
            delta = {"content": f"w{number} "} if number < WORDS else {}
            chunk = {
                "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "mock",
                "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}],
            }  # fmt: skip
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing."""


def main() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OpenAIServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home/data"
        config = Path(name) / "home/.config/elia/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(
            'default_model = "openai/mock"\n[[models]]\nname = "openai/mock"\n'
            f'api_base = "http://127.0.0.1:{server.server_port}/v1"\napi_key = "none"\n',
            encoding="utf-8",
        )
        screen = Terminal(
            [sys.argv[1], "hello"], home, HOME=str(Path(name) / "home"), OPENAI_API_KEY="none",
            XDG_CONFIG_HOME=str(Path(name) / "home/.config"), LITELLM_LOCAL_MODEL_COST_MAP="True",
        )  # fmt: skip
        try:
            screen.wait_for("w5", seconds=60)
            cpu, received = cpu_seconds(screen.process.pid), screen.received_bytes
            screen.wait_for(f"w{WORDS - 1}", seconds=90)
            cpu, received = cpu_seconds(screen.process.pid) - cpu, screen.received_bytes - received
            say(
                f"elia, 20 words/s: {1000 * cpu / (WORDS - 5):.2f} ms CPU, {received / (WORDS - 5):.0f} bytes a word"
            )
        finally:
            screen.end()


if __name__ == "__main__":
    main()
