"""Who gets a processor core first, where packets have threads of their own."""

import os
import threading
from typing import Final

from pqtun.pump.engine import Engine

# A tenth of the weight of a thread that moves packets, so that one of those gets the core within a fraction of a
# millisecond even from the middle of a handshake, and handshakes still go on where packets take all cores.
NICE: Final = 10


def behind_packets(engine: Engine) -> None:
    """Let this thread wait whenever the engine's threads have work. Call once these have been started.

    Where packets move on the event loop there is nobody to wait for, and nothing changes.
    """
    if engine.name == "native":
        # setpriority(2): on Linux a number of a thread means this thread alone. Others that it starts later inherit it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
