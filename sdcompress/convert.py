"""Turns one component at a time into OpenVINO IR, in the folder layout of optimum-intel.

optimum-intel's export configurations decide names, axes and patches, so openvino-genai and
optimum-intel load the result. Weights are not read into memory: the checkpoint stays mapped, the
graph is traced at a small size, and OpenVINO copies the mapped constants into the .bin. 16-bit
weights stay 16-bit in the file and are widened where they are used, so that nothing is rounded.
"""

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from sdcompress.checkpoint import load_component, require_fusable
from sdcompress.errors import ConversionError
from sdcompress.ir import IR_NAME, ir_bytes, writing_ir
from sdcompress.methods import COMPONENTS
from sdcompress.quiet import quiet_libraries
from sdcompress.recipe import Convert
from sdcompress.source import Source
from sdcompress.splitting import split_first_token, split_skips
from sdcompress.widening import widen

# Task and model type under which optimum-intel registers each export configuration.
_EXPORT_CONFIGS = {
    "text_encoder": ("feature-extraction", "clip-text"),
    "unet": ("semantic-segmentation", "unet-2d-condition"),
    "vae_decoder": ("semantic-segmentation", "vae-decoder"),
    "vae_encoder": ("semantic-segmentation", "vae-encoder"),
}
_TRACED_SIZE = 16  # shapes are dynamic, so a small picture gives the same graph as a large one
_KEPT = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


@dataclass(frozen=True)
class ConvertedModel:
    """The IR folder and the size of each component's files."""

    folder: Path
    bytes_by_component: dict[str, int]


def convert(
    source: Source,
    options: Convert,
    folder: Path,
    on_component: Callable[[int, int], None] | None = None,
) -> ConvertedModel:
    """Writes the IR of all four components, the scheduler and the tokenizer into `folder`.

    Activations are float32. Weights are stored as in the checkpoint, or as float32 when `options`
    says so. Shapes are dynamic in batch, height and width unless `options` fixes them.
    Raises ConversionError naming the component that could not be loaded or exported.
    """
    with quiet_libraries("diffusers"):
        require_fusable(source)
    with _libraries_set_aside():
        return _convert(source, options, folder, on_component)


@contextmanager
def _libraries_set_aside() -> Iterator[None]:
    """Inside the block the garbage collector does not look at what is there already.

    The libraries leave half a million objects when imported. Exporting asks for a collection at
    every step, and going through them each time is a fifth of what converting the demo takes.
    """
    with quiet_libraries("diffusers", "transformers"):
        import optimum.exporters.openvino.convert  # noqa: F401
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
        from transformers import CLIPTextModel  # noqa: F401
    if gc.get_freeze_count():  # the program we are part of does so itself
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _convert(
    source: Source,
    options: Convert,
    folder: Path,
    on_component: Callable[[int, int], None] | None,
) -> ConvertedModel:
    _copy_settings(source, folder)
    with quiet_libraries("transformers"):
        _write_tokenizer(source, folder)
    sizes = {}
    for done, component in enumerate(COMPONENTS, start=1):
        try:
            with quiet_libraries("diffusers", "transformers"), writing_ir(folder):
                _export(source, component, folder / component, options)
        except ConversionError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConversionError(
                f"{component} of {source.id} could not be converted: {error}. Check that "
                f"{source.folder} loads in diffusers' StableDiffusionPipeline"
            ) from error
        gc.collect()
        _change(source, component, folder / component, options)
        sizes[component] = ir_bytes(folder / component)
        if on_component:
            on_component(done, len(COMPONENTS))
    return ConvertedModel(folder, sizes)


def _copy_settings(source: Source, folder: Path) -> None:
    (folder / "scheduler").mkdir(parents=True)
    index = json.loads((source.folder / "model_index.json").read_text("utf-8"))
    for name, value in index.items():
        if isinstance(value, list) and name not in _KEPT:
            index[name] = [None, None]  # loaders would look for its folder
    index["requires_safety_checker"] = False
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    settings = "scheduler/scheduler_config.json"
    shutil.copyfile(source.folder / settings, folder / settings)


def _write_tokenizer(source: Source, folder: Path) -> None:
    """Copies the tokenizer's files as they are and adds the two forms derived from them."""
    from optimum.exporters.openvino.convert import export_tokenizer
    from transformers import AutoTokenizer

    target = folder / "tokenizer"
    target.mkdir()
    for name in source.files:
        if name.startswith("tokenizer/"):
            shutil.copyfile(source.folder / name, folder / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder / "tokenizer")
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(
            f"{source.folder / 'tokenizer'}: transformers cannot load it: {error}"
        ) from error
    if not (target / "tokenizer.json").exists():
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    export_tokenizer(tokenizer, target)
    if not (target / "openvino_tokenizer.xml").exists():
        raise ConversionError(
            f"{source.folder / 'tokenizer'}: openvino_tokenizers could not convert it; "
            f"it supports CLIP tokenizers, this one is {type(tokenizer).__name__}"
        )


def _export(source: Source, component: str, folder: Path, options: Convert) -> None:
    from optimum.exporters.openvino.convert import export
    from optimum.exporters.tasks import TasksManager
    from optimum.intel.openvino.configuration import OVConfig

    folder.mkdir(parents=True)
    model = load_component(source, component, stored=options.weights == "stored")
    widen(model)
    if component == "text_encoder":
        model.config.save_pretrained(folder)
    else:
        model.save_config(folder)
    _patch(source, component, model)
    task, model_type = _EXPORT_CONFIGS[component]
    constructor = TasksManager.get_exporter_config_constructor(
        model=model, exporter="openvino", library_name="diffusers", task=task, model_type=model_type
    )
    config = constructor(_small(model.config, component), int_dtype="int64", float_dtype="fp32")
    config.runtime_options = _runtime_options(source, component)
    export(
        model,
        config,
        folder / IR_NAME,
        input_shapes={"height": _TRACED_SIZE, "width": _TRACED_SIZE},
        ov_config=OVConfig(dtype="fp32"),
        stateful=False,
        library_name="diffusers",
    )


def _patch(source: Source, component: str, model: Any) -> None:
    """Makes a component what optimum-intel's export configurations expect."""
    if component == "unet":
        # Its presence makes the export configuration keep the 77 tokens as a fixed axis.
        model.config.model_max_length = _max_tokens(source)
    elif component == "vae_decoder":
        model.forward = lambda latent_sample: model.decode(z=latent_sample)
    elif component == "vae_encoder":
        model.forward = lambda sample: {
            "latent_parameters": model.encode(x=sample)["latent_dist"].parameters
        }


def _small(config: Any, component: str) -> Any:
    """A component's configuration with a small native size, which is the size it is traced at."""
    if component == "text_encoder":
        return config
    from diffusers.configuration_utils import FrozenDict

    small = FrozenDict({**config, "sample_size": _TRACED_SIZE})
    if component == "unet":
        object.__setattr__(small, "model_max_length", config.model_max_length)
    return small


def _max_tokens(source: Source) -> int:
    text_config = json.loads((source.folder / "text_encoder/config.json").read_text("utf-8"))
    return int(text_config["max_position_embeddings"])


def _runtime_options(source: Source, component: str) -> dict[str, str]:
    """Keeps the VAE of v-prediction models (SD 2.1 at 768) from overflowing in half precision."""
    scheduler = json.loads((source.folder / "scheduler/scheduler_config.json").read_text("utf-8"))
    overflows = scheduler.get("prediction_type") == "v_prediction" and component.startswith("vae_")
    return {"ACTIVATIONS_SCALE_FACTOR": "8.0"} if overflows else {}


def _change(source: Source, component: str, folder: Path, options: Convert) -> None:
    """Splits layers and fixes shapes, as far as that is asked for."""
    splits = component == "unet" and (options.split_skips or options.split_first_token)
    fixes = component != "text_encoder" and (options.batch or options.height)
    if not splits and not fixes:
        return
    model = ov.Core().read_model(folder / IR_NAME)
    if splits and options.split_skips:
        split_skips(model)
    if splits and options.split_first_token:
        split_first_token(model)
    if fixes:
        _fix_shapes(source, component, model, options)
    changed = folder / "changed.xml"
    with writing_ir(folder):
        ov.save_model(model, changed, compress_to_fp16=False)
    del model  # releases the memory mapping of the file that is replaced next
    gc.collect()
    for suffix in (".xml", ".bin"):
        changed.with_suffix(suffix).replace((folder / IR_NAME).with_suffix(suffix))


def _fix_shapes(source: Source, component: str, model: ov.Model, options: Convert) -> None:
    """Makes the axes static that the recipe fixes; `batch` is the UNet's, both branches counted."""
    vae = json.loads((source.folder / "vae/config.json").read_text("utf-8"))
    scale = 1 if component == "vae_encoder" else 2 ** (len(vae["down_block_types"]) - 1)
    shapes = {}
    for model_input in model.inputs:
        shape = model_input.partial_shape
        if component == "unet" and options.batch and shape.rank.get_length() > 0:
            shape[0] = options.batch
        if shape.rank.get_length() == 4 and options.height and options.width:
            shape[2], shape[3] = options.height // scale, options.width // scale
        shapes[model_input] = shape
    model.reshape(shapes)
