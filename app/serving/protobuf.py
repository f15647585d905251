"""Read the fields of a protocol buffer, and encode a field, without generated classes.

The encoding: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator


def read_texts(message: memoryview, wanted: int) -> list[bytes]:
    """Return the values of a bytes or text field, as bytes."""
    return [bytes(value) for value in read_messages(message, wanted)]


def read_integers(message: memoryview, *wanted: int) -> list[int]:
    """Return the values of signed 64-bit integer fields, packed or not."""
    integers: list[int] = []
    for number, value, _ in read_fields(message):
        if number in wanted:
            integers += [value] if isinstance(value, int) else _read_packed(value)
    return [value - (1 << 64) if value >> 63 else value for value in integers]


def read_messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the values of a message, bytes or text field."""
    for number, value, _ in read_fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def read_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview, int]]:
    """Yield (field number, integer or bytes, end of the field) for each field of a message. Raises ValueError."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        match key & 7:
            case 0:
                value, at = _read_varint(message, at)
                yield key >> 3, value, at
                continue
            case 1:
                size = 8
            case 2:
                size, at = _read_varint(message, at)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"truncated at byte {at}")
        yield key >> 3, message[at : at + size], at + size
        at += size


def encode_field(number: int, value: bytes) -> bytes:
    """Encode a bytes, text or message field."""
    return _encode_varint(number << 3 | 2) + _encode_varint(len(value)) + value


def _read_packed(message: memoryview) -> list[int]:
    integers, at = [], 0
    while at < len(message):
        value, at = _read_varint(message, at)
        integers.append(value)
    return integers


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"an integer does not end by byte {at}")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
