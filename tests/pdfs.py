"""PDF files made for tests, by pypdf and by hand. None of them is anybody's document."""

from __future__ import annotations

import io
import zipfile
import zlib
from functools import lru_cache

from pypdf import PdfWriter

DOCX_PART, XLSX_PART = "word/document.xml", "xl/workbook.xml"


@lru_cache
def pdf(pages: int = 1, *, password: str | None = None, filling: int = 0, mark: str = "") -> bytes:
    """Return a PDF with so many empty pages. `filling` bytes are added, and `mark` tells two apart."""
    writer = PdfWriter()
    for _ in range(pages):
        writer.add_blank_page(width=595, height=842)
    writer.add_metadata({"/Subject": "made for a test" + mark + "x" * filling})
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def packed_pdf(pages: int) -> bytes:
    """Return a PDF whose pages are in a compressed object stream, as many programs write them: ISO 32000-1, 7.5.7."""
    kids = range(3, 3 + pages)
    objects = {
        1: "<</Type/Catalog/Pages 2 0 R>>",
        2: f"<</Type/Pages/Count {pages}/Kids[{' '.join(f'{kid} 0 R' for kid in kids)}]>>",
        **dict.fromkeys(kids, "<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]>>"),
    }
    places, at = [], 0
    for number, text in objects.items():
        places.append(f"{number} {at}")
        at += len(text) + 1
    head = " ".join(places) + " "
    packed = zlib.compress((head + " ".join(objects.values())).encode())
    stream, table = pages + 3, pages + 4
    start = b"%PDF-1.5\n"
    out = start + _stream(stream, f"/Type/ObjStm/N {len(objects)}/First {len(head)}/Filter/FlateDecode", packed)
    rows = [(0, 0, 255), *((2, stream, place) for place in range(len(objects)))]
    rows += [(1, len(start), 0), (1, len(out), 0)]
    entries = b"".join(kind.to_bytes(1) + field.to_bytes(4) + place.to_bytes(2) for kind, field, place in rows)
    found = _stream(table, f"/Type/XRef/Size {len(rows)}/W[1 4 2]/Root 1 0 R", entries)
    return out + found + b"startxref\n%d\n%%%%EOF\n" % len(out)


def written_pdf(*pages: str, contents: bytes | None = None, form: bytes | None = None) -> bytes:
    """Return a PDF with a line of text on each page; an empty one draws a square, as a scan has a picture.

    `contents` takes the place of the instructions of all pages, and `form` is a part that they can show as /X.
    """
    kids = range(5, 5 + 2 * len(pages), 2)
    objects: dict[int, bytes] = {
        1: b"<</Type/Catalog/Pages 2 0 R>>",
        2: b"<</Type/Pages/Count %d/Kids[%b]>>" % (len(pages), b" ".join(b"%d 0 R" % kid for kid in kids)),
        3: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
        4: form or b"null",
    }
    resources = b"<</Font<</F 3 0 R>>/XObject<</X 4 0 R>>>>"
    for kid, text in zip(kids, pages, strict=True):
        shown = b"BT /F 12 Tf 50 700 Td (" + text.encode("cp1252") + b") Tj ET" if text else b"0 0 9 9 re f"
        objects[kid] = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources%b/Contents %d 0 R>>" % (
            resources,
            kid + 1,
        )
        packed = zlib.compress(contents or shown)
        objects[kid + 1] = b"<</Filter/FlateDecode/Length %d>>stream\n%b\nendstream" % (len(packed), packed)
    out, table = b"%PDF-1.7\n", b"0000000000 65535 f \n"
    for number, written in sorted(objects.items()):
        table += b"%010d 00000 n \n" % len(out)
        out += b"%d 0 obj\n%b\nendobj\n" % (number, written)
    size, start = len(objects) + 1, len(out)
    return out + b"xref\n0 %d\n%btrailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (
        size,
        table,
        size,
        start,
    )


def _stream(number: int, fields: str, data: bytes) -> bytes:
    return b"%d 0 obj\n<<%b/Length %d>>stream\n%b\nendstream\nendobj\n" % (number, fields.encode(), len(data), data)


def office(part: str) -> bytes:
    """Return a zip file with this part, which is how Word and sheets are told apart."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as parts:
        parts.writestr("[Content_Types].xml", "<Types/>")
        parts.writestr(part, "<made-for-a-test/>")
    return out.getvalue()
