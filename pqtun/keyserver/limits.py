"""Our own choices for the key server and the download, each with its reason. Times in seconds, sizes in bytes."""

from typing import Final

# --- both ends ---

# Receive size. The longest datagram of the protocol has 1196 bytes; a longer one is cut and then fits nothing.
MAX_DATAGRAM: Final = 2048

# Datagrams handled before the event loop gets its turn: they take about 1 ms, so nobody else waits noticeably.
BATCH: Final = 64

# --- the server ---

# Source prefixes share a fixed table of 1 MB.
PREFIX_SLOTS: Final = 1 << 16

# Requests of one prefix: a download makes 937, and may make all of them at once. Eight clients behind one address begin
# together; after that three a second.
PREFIX_RATE: Final = 3000.0
PREFIX_BURST: Final = 8000.0

# Requests of all: a core answers 20,000 a second, of which a fifth stays free. As many downloads a second as clients
# that see this server for the first time ...
STATIC_RATE: Final = 12_000.0
STATIC_BURST: Final = 16_000.0

# ... and twice as many ephemeral keys as handshakes are looked at.
EPHEMERAL_RATE: Final = 4000.0
EPHEMERAL_BURST: Final = 4000.0

# A prefix gets as many times the ephemeral keys that its handshakes may need: some are lost, and clients that race the
# addresses of a server ask more than one. More would be for nothing but to keep others from theirs.
EPHEMERAL_PER_HANDSHAKE: Final = 2.0

# --- the client's socket ---

# Asked of the kernel (SO_RCVBUF), which may grant less: the largest burst (MAX_WINDOW) with its bookkeeping.
RECEIVE_BUFFER: Final = 1 << 20

# --- when a download gives up ---

# Without one single answer: longer than any working path takes, as long as a person waits for a web page.
NO_ANSWER_TIMEOUT: Final = 10.0

# While the network refuses every datagram (ICMP unreachable): a daemon that restarts is back by then.
REFUSED_TIMEOUT: Final = 2.0

# Without a new node: outlasts a roaming mobile and a rebooting access point.
STALL_TIMEOUT: Final = 30.0

# Altogether: 1.1 MB pass in 150 s at 64 kbit/s; a server that trickles must not hold a download for hours.
TOTAL_TIMEOUT: Final = 300.0

# Times that the server gave the same wrong bytes for one node: it has another key. Damage on the way differs.
SAME_WRONG_LIMIT: Final = 3

# Times that one node was wrong in any way. With every tenth datagram damaged, 1 in 10^7 good downloads gets here.
WRONG_LIMIT: Final = 10

# --- ephemeral keys: one datagram each way ---

# First repetition. RFC 8085, 3.1.3 asks for 1 s where no RTT is known; here it is one datagram, and a person waits.
EPHEMERAL_RETRY: Final = 0.5

# The interval doubles up to here, so that about seven are sent within NO_ANSWER_TIMEOUT.
EPHEMERAL_RETRY_MAX: Final = 2.0

# --- congestion control; "BBR" is draft-cardwell-iccrg-bbr-congestion-control-00 ---

# Datagrams sent at first: 19 kB, in the spirit of RFC 6928's 10 segments; 0.15 s of a 1 Mbit/s line.
INITIAL_WINDOW: Final = 16

# Datagrams in flight always allowed: fewer cannot trigger a fast retransmit (BBR).
MIN_WINDOW: Final = 4

# More would not speed up 938 nodes, and overruns socket buffers.
MAX_WINDOW: Final = 512

# Retransmission timeout before the first RTT sample (RFC 6298, 2.1).
INITIAL_TIMEOUT: Final = 1.0

# Least probe timeout: a busy host may keep a process from running for this long. TCP takes 0.2 s, but there a timeout
# shuts the window; here it only sends PROBES datagrams.
MIN_TIMEOUT: Final = 0.01

# Longest pause between probes: several within NO_ANSWER_TIMEOUT and STALL_TIMEOUT.
MAX_TIMEOUT: Final = 3.0

# Datagrams per probe timeout (RFC 9002, 6.2.4).
PROBES: Final = 2

# Probe timeouts in a row after which all in flight counts as lost and the window shuts (RFC 9002, 7.6).
PERSISTENT_TIMEOUTS: Final = 3

# Later answers that arrive before a request counts as lost (RFC 9002, 6.1.1) ...
REORDER_THRESHOLD: Final = 3

# ... doubled with each request that turns out to have been repeated in vain, up to here.
REORDER_THRESHOLD_MAX: Final = MAX_WINDOW

# Of a round trip, after which a request older than an answered one counts as lost (RFC 9002, 6.1.2). Where round trips
# vary, RFC 6298's timeout is longer and counts: on such paths the old answer is usually still to come.
TIME_THRESHOLD: Final = 9 / 8

# Resolution of timers (RFC 9002, 6.1.2); epoll's timeout is in whole milliseconds.
GRANULARITY: Final = 0.001

# Least time that the window covers at the measured rate: shorter round trips tell when processes ran, not how long
# the path is.
BATCH_TIME: Final = 0.002
# Shorter than this, an interval is the clock's rounding and says nothing about a rate. It keeps rates finite, too.
MIN_INTERVAL: Final = 1e-6

# A pause of the event loop that the pacing makes good at once: two ticks of epoll's clock.
PACING_BURST: Final = 0.002

# Datagrams that may always go back to back.
PACING_BURST_MIN: Final = 2.0

# 2/ln 2: the least factor that doubles the rate each round trip (BBR, Startup).
STARTUP_GAIN: Final = 2.885

# Bandwidth-delay products in flight: one on the way and one for answers that come in bursts (BBR).
WINDOW_GAIN: Final = 2.0

# Of the measured rate, a round trip each: look for more, drain what that queued, cruise (BBR, ProbeBW).
CYCLE_GAINS: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

# Round trips for which the highest delivery rate counts: longer than one cycle (BBR).
RATE_ROUNDS: Final = 10

# Startup ends when the rate grew by less than this factor for so many round trips (BBR).
FULL_PIPE_GROWTH: Final = 1.25
FULL_PIPE_ROUNDS: Final = 3

# A round trip longer than the shortest by an eighth, within these bounds (RFC 9406, 4.2 and 4.3), and by the path's
# jitter waited in a queue. Then the window does not grow, and if a whole round did, the path is full.
QUEUE_SHARE: Final = 1 / 8
QUEUE_MIN: Final = 0.004
QUEUE_MAX: Final = 0.016

# Round trips measured in a round before it may say so (RFC 9406, 4.3).
QUEUE_SAMPLES: Final = 8

# Mean deviations of the round trips that count as jitter. The window has room for them, because on a path with jitter
# the least round trip says too little; a queue of our own making hardly varies in the steady state.
JITTER_DEVIATIONS: Final = 2
