"""Opening a bundle: what is checked when, and what each kind of damage is called."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_model import write_toy_model

from sdcompress.runtime import (
    BundleError,
    InputError,
    Manifest,
    Pipeline,
    hash_files,
    pack,
    require_signature,
    sign,
    unpack,
    verify,
    write_manifest,
)
from sdcompress.runtime import manifest as manifest_module

UNET = "unet/openvino_model.bin"


def seal(folder: Path) -> Path:
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    write_manifest(
        folder, Manifest({"sampling": {"steps": 3}}, {}, {}, {}, hash_files(folder, names))
    )
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return seal(write_toy_model(tmp_path / "bundle"))


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    hashed: list[str] = []
    plain = manifest_module.hash_files

    def counting(folder: Path, names: list[str]) -> object:
        hashed.extend(names)
        return plain(folder, names)

    monkeypatch.setattr(manifest_module, "hash_files", counting)
    return hashed


def test_hashes_are_compared_once_for_each_copy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = count_hashing(monkeypatch)
    Pipeline.load(folder)
    first = len(hashed)
    assert UNET in hashed
    Pipeline.load(folder)
    assert len(hashed) == first
    Pipeline.load(folder, verify="always")
    assert len(hashed) == 2 * first
    Pipeline.load(folder, verify="never")
    assert len(hashed) == 2 * first
    Pipeline.load(Path(shutil.copytree(folder, tmp_path / "copy")))
    assert len(hashed) == 3 * first


def test_a_byte_that_changes_later_is_noticed(folder: Path) -> None:
    Pipeline.load(folder)
    path = folder / "text_encoder/openvino_model.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as copying tools do
    with pytest.raises(BundleError, match=r"text_encoder/openvino_model.bin: content differs"):
        Pipeline.load(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / UNET).unlink(), "missing"),
    "truncated": (
        lambda f: (f / "tokenizer/tokenizer.json").write_bytes(b"{"),
        "1 bytes, but the manifest says",
    ),
    "swapped": (
        lambda f: shutil.copy(f / "vae_decoder/openvino_model.xml", f / "unet/openvino_model.xml"),
        "unet/openvino_model.xml: .* bytes, but",
    ),
    "planted": (
        lambda f: (f / "tokenizer/merges.txt").write_text("x"),
        "not listed in the manifest, yet it would be read",
    ),
    "planted decoder": (
        lambda f: shutil.copytree(f / "vae_decoder", f / "tiny_decoder"),
        "tiny_decoder/openvino_model.bin: not listed in the manifest",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_seen_at_once_needs_no_hashes(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, mentions = DAMAGE[kind]
    change(folder)
    hashed = count_hashing(monkeypatch)
    with pytest.raises(BundleError, match=mentions):
        Pipeline.load(folder, verify="never")
    assert not hashed


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / UNET).rename(tmp_path / "elsewhere.bin")
    (folder / UNET).symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(BundleError, match="lies outside the bundle"):
        Pipeline.load(folder)


def test_other_files_beside_the_bundles_are_nobodys_business(folder: Path) -> None:
    (folder / "out.png").write_bytes(b"a picture")
    assert Pipeline.load(folder).settings.steps == 3


def test_a_folder_without_a_manifest_is_opened_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Pipeline.load(write_toy_model(tmp_path / "export"))
    assert "nothing in it was verified" in caplog.text


def test_a_cache_that_cannot_be_written_is_no_fault(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "file"))
    assert Pipeline.load(folder).settings.steps == 3
    with pytest.raises(InputError, match="once, always, never"):
        Pipeline.load(folder, verify="sometimes")


# Archives


def test_archives_are_deterministic_and_come_back_as_they_were(
    folder: Path, tmp_path: Path
) -> None:
    first = pack(folder, tmp_path / "one.sdbundle")
    for path in folder.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    second = pack(folder, tmp_path / "two.sdbundle")
    assert first.read_bytes() == second.read_bytes()
    back = unpack(first, tmp_path / "back")
    assert verify(back) == []
    names = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    assert {p.relative_to(back) for p in back.rglob("*") if p.is_file()} == names
    assert all((back / name).read_bytes() == (folder / name).read_bytes() for name in names)


def rewrite(archive: Path, change: Callable[[dict[str, bytes]], object], **options: int) -> Path:
    """Packs the members of an archive anew after a change, as an attacker would."""
    import zipfile

    with zipfile.ZipFile(archive) as source:
        members = {name: source.read(name) for name in source.namelist()}
    change(members)
    target = archive.with_name("changed.sdbundle")
    with zipfile.ZipFile(target, "w", **options) as out:  # type: ignore[call-overload]
        for name, content in members.items():
            out.writestr(name, content)
    return target


def listed(members: dict[str, bytes], name: str) -> None:
    """Moves a member to another name, in the manifest too."""
    manifest = json.loads(members["manifest.json"])
    manifest["files"][name] = manifest["files"].pop(UNET)
    members["manifest.json"] = json.dumps(manifest).encode()
    members[name] = members.pop(UNET)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


TAMPERED: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "a climbing path": (lambda m: listed(m, "../escaped.bin"), "lies outside the bundle"),
    "an absolute path": (lambda m: listed(m, "/escaped.bin"), "lies outside the bundle"),
    "a device": (lambda m: listed(m, "unet/NUL.bin"), "lies outside the bundle"),
    "a name of no file system": (lambda m: listed(m, "unet/\0.bin"), "lies outside|lacks"),
    "a drive": (lambda m: listed(m, "C:escaped.bin"), "lies outside the bundle"),
    "an extra file": (lambda m: m.update({"run_me.py": b"print()"}), "holds run_me.py"),
    "a missing file": (lambda m: m.pop(UNET), f"lacks {UNET}"),
    "no manifest": (lambda m: m.pop("manifest.json"), "no manifest.json"),
    "a broken manifest": (lambda m: m.update({"manifest.json": b"{"}), "cannot be read"),
    "a manifest of another kind": (lambda m: m.update({"manifest.json": b"[]"}), "JSON object"),
    "a longer file": (lambda m: m.update({UNET: m[UNET] + b"more"}), "longer than the"),
    "a changed byte": (lambda m: m.update({UNET: flipped(m[UNET])}), "content differs"),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_archives_leave_nothing_behind(folder: Path, tmp_path: Path, kind: str) -> None:
    change, mentions = TAMPERED[kind]
    archive = rewrite(pack(folder, tmp_path / "a.sdbundle"), change)
    inside = tmp_path / "deep/er"
    with pytest.raises(BundleError, match=mentions):
        unpack(archive, inside / "out")
    assert list(inside.iterdir()) == []
    assert not (tmp_path / "escaped.bin").exists()


def test_a_bomb_is_not_unpacked(folder: Path, tmp_path: Path) -> None:
    import zipfile

    archive = rewrite(
        pack(folder, tmp_path / "a.sdbundle"),
        lambda m: m.update({UNET: b"0" * 50_000_000}),
        compression=zipfile.ZIP_DEFLATED,
    )
    assert archive.stat().st_size < 1_000_000
    with pytest.raises(BundleError, match="compressed members"):
        unpack(archive, tmp_path / "out")


def test_a_truncated_archive_is_a_clear_fault(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "a.sdbundle")
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(BundleError, match="damaged or no bundle archive"):
        unpack(archive, tmp_path / "out")


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "a.sdbundle")
    with pytest.raises(InputError, match="exists already"):
        pack(folder, archive)
    with pytest.raises(InputError, match="exists already"):
        unpack(archive, folder)
    with pytest.raises(InputError, match="in the bundle itself"):
        pack(folder, folder / "b.sdbundle")


def test_a_damaged_bundle_is_not_packed(folder: Path, tmp_path: Path) -> None:
    (folder / UNET).write_bytes(b"")
    with pytest.raises(BundleError, match="not intact"):
        pack(folder, tmp_path / "a.sdbundle")
    assert not list(tmp_path.glob("*.sdbundle*"))


# Signatures; the keys come from openssl's library, through cryptography


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path / "mine")


def write_keys(stem: Path) -> tuple[Path, Path]:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = stem.with_suffix(".private"), stem.with_suffix(".public")
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def test_a_signature_holds_until_the_manifest_changes(
    folder: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    with pytest.raises(BundleError, match="not signed"):
        require_signature(folder, public)
    sign(folder, private)
    require_signature(folder, public)
    assert verify(folder) == []
    Pipeline.load(folder)
    back = unpack(pack(folder, tmp_path / "a.sdbundle"), tmp_path / "back")
    require_signature(back, public)
    with pytest.raises(BundleError, match="Do not use"):
        require_signature(folder, write_keys(tmp_path / "other")[1])
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    seal(folder)
    with pytest.raises(BundleError, match="Do not use"):
        require_signature(folder, public)


def test_a_damaged_bundle_is_not_signed(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / UNET).write_bytes(b"")
    with pytest.raises(BundleError, match="not intact"):
        sign(folder, keys[0])
    assert not (folder / "manifest.sig").exists()


def test_keys_of_another_kind_are_refused(folder: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    with pytest.raises(InputError, match="private key in PEM form"):
        sign(folder, public)
    with pytest.raises(InputError, match="public key in PEM form"):
        require_signature(folder, private)
    with pytest.raises(InputError, match="cannot be read"):
        sign(folder, folder / "model_index.json")
