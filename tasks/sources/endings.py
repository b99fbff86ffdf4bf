"""File endings: images that are read, images that are not with a remedy, and others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

CONVERT, DEVELOP, UNPACK = "convert to PNG or JPEG", "camera raw: develop to JPEG or TIFF", "unpack"
INSTALL_HEIF = "pip install pillow-heif"
SHEET = ".deca.png"  # what `deca reconstruct --show` draws beside a photograph: a result, no image of the source
INSIDE = " in an archive"  # suffix to the ending of archive members that are read in folders only

# Formats of images, each with what to do where the decoder does not read it. Vector drawings of print (.eps, .pdf) and
# arrays (.npy, .mat, .h5) are not taken for images.
OTHER_IMAGES: Mapping[str, str] = {
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), INSTALL_HEIF),
    **dict.fromkeys(
        (
            *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos"),
            *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
        ),
        DEVELOP,
    ),
    **dict.fromkeys(
        (
            *(".avif", ".avifs", ".webp", ".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),  # a Pillow without the codec
            *(".bpg", ".dcx", ".dds", ".dib", ".exr", ".hdr", ".ico", ".jls", ".jxl", ".jxr", ".kra", ".pam", ".pcx"),
            *(".pfm", ".psb", ".psd", ".qoi", ".ras", ".sgi", ".svg", ".svgz", ".tga", ".wdp", ".xcf"),
        ),
        CONVERT,
    ),
}
PACKERS = (".gz", ".bz2", ".xz", ".zst")  # of one file: FERET's images come as .ppm.bz2
OTHER_ARCHIVES = (".rar", ".7z", ".tbz", ".tbz2", ".txz", ".tzst", *(f".tar{packer}" for packer in PACKERS[1:]))


def unread_ending(name: str, readable: Collection[str]) -> str | None:
    """Return the ending of an image that is not read, or None for other files.

    readable: endings that the decoder reads (`tasks.sources.images.readable_endings`).
    """
    name = name.lower().rpartition("/")[2]
    for ending in OTHER_ARCHIVES:
        if name.endswith(ending):
            return ending
    stem, _, packer = name.rpartition(".")
    if f".{packer}" in PACKERS and (ending_of(stem) in OTHER_IMAGES or ending_of(stem) in readable):
        return f"{ending_of(stem)}.{packer}"
    ending = ending_of(name)
    return ending if ending in OTHER_IMAGES else None


def left_out_words(counts: Mapping[str, int]) -> str:
    """Return the left-out files in words, with a remedy.

    >>> left_out_words({".cr2": 1, ".heic": 3})
    '1 .cr2 (camera raw: develop to JPEG or TIFF), 3 .heic (pip install pillow-heif)'
    """
    return ", ".join(f"{count:,} {ending} ({OTHER_IMAGES.get(ending, UNPACK)})" for ending, count in counts.items())


def ending_of(name: str) -> str:
    """Return the ending of a file's name: `.jpg` of `a.b.JPG`, nothing of `README`."""
    stem, dot, ending = name.lower().rpartition(".")
    return f".{ending}" if stem and dot else ""
