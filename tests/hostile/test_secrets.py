"""No credential and no image's content in anything that is stored, printed or shown; DEST stays in its roots."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from schemas.ingest import IngestConfig
from schemas.ledger import CommitRecord, Item, PlanRecord, Quarantined, StoredFile
from schemas.reconstruct import ReconstructConfig
from schemas.secrets import credential_in, redact, shown
from tasks.store.storage import ALLOWED_ROOTS, StorageError, Store, check_allowed
from tests.hostile.images import titled
from tests.hostile.kinds import encoded, face, jpeg

# Planted where credentials and contents live; nothing of it may turn up anywhere else.
KEY, SECRET, TOKEN = "PLANTEDKEYID0001", "planted/secret+0002", "planted-token-0003"
CONTENT = "planted-content-0004"


@pytest.fixture
def planted(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket whose credentials are the planted ones; moto takes any."""
    import fsspec

    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={TOKEN};",
        "HF_TOKEN": TOKEN,
        "PREFECT_API_URL": "",
    }.items():
        monkeypatch.setenv(name, value)
    from tasks.store.storage import _filesystem

    def forget() -> None:
        _filesystem.cache_clear()
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    forget()
    yield s3.uri("planted")
    forget()


@pytest.fixture
def deca(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in this process: (exit code, everything printed or logged at any level)."""
    printed = io.StringIO()
    for console in (cli.console, cli.errors):
        monkeypatch.setattr(console, "_file", printed)  # "file" would be bound to today's stream for good
        monkeypatch.setattr(console, "_width", 10_000)
    monkeypatch.setattr(sys, "stderr", printed)
    every = logging.StreamHandler(printed)
    logging.getLogger().addHandler(every)
    for name in ("deca", "fsspec", "s3fs", "PIL"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["deca", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), printed.getvalue()

    yield run
    logging.getLogger().removeHandler(every)


def everything(store: Store) -> dict[str, bytes]:
    """Every object of a dataset, by name; Parquet also decompressed, for a grep must not miss what is packed."""
    from tasks.store.storage import open_uri

    fs, path = open_uri(store.uri)
    found = {}
    for name in fs.find(path):
        found[name] = fs.cat_file(name)
        if name.endswith(".parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pq.read_table(pa.BufferReader(found[name]))
            found[f"{name}, rows"] = repr((table.schema.metadata, table.to_pylist())).encode()
    return found


def leaks(found: dict[str, bytes], *words: str) -> list[str]:
    return [f"{word} in {name}" for name, data in found.items() for word in words if word.encode() in data]


def put_hostile(store: Store) -> None:
    """Images that work, and images that say what must not be repeated: in their text, or instead of pixels."""
    store.write("good.jpg", jpeg())
    store.write("titled.png", encoded(face(), "PNG", pnginfo=titled(CONTENT)))
    store.write("letter.jpg", f"{CONTENT}: dear diary".encode())
    store.write("page.jpg", f"<html>{CONTENT}".encode())
    store.write("comment.jpg", jpeg()[:2] + b"\xff\xfe\x00\x16" + CONTENT.encode() + jpeg()[2:900])
    store.write("noise.jpg", b"\x07\x08\x09\x0a" + CONTENT.encode())


def test_nothing_planted_is_stored_or_printed(planted: str, deca: Any, tmp_path: Path) -> None:
    put_hostile(Store(f"{planted}/in"))
    dest = f"{planted}/out"
    code, _ = deca("ingest", f"{planted}/in", dest, "--workers", 0, "--set", "identity.method=none")
    assert code == 2
    options = ("--workers", 0, "--set", "contact_sheet_rows=1", "--set", "codes=landmarks")
    code, _ = deca("reconstruct", f"{planted}/in", f"{planted}/heads", *options)
    assert code == 2
    deca("status", dest)
    deca("ingest", f"{planted}/none", dest, "--workers", 0)
    _, printed = deca("reconstruct", f"{planted}/in", f"s3://{KEY}:{SECRET}@photos/x", *options)
    assert "letter.jpg" in printed  # the status did look
    found = {name: data for name, data in everything(Store(planted)).items() if "/planted/in/" not in name}
    assert {name.rpartition("/")[2] for name in found} >= {"_plan.json", "_config.json", "card.html", "summary.json"}
    assert not leaks({**found, "everything printed": printed.encode()}, KEY, SECRET, TOKEN, CONTENT)


def test_a_refusal_by_the_store_names_no_credential(planted: str, deca: Any) -> None:
    code, printed = deca("ingest", "s3://no-such-bucket/x", f"{planted}/out", "--workers", 0)
    assert code == 1
    assert "no-such-bucket" in printed
    assert not leaks({"printed": printed.encode()}, KEY, SECRET, TOKEN)


@pytest.mark.slow
def test_prefect_stores_nothing_planted(planted: str, prefect_harness: None, tmp_path: Path) -> None:
    """Parameters, logs, states and artifacts of a flow run, as the API tells them."""
    from prefect.client.orchestration import get_client

    from pipelines import flows

    put_hostile(Store(f"{planted}/in"))
    settings = {"ray": {"workers": 0}, "identity": {"method": "none"}}
    flows.ingest(IngestConfig.model_validate({"source": f"{planted}/in", "dest": f"{planted}/flow", **settings}))
    with get_client(sync_client=True) as client:
        answers = {
            "flow runs": client.request("POST", "/flow_runs/filter", json={}).content,
            "task runs": client.request("POST", "/task_runs/filter", json={}).content,
            "logs": client.request("POST", "/logs/filter", json={}).content,
            "artifacts": client.request("POST", "/artifacts/filter", json={}).content,
        }
    assert b"flow/annotations" in b"".join(answers.values()) or b"planted/flow" in b"".join(answers.values())
    assert not leaks(answers, KEY, SECRET, TOKEN, CONTENT)


# --- URIs -------------------------------------------------------------------------------------------------------------

WITH_CREDENTIALS = [
    "s3://AKIA:secret@bucket/photos",
    "s3://AKIA:sec/ret@bucket/photos",
    "ftp://ann:letmein@host/photos",
    "sftp://ann:let@me@host/photos",
    "https://token@host/x.jpg",
    "https://host/x.jpg?X-Amz-Signature=1&a=2",
    "https://host/x.jpg?a=2&sig=abc%3D",
    "https://acct.blob.core.windows.net/c/x.jpg?sv=2020&se=x&sp=r&SIG=abc",
    "https://host/x.jpg?access_token=abc",
]
WITHOUT = [
    "s3://bucket/a@b:c.jpg",
    "s3://bucket/a?sig=1.jpg",
    "abfs://container@account.dfs.core.windows.net/photos",
    "sftp://ann@host/photos",
    "http://host:8080/a@b.jpg?page=2",
    "https://host/a.jpg?design=1&designature=2",
    "/data/a:b@c/x.jpg",
    "photos/",
]


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
@pytest.mark.parametrize("field", ["source", "dest", "checkpoint", "annotate.weights_uri"])
def test_settings_refuse_credentials_and_do_not_repeat_them(uri: str, field: str) -> None:
    values: dict[str, Any] = {"source": "a", "dest": "b"}
    group, _, name = field.rpartition(".")
    (values.setdefault(group, {}) if group else values)[name] = uri
    with pytest.raises(ValueError, match="credentials") as caught:
        ReconstructConfig.model_validate(values)
    message = "; ".join(error["msg"] for error in caught.value.errors())  # type: ignore[attr-defined]
    assert uri.partition("://")[2] not in message
    with pytest.raises(StorageError, match="credentials") as refused:
        Store(uri)
    assert uri.partition("://")[2][:12] not in str(refused.value)


@pytest.mark.parametrize("uri", WITHOUT)
def test_places_without_credentials_pass(uri: str) -> None:
    assert credential_in(uri) is None
    ReconstructConfig(source=uri, dest=uri)


def test_messages_of_a_driver_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-0005")
    monkeypatch.setenv("LONG_PLACE", "planted-0006")
    said = "GET https://h/x?sig=abc&a=1 by ftp://ann:pw@h with planted-0005 (AccountKey=zzz==;) at planted-0006"
    assert redact(said) == "GET https://h/x?sig=***&a=1 by ftp://***@h with *** (AccountKey=***;) at planted-0006"
    row = Quarantined.of(Item(0, "x.jpg"), "read", ValueError("refused for planted-0005"))
    assert row.message == "refused for ***"
    assert shown("a\x1b[2J\u202eb\n") == "a\\x1b[2J\\x202eb\n"


def test_a_place_with_a_zero_byte_is_none() -> None:
    with pytest.raises(StorageError, match="zero byte"):
        Store("/tmp/a\0b")


# --- roots ------------------------------------------------------------------------------------------------------------


def test_dest_outside_the_roots_is_refused_before_any_work(
    deca: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").write_bytes(jpeg())
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "allowed-not")
    monkeypatch.setenv(ALLOWED_ROOTS, f"s3://bucket/people, {tmp_path}/allowed/")
    outside = ("allowed-not/out", "allowed/../out", "allowed/link/out", "out")
    for place in outside:
        code, printed = deca("ingest", tmp_path / "in", f"{tmp_path}/{place}", "--workers", 0)
        assert code == 1
        assert "lies in none of the folders" in printed
    for command in (("assets", "head", tmp_path / "bundle"), ("demo", tmp_path / "demo")):
        assert deca(*command)[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["allowed", "allowed-not", "in"]
    assert not list((tmp_path / "allowed-not").iterdir())
    Store(tmp_path / "allowed" / "out").write("x", b"1")
    assert (tmp_path / "allowed" / "out" / "x").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("roots", "uri", "fine"),
    [
        ("s3://b/people", "s3://b/people/out", True),
        ("s3://b/people", "s3a://b/people/out", True),
        ("s3://b/people", "s3://b/people", True),
        ("s3://b/people/", "s3://b/people-2/out", False),
        ("s3://b/people", "s3://b/people/../other", False),
        ("s3://b/people", "gs://b/people/out", False),
        ("s3://b/people", "/b/people", False),
        ("/", "/anything", True),
        (" , ", "/anything", True),
        ("", "s3://b/x", True),
    ],
)
def test_roots_of_every_kind(monkeypatch: pytest.MonkeyPatch, roots: str, uri: str, fine: bool) -> None:
    monkeypatch.setenv(ALLOWED_ROOTS, roots)
    if fine:
        check_allowed(uri)
        return
    with pytest.raises(StorageError, match=f"{ALLOWED_ROOTS}"):
        check_allowed(uri)


def test_everything_that_writes_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "out")
    store.write("x", b"1")
    (tmp_path / "other").write_bytes(b"2")
    monkeypatch.setenv(ALLOWED_ROOTS, str(tmp_path / "elsewhere"))
    for act in (
        lambda: store.write("y", b""),
        lambda: store.create("y", b""),
        lambda: store.delete("x"),
        lambda: store.delete_folder(""),
        lambda: store.publish(tmp_path / "other", "y"),
        store.check_writable,
    ):
        with pytest.raises(StorageError, match="may not be written"):
            act()
    assert os.listdir(tmp_path / "out") == ["x"]
    assert store.read("x") == b"1"


# --- names in records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "s3://b/x", "a\\..\\x", "", ".", "a//b", "a\0b"])
def test_records_name_nothing_outside_their_dataset(name: str) -> None:
    with pytest.raises(ValueError, match="below the dataset"):
        StoredFile(file=name, bytes=1, sha256="0")
    commit = {"unit": 0, "fingerprint": "f", "items": 1, "rows": 1, "quarantined": 0, "bytes": 1, "sha256": "0"}
    with pytest.raises(ValueError, match="below the dataset"):
        CommitRecord.model_validate({**commit, "part": name, "seconds": 1.0})


def test_counts_are_not_negative() -> None:
    for field in ("items", "units", "items_per_unit"):
        with pytest.raises(ValueError, match=field):
            PlanRecord.model_validate({field: -1})
