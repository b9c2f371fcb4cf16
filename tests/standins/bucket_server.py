"""A bucket on this machine: bucket_server.py gs|s3 FAULTS serves one named `bucket`, in memory.

Its port is printed. FAULTS is a file that need not exist, with JSON on how gs:// fails: {"delay":
SECONDS, "status": NUMBER, "after": COUNT, "until": COUNT}; requests before and after those are
answered as usual.
"""

import email.parser
import http.server
import json
import logging
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main(kind: str, faults: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    {"gs": serve_gs, "s3": serve_s3}[kind](port, faults)
    logging.disable(logging.CRITICAL)
    print(port, flush=True)
    sys.stdin.read()


class Parser(email.parser.BytesParser):
    """Keeps every byte of an upload; the emulator itself loses a carriage return at its end."""

    def parsebytes(self, text: Any, headersonly: bool = False) -> Any:
        message = super().parsebytes(text, headersonly)
        if message.get_content_type() == "multipart/related":
            mark = b"--" + message.get_boundary("").encode()
            body = text.split(mark, 2)[2].partition(b"\n\n")[2]
            part = message.get_payload()[1]
            content = body[: body.rindex(b"\n" + mark)]
            part.get_payload = lambda *_, **__: content
        return message


def serve_gs(port: int, faults: Path) -> None:
    from gcp_storage_emulator import server

    router, count, lock = server.Router, 0, threading.Lock()

    class Failing(router):
        def handle(self, method: str) -> Any:
            nonlocal count
            try:
                fault = json.loads(faults.read_text())
            except (OSError, ValueError):
                count = 0
                return self.answer(method)
            count += 1
            if not fault.get("after", 0) < count <= fault.get("until", count):
                return self.answer(method)
            time.sleep(fault.get("delay", 0))
            if "status" in fault:
                return self._request_handler.send_error(fault["status"])
            return self.answer(method)

        def answer(self, method: str) -> Any:
            with lock:  # The emulator was made for one request at a time.
                return super().handle(method)

    server.Router, server.BytesParser = Failing, Parser
    http.server.HTTPServer = http.server.ThreadingHTTPServer  # One slow request is not to stop all.
    server.create_server("localhost", port, in_memory=True, default_bucket="bucket").start()


def serve_s3(port: int, faults: Path) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer(ip_address="localhost", port=port, verbose=False).start()
    url = f"http://localhost:{port}"
    names = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **names).create_bucket(Bucket="bucket")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
