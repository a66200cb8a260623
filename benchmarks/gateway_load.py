"""Sends questions to a gateway for some seconds; prints how many were accepted a second."""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit


async def client(host: str, port: int, request: bytes, until: float) -> int:
    """Send the same request over one kept-open connection; returns how many were accepted."""
    reader, writer = await asyncio.open_connection(host, port)
    accepted = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
        await reader.readexactly(int(fields[b"content-length"]))
        status = int(head.split(b" ", 2)[1])
        if status != 202:
            raise RuntimeError(f"answered {status}")
        accepted += 1
    writer.close()
    return accepted


async def main(url: str, token: str, seconds: float, clients: int) -> float:
    """Accepted requests a second."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    body = json.dumps({"query": "What are the symptoms of asthma?"}).encode()
    request = (
        f"POST /predict HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {token}\r\n"
        "prefer: respond-async\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    begun = time.perf_counter()
    counts = await asyncio.gather(*(client(host, port, request, begun + seconds) for _ in range(clients)))
    return sum(counts) / (time.perf_counter() - begun)


if __name__ == "__main__":
    print(asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
