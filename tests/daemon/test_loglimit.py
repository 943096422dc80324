import logging

from pqtun.daemon import loglimit
from pqtun.daemon.loglimit import LogLimit


def test_a_burst_then_a_trickle(caplog):
    now = 1000.0
    log = logging.getLogger("pqtun.test.loglimit")
    limit = LogLimit(lambda: now)
    log.addFilter(limit)
    try:
        for number in range(1000):
            log.warning("no tunnel to %s", number)
        assert len(caplog.records) == loglimit.BURST
        log.error("a fault")
        assert caplog.messages[-1] == "a fault"
        now += loglimit.SECONDS_A_LINE
        log.warning("no tunnel to %s", "100%")
        log.warning("no tunnel to %s", "b")
        left_out = 1000 - loglimit.BURST
        assert caplog.messages[-1] == f"no tunnel to 100% (and {left_out} lines like it that were left out)"
        now += 1000 * loglimit.SECONDS_A_LINE
        for number in range(1000):
            log.warning("again %s", number)
        assert len(caplog.records) == 2 * loglimit.BURST + 2
    finally:
        log.removeFilter(limit)
