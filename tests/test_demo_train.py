"""Training, killed for real, resumes to the same weights; every part trains and exports."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from sdcompress.demo.grammar import COLOURS, SHAPES  # noqa: E402
from sdcompress.demo.train import clip, data, naming, text, tiny, tokenizer, unet, vae  # noqa: E402
from sdcompress.demo.train.checkpoint import Job, schedule  # noqa: E402
from sdcompress.demo.train.muon import optimizers, orthogonal  # noqa: E402
from sdcompress.quiet import quiet_libraries  # noqa: E402

STEPS = 30
CHILD = """
import sys
from pathlib import Path
from sdcompress.demo.train import checkpoint, vae
checkpoint._SECONDS_BETWEEN_SAVES = 0.0
vae.train(checkpoint.Job("vae", int(sys.argv[2]), 2, 1e-3, Path(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with quiet_libraries():
        yield


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with quiet_libraries():
        return tokenizer.build(tmp_path_factory.mktemp("tokenizer"), captions=1000)


def done(folder: Path) -> int:
    file = folder / "vae.pt"
    return int(torch.load(file, weights_only=True)["done"]) if file.exists() else 0


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, str(killed), str(STEPS)])
    deadline = time.monotonic() + 60
    while done(killed) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    stopped_after = done(killed)
    assert 3 <= stopped_after < STEPS
    resumed = vae.train(Job("vae", STEPS, 2, 1e-3, killed)).state_dict()
    uninterrupted = vae.train(Job("vae", STEPS, 2, 1e-3, whole)).state_dict()
    for name, weight in uninterrupted.items():
        assert torch.equal(resumed[name], weight), name


def test_white_becomes_zero_and_pictures_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder = vae.build()
    _, pixels = data.batch(0, 2)
    with torch.no_grad():
        before = autoencoder(torch.from_numpy(pixels)).sample
        vae.centred_on_white(autoencoder)
        after = autoencoder(torch.from_numpy(pixels)).sample
        latents = autoencoder.encode(torch.ones(1, 3, 128, 128)).latent_dist.mean
    assert latents[0, :, 4:-4, 4:-4].mean(dim=(1, 2)).abs().max() < 1e-4
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)


def test_refining_trains_the_decoder_alone(tmp_path: Path) -> None:
    autoencoder = vae.build()
    before = {name: weight.clone() for name, weight in autoencoder.state_dict().items()}
    vae.refine(Job("decoder", 2, 2, 1e-3, tmp_path), autoencoder)
    changed = {name for name, w in autoencoder.state_dict().items() if not w.equal(before[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


def test_a_finished_part_is_not_trained_again(tmp_path: Path) -> None:
    job = Job("vae", 1, 2, 1e-3, tmp_path)
    vae.train(job)
    written = job.checkpoint.stat().st_mtime_ns
    vae.train(job)
    assert job.checkpoint.stat().st_mtime_ns == written
    assert not list(tmp_path.glob("*.partial"))


def test_the_learning_rate_warms_up_and_decays_to_almost_nothing() -> None:
    rates = [schedule(index, 1000) for index in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] < 0.01


@pytest.fixture(scope="module")
def reader(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return text.train(Job("text", 2, 4, 1e-4, tmp_path_factory.mktemp("text")), words)


def test_unet_and_decoders_train_on_cached_latents(tmp_path: Path, words: Any, reader: Any) -> None:
    before = {name: weight.clone() for name, weight in reader.state_dict().items()}
    autoencoder = vae.build()
    latents = unet.encode_training_set(autoencoder, words, tmp_path, count=50)
    assert latents.means.shape == (50, 4, 16, 16)
    assert latents.token_ids.shape == (50, 77)
    again = unet.encode_training_set(autoencoder, words, tmp_path, count=50)
    assert np.array_equal(latents.means, again.means)
    network = unet.train(Job("unet", 2, 2, 1e-4, tmp_path), latents, reader, words)
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
    assert reader.config.hidden_size == network.config.cross_attention_dim
    assert all(torch.equal(weight, before[name]) for name, weight in reader.state_dict().items())
    decoder = tiny.train(Job("tiny", 2, 2, 1e-4, tmp_path), latents, autoencoder)
    with torch.no_grad():
        assert decoder.decode(torch.zeros(1, 4, 16, 16)).sample.shape == (1, 3, 128, 128)


def test_muon_makes_updates_orthogonal() -> None:
    matrices = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(0))
    for flat in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonal(flat))
        assert values.min() > 0.6 and values.max() < 1.3


def test_muon_learns_a_convolution_and_a_matrix() -> None:
    torch.manual_seed(0)
    teacher, student = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(72, 4))
        for _ in range(2)
    )
    both = optimizers(student, 1e-2)
    losses = []
    for _ in range(150):
        x = torch.randn(32, 3, 5, 5)
        loss = (student(x) - teacher(x).detach()).square().mean()
        loss.backward()
        for one in both.values():
            one.step()
            one.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.1 * losses[0]


def test_names_say_what_the_picture_shows() -> None:
    """A patch named after a colour holds that colour in the picture; one named empty does not."""
    examples = [data.example(seed) for seed in range(40)]
    named = naming.names(examples, patch=16)
    for example, patches, slots in zip(examples, named.patches, named.slots, strict=True):
        colours = np.array([COLOURS[thing.colour] for thing in example.scene.objects])
        for row, column in np.ndindex(8, 8):
            shape, colour, _ = patches[:, row, column].tolist()
            part = example.pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
            shares = [(part == one).all(axis=2).mean() for one in colours]
            if not shape:
                assert max(shares) < 0.5
            else:
                assert list(COLOURS)[colour] in {thing.colour for thing in example.scene.objects}
        for thing in example.scene.objects:
            shape, _ = slots[list(COLOURS).index(thing.colour)].tolist()
            assert SHAPES[shape - 1] == thing.shape
        assert int((slots[:, 0] > 0).sum()) == len(example.scene.objects)


def test_clip_trains_and_can_be_asked(tmp_path: Path, words: Any, reader: Any) -> None:
    model = clip.train(Job("clip", 2, 4, 1e-4, tmp_path), reader, words)
    assert 0.0 <= clip.accuracy(model, words, 4) <= 1.0


def test_captions_become_few_tokens_between_start_and_end(words: Any) -> None:
    ids = words("a small red circle to the left of a large blue square").input_ids
    assert ids[0] == words.bos_token_id
    assert ids[-1] == words.eos_token_id
    assert len(ids) == 2 + 12
    full = words("a star", padding="max_length", max_length=77).input_ids
    assert len(full) == 77
    assert full[-1] == words.pad_token_id == 0
    assert words.decode(ids, skip_special_tokens=True).strip().startswith("a small red circle")


def test_letters_outside_the_captions_are_kept_as_bytes(words: Any) -> None:
    ids = words("ünïcödé").input_ids
    assert words.decode(ids, skip_special_tokens=True).strip() == "ünïcödé"
