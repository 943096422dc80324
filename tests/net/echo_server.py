"""echo_server.py ADDRESS...: sends back what comes, on TCP ("host:port") and Unix sockets (a path)."""

from __future__ import annotations

import asyncio
import os
import sys


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
        await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    for address in sys.argv[1:]:
        if "/" in address:
            await asyncio.start_unix_server(echo, address)
            os.chmod(address, 0o666)  # for everybody
        else:
            host, _, port = address.rpartition(":")
            await asyncio.start_server(echo, host, int(port), backlog=200)
    print("the echo is ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
