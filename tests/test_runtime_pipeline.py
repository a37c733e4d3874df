"""The pipeline on a toy model: files, sizes, devices, seeds, damaged outputs. Needs no torch."""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from toy_model import SCHEDULER, write_json, write_toy_model

from sdcompress.runtime import (
    BundleError,
    DeviceError,
    InputError,
    Job,
    NotFiniteError,
    Pipeline,
    Settings,
)
from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.compiled_cache import keep_within
from sdcompress.runtime.device import Target, compile_model, require_device

QUICK = Settings(steps=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder, execution_precision="f32")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_a_picture_has_the_native_size_unless_told_otherwise(pipeline: Pipeline) -> None:
    assert pipeline.native_size == 32
    picture = pipeline.generate("a red circle", settings=QUICK)
    assert (picture.size, picture.mode) == ((32, 32), "RGB")
    wide = pipeline.generate("a red circle", settings=Settings(steps=2, width=56, height=24))
    assert wide.size == (56, 24)


def test_the_same_seed_gives_the_same_picture(pipeline: Pipeline, folder: Path) -> None:
    first = pipeline.generate("a red circle", seed=5, settings=QUICK)
    again = Pipeline.load(folder, execution_precision="f32").generate(
        "a red circle", seed=5, settings=QUICK
    )
    other = pipeline.generate("a red circle", seed=6, settings=QUICK)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_initial_latents_are_fixed_for_ever(pipeline: Pipeline) -> None:
    """Published seeds must keep their pictures, whatever numpy is installed."""
    latents = pipeline.initial_latents(42, 32, 16)
    assert (latents.shape, latents.dtype) == ((1, 4, 2, 4), np.float32)
    expected = np.random.default_rng(42).standard_normal((1, 4, 2, 4), dtype=np.float32)
    np.testing.assert_array_equal(latents, expected)


@pytest.mark.parametrize("size", [0, -8, 12, 33])
def test_sizes_that_are_no_multiple_of_8_are_refused(pipeline: Pipeline, size: int) -> None:
    with pytest.raises(InputError, match=f"height is {size}; it must be a positive multiple of 8"):
        pipeline.initial_latents(0, 32, size)


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        ({"steps": 0}, "steps"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"scheduler": "best"}, r"best.*dpmsolver\+\+"),
        ({"eta": 1.5}, "eta"),
        ({"steps": 3.5}, "steps is 3.5; it must be of type int"),
        ({"steps": True}, "steps is True"),
        ({"width": "512"}, "width"),
        ({"guidance_scale": "7"}, "guidance_scale"),
        ({"noise": "dice"}, "dice.*numpy, torch"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], mentions: str) -> None:
    with pytest.raises(InputError, match=mentions):
        Settings(**values)  # type: ignore[arg-type]


def test_negative_seeds_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="seed"):
        pipeline.generate("a red circle", seed=-1)


def test_negative_prompts_matter_only_with_guidance(pipeline: Pipeline) -> None:
    def draw(negative: str, scale: float) -> bytes:
        settings = Settings(steps=3, guidance_scale=scale)
        picture = pipeline.generate("a red circle", negative_prompt=negative, settings=settings)
        return picture.tobytes()

    assert draw("", 7.5) != draw("blue square blue square", 7.5)
    assert draw("", 1.0) == draw("blue square blue square", 1.0)


def test_a_wrapped_unet_sees_every_call(pipeline: Pipeline) -> None:
    seen: list[tuple[tuple[int, ...], float, tuple[int, ...]]] = []

    def recording(x: Float32, timestep: float, text: Float32) -> Float32:
        seen.append((x.shape, timestep, text.shape))
        return pipeline.unet(x, timestep, text)

    both = pipeline.encode(["", "a red circle"])
    settings = Settings(steps=3, scheduler="dpmsolver++")
    start = pipeline.begin(Job("a red circle"), settings)
    wrapped = pipeline.denoise(start, both[1:], both[:1], settings, unet=recording)
    plain = pipeline.denoise(start, both[1:], both[:1], settings)
    np.testing.assert_array_equal(wrapped, plain)
    assert [timestep for _, timestep, _ in seen] == pipeline.plan(settings).timesteps.tolist()
    assert {(shape, text) for shape, _, text in seen} == {((2, 4, 4, 4), (2, 77, 8))}


def test_timesteps_between_whole_ones_reach_the_network(pipeline: Pipeline) -> None:
    """The IR declares integers; Euler asks at 499.5, which must not become 499."""
    x, text = np.zeros((1, 4, 4, 4), np.float32), np.zeros((1, 77, 8), np.float32)
    between = pipeline.unet(x, 499.5, text)
    np.testing.assert_allclose(between, np.sin(499.5), atol=1e-4)


def test_a_batch_is_drawn_as_its_pictures_one_by_one(pipeline: Pipeline) -> None:
    texts = pipeline.encode(["", "a red circle", "a blue square"])
    starts = [pipeline.begin(Job("", seed=seed), QUICK) for seed in (1, 2)]
    together = pipeline.denoise(starts, texts[1:], texts[:1], QUICK)
    alone = [pipeline.denoise(starts[i], texts[i + 1 : i + 2], texts[:1], QUICK) for i in range(2)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    assert pipeline.decode(together).shape == (2, 32, 32, 3)


def test_what_is_cut_off_a_prompt_is_a_warning(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pipeline.encode(["red " * 75 + "circle above", "short"])
    assert [record.args[1] for record in caplog.records if record.args] == ["circle above"]


@pytest.mark.parametrize("texts", [[], "a bare string"])
def test_encode_wants_a_list(pipeline: Pipeline, texts: list[str]) -> None:
    with pytest.raises(InputError, match="list"):
        pipeline.encode(texts)


# Folders


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/openvino_model.xml",
        "unet/openvino_model.bin",
        "unet/config.json",
        "text_encoder/openvino_model.bin",
        "vae_decoder/openvino_model.xml",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"missing: {name}.*again"):
        Pipeline.load(copy)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no model folder at .*nowhere"):
        Pipeline.load(tmp_path / "nowhere")


def test_a_diffusers_folder_is_recognised(copy: Path) -> None:
    (copy / "unet" / "openvino_model.xml").unlink()
    (copy / "unet" / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(BundleError, match="convert it to OpenVINO first"):
        Pipeline.load(copy)


@pytest.mark.parametrize(
    ("name", "content", "mentions"),
    [
        ("unet/config.json", "{not json", "cannot be read"),
        ("unet/config.json", "[]", "JSON object"),
        ("unet/config.json", '{"block_out_channels": [1], "in_channels": 4}', "sample_size"),
        ("unet/config.json", '{"sample_size": 4}', "in_channels"),
        ("vae_decoder/config.json", '{"scaling_factor": 1}', "block_out_channels"),
        ("vae_decoder/config.json", '{"block_out_channels": [1, 2]}', "scaling_factor"),
        ("scheduler/scheduler_config.json", '{"_class_name": "DDIMScheduler", "x": 1}', "option x"),
    ],
)
def test_unusable_configurations_are_named(
    copy: Path, name: str, content: str, mentions: str
) -> None:
    (copy / name).write_text(content)
    with pytest.raises(BundleError, match=mentions):
        Pipeline.load(copy)


def test_a_truncated_ir_is_a_bundle_error(copy: Path) -> None:
    path = copy / "unet" / "openvino_model.xml"
    path.write_text(path.read_text()[:200])
    with pytest.raises(BundleError, match="not a readable OpenVINO model"):
        Pipeline.load(copy).compile()


def test_an_ir_with_other_inputs_is_a_bundle_error(copy: Path) -> None:
    for suffix in ("xml", "bin"):
        source = copy / "vae_decoder" / f"openvino_model.{suffix}"
        shutil.copy(source, copy / "unet" / source.name)
    with pytest.raises(BundleError, match=r"takes the inputs .*latent_sample"):
        Pipeline.load(copy).compile()


def test_v_prediction_is_read_from_the_scheduler(copy: Path) -> None:
    values = SCHEDULER | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    write_json(copy / "scheduler" / "scheduler_config.json", values)
    pipeline = Pipeline.load(copy)
    assert pipeline.prediction_type == "v_prediction"
    for scheduler in (None, "pndm", "euler", "dpmsolver++"):
        plan = pipeline.plan(Settings(scheduler=scheduler))
        assert plan.config.prediction_type == "v_prediction"


def test_a_square_sample_size_may_be_written_as_a_pair(copy: Path) -> None:
    path = copy / "unet" / "config.json"
    values = json.loads(path.read_text())
    write_json(path, values | {"sample_size": [4, 4]})
    assert Pipeline.load(copy).native_size == 32
    write_json(path, values | {"sample_size": [4, 6]})
    with pytest.raises(BundleError, match="sample_size"):
        Pipeline.load(copy)


def test_a_fixed_shape_that_does_not_fit_is_explained(tmp_path: Path) -> None:
    fixed = Pipeline.load(write_toy_model(tmp_path / "model", batch=2))
    fixed.generate("a red circle", settings=QUICK)
    with pytest.raises(InputError, match=r"was built for .* of shape"):
        fixed.generate("a red circle", settings=Settings(steps=2, guidance_scale=1.0))


def test_a_damaged_unet_is_reported(tmp_path: Path) -> None:
    damaged = Pipeline.load(write_toy_model(tmp_path / "model", unet_gain=float("inf")))
    with pytest.raises(NotFiniteError, match="UNet's predictions at timestep 667"):
        damaged.generate("a red circle", settings=QUICK)


def test_a_damaged_decoder_is_reported(tmp_path: Path) -> None:
    damaged = Pipeline.load(write_toy_model(tmp_path / "model", picture_offset=float("inf")))
    with pytest.raises(NotFiniteError, match="pixels of decoded picture 1"):
        damaged.generate("a red circle", settings=QUICK)


# Devices


def test_an_absent_device_lists_those_present(folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"no device 'NPU\.7' here\. Present: .*CPU"):
        Pipeline.load(folder, device="NPU.7")
    with pytest.raises(DeviceError, match=r"no device 'NPU\.7'"):
        Pipeline.load(folder, device="AUTO:NPU.7,CPU")


def test_auto_runs(folder: Path) -> None:
    pipeline = Pipeline.load(folder, device="AUTO")
    assert pipeline.generate("a red circle", settings=QUICK).size == (32, 32)
    assert set(pipeline.execution_precisions()) == {"text_encoder", "unet", "vae_decoder"}


def test_the_precision_in_force_is_the_one_asked_for(pipeline: Pipeline) -> None:
    expected = dict.fromkeys(("text_encoder", "unet", "vae_decoder"), "f32")
    assert pipeline.execution_precisions() == expected


def test_a_precision_the_device_lacks_is_an_error(folder: Path) -> None:
    """No CPU has all of them; each is either in force or refused, never silently replaced."""
    for precision in ("f32", "bf16", "f16"):
        pipeline = Pipeline.load(folder, execution_precision=precision)
        try:
            in_force = set(pipeline.execution_precisions().values())
        except DeviceError as error:
            assert f"has no {precision}" in str(error)
            with pytest.raises(DeviceError, match=f"CPU does not execute in {precision}"):
                require_device("CPU", execution_precision=precision)
        else:
            assert in_force == {precision}
            require_device("CPU", execution_precision=precision)


def test_unknown_precisions_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"int8.*f32, bf16, f16"):
        Pipeline.load(folder, execution_precision="int8")


def test_compiled_models_are_cached_on_request(folder: Path, tmp_path: Path) -> None:
    cached = Pipeline.load(folder, execution_precision="f32", cache_dir=tmp_path / "cache")
    first = cached.generate("a red circle", settings=QUICK)
    assert list((tmp_path / "cache").iterdir())
    again = Pipeline.load(folder, execution_precision="f32", cache_dir=tmp_path / "cache")
    assert again.generate("a red circle", settings=QUICK).tobytes() == first.tobytes()


def test_compiled_models_stay_within_a_size(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "cache"
    target = Target(cache_dir=kept)
    sizes = []
    for width in (64, 128, 192):
        values = op.parameter([1, width], np.float32)
        model = ov.Model([op.relu(values)], [values])
        compile_model(target, model, "the model")
        sizes.append(sum(file.stat().st_size for file in kept.glob("*/*.blob")))
    assert sizes == sorted(sizes)
    models = sorted(kept.glob("*/*.blob"))
    assert len(models) == 3
    mine = {kept / "notes.txt", kept / "1.blob", models[0].with_name("exported.blob")}
    for file in mine:
        file.write_text("x" * sizes[-1])

    def present() -> set[Path]:
        return {file for file in kept.rglob("*") if file.is_file()}

    keep_within(kept, sizes[-1])
    assert present() == {*models, *mine}
    for age, file in enumerate((models[1], models[0], models[2])):
        os.utime(file, (1e9 + age, 1e9 + age))
    keep_within(kept, sizes[-1] - 1)
    assert present() == {models[0], models[2], *mine}
    keep_within(kept, 0)
    assert present() == mine
    assert caplog.text == ""
    Pipeline.load(folder, cache_dir=kept, cache_bytes=0).generate("a circle", settings=QUICK)
    assert present() == mine
    assert "raise --cache-size" in caplog.text


def test_what_was_used_last_stays_whatever_the_file_system_notes(tmp_path: Path) -> None:
    models = []
    for width in (64, 128):
        values = op.parameter([1, width], np.float32)
        models.append(ov.Model([op.relu(values)], [values]))
        compile_model(Target(cache_dir=tmp_path), models[-1], f"model{width}")
    first, second = (next(tmp_path.glob(f"model{width}-*/*.blob")) for width in (64, 128))
    now = time.time()
    # Read after they were written, and within a day: many file systems note no further reading.
    os.utime(first, (now - 100, now - 200))
    os.utime(second, (now - 50, now - 150))
    compile_model(Target(cache_dir=tmp_path), models[0], "model64")
    assert {*tmp_path.glob("*/*.blob")} == {first, second}  # nothing was written anew
    keep_within(tmp_path, first.stat().st_size)
    assert [*tmp_path.glob("*/*.blob")] == [first]
