"""One tunnel: seals packets for the peer and opens the peer's (doc/protocol.md section 6)."""

from struct import Struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pqtun.protocol.constants import HEADER_BYTES, KEY_BYTES, LAST_EPOCH, TID_BYTES, TUNNEL, TUNNEL_OVERHEAD
from pqtun.protocol.cookie import TunnelState
from pqtun.protocol.errors import MessageError
from pqtun.protocol.primitives import ZERO_NONCE, Buffer
from pqtun.protocol.schedule import KeyBlocks, ReceiveSchedule, SendSchedule

_INDEX = Struct(">HI")  # epoch, counter
_INDEX_OFFSET = 2 + TID_BYTES
_ZERO_KEY = bytes(KEY_BYTES)


class Tunnel:
    """Both key schedules of one tunnel. ``now`` is in seconds on a clock that counts sleep and never goes back."""

    def __init__(
        self,
        tid: bytes,
        send_root: Buffer,
        recv_root: Buffer,
        now: float,
        first_epoch: int = 0,
        all_blocks: KeyBlocks | None = None,
    ) -> None:
        """Both roots are those of ``first_epoch``; ``all_blocks`` bounds the memory of several tunnels together.

        Raises ValueError if tid or a root has not 32 bytes, or there is no such epoch.
        """
        if not len(tid) == len(send_root) == len(recv_root) == KEY_BYTES:
            raise ValueError("tunnel id and roots have 32 bytes")
        if not 0 <= first_epoch <= LAST_EPOCH:
            raise ValueError("epochs are numbered from 0 to 65535")
        self.tid = tid
        self._prefix = TUNNEL + tid
        self._send = SendSchedule(send_root, now, first_epoch)
        self._receive = ReceiveSchedule(recv_root, now, first_epoch, all_blocks)

    @property
    def send_epoch(self) -> int:
        """The epoch of the packet sealed last; it moves on with the next ``seal``."""
        return self._send.epoch

    @property
    def recv_epoch(self) -> int:
        """The newest epoch that the peer has used."""
        return self._receive.newest

    @property
    def dead(self) -> bool:
        """Whether all receiving epochs are gone: 120 s without a packet of a new epoch."""
        return self._receive.dead

    @property
    def next_deadline(self) -> float | None:
        """When ``expire`` has something to do next (seconds), None when the tunnel is dead."""
        return None if self._receive.dead else self._receive.deadline

    def seal(self, plaintext: bytes, now: float) -> bytes:
        """Return the datagram for the peer, 56 bytes longer than ``plaintext``. The key is erased.

        Raises MessageError: ``dead`` or ``epoch_end`` (after epoch 65535).
        """
        self._ready(now)
        send = self._send
        counter, key = send.next_key()
        header = self._prefix + _INDEX.pack(send.epoch, counter)
        sealed = ChaCha20Poly1305(key).encrypt(ZERO_NONCE, plaintext, header)
        key[:] = _ZERO_KEY
        return header + sealed

    def open(self, datagram: bytes, now: float) -> bytes:
        """Return the plaintext of a datagram. Its key is erased and the sending side follows the peer's epoch.

        Raises MessageError and leaves the state as it was: ``length``, ``tunnel_id``, ``authentication`` and the
        reasons of ``ReceiveSchedule.candidate``.
        """
        if len(datagram) < TUNNEL_OVERHEAD:
            raise MessageError("length")
        if not datagram.startswith(self._prefix):
            raise MessageError("tunnel_id")
        if now >= self._receive.deadline:  # a timer may be late, after sleep above all
            self.expire(now)
        epoch, counter = _INDEX.unpack_from(datagram, _INDEX_OFFSET)
        candidate = self._receive.candidate(epoch, counter, now)
        try:
            plaintext = ChaCha20Poly1305(candidate.key).decrypt(
                ZERO_NONCE, datagram[HEADER_BYTES:], datagram[:HEADER_BYTES]
            )
        except InvalidTag:
            candidate.reject()
            raise MessageError("authentication") from None
        candidate.accept()
        if epoch > self._send.epoch:
            self._send.step_up_to(epoch, now)
        return plaintext

    def state(self, now: float) -> TunnelState:
        """Return what a cookie holds that is sealed next: copies of secrets, to be erased.

        The sending epoch is never older than the newest received one. Raises MessageError: ``dead``, ``epoch_end``.
        """
        self._ready(now)
        epoch = self._send.epoch
        if epoch == LAST_EPOCH:
            raise MessageError("epoch_end")
        return TunnelState(self.tid, epoch, self._send.next_root[:], self._receive.root_of(epoch + 1))

    def next_epoch(self, now: float) -> None:
        """Begin a new sending epoch before the time of this one is over. Nothing happens in the last one."""
        if not self._receive.dead:
            self._send.begin_next(now)

    def step(self, now: float) -> None:
        """Move both directions to the epoch after the newest received one, as a received cookie asks for."""
        self._receive.step(now)
        self._send.step_up_to(self._receive.newest, now)

    def expire(self, now: float) -> None:
        """Erase receiving epochs whose time is over; with the last of them, every secret."""
        self._receive.expire(now)
        if self._receive.dead:
            self._send.erase()

    def erase(self) -> None:
        """Overwrite every secret; the tunnel is dead afterwards."""
        self._receive.erase()
        self._send.erase()

    def _ready(self, now: float) -> None:
        """Be in the epoch that a packet is sealed in ``now``."""
        if now >= self._receive.deadline:
            self.expire(now)
        if self._receive.dead:
            raise MessageError("dead")
        if self._send.due(now):
            self._send.advance(now)
