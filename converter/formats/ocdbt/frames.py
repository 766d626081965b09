"""Frames: what stands around the bodies of manifests and nodes.

A frame is ``magic (4 bytes) · length of the frame (8) · version · compression · body · CRC-32C of all before (4)``.
"""

from __future__ import annotations

import contextlib
import struct

from converter.errors import UnsupportedCheckpoint
from converter.formats.ocdbt.wire import Allowance, Cursor, damaged

MANIFEST_MAGIC = 0x0CDB3A2A
NODE_MAGIC = 0x0CDB20DE

_RAW, _ZSTD = 0, 1
_HEAD = struct.Struct(">I8s")
_CHECKSUM = struct.Struct("<I")
_SHORTEST = _HEAD.size + 2 + _CHECKSUM.size
_PIECE_BYTES = 4096
"""Compressed bytes at a time. zstd makes 128 KiB of four bytes at the most, hence 128 MiB of these."""


def unwrap(frame: bytes, magic: int, place: str, allowance: Allowance) -> Cursor:
    """The body of a frame, whose decompressed size is taken from the allowance.

    Raises:
      UnreadableCheckpoint: not such a frame, or damaged.
      UnsupportedCheckpoint: a version or compression of the future, or a body larger than the allowance.
    """
    import google_crc32c

    if len(frame) < _SHORTEST:
        raise damaged(place, f"at least {_SHORTEST} bytes", str(len(frame)))
    found, length = _HEAD.unpack_from(frame)
    if found != magic:
        raise damaged(place, f"the first bytes {magic:08x}", f"{found:08x}")
    length = int.from_bytes(length, "little")
    if length != len(frame):
        raise damaged(place, f"{length} bytes as its header says", str(len(frame)))
    stored = _CHECKSUM.unpack_from(frame, length - _CHECKSUM.size)[0]
    checksum = google_crc32c.value(frame[: -_CHECKSUM.size])
    if checksum != stored:
        raise damaged(place, f"the checksum {stored:08x}", f"{checksum:08x}")

    cursor = Cursor(frame[_HEAD.size : -_CHECKSUM.size], place, allowance)
    version, compression = cursor.number(), cursor.number()
    if version != 0 or compression not in (_RAW, _ZSTD):
        raise UnsupportedCheckpoint(
            f"{place}: expected version 0 of the format, compression 0 or 1, found {version} and {compression}.",
            "It was written by a TensorStore newer than this program: upgrade flax-convert.",
        )
    if compression == _ZSTD:
        compressed = memoryview(cursor.data)[cursor.position :]
        return Cursor(_decompressed(compressed, place, allowance), place, allowance)
    allowance.spend(cursor.left, place)
    return Cursor(cursor.take(cursor.left), place, allowance)


def _decompressed(body: memoryview, place: str, allowance: Allowance) -> bytes:
    """All at once where the frame tells its size, else, and where anything is wrong, piece by piece.

    Frames by TensorStore often do not tell their size, and others need not tell the truth.
    """
    import zstandard

    with contextlib.suppress(zstandard.ZstdError):
        size = zstandard.frame_content_size(body)
        if 0 < size <= allowance.left:
            whole = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
            allowance.spend(size, place)
            return whole
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    pieces = []
    try:
        for start in range(0, len(body), _PIECE_BYTES):
            pieces.append(decompressor.decompress(body[start : start + _PIECE_BYTES]))
            allowance.spend(2 * len(pieces[-1]), place)  # once as a piece, once in the whole
    except zstandard.ZstdError as error:
        raise damaged(place, "a zstd frame", str(error)) from None
    if not decompressor.eof:
        raise damaged(place, "a whole zstd frame", "the start of one")
    if decompressor.unused_data:
        raise damaged(place, "a zstd frame and nothing else", f"{len(decompressor.unused_data)} more bytes")
    return b"".join(pieces)


def wrap(body: bytes, magic: int, *, compress: bool) -> bytes:
    """A frame around a body."""
    import google_crc32c

    if compress:
        import zstandard

        body = zstandard.ZstdCompressor(level=1).compress(body)
    length = _SHORTEST + len(body)
    head = _HEAD.pack(magic, length.to_bytes(8, "little")) + bytes([0, _ZSTD if compress else _RAW])
    checksum = google_crc32c.extend(google_crc32c.value(head), body)
    return b"".join((head, body, _CHECKSUM.pack(checksum)))
