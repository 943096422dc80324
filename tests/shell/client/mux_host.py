"""A program that is the master of a connection: mux_host.py HOST PORT KEY CONTROL_PATH PERSIST."""

import asyncio
import signal
import sys

from pqtun.shell import ssh

ssh.prepare()

import asyncssh  # noqa: E402

from pqtun.shell.client.control_socket import ControlSocket  # noqa: E402
from pqtun.shell.client.forward_table import ForwardTable  # noqa: E402
from pqtun.shell.client.mux_master import Master  # noqa: E402


async def main(host: str, port: str, key: str, path: str, persist: str) -> None:
    connection = await asyncssh.connect(
        host, int(port), username="root", client_keys=[key], known_hosts=None, config=None, agent_path=None
    )
    control = ControlSocket.listen(path)
    if control is None:
        raise SystemExit(f"ControlSocket {path} already exists, disabling multiplexing")
    forwards = ForwardTable(connection)
    master = Master(connection, control, forwards)
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, master.resized)
    print("ready", flush=True)
    await master.serve(float(persist) or None)
    master.close()
    forwards.close()
    connection.close()
    await connection.wait_closed()


asyncio.run(main(*sys.argv[1:]))
