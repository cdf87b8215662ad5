"""Takes one field out of a form, as HTML forms and curl send it. Pure functions.

Source: RFC 7578 (multipart/form-data) and the URL standard (application/x-www-form-urlencoded).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl

from toprope_shared.errors import RequestError

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
MAX_FIELDS = 100
_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'^content-disposition:[^\r\n]*[;\s]name=(?:"([^"\r\n]*)"|([^\s;"]+))', re.IGNORECASE | re.MULTILINE)


def read_field(body: bytes, content_type: str, names: Sequence[str]) -> bytes:
    """Return the first field that has one of the names.

    Args:
        body: the form.
        content_type: of the request, with its parameters.
        names: of the field, the best first.

    Raises:
        RequestError: it is not a form of that type, or has no such field.
    """
    multipart = content_type.lower().startswith(MULTIPART)
    fields = _multipart(body, content_type) if multipart else _urlencoded(body)
    for name in names:
        if name in fields:
            return fields[name]
    raise RequestError(f"the form has no field {names[0]!r}; send the input in that field")


def _multipart(body: bytes, content_type: str) -> dict[str, bytes]:
    found = _BOUNDARY.search(content_type)
    if not found:
        raise RequestError("the form's Content-Type names no boundary of at most 70 characters")
    delimiter = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
    # What stands before the first delimiter is no part; the body may begin with it, without the line's end before.
    _, *parts = (b"\r\n" + body).split(delimiter, MAX_FIELDS + 1)
    if not parts or len(parts) > MAX_FIELDS or not parts[-1].startswith(b"--"):
        raise RequestError(f"the form is not complete, or has more than {MAX_FIELDS} fields")
    fields: dict[str, bytes] = {}
    for part in parts[:-1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not separator or not name:
            raise RequestError("a part of the form has no name")
        fields.setdefault((name[1] or name[2] or b"").decode("utf-8", "replace"), content)
    return fields


def _urlencoded(body: bytes) -> dict[str, bytes]:
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, encoding="latin-1")
    except ValueError as error:
        raise RequestError(f"the form can't be read: {error}") from error
    fields: dict[str, bytes] = {}
    for name, value in pairs:
        fields.setdefault(name, value.encode("latin-1"))
    return fields
