#!/usr/bin/python3
"""Copies libsentencepiece without the protobuf that it exports.

  hide_bundled_protobuf.py /usr/lib/.../libsentencepiece.so.0 COPY

Debian's library carries a protobuf of its own (3.14), exports it, and calls it
through the dynamic linker. In one process with libprotobuf, which we and
LibTorch use, whichever comes first answers for both: the other then aborts on
its version check or crashes. In the copy these symbols are hidden, as they
ought to have been built: the library finds its own, nobody else sees them.
Only a visibility byte per symbol differs.
"""
import struct
import sys

SHT_DYNSYM = 11
STV_HIDDEN = 2
NAMESPACE = b"6google8protobuf"


def hide(image):
    if image[:6] != b"\x7fELF\x02\x01":
        raise SystemExit("not a 64-bit little-endian ELF file")
    (sections,) = struct.unpack_from("<Q", image, 0x28)
    size, count = struct.unpack_from("<HH", image, 0x3A)

    def section(index):  # type, offset, size, link
        base = sections + index * size
        (kind,) = struct.unpack_from("<I", image, base + 4)
        offset, length = struct.unpack_from("<QQ", image, base + 0x18)
        (link,) = struct.unpack_from("<I", image, base + 0x28)
        return kind, offset, length, link

    hidden = 0
    for index in range(count):
        kind, offset, length, link = section(index)
        if kind != SHT_DYNSYM:
            continue
        strings = section(link)[1]
        for symbol in range(offset, offset + length, 24):
            name, _, other, defined = struct.unpack_from("<IBBH", image, symbol)
            begin = strings + name
            text = image[begin:image.index(b"\0", begin)]
            if defined and NAMESPACE in text:
                image[symbol + 5] = other & ~3 | STV_HIDDEN
                hidden += 1
    return hidden


def main():
    source, target = sys.argv[1:]
    with open(source, "rb") as f:
        image = bytearray(f.read())
    hide(image)
    with open(target, "wb") as f:
        f.write(image)


if __name__ == "__main__":
    main()
