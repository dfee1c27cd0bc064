"""A server that speaks the OpenAI protocol as ``vllm serve`` does, and fails when told to."""

import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


class Server:
    """Answers with the number and the mean brightness of the pictures it was sent.

    ``faults`` are taken one for each request: an HTTP status, ``slow``, ``hang up``, ``garbage``,
    ``odd`` (JSON, but no completion), ``long`` (truncated), ``filtered`` or ``empty``.
    """

    def __init__(self, faults=(), *, delay=0.0):
        self.faults, self.delay = list(faults), delay
        self.requests, self.busy, self.busiest = [], 0, 0
        self.lock = threading.Lock()

    def answer(self, request):
        """Check the shape of a request and describe its pictures."""
        assert request["model"] == "tiny-vlm"
        (message,) = request["messages"]
        assert message["role"] == "user"
        *pictures, text = message["content"]
        assert text["type"] == "text"
        assert all(p["type"] == "image_url" for p in pictures)
        shades = []
        for picture in pictures:
            head, _, data = picture["image_url"]["url"].partition(",")
            assert head == "data:image/jpeg;base64"
            decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)
            assert decoded is not None
            shades.append(round(float(decoded.mean())))
        return f"{len(pictures)} pictures, brightness {shades[0]} to {shades[-1]}"


@contextlib.contextmanager
def serving(faults=(), *, delay=0.0):
    """Yield a server and the address of its API."""
    server = Server(faults, delay=delay)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def send(self, status, value, **headers):
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, content in headers.items():
                self.send_header(name.replace("_", "-"), content)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.send(200, {"object": "list", "data": [{"id": "tiny-vlm"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append(body | {"key": self.headers.get("Authorization")})
                fault = server.faults.pop(0) if server.faults else None
                server.busy += 1
                server.busiest = max(server.busiest, server.busy)
            time.sleep(1.0 if fault == "slow" else server.delay)
            with server.lock:
                server.busy -= 1
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.reply(fault, body)

        def reply(self, fault, body):
            if isinstance(fault, int):
                return self.send(fault, {"error": {"message": "as told"}}, Retry_After="0")
            if fault == "hang up":
                return self.connection.close()
            if fault in ("garbage", "odd"):
                return self.send(200, b"<html>" if fault == "garbage" else {"choices": []})
            text = "" if fault == "empty" else server.answer(body)
            reason = {"long": "length", "filtered": "content_filter"}.get(fault, "stop")
            choice = {"message": {"content": text}, "finish_reason": reason}
            usage = {"prompt_tokens": 90, "completion_tokens": 10}
            return self.send(200, {"choices": [choice], "usage": usage})

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
