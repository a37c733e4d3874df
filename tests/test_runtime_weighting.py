"""Emphasis and long prompts: what is parsed, and what the text encoder then gets."""

import numpy as np
import pytest
from toy_model import write_toy_model

from sdcompress.runtime import InputError, Pipeline, Settings
from sdcompress.runtime.weighting import parse_weights

WEIGHTED = Settings(steps=2, prompt_weights=True)
LONG = Settings(steps=2, long_prompts=True)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = write_toy_model(tmp_path_factory.mktemp("toy") / "model")
    return Pipeline.load(folder, execution_precision="f32")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a red circle", [("a red circle", 1)]),
        ("a (red:1.3) circle", [("a ", 1), ("red", 1.3), (" circle", 1)]),
        ("a (red) circle", [("a ", 1), ("red", 1.1), (" circle", 1)]),
        ("a [red] circle", [("a ", 1), ("red", 1 / 1.1), (" circle", 1)]),
        ("((red))", [("red", 1.21)]),
        ("(a (red:2) circle:0.5)", [("a ", 0.5), ("red", 1), (" circle", 0.5)]),
        (r"a \(red\) circle", [("a (red) circle", 1)]),
        ("time: 12:30", [("time: 12:30", 1)]),
        ("(a: b:1.5)", [("a: b", 1.5)]),
        (r"back\slash", [("back\\slash", 1)]),
    ],
)
def test_weights_are_parsed(prompt: str, expected: list[tuple[str, float]]) -> None:
    actual = parse_weights(prompt)
    assert [part.text for part in actual] == [text for text, _ in expected]
    np.testing.assert_allclose([part.weight for part in actual], [w for _, w in expected])


@pytest.mark.parametrize(
    ("prompt", "mentions"),
    [
        ("(red", "never closed"),
        ("red)", "closes nothing"),
        ("(red]", "closes nothing"),
        ("(red:)", "not a weight"),
        ("(red:1.2.3)", "not a weight"),
        ("(red:-1)", "not between"),
        ("(red:1e9)", "not between"),
        ("(red:1,2)", "not a weight"),
    ],
)
def test_what_cannot_be_parsed_is_refused(prompt: str, mentions: str) -> None:
    with pytest.raises(InputError, match=mentions):
        parse_weights(prompt)


def test_weights_are_off_unless_asked_for(pipeline: Pipeline) -> None:
    plain = pipeline.encode(["a (red:1.3) circle"])
    assert not np.array_equal(plain, pipeline.encode(["a (red:1.3) circle"], WEIGHTED))
    np.testing.assert_array_equal(plain, pipeline.encode([r"a \(red:1.3\) circle"], WEIGHTED))


def test_weights_scale_their_tokens_and_keep_the_mean(pipeline: Pipeline) -> None:
    plain = pipeline.encode(["red circle"])
    strong = pipeline.encode(["(red:2) circle"], WEIGHTED)
    assert strong.mean() == pytest.approx(plain.mean(), rel=1e-4)
    ratio = strong[0] / plain[0]
    count = sum(pipeline.prompts.tokenize(["red"])[0] != pipeline.prompts.tokenize([""])[0])
    red, rest = ratio[1 : 1 + count], ratio[[0, *range(1 + count, 77)]]
    np.testing.assert_allclose(red, 2 * rest.mean(), rtol=1e-4)


def test_one_weight_for_all_changes_nothing(pipeline: Pipeline) -> None:
    np.testing.assert_allclose(
        pipeline.encode(["(red circle:1)"], WEIGHTED), pipeline.encode(["red circle"]), rtol=1e-6
    )


def test_long_prompts_are_encoded_piece_by_piece(pipeline: Pipeline) -> None:
    long = "red " * 80
    ids = pipeline.prompts.tokenize(["red"])[0]
    assert (ids[1:-1] != ids[2]).any()
    pieces = pipeline.encode([long, "blue"], LONG)
    count = pieces.shape[1] // 77
    assert count > 1
    assert pieces.shape[::2] == (2, pipeline.encode(["red"]).shape[2])
    np.testing.assert_array_equal(pieces[0, :77], pipeline.encode([long])[0])
    np.testing.assert_array_equal(pieces[1, :77], pipeline.encode(["blue"])[0])
    np.testing.assert_array_equal(pieces[1, 77:154], pipeline.encode([""])[0])


@pytest.mark.parametrize("static", [True, False])
def test_pictures_are_drawn_from_prompts_of_any_length(pipeline: Pipeline, static: bool) -> None:
    """The UNet's file declares 77 tokens; a longer prompt must not need another export."""
    again = Pipeline.load(pipeline.folder, execution_precision="f32", static=static)
    long = "red " * 80
    drawn = [again.generate(long, settings=settings) for settings in (WEIGHTED, LONG, WEIGHTED)]
    assert drawn[0].tobytes() == drawn[2].tobytes()
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_fragments_are_cut_off_together(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.encode(["(" + "red " * 80 + ":1.2) circle above"], WEIGHTED)
    assert str(caplog.records[-1].args[1]).endswith("circle above")  # type: ignore[index]
