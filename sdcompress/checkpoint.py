"""Loads one component's weights: from a diffusers folder or a single file, LoRA files fused.

Weights stay mapped from the checkpoint until something changes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import ConversionError
from sdcompress.source import Lora, Source

if TYPE_CHECKING:
    import torch

_ADAPTER = "fused"


def load_component(source: Source, component: str, *, stored: bool) -> Any:
    """Returns a torch model: float32, or with `stored` in the checkpoint's own type.

    `component` is text_encoder, unet, vae_decoder or vae_encoder. Raises ConversionError for
    weights that are not floating point.
    """
    import torch

    part = "vae" if component.startswith("vae_") else component
    dtype = stored_dtype(source, part) if stored else torch.float32
    if source.checkpoint:
        model = _from_single_file(source, source.checkpoint, part, dtype)
    else:
        model = _from_folder(source, part, dtype)
    for lora in source.loras:
        if part != "vae":
            _fuse(model, part, lora)
    return model


def stored_dtype(source: Source, part: str) -> "torch.dtype":
    """Returns the type that a part's floating-point weights have in the checkpoint.

    Where they differ it is float32, which holds them all. Raises ConversionError for weights that
    are not floating point.
    """
    import torch

    known = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    kinds = {tensor.kind for tensor in source.tensors(part)}
    found = {kind for kind in kinds if not kind.startswith(("I", "BOOL"))}
    strange = found - known.keys()
    if strange or not found:
        raise ConversionError(
            f"{source.checkpoint or source.folder / part}: weights of type "
            f"{', '.join(sorted(strange)) or 'none'} cannot be converted; save the model as "
            "float16, bfloat16 or float32"
        )
    return known[found.pop()] if len(found) == 1 else torch.float32


def _from_folder(source: Source, part: str, dtype: "torch.dtype") -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    shared = {"variant": source.variant, "use_safetensors": True, "local_files_only": True}
    folder = source.folder / part
    if part == "text_encoder":
        return CLIPTextModel.from_pretrained(folder, dtype=dtype, **shared)
    kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
    return kind.from_pretrained(folder, torch_dtype=dtype, **shared)


def _from_single_file(source: Source, file: Path, part: str, dtype: "torch.dtype") -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import (
        SingleFileComponentError,
        create_diffusers_clip_model_from_ldm,
        load_single_file_checkpoint,
    )
    from transformers import CLIPTextModel

    config = str(source.folder)
    shared = {"subfolder": part, "torch_dtype": dtype, "local_files_only": True}
    kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
    try:
        if part != "text_encoder":
            return kind.from_single_file(str(file), config=config, **shared)
        weights = load_single_file_checkpoint(str(file))
        return create_diffusers_clip_model_from_ldm(
            CLIPTextModel, checkpoint=weights, config=config, **shared
        )
    except (SingleFileComponentError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"{file}: its {part} does not fit the settings in {source.folder}: {reason}. `config` "
            "has to name a model of the same architecture"
        ) from error


def require_fusable(source: Source) -> None:
    """Raises ConversionError for a LoRA file with layers outside UNet and text encoder."""
    for lora in source.loras:
        with _blamed(lora):
            weights, _, _ = _read_lora(lora)
        foreign = [name for name in weights if not name.startswith(("unet.", "text_encoder."))]
        if foreign or not weights:
            raise ConversionError(
                f"{lora.file}: '{next(iter(foreign), 'nothing')}' is no layer of UNet or text "
                "encoder; the file belongs to another kind of model"
            )


@contextmanager
def _blamed(lora: Lora) -> Iterator[None]:
    """Names the file in what diffusers and peft raise for LoRA files that they cannot use."""
    try:
        yield
    except (ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(f"{lora.file}: cannot be fused into this model: {reason}") from error


def _read_lora(lora: Lora, unet_config: Any = None) -> tuple[dict[str, Any], Any, Any]:
    """Returns weights named as diffusers does (kohya's names are translated), alphas, metadata."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    read: tuple[dict[str, Any], Any, Any] = Loader.lora_state_dict(
        str(lora.file.parent),
        weight_name=lora.file.name,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
        unet_config=unet_config,
    )
    return read


def _fuse(model: Any, part: str, lora: Lora) -> None:
    """Adds a LoRA's product, scaled, to the weights it names, in place (arXiv:2106.09685)."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
    from diffusers.loaders.lora_base import fuse_text_encoder_lora
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    with _blamed(lora):
        weights, alphas, metadata = _read_lora(lora, model.config if part == "unet" else None)
        own = [name for name in weights if name.startswith(f"{part}.")]
        if not own:
            return
        names = {"adapter_name": _ADAPTER, "metadata": metadata}
        if part == "unet":
            Loader.load_lora_into_unet(weights, alphas, model, **names)
        else:
            Loader.load_lora_into_text_encoder(weights, alphas, model, prefix=part, **names)
    _require_all_used(model, own, lora)
    if part == "unet":
        model.fuse_lora(lora.scale, adapter_names=[_ADAPTER])
        model.unload_lora()
    else:
        fuse_text_encoder_lora(model, lora.scale, adapter_names=[_ADAPTER])
        recurse_remove_peft_layers(model)
        del model.peft_config
        model._hf_peft_config_loaded = False


def _require_all_used(model: Any, names: list[str], lora: Lora) -> None:
    """Raises ConversionError when a layer of the file has no counterpart; peft only logs it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = sum(1 for name in names if "lora_A." in name or name.endswith("down.weight"))
    tuned = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if len(tuned) != layers:
        raise ConversionError(
            f"{lora.file}: {layers} layers, of which this model has {len(tuned)}; the file "
            "belongs to another architecture"
        )
