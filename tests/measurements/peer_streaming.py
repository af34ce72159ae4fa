"""What a word and a typed letter cost while an answer comes: edgemed, elia and oterm, one after another.

    python -m tests.measurements.peer_streaming ELIA OTERM OTERM_DATA

A server on this machine answers elia and oterm with 20 words a second, as fast as `tests.slow_app`. OTERM_DATA is oterm's
data folder with one chat of the model mock:latest, made by hand beforehand with OLLAMA_HOST=127.0.0.1:11999.
"""

import http.server
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.measurements.chat_figures import cpu_seconds, say
from tests.terminal import SLOW_APP, Terminal

WORDS = 400
FIRST, LAST = 5, 200
"""Words between which the cost is taken; typing is measured behind them."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PORT = 11999


class Server(http.server.ThreadingHTTPServer):
    """Does not mind a program that is ended in mid-answer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


class ModelServer(http.server.BaseHTTPRequestHandler):
    """As much of OpenAI's and Ollama's interfaces as both programs ask for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        details = {"format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "1B"}
        model = {
            "name": "mock:latest",
            "model": "mock:latest",
            "size": 1,
            "digest": "a" * 64,
            "details": details,
        }
        self._send({"models": [model]} if self.path == "/api/tags" else {"models": []})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.endswith("/chat/completions"):
            self._send({"modelfile": "", "template": "", "capabilities": ["completion"], "model_info": {}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(WORDS + 1):
            time.sleep(0.05)
            delta = {"role": "assistant", "content": f"v{number} "} if number < WORDS else {}
            chunk = {
                "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "mock",
                "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}],
            }  # fmt: skip
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _send(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing."""


def measure(name: str, screen: Terminal, ready: str, *question: str, word: str = "v") -> None:
    """Ask, and take the cost of words, then of letters; words are numbered behind `word`."""
    try:
        if ready:
            screen.wait_for(ready, seconds=60)
            time.sleep(1)
            screen.press(*question, "enter")
        screen.wait_for(f"{word}{FIRST}", seconds=60)
        cpu, received = cpu_seconds(screen.process.pid), screen.received_bytes
        screen.wait_for(f"{word}{LAST}", seconds=90)
        cpu, received = cpu_seconds(screen.process.pid) - cpu, screen.received_bytes - received
        waits, typed = [], ""
        for letter in LETTERS:
            typed += letter
            started = time.perf_counter()
            screen.send(letter.encode())
            while typed not in screen.text and time.perf_counter() - started < 5:
                time.sleep(0.001)
            waits.append(1000 * (time.perf_counter() - started))
            time.sleep(0.13)
        words = LAST - FIRST
        say(
            f"{name}: {1000 * cpu / words:.2f} ms CPU and {received / words:.0f} bytes a word; a letter after "
            f"{statistics.median(waits):.1f} ms (median), {max(waits):.1f} ms (worst of {len(waits)})"
        )
    finally:
        screen.end()


def main() -> None:
    elia, oterm, oterm_data = sys.argv[1:4]
    server = Server(("127.0.0.1", PORT), ModelServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{PORT}"
    os.environ["WORDS"] = str(WORDS)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        config = home / ".config/elia/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(
            'default_model = "openai/mock"\n[[models]]\nname = "openai/mock"\n'
            f'api_base = "{address}/v1"\napi_key = "none"\n',
            encoding="utf-8",
        )
        ours = Terminal(SLOW_APP, home / "data", WORDS_PER_SECOND="20")
        measure("edgemed", ours, "Ready.", "h", "i", word="w")
        settings: dict[str, Any] = {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "OPENAI_API_KEY": "none",
        }
        # It sends what stands behind its name, and begins.
        measure(
            "elia",
            Terminal([elia, "hello"], home / "data", LITELLM_LOCAL_MODEL_COST_MAP="True", **settings),
            "",
        )
        settings = {"HOME": oterm_data, "OTERM_DATA_DIR": oterm_data, "OLLAMA_HOST": f"127.0.0.1:{PORT}"}
        measure(
            "oterm", Terminal([oterm], home / "data", OLLAMA_URL=address, **settings), "chat #1", "h", "i"
        )


if __name__ == "__main__":
    main()
