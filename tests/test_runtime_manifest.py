"""Manifests: written, read, and compared with the folder they describe."""

import json
from pathlib import Path

import pytest

from sdcompress.runtime import (
    BundleError,
    FileRecord,
    Manifest,
    hash_files,
    read_manifest,
    verify,
    write_manifest,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.bin").write_bytes(b"weights")
    (tmp_path / "index.json").write_bytes(b"{}")
    write(tmp_path, hash_files(tmp_path, ["unet/model.bin", "index.json"]))
    return tmp_path


def write(folder: Path, files: dict[str, FileRecord]) -> Manifest:
    manifest = Manifest(
        recipe={"schema": 1, "name": "naïve"},
        model={"id": "demo", "revision": None},
        versions={"openvino": "2026.4.1"},
        quality={"clip_score": {"difference": -0.1}},
        files=files,
    )
    write_manifest(folder, manifest)
    return manifest


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = write(tmp_path, {"b": FileRecord("0" * 64, 3), "a": FileRecord("f" * 64, 0)})
    assert read_manifest(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    values = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert values["schema"] == 1
    assert list(values["files"]) == ["a", "b"]


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, {"b": FileRecord("0" * 64, 3), "a": FileRecord("f" * 64, 0)})
    first = (tmp_path / "manifest.json").read_bytes()
    write(tmp_path, {"a": FileRecord("f" * 64, 0), "b": FileRecord("0" * 64, 3)})
    assert (tmp_path / "manifest.json").read_bytes() == first


def test_hashes_are_sha256(bundle: Path) -> None:
    empty_object = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert hash_files(bundle, ["index.json"]) == {"index.json": FileRecord(empty_object, 2)}


def test_an_intact_bundle_has_no_problems(bundle: Path) -> None:
    assert verify(bundle) == []


def test_every_kind_of_damage_is_told_apart(bundle: Path) -> None:
    (bundle / "unet" / "model.bin").write_bytes(b"WEIGHTS")
    assert verify(bundle) == ["unet/model.bin: content differs from the manifest (sha256)"]
    (bundle / "unet" / "model.bin").write_bytes(b"wei")
    assert verify(bundle) == ["unet/model.bin: 3 bytes, but the manifest says 7"]
    (bundle / "unet" / "model.bin").unlink()
    (bundle / "unet" / "extra.py").write_text("print()")
    assert verify(bundle) == [
        "unet/model.bin: missing",
        "unet/extra.py: not listed in the manifest",
    ]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "unet/../../x", "", "a\\b", "C:x"])
def test_paths_outside_the_bundle_are_never_read(bundle: Path, name: str) -> None:
    with pytest.raises(BundleError, match="not a path inside"):
        hash_files(bundle, [name])
    files = dict(read_manifest(bundle).files)
    write(bundle, files | {name: FileRecord("0" * 64, 0)})
    assert verify(bundle) == [f"{name}: lies outside the bundle"]


def test_links_out_of_the_bundle_are_never_followed(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "model.bin"
    outside.write_bytes(b"weights")
    (bundle / "unet" / "model.bin").unlink()
    (bundle / "unet" / "model.bin").symlink_to(outside)
    assert verify(bundle) == ["unet/model.bin: lies outside the bundle"]


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"schema": 2}, "schema 2"),
        ({"extra": {}}, "exactly"),
        ({"files": []}, "exactly"),
        ({"files": {"a": {"sha256": "x"}}}, "record of a"),
        ({"files": {"a": {"sha256": "x", "bytes": True}}}, "record of a"),
    ],
)
def test_unusable_manifests_are_refused(
    bundle: Path, change: dict[str, object], mentions: str
) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match=mentions):
        read_manifest(bundle)


def test_a_missing_manifest_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        verify(tmp_path)
    with pytest.raises(BundleError, match="absent cannot be read"):
        hash_files(tmp_path, ["absent"])
