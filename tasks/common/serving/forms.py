"""Forms of `multipart/form-data` (RFC 7578) that are in memory as a whole, as browsers and curl send them."""

from __future__ import annotations

import re

from mmattn.tasks.common.serving.inputs import RequestError

MOST_FIELDS = 50
MOST_HEAD = 4096  # bytes of a field's headers
BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s";,]{1,70}))', re.ASCII | re.IGNORECASE)
NAME = re.compile(rb'^content-disposition:\s*form-data\s*(?:;[^\r\n]*?)?;\s*name="((?:[^"\\\r\n]|\\.)*)"', re.I | re.M)
FILE = re.compile(rb"^content-disposition:[^\r\n]*;\s*filename\*?=", re.I | re.M)


def read_form(body: bytes | bytearray, content_type: str) -> list[tuple[str, str | bytes]]:
    """The fields of a form, in order: texts, and files as bytes.

    Args:
        body: The whole body.
        content_type: The header that states the boundary.

    Raises:
        RequestError: The body is no whole form, or has too many fields.

    >>> body = b'--x\\r\\nContent-Disposition: form-data; name="text"\\r\\n\\r\\na dog\\r\\n--x--\\r\\n'
    >>> read_form(body, "multipart/form-data; boundary=x")
    [('text', 'a dog')]
    """
    found = BOUNDARY.search(content_type)
    if found is None:
        raise _wrong("a content-type without its boundary")
    delimiter = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
    first, *parts = (b"\r\n" + body).split(delimiter, MOST_FIELDS + 2)
    if first.strip():
        raise _wrong("a body that does not begin with it")
    if len(parts) > MOST_FIELDS + 1:
        raise _wrong(f"one of more than {MOST_FIELDS} fields")
    if not parts or not parts[-1].startswith(b"--"):
        raise _wrong("a truncated one")
    fields: list[tuple[str, str | bytes]] = []
    for part in parts[:-1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        name = NAME.search(head[:MOST_HEAD])
        if not separator or name is None or not part.startswith(b"\r\n"):
            raise _wrong("a field without a name")
        try:
            text = name[1].decode("utf-8").replace('\\"', '"')
            fields.append((text, bytes(content) if FILE.search(head[:MOST_HEAD]) else content.decode("utf-8")))
        except UnicodeDecodeError:
            raise _wrong("a text that is not UTF-8") from None
    return fields


def _wrong(found: str) -> RequestError:
    return RequestError(400, f"body: expected a form of multipart/form-data with its boundary, found {found}.")
