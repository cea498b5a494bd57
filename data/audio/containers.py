"""Containers of audio files: where the samples are, and whether all of them are there.

libsndfile reads a file cut short as the part that is left, estimates the length of an MP3 file without an index, and
reads only the first of files joined by ``cat``. `sections` reads the headers and returns what libsndfile reads right.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmattn.data.errors import DataError

BLOCK = 1 << 14  # bytes
CHUNKS = 4096  # chunks before the samples; a file with more of them is left to libsndfile
ESCAPE = 0xFFFFFFFF  # RF64's size in 32 bits of what ds64 counts in 64
HEAD = 1 << 26  # bytes of a header in which a size is completed: they are held in memory
FRAME_HEAD = 64  # bytes of an MPEG frame that contain its header and an index
SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")  # eleven ones, a version, layer III
BITRATES = (  # kbit/s: MPEG-2 and 2.5, MPEG-1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)


class _Span(io.RawIOBase):
    """Bytes from begin to end of an open file, behind a head of other bytes."""

    def __init__(self, stream: Any, begin: int, end: int, head: bytes) -> None:
        self.stream, self.begin, self.head, self.place = stream, begin - len(head), head, 0
        self.size = end - self.begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = min(max(base + offset, 0), self.size)  # a damaged header may lead anywhere
        return self.place

    def readinto(self, buffer: Any) -> int:
        found = self.head[self.place : self.place + len(buffer)]
        if not found:
            self.stream.seek(self.begin + self.place)
            found = self.stream.read(min(len(buffer), self.size - self.place))
        buffer[: len(found)] = found
        self.place += len(found)
        return len(found)


class Section(io.BufferedReader):
    """A part of an open file that is read like a file; closing it leaves the open file open.

    Args:
        stream: The open file.
        begin: Place of the first byte.
        end: Place behind the last byte.
        head: Bytes before the first one.
    """

    def __init__(self, stream: Any, begin: int, end: int, head: bytes = b"") -> None:
        super().__init__(_Span(stream, begin, end, head), BLOCK)
        self.size = len(head) + end - begin

    def piece(self, place: int, size: int) -> bytes:
        """The bytes at a place, fewer at the end."""
        self.seek(place)
        return self.read(size)

    def search(self, wanted: bytes, place: int) -> int | None:
        """The next place of some bytes; None if there is none."""
        while len(block := self.piece(place, BLOCK)) >= len(wanted):
            if (found := block.find(wanted)) >= 0:
                return place + found
            place += len(block) - len(wanted) + 1
        return None


class Samples(NamedTuple):
    """The bytes of the samples, according to a header."""

    begin: int
    size: int
    field: int | None = None  # place of the header's field of the size; None: it cannot be unknown
    form: str = ""  # the field's struct format
    more: int = 0  # bytes that the field counts in addition to the samples
    last: bool = False  # whether libsndfile would also read what follows as samples
    mpeg: bool = False  # whether they are MPEG frames


def sections(stream: Any, where: str) -> list[Section]:
    """Returns the parts of an open file that libsndfile opens one by one, and reads to their end.

    Usually that is the whole file. Several parts are the members of joined MP3 or Ogg files. A size that a streaming
    writer left open (0, or near 2 or 4 GiB) is completed, so that it means "to the end".

    Raises:
        DataError: The file is shorter than its header says.
    """
    stream.seek(0, io.SEEK_END)
    whole = file = Section(stream, 0, stream.tell())
    while tag := _id3(file.piece(0, 10)):
        file = Section(stream, whole.size - max(file.size - tag, 0), whole.size)
    return list(_parts(file, where, file is not whole)) or [whole]


def _parts(file: Section, where: str, is_tagged: bool) -> Iterator[Section]:
    head = file.piece(0, 16)
    if head.startswith(b"OggS"):
        yield from _ogg(file, where)
    elif find := next((find for magic, find in CONTAINERS.items() if re.match(magic, head)), None):
        try:
            samples = find(file)
        except (
            struct.error,
            LookupError,
            ValueError,
            ZeroDivisionError,
        ):  # a header cut short: libsndfile's error is the better one
            return
        if samples is None:
            return
        part = _checked(file, samples, where)
        if samples.mpeg:
            yield from _mpeg(Section(part, samples.begin, part.size), where)
        else:
            yield part
    elif _frame(head) or (is_tagged and not head.startswith(b"fLaC")):  # tags may be padded beyond their size
        yield from _mpeg(file, where)


def _checked(whole: Section, samples: Samples, where: str) -> Section:
    begin, size, field, form, more, last, _ = samples
    left = whole.size - begin
    if field is not None and field < HEAD and left > 0 and not 0 < size <= left and _is_open(size + more):
        width = struct.calcsize(form)
        completed = struct.pack(form, min(left + more, (1 << 8 * width) - 1))
        return Section(whole, field + width, whole.size, whole.piece(0, field) + completed)
    if left < size:
        raise DataError(where, f"{size:,} bytes of samples, as in its header", f"{max(left, 0):,} (a truncated file?)")
    return Section(whole, 0, begin + size) if last else whole


def _is_open(size: int) -> bool:
    """Whether a size is one that writers put down before they know it: 0, -1, the largest, or near 2 or 4 GiB."""
    return size <= 0 or 0x7F000000 <= size <= 0x80000000 or 0xFFFFE000 <= size <= 0xFFFFFFFF or size >= 1 << 62


def _chunk(file: Section, name: bytes, at: int, form: str, align: int = 1, own: int = 0) -> tuple[int, int] | None:
    """Finds a chunk: the place of its content, and its size.

    Args:
        file: The file.
        name: The chunk's id.
        at: Place of the first chunk.
        form: Struct format of id and size.
        align: Chunks begin at multiples of it.
        own: Bytes of id and size that the size counts.
    """
    head = struct.calcsize(form)
    for _ in range(CHUNKS):
        kind, size = struct.unpack(form, file.piece(at, head))
        if kind == name:
            return at + head, size
        if size < own:
            return None
        at = -(-(at + head + size - own) // align) * align
    return None


def _riff(file: Section) -> Samples | None:
    magic, kind = struct.unpack("<4s4x4s", file.piece(0, 12))
    order = ">" if magic == b"RIFX" else "<"
    found = _chunk(file, b"data", 12, f"{order}4sI", align=2)
    if kind != b"WAVE" or found is None:
        return None
    begin, count = found
    if magic == b"RF64" and count in (0, ESCAPE) and (wide := _chunk(file, b"ds64", 12, "<4sI", align=2)):
        (count,) = struct.unpack("<Q", file.piece(wide[0] + 8, 8))
        return Samples(begin, count, wide[0] + 8, "<Q")
    kind, size = struct.unpack(f"{order}4sI", file.piece(begin, 8).ljust(8, b"\0"))
    empty = count == 0 and kind.isalnum() and begin + 8 + size <= file.size  # no samples: other chunks follow
    settings = _chunk(file, b"fmt ", 12, f"{order}4sI", align=2)
    mpeg = settings is not None and file.piece(settings[0], 2) == b"\x55\0"
    return Samples(begin, count, None if empty else begin - 4, f"{order}I", mpeg=mpeg)


def _w64(file: Section) -> Samples | None:
    found = _chunk(file, W64_DATA, 40, "<16sQ", align=8, own=24)
    return None if found is None else Samples(found[0], found[1] - 24, found[0] - 8, "<Q", 24, last=True)


def _iff(file: Section) -> Samples | None:
    """AIFF and AIFF-C; 8SVX and 16SV."""
    kind = file.piece(8, 4)
    if kind in (b"8SVX", b"16SV"):
        found = _chunk(file, b"BODY", 12, ">4sI", align=2)
        return None if found is None else Samples(found[0], found[1], found[0] - 4, ">I", last=True)
    found = _chunk(file, b"SSND", 12, ">4sI", align=2) if kind in (b"AIFF", b"AIFC") else None
    if found is None:
        return None
    (offset,) = struct.unpack(">I", file.piece(found[0], 4))
    return Samples(found[0] + 8 + offset, found[1] - 8 - offset, found[0] - 4, ">I", 8 + offset)


def _caf(file: Section) -> Samples | None:
    found = _chunk(file, b"data", 8, ">4sq")
    return None if found is None else Samples(found[0] + 4, found[1] - 4, found[0] - 8, ">q", 4)


def _au(file: Section) -> Samples:
    order = ">" if file.piece(0, 4) == b".snd" else "<"
    begin, size = struct.unpack(f"{order}II", file.piece(4, 8))
    return Samples(begin, size, 8, f"{order}I", last=True)


def _voc(file: Section) -> Samples | None:
    (at,) = struct.unpack("<H", file.piece(20, 2))
    for _ in range(CHUNKS):
        (block,) = struct.unpack("<I", file.piece(at, 4))
        kind, size = block & 0xFF, block >> 8
        if kind in (1, 9):  # samples
            return Samples(at + 4, size)
        at += 4 + size
    return None


def _nist(file: Section) -> Samples | None:
    begin = int(file.piece(8, 8))
    header = file.piece(0, min(begin, 1 << 16))
    values = dict(re.findall(rb"(?m)^(\w+) -\w+ (\S+)", header))
    if values.get(b"sample_coding", b"pcm") not in (b"pcm", b"ulaw", b"alaw"):
        return None  # compressed
    count, channels, width = (int(values[key]) for key in (b"sample_count", b"channel_count", b"sample_n_bytes"))
    return Samples(begin, count * channels * width, last=True)


def _avr(file: Section) -> Samples:
    stereo, bits, count = struct.unpack(">HH10xI", file.piece(12, 18))
    return Samples(128, count * (1 + (stereo > 0)) * (bits // 8), last=True)


def _mpc(file: Section) -> Samples:
    stereo, count = struct.unpack("<B8xI", file.piece(21, 13))
    return Samples(42, count * (1 + stereo) * 2, last=True)


def _wve(file: Section) -> Samples:
    (size,) = struct.unpack(">I", file.piece(18, 4))
    return Samples(32, size, last=True)


def _sds(file: Section) -> Samples:
    bits, count = file.piece(6, 1)[0], sum(byte << 7 * n for n, byte in enumerate(file.piece(10, 3)))
    return Samples(21, -(-count // (120 // -(-bits // 7))) * 127)  # in packets with 120 bytes of samples


W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
CONTAINERS: dict[bytes, Callable[[Section], Samples | None]] = {
    b"RIFF|RIFX|RF64": _riff,
    b"riff": _w64,
    b"FORM": _iff,
    b"caff": _caf,
    rb"\.snd|dns\.": _au,
    b"Creative Voice ": _voc,
    b"NIST_1A\n": _nist,
    b"2BIT": _avr,
    rb"\x01\x04": _mpc,
    rb"\xf0\x7e.\x01": _sds,
    b"ALawSoundFile": _wve,
}


# Joined files: each member is a section of its own --------------------------------------------------------------------


def _ogg(file: Section, where: str) -> Iterator[Section]:
    """The members of a chained Ogg file: a page that begins a stream, behind one that does not, begins a member."""
    begin, at, opening = 0, 0, True
    while True:
        head = file.piece(at, 282).ljust(28, b"\xff")  # the longest header of a page
        if not head.startswith(b"OggS"):
            if (found := file.search(b"OggS", at)) is None:  # other bytes are skipped, as by libogg
                break
            at = found
            continue
        size = 27 + head[26] + sum(head[27 : 27 + head[26]])
        if at + size > file.size:
            break
        if head[5] & 2 and not opening:
            yield Section(file, begin, at)
            begin = at
        opening, at = bool(head[5] & 2), at + size
    if b"OggS".startswith(rest := file.piece(at, 4)) and rest:
        raise DataError(where, "whole Ogg pages", "a page that is cut short (a truncated file?)")
    yield Section(file, begin, file.size) if begin else file


def _mpeg(file: Section, where: str) -> Iterator[Section]:
    """The members of an MP3 file: frames of one kind without a gap, up to the next index.

    A member whose index (Xing, Info or VBRI) is missing or counts other frames receives one.
    """
    at = _next_frame(file, 0)
    while at is not None:
        begin, count, cut = at, 0, False
        head = file.piece(at, FRAME_HEAD)
        kind, size = _frame(head) or (b"", 0)
        index = _index(head)
        first = at = at if index is None else at + size
        while (frame := _frame(head := file.piece(at, FRAME_HEAD))) and frame[0] == kind and _index(head) is None:
            cut = at + frame[1] > file.size
            if cut:
                break
            count, at = count + 1, at + frame[1]
        if index is not None and index > count + (not cut):  # some encoders count the index itself
            raise DataError(where, f"{index:,} MPEG frames, as in its header", f"{count:,} (a truncated file?)")
        if count and index == count:
            yield file if at - begin == file.size else Section(file, begin, at)
        elif count:
            yield Section(file, first, at, _index_frame(kind, count))
        at = _next_frame(file, at)


def _next_frame(file: Section, at: int) -> int | None:
    """The place of the next MPEG frame that is followed by another of its kind, or by the end of the file."""
    while tag := _id3(file.piece(at, 10)):
        at += tag
    while len(block := file.piece(at, BLOCK)) >= 4:
        for place in (at + found.start() for found in SYNC.finditer(block)):
            kind, size = _frame(file.piece(place, 4)) or (b"", file.size)
            after = _frame(file.piece(place + size, 4))
            if place + size == file.size or (after and after[0] == kind):
                return place
        at += len(block) - 3
    return None


def _frame(head: bytes) -> tuple[bytes, int] | None:
    """The kind (version, sample rate, mono or not) and the size of an MPEG frame of layer III; None: no such frame."""
    if len(head) < 4 or not SYNC.match(head) or head[2] & 0x0C == 0x0C or head[2] >> 4 in (0, 15):
        return None
    newest = head[1] & 0x18 == 0x18  # MPEG-1; otherwise MPEG-2 or 2.5, of a half or a quarter of its rates
    rate = (44_100, 48_000, 32_000)[head[2] >> 2 & 3] // (1 if newest else 2 if head[1] & 0x10 else 4)
    size = (144 if newest else 72) * 1000 * BITRATES[newest][head[2] >> 4] // rate + (head[2] >> 1 & 1)
    return bytes((head[1] & 0x18, head[2] & 0x0C, head[3] >> 6 == 3)), size


def _index(head: bytes) -> int | None:
    """The number of frames according to an index, 0 if it does not tell; None: a frame of sound."""
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big")
    side = _side(bytes((head[1] & 0x18, 0, head[3] >> 6 == 3)))
    if head[side : side + 4] not in (b"Xing", b"Info") or any(head[6:side]):
        return None
    return int.from_bytes(head[side + 8 : side + 12], "big") if head[side + 7] & 1 else 0


def _side(kind: bytes) -> int:
    """Number of bytes of a frame's header and side information."""
    return 4 + ((17, 9) if kind[0] != 0x18 else (32, 17))[kind[2]]


def _index_frame(kind: bytes, count: int) -> bytes:
    """An index of count frames."""
    head = bytes((0xFF, 0xE3 | kind[0], 0x90 | kind[1], 0xC0 * kind[2]))
    _, size = _frame(head) or (kind, 0)
    return (head.ljust(_side(kind), b"\0") + b"Xing" + struct.pack(">II", 1, count)).ljust(size, b"\0")


def _id3(head: bytes) -> int:
    """The size of an ID3v2 tag, 0 if there is none."""
    if len(head) < 10 or not head.startswith(b"ID3"):
        return 0
    return (
        10
        + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        + 10 * (head[5] >> 4 & 1)
    )
