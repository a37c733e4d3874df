"""The tasks that benchmarks/compression.py measures, ours and the peers', one a process."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS = 2  # denoised to record the calibration inputs
STEPS = 16


def _record(work: Path) -> None:
    """Records the UNet inputs that all quantizations get, in the pipeline's own memory."""
    from sdcompress.calibrate import calibrate
    from sdcompress.prompts import load_prompts
    from sdcompress.recipe import Calibrate
    from sdcompress.runtime import Pipeline, Settings

    items = int((work / "items").read_text())
    options = Calibrate(prompts=PROMPTS, samples=items)
    pipeline = Pipeline.load(work / "ir", execution_precision="f32", verify="never")
    prompts = load_prompts("sd", PROMPTS, options.seed)
    settings = Settings(scheduler="dpmsolver++", steps=STEPS, guidance_scale=7.5)
    shutil.rmtree(work / "recorded", ignore_errors=True)
    calibrate(pipeline, prompts, options, settings, work / "recorded")


def _pipeline(work: Path) -> None:
    """Denoises one prompt in a few steps: what recording has to be compared with."""
    from sdcompress.prompts import load_prompts
    from sdcompress.runtime import Job, Pipeline, Settings

    pipeline = Pipeline.load(work / "ir", execution_precision="f32", verify="never")
    (prompt,) = load_prompts("sd", 1, 0)
    settings = Settings(scheduler="dpmsolver++", steps=3, guidance_scale=7.5)
    negative, positive = pipeline.encode(["", prompt.text], settings)
    start = pipeline.begin(Job(prompt.text, seed=0), settings)
    pipeline.denoise(start, positive[None], negative[None], settings)


def _calls(work: Path) -> None:
    """Keeps all UNet calls of a prompt that nothing is calibrated on, for execution.py."""
    from sdcompress.evaluate.pictures import Shot
    from sdcompress.evaluate.sqnr import trace
    from sdcompress.prompts import load_prompts
    from sdcompress.runtime import Pipeline, Settings

    pipeline = Pipeline.load(work / "ir", execution_precision="f32", verify="never")
    (prompt,) = load_prompts("sd_evaluation", 1, 42)
    settings = Settings(scheduler="dpmsolver++", steps=STEPS, guidance_scale=7.5)
    trace(pipeline, Shot(prompt, 42), settings).save(work / "calls.npz")


def _ranges(work: Path) -> None:
    """The collection of statistics alone, for benchmarks/memory.py."""
    from sdcompress.activations import collect
    from sdcompress.ir import IR_NAME

    shutil.rmtree(work / "ranges_memory", ignore_errors=True)
    collect(work / "ir/unet" / IR_NAME, None, _inputs(work), work / "ranges_memory", "auto")


def _inputs(work: Path) -> Any:
    from sdcompress.calibrate import ModelInputs

    return ModelInputs(work / "recorded", "unet")


def _compress(
    work: Path,
    name: str,
    options: Any,
    ranges: str = "",
    precision: str = "auto",
    *,
    reuse: bool = False,
) -> None:
    """Ours: collects the statistics unless it is to `reuse` them, then compresses, each apart."""
    from sdcompress.activations import collect
    from sdcompress.compress import Recorded, compress
    from sdcompress.ir import IR_NAME
    from sdcompress.isolation import run_isolated

    unet, statistics = work / "ir/unet", work / ranges
    recorded = None
    if ranges:
        inputs = _inputs(work)
        if not reuse:
            shutil.rmtree(statistics, ignore_errors=True)
        run_isolated(
            collect, unet / IR_NAME, None, inputs, statistics, precision, on_progress=_quiet
        )
        recorded = Recorded(inputs, (statistics,))
    target = work / name
    shutil.rmtree(target, ignore_errors=True)
    run_isolated(compress, unet, options, target, recorded, True, on_progress=_quiet)


def _quiet(done: int, total: int) -> None:
    del done, total


def _int8_weights(work: Path) -> None:
    from sdcompress.methods import Int8Weights

    _compress(work, "int8_weights", Int8Weights(method="int8_weights", convolutions=True))


def _int8_linear(work: Path) -> None:
    from sdcompress.methods import Int8Weights

    _compress(work, "int8_linear", Int8Weights(method="int8_weights"))


def _int8(work: Path) -> None:
    from sdcompress.methods import Int8

    _compress(work, "int8", Int8(method="int8"), "ranges")


def _int8_f32(work: Path) -> None:
    from sdcompress.methods import Int8

    _compress(work, "int8_f32", Int8(method="int8"), "ranges_f32", "f32")


def _int8_again(work: Path) -> None:
    """The same ranges with another ignored scope, that of the shipped recipe."""
    from sdcompress.recipe import load_recipe
    from sdcompress.shipped import shipped_folder

    recipe = load_recipe(shipped_folder("recipes") / "sd21_base_int8.yaml")
    _compress(work, "int8_recipe", recipe.compress.unet, "ranges", reuse=True)


def _hybrid(work: Path) -> None:
    from sdcompress.methods import Hybrid

    _compress(work, "hybrid", Hybrid(method="hybrid"), "ranges_hybrid")


def _peer_model(work: Path) -> Any:
    import openvino as ov

    return ov.Core().read_model(work / "peer_ir/unet/openvino_model.xml")


def _save(model: Any, folder: Path) -> None:
    import openvino as ov

    folder.mkdir(exist_ok=True)
    ov.save_model(model, folder / "openvino_model.xml")


def _peer_int8_weights(work: Path) -> None:
    import nncf

    model = nncf.compress_weights(_peer_model(work), mode=nncf.CompressWeightsMode.INT8_ASYM)
    _save(model, work / "peer_int8_weights")


def _peer_int8(work: Path) -> None:
    import nncf

    inputs = _inputs(work)
    model = nncf.quantize(
        _peer_model(work),
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
    )
    _save(model, work / "peer_int8")


def _peer_tiny(work: Path) -> None:
    """Shows that what NNCF needs are not the activations: here are next to none."""
    import nncf
    import numpy as np

    item = next(iter(_inputs(work)))
    item["sample"] = np.ascontiguousarray(item["sample"][:, :, :8, :8])
    nncf.quantize(
        _peer_model(work),
        nncf.Dataset([item]),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=1,
    )


def _peer_hybrid(work: Path) -> None:
    """Weights of all but convolutions first, then everything but what has been compressed."""
    import nncf

    convolutions = nncf.IgnoredScope(types=["Convolution"])
    model = nncf.compress_weights(
        _peer_model(work), mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=convolutions
    )
    names = [op.get_friendly_name() for op in model.get_ops() if _has_integer_weights(op)]
    inputs = _inputs(work)
    model = nncf.quantize(
        model,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(names=names),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1.0)
        ),
    )
    _save(model, work / "peer_hybrid")


def _has_integer_weights(operation: Any) -> bool:
    if operation.get_type_name() not in ("MatMul", "Gather"):
        return False
    for port in range(operation.get_input_size()):
        node = operation.input_value(port).get_node()
        while node.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape"):
            node = node.input_value(0).get_node()
        if node.get_type_name() == "Constant" and "8" in node.get_element_type().get_type_name():
            return True
    return False


TASKS: dict[str, Callable[[Path], None]] = {
    "record": _record,
    "pipeline": _pipeline,
    "calls": _calls,
    "ranges": _ranges,
    "int8_weights": _int8_weights,
    "int8_linear": _int8_linear,
    "int8": _int8,
    "int8_f32": _int8_f32,
    "int8_again": _int8_again,
    "hybrid": _hybrid,
    "peer_int8_weights": _peer_int8_weights,
    "peer_int8": _peer_int8,
    "peer_hybrid": _peer_hybrid,
    "peer_tiny": _peer_tiny,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the folder of benchmarks/compression.py")
    parser.add_argument("task", choices=TASKS)
    options = parser.parse_args()
    TASKS[options.task](options.work)


if __name__ == "__main__":
    main()
