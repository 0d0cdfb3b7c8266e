"""Read a range of an image with readers of the zstd seekable format that are not Imprint's.

usage: read_range.py pyzstd|indexed_zstd IMAGE OFFSET LENGTH > bytes
"""

import sys


def main() -> None:
    library, image, offset, length = sys.argv[1:]
    if library == "pyzstd":
        from pyzstd import SeekableZstdFile

        reader = SeekableZstdFile(image, "r")
    elif library == "indexed_zstd":
        from indexed_zstd import IndexedZstdFile

        reader = IndexedZstdFile(image)
    else:
        sys.exit(f"unknown library {library}")
    reader.seek(int(offset))
    left = int(length)
    while left:
        data = reader.read(min(left, 1 << 20))
        if not data:
            sys.exit("the reader ended early")
        sys.stdout.buffer.write(data)
        left -= len(data)


main()
