"""Work that is left out: layers whose output is remembered, and guidance for some calls only."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from openvino import opset13 as opset
from toy_model import write_toy_model

from sdcompress.runtime import Economy, InputError, Job, Pipeline, Settings
from sdcompress.runtime.components import Component
from sdcompress.runtime.device import Target, opened_model
from sdcompress.runtime.economy import BRANCHES, TOGETHER, choose_economy, expected_peaks
from sdcompress.runtime.graph import split_gates
from sdcompress.runtime.unet import OfferingUnet, OuterUnet, UnetComponent

JOB = Job("a red circle above a blue square", "stars", seed=3)


def load(folder: Path, economy: Economy | None = None) -> Pipeline:
    return Pipeline.load(folder, execution_precision="f32", economy=economy, verify="never")


@pytest.fixture(scope="module")
def unet(model_folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(model_folder, subfolder="unet").float().eval()


@contextmanager
def from_below(
    unet: UNet2DConditionModel, depth: int, replacement: torch.Tensor | None = None
) -> Iterator[list[torch.Tensor]]:
    """Sees, or replaces, what the up path hands to its `depth` last residual blocks."""
    resnets = [resnet for block in unet.up_blocks for resnet in block.resnets]
    place, seen = resnets[-depth], []

    def hook(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # The channels of the skip connection come last; it is as wide as its own block is.
        joined, *rest = inputs
        width = joined.shape[1] - skip_width(unet, depth)
        seen.append(joined[:, :width].clone())
        if replacement is not None:
            joined = torch.cat([replacement, joined[:, width:]], dim=1)
        return joined, *rest

    handle = place.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def skip_width(unet: UNet2DConditionModel, depth: int) -> int:
    """Channels of the skip connection to the `depth`-last residual block, in the order pushed."""
    widths = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        widths += [resnet.out_channels for resnet in block.resnets]
        if block.downsamplers:
            widths.append(widths[-1])
    return widths[depth - 1]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("branches", BRANCHES)
def test_remembered_layers_are_those_of_diffusers(
    baseline: Path, unet: UNet2DConditionModel, depth: int, branches: str
) -> None:
    pipeline = load(baseline, Economy(branches))
    texts = np.concatenate(pipeline.prompts.encode_jobs([JOB], pipeline.settings))
    network = pipeline.network(Settings(cache_interval=2, cache_depth=depth))
    samples = [pipeline.initial_latents(seed) for seed in (1, 2)]
    ours = [
        network(np.concatenate([sample] * 2), timestep, texts)
        for sample, timestep in zip(samples, (801.0, 761.0), strict=True)
    ]

    def asked(sample: np.ndarray, timestep: float) -> np.ndarray:
        both = torch.from_numpy(np.concatenate([sample] * 2))
        with torch.no_grad():
            found: np.ndarray = unet(both, timestep, torch.from_numpy(texts)).sample.numpy()
        return found

    with from_below(unet, depth) as seen:
        first = asked(samples[0], 801.0)
    np.testing.assert_allclose(ours[0], first, atol=2e-4)
    with from_below(unet, depth, seen[0]):
        second = asked(samples[1], 761.0)
    np.testing.assert_allclose(ours[1], second, atol=2e-4)
    assert np.abs(ours[1] - asked(samples[1], 761.0)).max() > 1e-2  # and not the whole network's


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, int]]:
    """Which network is asked, and for how many samples, in each call of the test."""
    calls: list[tuple[type, int]] = []
    plain = Component.infer_side_by_side

    def noting(component: Component, runs: Any) -> Any:
        if component.name == "unet":
            calls.append((type(component), sum(len(run["sample"]) for run in runs)))
        return plain(component, runs)

    monkeypatch.setattr(Component, "infer_side_by_side", noting)
    return calls


def test_the_whole_network_is_asked_at_every_third_call(
    baseline: Path, asked: list[tuple[type, int]]
) -> None:
    settings = Settings(steps=7, scheduler="ddim", cache_interval=3)
    pipeline = load(baseline)
    pipeline.draw([JOB], settings)
    whole, outer = (OfferingUnet, 2), (OuterUnet, 2)
    assert asked == [whole, outer, outer, whole, outer, outer, whole]
    asked.clear()
    pipeline.draw([JOB], settings)  # nothing is remembered from one picture to the next
    assert asked[0] == whole


def test_a_branch_that_comes_later_is_not_taken_from_memory(
    baseline: Path, asked: list[tuple[type, int]]
) -> None:
    settings = Settings(
        steps=8, scheduler="ddim", cache_interval=3, guidance_begin=0.25, guidance_end=0.5
    )
    load(baseline, Economy(BRANCHES[0])).draw([JOB], settings)
    whole, outer = OfferingUnet, OuterUnet
    assert asked == [
        (whole, 1), (outer, 1), (whole, 2), (outer, 2), (outer, 1), (whole, 1), (outer, 1),
        (outer, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("end", [1, 3, 5])
def test_guidance_that_ends_early_draws_what_diffusers_draws(
    baseline: Path, model_folder: Path, end: int
) -> None:
    """Its callback may drop the unconditional branch between two steps."""
    steps = 6
    theirs = StableDiffusionPipeline.from_pretrained(
        model_folder, safety_checker=None, torch_dtype=torch.float32
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)

    def drop(pipe: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == end - 1:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    ours = load(baseline)
    settings = Settings(steps, 5.0, "ddim", guidance_end=end / steps)
    expected = theirs(
        JOB.prompt, negative_prompt=JOB.negative_prompt, num_inference_steps=steps,
        guidance_scale=5.0, latents=torch.from_numpy(ours.initial_latents(JOB.seed)),
        callback_on_step_end=drop, callback_on_step_end_tensor_inputs=["prompt_embeds"],
        output_type="latent",
    ).images.numpy()  # fmt: skip
    actual = ours.denoise_jobs([JOB], settings)
    np.testing.assert_allclose(actual, expected, atol=2e-3)
    whole = ours.denoise_jobs([JOB], Settings(steps, 5.0, "ddim"))
    assert np.abs(whole - expected).max() > 1e-2


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("interval", [1, 2])
def test_guidance_that_ends_compiles_nothing_anew(
    baseline: Path, batch: int, interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[type] = []
    plain = Component._compile

    def counting(component: Component, *asked: Any) -> Any:
        compiled.append(type(component))
        return plain(component, *asked)

    settings = Settings(4, 5.0, "ddim", guidance_end=0.5, cache_interval=interval)
    alone = load(baseline).denoise_jobs([JOB], settings)
    monkeypatch.setattr(Component, "_compile", counting)
    pipeline = load(baseline)
    jobs = [JOB, *(Job("a blue star", seed=seed) for seed in range(batch - 1))]
    for _ in range(2):
        together = pipeline.denoise_jobs(jobs, settings)
    np.testing.assert_allclose(together[:1], alone, atol=2e-3)
    networks = [UnetComponent] if interval == 1 else [OfferingUnet, OuterUnet]
    assert [one for one in compiled if issubclass(one, UnetComponent)] == networks


def test_what_was_asked_before_is_given_back_as_well(
    baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[object]] = []
    plain = Component._compile

    def noting(component: Component, *asked: Any) -> Any:
        executable = plain(component, *asked)
        kept.append(weakref.ref(executable))
        return executable

    monkeypatch.setattr(Component, "_compile", noting)
    pipeline = load(baseline)
    texts = np.concatenate(pipeline.prompts.encode_jobs([JOB], pipeline.settings))
    sample = np.concatenate([pipeline.initial_latents(1)] * 2)
    networks = [pipeline.network(Settings(cache_interval=interval)) for interval in (1, 2)]
    for network in networks:
        network(sample, 801.0, texts)
    pipeline.release("unet", "text_encoder")
    assert len(kept) == 3
    assert [one for one in kept if one() is not None] == []


def test_a_unet_of_a_fixed_batch_takes_no_interval(tmp_path: Path) -> None:
    pipeline = Pipeline.load(write_toy_model(tmp_path / "model", batch=2))
    with pytest.raises(InputError, match="need a UNet that takes any batch"):
        pipeline.draw([JOB], Settings(steps=4, guidance_end=0.5))
    assert pipeline.draw([JOB], Settings(steps=4))


def test_a_unet_without_such_attention_is_not_said_to_be_thinned(tmp_path: Path) -> None:
    pipeline = Pipeline.load(write_toy_model(tmp_path / "model"))
    with pytest.raises(InputError, match="no attention over all latent cells"):
        pipeline.draw([JOB], Settings(steps=2, attention_stride=2))


def test_memory_for_the_outer_layers_is_expected(baseline: Path) -> None:
    pipeline = load(baseline)
    ways = [Settings(width=512, height=512, cache_interval=interval) for interval in (1, 2)]
    plain, cached = (expected_peaks(pipeline, one, 1, Economy()) for one in ways)
    assert plain is not None
    assert cached is not None
    assert plain["unet"] < cached["unet"] < 2 * plain["unet"]
    assert plain["vae_decoder"] == cached["vae_decoder"]


def test_how_much_comes_from_below_is_read_once(
    baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ways to draw are tried for a limit."""
    read: list[Path] = []

    def noting(target: Target, path: Path) -> Any:
        read.append(path)
        return opened_model(target, path)

    monkeypatch.setattr("sdcompress.runtime.unet.opened_model", noting)
    with pytest.raises(InputError, match="does not suffice"):
        choose_economy(load(baseline), Settings(cache_interval=2), 1, 1)
    # What the file declares, and both branches in one batch or one of them.
    assert len(read) == 3


def test_all_that_draws_is_compiled_beforehand(
    baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, settings = load(baseline), Settings(4, 5.0, "ddim", cache_interval=2)
    compiled: list[str] = []
    plain = Component._compile

    def noting(component: Component, *asked: Any) -> Any:
        compiled.append(type(component).__name__)
        return plain(component, *asked)

    monkeypatch.setattr(Component, "_compile", noting)
    pipeline.compile(settings)
    beforehand = ["TextEncoder", "OfferingUnet", "OuterUnet", "VaeDecoder"]
    assert compiled == beforehand
    pipeline.draw([JOB], settings)
    assert compiled == beforehand


def test_more_layers_than_there_are_cannot_be_outer_ones(baseline: Path) -> None:
    with pytest.raises(InputError, match=r"cache_depth is 99; this UNet has \d+ skip connections"):
        load(baseline).draw([JOB], Settings(steps=2, cache_interval=2, cache_depth=99))


class Thinned:
    """Attention of diffusers that reads every second row and column, where it is over all cells."""

    def __init__(self, cells: int) -> None:
        self._cells = cells
        self._plain = AttnProcessor()

    def __call__(
        self, attn: Any, hidden: torch.Tensor, encoder_hidden_states: Any = None, **rest: Any
    ) -> Any:
        if encoder_hidden_states is None and hidden.shape[1] == self._cells:
            side = int(self._cells**0.5)
            grid = hidden.reshape(len(hidden), side, side, -1)[:, ::2, ::2]
            encoder_hidden_states = grid.reshape(len(hidden), -1, hidden.shape[2])
        return self._plain(attn, hidden, encoder_hidden_states, **rest)


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("interval", [1, 2])
def test_attention_reads_fewer_positions(
    baseline: Path, unet: UNet2DConditionModel, branches: str, interval: int
) -> None:
    pipeline = load(baseline, Economy(branches))
    texts = np.concatenate(pipeline.prompts.encode_jobs([JOB], pipeline.settings))
    sample = np.concatenate([pipeline.initial_latents(1)] * 2)
    settings = Settings(attention_stride=2, cache_interval=interval)
    network = pipeline.network(settings)
    actual = [network(sample, 801.0, texts) for _ in range(interval)]
    given = torch.from_numpy(sample), 801.0, torch.from_numpy(texts)
    with torch.no_grad():
        plain = unet(*given).sample.numpy()
        processors = unet.attn_processors
        unet.set_attn_processor(Thinned(sample.shape[2] * sample.shape[3]))
        expected = unet(*given).sample.numpy()
        unet.set_attn_processor(processors)
    # Asked the same again, the outer layers alone come to the same.
    for one in actual:
        np.testing.assert_allclose(one, expected, atol=2e-4)
    assert np.abs(plain - expected).max() > 1e-3


def test_with_shortcuts_8_bits_err_no_more_than_without(baseline: Path, bundle: Path) -> None:
    pipeline = load(baseline)
    texts = np.concatenate(pipeline.prompts.encode_jobs([JOB], pipeline.settings))
    sample = np.concatenate([pipeline.initial_latents(1)] * 2)

    def asked_twice(folder: Path, settings: Settings) -> np.ndarray:
        network = load(folder, Economy(TOGETHER)).network(settings)
        return np.stack([network(sample, 801.0, texts) for _ in range(2)])

    def noise(settings: Settings) -> np.ndarray:
        errors = asked_twice(bundle, settings) - asked_twice(baseline, settings)
        return np.square(errors).mean(axis=(1, 2, 3, 4))

    usual = noise(Settings()).max()
    for interval, stride in ((2, 1), (1, 2), (2, 2)):
        shortcuts = Settings(cache_interval=interval, attention_stride=stride)
        assert noise(shortcuts).max() < 1.5 * usual


def test_fewer_positions_need_fixed_shapes(baseline: Path) -> None:
    pipeline = Pipeline.load(baseline, static=False, verify="never")
    with pytest.raises(InputError, match="draw with --static"):
        pipeline.draw([JOB], Settings(steps=2, attention_stride=2))


def test_what_was_compiled_for_one_way_is_not_used_for_another(baseline: Path) -> None:
    pipeline = load(baseline)
    ways = [Settings(3), Settings(3, attention_stride=2), Settings(3, cache_interval=2)]
    alone = [load(baseline).draw([JOB], one)[0].tobytes() for one in ways]
    assert len(set(alone)) == 3
    for one, expected in [*zip(ways, alone, strict=True), (ways[0], alone[0])]:
        assert pipeline.draw([JOB], one)[0].tobytes() == expected


@pytest.mark.parametrize("side", ["baseline", "bundle"])
def test_gates_computed_apart_give_the_same_numbers(
    side: str, request: pytest.FixtureRequest
) -> None:
    xml = request.getfixturevalue(side) / "unet" / "openvino_model.xml"
    random, core = np.random.default_rng(0), ov.Core()
    plain, split = core.read_model(xml), core.read_model(xml)
    blocks = sum(op.get_type_name() == "Gelu" for op in plain.get_ops())
    assert len(split_gates(split)) == blocks > 0
    assert not [op for op in split.get_ops() if op.get_type_name() == "VariadicSplit"]
    width = plain.input("encoder_hidden_states").partial_shape[2].get_length()
    feed = {
        "sample": random.standard_normal((2, 4, 16, 16), dtype=np.float32),
        "timestep": np.full(2, 500),
        "encoder_hidden_states": random.standard_normal((2, 77, width), dtype=np.float32),
    }
    outputs = [
        core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feed)[0]
        for model in (plain, split)
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)


def test_weights_that_numpy_does_not_know_stay_together() -> None:
    values = opset.parameter([1, 4], np.float32)
    weights = ov.op.Constant(ov.Type.bf16, ov.Shape([6, 4]), np.arange(24.0).tolist())
    product = opset.matmul(values, opset.convert(weights, "f32"), False, True)
    split = opset.variadic_split(product, opset.constant(1), opset.constant([3, 3]))
    model = ov.Model([opset.multiply(split.output(0), split.output(1))], [values])
    assert split_gates(model) == []
    feed = np.ones((1, 4), np.float32)
    rows = np.arange(24.0).reshape(6, 4).sum(axis=1)
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feed)[0]
    np.testing.assert_allclose(found[0], rows[:3] * rows[3:])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cache_interval": 0}, "cache_interval is 0"),
        ({"cache_depth": 0}, "cache_depth is 0"),
        ({"attention_stride": 0}, "attention_stride is 0"),
        ({"guidance_end": 1.1}, "shares of the calls"),
        ({"guidance_begin": -0.1}, "shares of the calls"),
        ({"guidance_begin": 0.5, "guidance_end": 0.5}, "the end comes later"),
        ({"cache_interval": 2.0}, "must be of type int"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Settings(**given)


@pytest.mark.parametrize(
    ("begin", "end", "calls", "expected"),
    [
        (0.0, 1.0, 20, range(20)), (0.0, 0.6, 20, range(12)), (0.25, 0.5, 8, range(2, 4)),
        (0.0, 0.01, 20, range(1)), (0.99, 1.0, 20, range(19, 20)), (0.0, 1.0, 1, range(1)),
    ],
)  # fmt: skip
def test_shares_of_the_calls_are_guided(
    begin: float, end: float, calls: int, expected: range
) -> None:
    settings = Settings(guidance_begin=begin, guidance_end=end)
    assert settings.guided_calls(calls) == expected
    assert Settings(guidance_scale=1.0).guided_calls(calls) == range(0)
