"""Discovery: every image of a source, streamed in one fixed order, each once.

A source is a folder, a bucket prefix, a pattern, one image, an archive, a Parquet file with images inside, a video,
or a list of URIs; archives and Parquet files in folders are opened as well, videos on request. Files that are images
by their name and are not read are counted. The order is that of the full path by code point, so a folder and its copy
in a bucket give the same plan; members, rows, frames and lists keep their own order.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice

import pyarrow as pa

from schemas.engine import SourceConfig
from schemas.ledger import Item
from tasks.sources.archives import DAMAGE, DOUBLE, archive_members, is_archive
from tasks.sources.endings import INSIDE, SHEET, ending_of, left_out_words, unread_ending
from tasks.sources.images import readable_endings
from tasks.sources.listings import URI_COLUMNS, is_list, listed_uris
from tasks.sources.read import read_items
from tasks.sources.table_columns import describe, image_column, image_columns, is_text
from tasks.sources.tables import image_rows, is_table, table_schema
from tasks.sources.videos import VIDEO_SUFFIXES, is_video, video_frames
from tasks.sources.walk import File, SourceError, is_file, local_file, parse_glob, source_root, walk
from tasks.store.ranges import S3
from tasks.store.storage import StorageError, check_command, is_local, normalise

__all__ = ["SourceError", "discover", "source_root"]

MD5 = re.compile(r"[0-9a-f]{32}")  # an S3 etag of another form (parts) is no hash of the content
READ_AHEAD = 256  # images hashed as one block

logger = logging.getLogger("deca")


def discover(
    source: str,
    config: SourceConfig | None = None,
    skip: str | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[Item]:
    """Yield the items of `source` in order, numbered from 0. A damaged archive is one item, which fails when read.

    skip: a folder inside the source to leave out (the output, when it is there); left_out: counts, by ending, files
    that look like images and are not read, unless `config.extensions` says what to take.
    Raises SourceError where the source is missing, cannot be listed, or holds no image.
    """
    config = config or SourceConfig()
    left_out = Counter() if left_out is None else left_out
    uri = normalise(source)
    try:
        with _reading(uri):
            root = source_root(uri)
            listed = _is_list(uri, config)
            single = parse_glob(uri) is None and is_file(uri)
    except StorageError as error:
        raise SourceError(str(error)) from error
    if config.uri_column and not listed:
        raise SourceError(f"{uri} is no list, so inputs.uri_column means nothing. Lists: .txt .csv .tsv .parquet")
    inside = normalise(skip) if skip else None
    items = (
        _listed(uri, root, config, left_out)
        if listed
        else _walked(uri, root, config, left_out, single, None if inside == uri else inside)
    )
    index = -1
    for index, item in enumerate(_deduplicated(items, config) if config.deduplicate else items):
        yield replace(item, index=index, root=root)
    if index < 0:
        kinds = " ".join(_endings(config))
        unread = f"left out: {left_out_words(left_out)}; " if left_out else ""
        patterns = ", include and exclude patterns apply" if config.include or config.exclude else ""
        raise SourceError(
            f"no images in {uri} ({unread}looked for {kinds}, also inside tar, zip and Parquet, and videos with "
            f"inputs.videos=true; hidden files are skipped{patterns}). Check with: {check_command(uri)}"
        )


# --- kinds of sources -------------------------------------------------------------------------------------------------


def _is_list(uri: str, config: SourceConfig) -> bool:
    """Return whether the source is a list: by its name, or a Parquet file with a column of URIs and none of images."""
    if is_list(uri):
        return is_file(uri)
    if not is_table(uri) or config.image_column or parse_glob(uri) or not is_file(uri):
        return False
    if config.uri_column:
        return True
    with _reading(uri):
        schema, _ = table_schema(uri)
    uris = [name for name in URI_COLUMNS if name in schema.names and is_text(schema.field(name).type)]
    found = image_column(schema, None, uri)
    if found is not None and found.nested and uris:
        raise SourceError(
            f"{uri}: images may be in {found.name}, and {uris[0]} may name files. Say which: --set "
            f"inputs.image_column={found.name} or --set inputs.uri_column={uris[0]}"
        )
    if found is not None:
        return False
    if not set(URI_COLUMNS) & set(schema.names):
        raise SourceError(
            f"{uri}: no column of images (bytes or struct<bytes, path>) and none of URIs. The columns are "
            f"{describe(schema)}. Name one: --set inputs.image_column=NAME or --set inputs.uri_column=NAME"
        )
    return True


def _listed(uri: str, root: str, config: SourceConfig, left_out: Counter[str]) -> Iterator[Item]:
    """Entries of a list, each once. Remote ones are not looked up: a million requests would precede the first row."""
    seen = Digests()
    doubled = 0
    with _reading(uri):
        for entry in listed_uris(uri, config.uri_column):
            if not seen.add(hashlib.blake2b(entry.encode(), digest_size=16).digest()):
                doubled += 1
                continue
            file = local_file(entry) if is_local(entry) else File(entry)
            place = entry[len(root) :].lstrip("/") if entry.startswith(f"{root}/") else entry
            yield from _expand(file, place, config, left_out, chosen=True)
    if doubled:
        logger.info("%s names %d images more than once; each is planned once", uri, doubled)


def _walked(
    uri: str, root: str, config: SourceConfig, left_out: Counter[str], single: bool, skip: str | None
) -> Iterator[Item]:
    named = parse_glob(uri) is not None and uri.lower().endswith(VIDEO_SUFFIXES)  # clips/*.mp4
    for file in walk(uri, skip):
        place = file.uri[len(root) :].lstrip("/")
        if not any(part.startswith(".") for part in place.split("/")):
            yield from _expand(file, place, config, left_out, chosen=named, single=single)


def _expand(
    file: File, place: str, config: SourceConfig, left_out: Counter[str], *, chosen: bool, single: bool = False
) -> Iterator[Item]:
    """Yield the items of one file: itself, its members or rows, or none.

    chosen: named by the user, so that its extension does not matter; single: it is the whole source.
    """
    whole = Item(0, file.uri, size=file.size, etag=file.etag)
    named = chosen or single
    # Photo folders often contain unrelated videos: read only those that are named or requested.
    video = is_video(file.uri) and (named or config.videos)
    if not is_archive(file.uri) and not is_table(file.uri) and not video:
        if _wanted(place, config, any_extension=named):
            yield whole
        else:
            _count(place, config, left_out)
        return
    if any(fnmatchcase(place, pattern) for pattern in config.exclude):
        return
    members: Iterator[tuple[str, int, int]]
    if video:
        frames = video_frames(file.uri)
        members = (frame for frame in frames if _wanted(f"{place}#{frame[0]}", config, any_extension=True))
    elif is_table(file.uri):
        members = _rows(file, place, config, named)
    else:
        members = _members(file, place, config, left_out)
    try:
        for member, offset, size in members:
            yield replace(whole, member=member, offset=offset, size=size)
    except (*DAMAGE, FileNotFoundError, PermissionError) as error:
        if single and (video or is_table(file.uri)):
            hint = "Is it whole? A video cut off before its index cannot be read" if video else "Is it a Parquet file?"
            raise SourceError(f"cannot read {file.uri}: {error}. {hint}") from error
        yield whole
    except (OSError, StorageError) as error:  # a failing disk or network must not shorten the plan
        raise SourceError(f"cannot read {file.uri}: {error}. Check with: {check_command(file.uri)}") from error


def _members(file: File, place: str, config: SourceConfig, left_out: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """(member, offset, size) of the images of an archive; other members (`key.json`) are no items.

    Of several images of one name the first counts, for a name gives one id; the others are planned to fail.
    """
    seen = Digests()
    for member, offset, size in archive_members(file.uri, config.zip_encoding):
        if member.rpartition("/")[2].startswith("."):  # macOS `._*` too
            continue
        if _wanted(f"{place}#{member}", config):
            new = seen.add(hashlib.blake2b(member.encode(), digest_size=16).digest())
            yield member, offset if new else DOUBLE, size
        else:
            _count(f"{place}#{member}", config, left_out, inside=True)


def _rows(file: File, place: str, config: SourceConfig, named: bool) -> Iterator[tuple[str, int, int]]:
    """(member, row, -1) of a Parquet file; nothing where it has no images, unless the user named it."""
    if not named and any(part.startswith("_") for part in place.split("/")):  # as all readers of Parquet folders do
        return
    schema, rows = table_schema(file.uri)
    column = image_column(schema, config.image_column, file.uri)
    if column is None:
        if named:
            raise SourceError(f"{file.uri}: no column of images. The columns are {describe(schema)}")
        return
    others = (other.name for other in image_columns(schema) if other.struct and other != column)
    _log_others(column.name, ", ".join(others))
    for member, row in image_rows(file.uri, column, rows):
        if _wanted(f"{place}#{member}", config, any_extension=True):
            yield member, row, -1


@lru_cache(maxsize=64)
def _log_others(column: str, others: str) -> None:
    """Log other columns that may hold images (masks, most often), once per source."""
    if others:
        logger.info("Parquet: images of the column %s are taken (inputs.image_column), not those of %s", column, others)


def _wanted(place: str, config: SourceConfig, any_extension: bool = False) -> bool:
    if not any_extension and (place.endswith(SHEET) or not place.lower().endswith(_endings(config))):
        return False
    if config.include and not any(fnmatchcase(place, pattern) for pattern in config.include):
        return False
    return not any(fnmatchcase(place, pattern) for pattern in config.exclude)


@lru_cache(maxsize=8)
def _endings(config: SourceConfig) -> tuple[str, ...]:
    """Return the accepted endings: the configured ones, else all that the decoder reads."""
    if config.extensions is None:
        return tuple(sorted(readable_endings()))
    return tuple(f".{extension.lower()}" for extension in config.extensions)


def _count(place: str, config: SourceConfig, left_out: Counter[str], inside: bool = False) -> None:
    """Count a file that looks like an image and is not accepted, unless the config excludes it."""
    if config.extensions is not None:
        return
    ending = unread_ending(place, _endings(config))
    if inside and (is_archive(place) or (config.videos and is_video(place))):  # in a folder they are opened
        ending = f"{ending_of(place)}{INSIDE}"
    if ending is not None and _wanted(place, config, any_extension=True):
        left_out[ending] += 1


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Raise any error of reading a list or a footer as a SourceError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{uri} does not exist. Check with: {check_command(uri)}") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"cannot read {uri}: {error}. Check with: {check_command(uri)}") from error


# --- equal content ----------------------------------------------------------------------------------------------------


class Digests:
    """A set of 16-byte digests in 16 bytes a slot, at most 60 % full: 27 to 53 bytes an entry, Python's set 110."""

    def __init__(self) -> None:
        self.slots, self.count = 1024, 0
        self.table = bytearray(16 * self.slots)

    def add(self, digest: bytes) -> bool:
        """Whether the digest is new. Sixteen zero bytes mark a free slot; no hash gives them."""
        if self.count > 0.6 * self.slots:
            self._grow()
        return self._put(digest)

    def _put(self, digest: bytes) -> bool:
        slot = int.from_bytes(digest[:8], "little") % self.slots
        while (held := self.table[16 * slot : 16 * slot + 16]) != digest:
            if not any(held):
                self.table[16 * slot : 16 * slot + 16] = digest
                self.count += 1
                return True
            slot = (slot + 1) % self.slots
        return False

    def _grow(self) -> None:
        old = self.table
        self.slots, self.count = 2 * self.slots, 0
        self.table = bytearray(16 * self.slots)
        for at in range(0, len(old), 16):
            if any(digest := bytes(old[at : at + 16])):
                self._put(digest)


def _deduplicated(items: Iterator[Item], config: SourceConfig) -> Iterator[Item]:
    """Yield the first item of each content, by MD5: the etag of plain S3 objects; others are read.

    What cannot be read stays in: it fails alone later. A store whose etags are no hashes (encrypted with KMS) keeps
    copies apart, it never merges what differs.
    """
    seen = Digests()
    doubled = 0
    while block := list(islice(items, READ_AHEAD)):
        unread = (item for item in block if _known_digest(item) is None)
        contents = read_items(unread, max_bytes=config.max_bytes)
        for item in block:
            digest = _known_digest(item)
            if digest is None:
                _, data = next(contents)
                digest = None if isinstance(data, Exception) else hashlib.md5(data, usedforsecurity=False).digest()
            if digest is None or seen.add(digest):
                yield item
            else:
                doubled += 1
    if doubled:
        logger.info("%d images have the content of an earlier one and are not planned", doubled)


def _known_digest(item: Item) -> bytes | None:
    plain = item.member is None and item.uri.startswith(S3) and not is_archive(item.uri)
    return bytes.fromhex(item.etag) if plain and item.etag and MD5.fullmatch(item.etag) else None
