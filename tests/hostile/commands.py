"""Hostile settings, records of a dataset and models."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from schemas.ledger import SCHEMA_VERSION
from tests.hostile.kinds import INGEST, Files, kind, refused

settings = partial(kind, "settings")
YAML = (*INGEST, "--config", "{source}/run.yaml")


def setting(name: str, says: str, *values: str) -> None:
    """A kind of --set."""
    more = tuple(part for value in values for part in ("--set", value))
    settings(name, refused(says), arguments=(*INGEST, *more))(dict)


def yaml(name: str, says: str, content: str | bytes) -> None:
    """A kind of settings file."""
    data = content.encode() if isinstance(content, str) else content
    settings(name, refused(says), arguments=YAML)(lambda: {"run.yaml": data})


setting("an unknown key", "identity.neighbors", "identity.neighbors=3")
setting("a key of Python", "__class__", "__class__=x")
setting("a value where a group is", "ray", "ray=4")
setting("a group where a value is", "units.items_per_unit", "units.items_per_unit.x=4")
setting("a unit for a number", "ray.unit_timeout_s", "ray.unit_timeout_s=30s")
setting("a negative number", "units.items_per_unit", "units.items_per_unit=-1")
setting("not a number", "ray.unit_timeout_s", "ray.unit_timeout_s=.nan")
setting("infinity", "ray.unit_timeout_s", "ray.unit_timeout_s=.inf")
setting("a fraction for a count", "units.items_per_unit", "units.items_per_unit=2.5")
setting("a number beyond every memory", "units.items_per_unit", f"units.items_per_unit={10**30}")
setting("a list for a number", "units.items_per_unit", "units.items_per_unit=[1, 2]")
setting("a value that is no YAML", "--set", "ray.workers=[")
setting("an object of Python", "--set", "ray.workers=!!python/object/apply:os.system ['touch escaped']")
setting("values nested without end", "--set", "ray.workers=" + "[" * 5000)
setting(
    "aliases that multiply",
    "",
    "inputs="
    + "{a: &a [x,x,x,x,x,x,x,x,x], "
    + ", ".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "}",
)
setting(
    "a pattern that never ends",
    "identity.pattern",
    "identity.method=path",
    "identity.pattern=" + "{any}" * 12 + "{identity}{x}",
)
setting("a secret in a URI", "credentials", "annotate.weights_uri=https://user:planted@host/weights")

yaml("a file that is a list", "expected settings", "- a\n- b\n")
yaml("a file that is no YAML", "run.yaml", "a: [1, 2\nb: }")
yaml("a file that is no text", "run.yaml", b"\xff\xfe\x00\x01")
yaml("a file with an object of Python", "run.yaml", "ray: !!python/object/apply:os.system ['touch escaped']\n")
yaml("a file of values nested without end", "run.yaml", "a: " + "[" * 20_000)

DEST_IS_A_FILE = ("ingest", "{source}", "{source}/good.jpg", *INGEST[3:])
settings("DEST that is a file", refused("good.jpg"), arguments=DEST_IS_A_FILE)(dict)
settings("a source that is not there", refused("does not exist"), arguments=("ingest", "{source}/none", *INGEST[2:]))(
    dict
)
settings("a source of an unknown protocol", refused("gopher"), arguments=("ingest", "gopher://host/x", *INGEST[2:]))(
    dict
)
settings(
    "a source whose protocol needs more", refused("reference"), arguments=("ingest", "reference://x", *INGEST[2:])
)(dict)
settings(
    "DEST of an unknown protocol", refused("gopher"), arguments=("ingest", "{source}", "gopher://x/y", *INGEST[3:])
)(dict)
settings(
    "a source with credentials", refused("credentials"), arguments=("ingest", "ftp://user:planted@h/x", *INGEST[2:])
)(dict)

# --- tampered records of a dataset -------------------------------------------------------------

STORED = ("verify", "{source}")


def record(name: str, says: str, make: Callable[[], Files], arguments: tuple[str, ...] = STORED) -> None:
    kind("record", name, refused(says), arguments=arguments)(make)


def plan(**changes: Any) -> bytes:
    values = {
        "schema_version": SCHEMA_VERSION,
        "source": "/photos",
        "root": "/photos",
        "config": {},
        "code": "x",
        "weights": {},
        "items_per_unit": 1,
        "items": 1,
        "units": 1,
        "items_sha256": "0" * 64,
        "files": [],
        "fingerprint": "0123456789abcdef" * 4,
    }
    return json.dumps(values | changes).encode()


def commit(**changes: Any) -> Files:
    values = {
        "unit": 0,
        "fingerprint": "0123456789abcdef" * 4,
        "items": 1,
        "rows": 1,
        "quarantined": 0,
        "part": "part-00000-01234567.parquet",
        "bytes": 1,
        "sha256": "0" * 64,
        "seconds": 1.0,
    }
    name = "_commits/00000-01234567.json"
    return {"_plan.json": plan(), name: json.dumps(values | changes).encode()}


OUTSIDE = {"file": "../outside/key.txt", "bytes": 1, "sha256": "0" * 64}
record("a plan that is no JSON", "damaged", lambda: {"_plan.json": b"{"})
record("a plan that is noise", "damaged", lambda: {"_plan.json": bytes(range(256)) * 9})
record("a plan nested without end", "damaged", lambda: {"_plan.json": b"[" * 100_000})
record(
    "a plan whose files lie outside",
    "files",
    lambda: {"_plan.json": plan(files=[OUTSIDE | {"first_unit": 0, "units": 1, "items": 1}])},
)
record("a commit whose part lies outside", "part", lambda: commit(part="../outside/key.txt"))
record("a commit whose part is absolute", "part", lambda: commit(part="/etc/passwd"))
record("a commit whose files lie outside", "files", lambda: commit(files=[OUTSIDE]))
record("a commit of a negative count", "rows", lambda: commit(rows=-1))
record("a commit that is no JSON", "damaged", lambda: commit() | {"_commits/00000-01234567.json": b"\xff\xfe"})
record("a commit whose name is no number", "", lambda: commit() | {"_commits/x-01234567.json": b"{}"})
record("a dataset without a plan", "no plan", dict)
record(
    "a version of faces whose shard lies outside", "shards", lambda: {"_current.json": version()}, ("gc", "{source}")
)


def version() -> bytes:
    """`_current.json` with a shard that is none of ours."""
    index = {"file": "index/x.parquet", "bytes": 1, "sha256": "0" * 64}
    shard = OUTSIDE | {"split": "train", "rows": 1, "identities": 1, "rows_sha256": "0"}
    values = {"fingerprint": "f", "annotations": "f", "config": {}, "weights": {}, "assignments_file": index}
    values |= {"faces": 1, "identities": 1, "left_out": {}}
    record = {"schema_version": 1, "version": 2, "shards": [shard], "identities_file": index, **values}
    return json.dumps(record).encode()


# --- models -----------------------------------------------------------------------------------------------------------


class _Touch:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch escaped",)


FLAME = (
    "landmark_embedding.npy",
    "head_template.obj",
    "uv_face_mask.png",
    "uv_face_eye_mask.png",
    "fixed_displacement_256.npy",
)


def flame(name: str, says: str, content: Callable[[], bytes]) -> None:
    """A kind of generic_model.pkl, beside files that are read after it."""

    def files() -> Files:
        return {"generic_model.pkl": content(), **dict.fromkeys(FLAME, b"x")}

    kind("model", name, refused(says), arguments=("assets", "import", "{source}", "{dest}"))(files)


flame("a pickle that runs a program", "refused", lambda: pickle.dumps(_Touch()))
flame("a pickle cut short", "damaged", lambda: pickle.dumps({"v": list(range(1000))})[:-5])
flame("a pickle with a forged memo", "", lambda: b"\x80\x04" + b"j" + struct.pack("<I", 2**31) + b".")
flame("a pickle that declares eight gigabytes", "damaged", lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"x.")
flame(
    "a pickle that takes eight gigabytes first", "declared", lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x."
)
flame("a pickle of lists in lists", "", lambda: b"(" * 200_000 + b"l" * 200_000 + b".")
flame("a pickle of noise", "", lambda: bytes(range(256)) * 99)


def checkpoint(name: str, says: str, make: Callable[[], Files]) -> None:
    arguments = ("reconstruct", "{source}", "{dest}", "--workers", "0", "--checkpoint", "{source}/ckpt")
    kind("model", name, refused(says), arguments=arguments, limit_mib=512)(
        lambda: {f"ckpt/{file}": data for file, data in make().items()}
    )


def weights(data: bytes) -> Files:
    """A checkpoint that describes its weights truly."""
    meta = {
        "schema_version": 1,
        "backbone": "mobilenet_v3_small",
        "bundle": {"name": "procedural-head", "hash": None},
        "info": {},
    }
    meta["weights_sha256"] = hashlib.sha256(data).hexdigest()
    return {"checkpoint.json": json.dumps(meta).encode(), "model.safetensors": data}


checkpoint("weights that are a pickle", "", lambda: weights(pickle.dumps(_Touch())))
checkpoint("weights with a header of an exabyte", "", lambda: weights(struct.pack("<Q", 2**60) + b"{}"))
checkpoint("a description that is no JSON", "damaged", lambda: {"checkpoint.json": b"{", "model.safetensors": b""})
checkpoint("a description that is a list", "schema", lambda: {"checkpoint.json": b"[]", "model.safetensors": b""})
