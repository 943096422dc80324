"""Values that the pq1 specification fixes (doc/protocol.md). Sizes are in bytes, times in seconds."""

from typing import Final

# Section 1: primitives.
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
X25519_BYTES: Final = 32
MCELIECE_PK_BYTES: Final = 1_047_319
MCELIECE_SK_BYTES: Final = 13_948
MCELIECE_CT_BYTES: Final = 194
SNTRUP_PK_BYTES: Final = 1158
SNTRUP_SK_BYTES: Final = 1763
SNTRUP_CT_BYTES: Final = 1039

# Section 2: announcement.
LABEL_PREFIX: Final = "pq1"
HASH_CHARS: Final = 52
PORT_CHARS: Final = 4
SERVER_PORT: Final = 42424
KEY_SERVER_PORT: Final = 42425
CLIENT_PORT: Final = 42423
SERVER_ADDRESS: Final = "10.42.0.1/16"
CLIENT_ADDRESS: Final = "10.43.0.1/16"

# Section 3: key tree.
NODE_BYTES: Final = 1152

# Section 4: key server.
STATIC_REQUEST: Final = b"\xf0\x00"
STATIC_RESPONSE: Final = b"\xf1\x00"
EPHEMERAL_REQUEST: Final = b"\xf2\x00"
EPHEMERAL_RESPONSE: Final = b"\xf3\x00"
EPHEMERAL_PERIOD: Final = 30
EPHEMERAL_LIFETIME: Final = 120

# Section 5: handshake.
HANDSHAKE: Final = b"\x01\x00"
HANDSHAKE_FAILED: Final = b"\x03\x00"
HANDSHAKE_BYTES: Final = 2 + MCELIECE_CT_BYTES + X25519_BYTES + TAG_BYTES + SNTRUP_CT_BYTES + TAG_BYTES

# Section 6: tunnel packets and the key schedule.
TUNNEL: Final = b"\x02\x00"
TID_BYTES: Final = 32
HEADER_BYTES: Final = 2 + TID_BYTES + 2 + 4
TUNNEL_OVERHEAD: Final = HEADER_BYTES + TAG_BYTES
KEYS_PER_BLOCK: Final = 18
EPOCH_SECONDS: Final = 30
EPOCH_LIFETIME: Final = 120
MAX_EPOCHS: Final = 5
LAST_EPOCH: Final = 0xFFFF
LAST_COUNTER: Final = 0xFFFFFFFF

# Section 7: inside a tunnel packet.
COOKIE_PREFIX: Final = b"pqccookE"
COOKIE_NONCE_BYTES: Final = 12
COOKIE_BYTES: Final = 144
COOKIE_LIFETIME: Final = 120

# Section 8: pqtun's own extensions.
CONTROL_PROTOCOL: Final = 253
CONTROL_MAGIC: Final = b"pqtun\x01"
