"""Records of TFDS directories without TensorFlow: the two file formats, ``tf.train.Example`` and encoded images."""

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from baal_jax._util import checks, files

_CHUNK = 2048  # records in memory at a time
_CHUNK_BYTES = 2**26  # of that many rows as long as the longest


def read(path: Path, file_format: str) -> Iterator[list[bytes]]:
    """The records of one file, some thousand at a time; refuses one that is damaged."""
    return _array_records(path) if file_format == "array_record" else _tf_records(path)


def _array_records(path: Path) -> Iterator[list[bytes]]:
    with files.about(path, CURE):
        reader = checks.optional_import("array_record.python.array_record_module", "data").ArrayRecordReader(str(path))
        total = reader.num_records()
        for position in range(0, total, _CHUNK):
            stop = min(position + _CHUNK, total)
            records = reader.read(list(range(position, stop)))
            if len(records) != stop - position:
                raise ValueError(f"{len(records)} records instead of {stop - position} from record {position} on")
            yield records
        reader.close()


def _tf_records(path: Path) -> Iterator[list[bytes]]:
    position, payloads, longest = 0, [], 0
    with path.open("rb") as file:
        left = path.stat().st_size
        while header := file.read(12):
            number = position + len(payloads)
            length = int.from_bytes(header[:8], "little")
            if len(header) < 12 or _masked_crc_of_length(header[:8]) != int.from_bytes(header[8:], "little"):
                raise ValueError(f"{path}: the header of record {number} is damaged: {CURE}")
            left -= 12 + length + 4
            if left < 0:
                raise ValueError(f"{path}: the file ends inside of record {number}: {CURE}")
            payload = file.read(length + 4)
            if len(payloads) == _CHUNK or (payloads and (len(payloads) + 1) * max(longest, length) > _CHUNK_BYTES):
                yield _checked(path, position, payloads)
                position, payloads, longest = position + len(payloads), [], 0
            payloads.append(payload)
            longest = max(longest, length)
    if payloads:
        yield _checked(path, position, payloads)


def _checked(path: Path, position: int, payloads: list[bytes]) -> list[bytes]:
    records = [payload[:-4] for payload in payloads]
    wrong = np.flatnonzero(_masked_crc(records) != np.frombuffer(b"".join(payload[-4:] for payload in payloads), "<u4"))
    if wrong.size:
        raise ValueError(f"{path}: the checksum of record {position + wrong[0]} is wrong: {CURE}")
    return records


def _masked_crc(records: list[bytes]) -> np.ndarray:
    """CRC-32C of every record, masked as TFRecord files store it; byte by byte, but all records at once."""
    lengths = np.array([len(record) for record in records], np.int64)
    order = np.argsort(-lengths, kind="stable")
    width = lengths.max(initial=0)
    rows = np.zeros((width, len(records)), np.uint8)
    for column, i in enumerate(order):
        rows[: lengths[i], column] = np.frombuffer(records[i], np.uint8)
    active = np.searchsorted(-lengths[order], -np.arange(width), side="left")  # records longer than j come first
    crc, table = np.full(len(records), 0xFFFFFFFF, np.uint32), _crc_tables()[0]
    for j in range(width):
        part = crc[: active[j]]
        crc[: active[j]] = table[(part ^ rows[j, : active[j]]) & 0xFF] ^ (part >> 8)
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    return masked[np.argsort(order)]


def _masked_crc_of_length(header: bytes) -> int:
    """The same of one short string, for which arrays are not worth their start."""
    crc, table = 0xFFFFFFFF, _crc_tables()[1]
    for byte in header:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _crc_tables() -> tuple[np.ndarray, list[int]]:
    """What each byte does to a sum, for arrays and for single bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table, table.tolist()


def parse_example(record: bytes) -> dict[str, bytes | int | float | None]:
    """The first value of every feature of a ``tf.train.Example``; refuses bytes that are no such message."""
    entries = [entry for features in _fields(record, 1) for entry in _fields(features, 1)]
    names = [next(_fields(entry, 1), b"").decode() for entry in entries]
    return {name: _first_value(next(_fields(entry, 2), b"")) for name, entry in zip(names, entries, strict=True)}


def _first_value(feature: bytes) -> bytes | int | float | None:
    for number, value in _messages(feature):
        if number == 1:
            return next(_fields(value, 1), None)
        if number == 2:
            content = next(_fields(value, 1), b"")
            return struct.unpack("<f", content[:4])[0] if content else None
        if number == 3:
            first = next(_messages(value), (1, 0))[1]
            unsigned = first if isinstance(first, int) else _varint(first, 0)[0]
            return unsigned - (1 << 64) if unsigned >> 63 else unsigned
    return None


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    return (value for number, value in _messages(message) if number == wanted)


def _messages(message: bytes) -> Iterator[tuple[int, Any]]:
    """Field number and value of a protobuf message, of which TFDS uses three wire types."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if tag & 7 == 2:
            length, position = _varint(message, position)
        elif tag & 7 == 5:
            length = 4
        else:
            raise ValueError(f"wire type {tag & 7} does not occur in a tf.train.Example")
        if position + length > len(message):
            raise ValueError("a field is longer than the message")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        number, position = number | (byte & 0x7F) << shift, position + 1
        if byte < 0x80:
            return number, position
    raise ValueError("a number has no end")


CURE = "copy or download the data set again"
