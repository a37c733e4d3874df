"""Recipes: every shipped one is valid, and every fault says where it is and what to do."""

from pathlib import Path

import pytest

from sdcompress.errors import RecipeError
from sdcompress.recipe import Recipe, load_recipe
from sdcompress.shipped import shipped_folder

SHIPPED = sorted(shipped_folder("recipes").rglob("*.yaml"))
VALID = """\
schema: 1
name: sample
compress:
  unet: {method: int8, preset: mixed}
budgets:
  ssim_min: 0.9
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "sample.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def fault(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return str(caught.value)


def test_recipes_are_shipped() -> None:
    names = {file.stem for file in SHIPPED}
    assert names >= {
        "unet_int8",
        "unet_hybrid",
        "weights_int8",
        "sd21_base_int8",
        "sd21_base_fast",
        "sd21_int8",
    }


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_is_valid_and_named_after_its_file(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    assert recipe.description


def test_defaults_are_filled_in_and_written_back(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, VALID))
    assert recipe.compress.text_encoder.method == "fp16"
    assert Recipe.model_validate(recipe.as_dict()) == recipe


def test_overrides_apply_in_order(tmp_path: Path) -> None:
    file = write(tmp_path, VALID)
    recipe = load_recipe(file, ("evaluate.prompts=3", "evaluate.prompts=5", "model=some/folder"))
    assert recipe.evaluate.prompts == 5
    assert recipe.model == "some/folder"


def test_an_override_can_replace_a_whole_method(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, VALID), ("compress.unet={method: fp16}",))
    assert recipe.compress.unet.method == "fp16"


def test_unknown_key_names_file_line_and_nearest(tmp_path: Path) -> None:
    message = fault(tmp_path, VALID.replace("preset", "presett"))
    assert "sample.yaml:4: compress.unet.presett: unknown key" in message
    assert "did you mean 'preset'?" in message


def test_wrong_type_says_what_was_expected_and_found(tmp_path: Path) -> None:
    message = fault(tmp_path, VALID + "evaluate:\n  prompts: many\n")
    assert "sample.yaml:8: evaluate.prompts: should be a valid integer, found 'many'" in message


def test_booleans_are_not_numbers(tmp_path: Path) -> None:
    assert "evaluate.prompts" in fault(tmp_path, VALID + "evaluate: {prompts: true}\n")


def test_unknown_method_names_the_nearest(tmp_path: Path) -> None:
    message = fault(tmp_path, VALID.replace("int8,", "int9,"))
    assert "unknown method 'int9'" in message
    assert "did you mean 'int8'?" in message


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    text = VALID.replace("name: sample", "name: 'not/a name'").replace("ssim_min", "ssim_mni")
    message = fault(tmp_path, text + "sampling: {steps: 0}\n")
    assert "faults in the recipe" in message
    assert all(key in message for key in ("name", "budgets.ssim_mni", "sampling.steps"))


@pytest.mark.parametrize(
    ("addition", "key", "expected"),
    [
        ("convert: {width: 512}", "convert", "height and width are fixed together"),
        ("convert: {batch: 1}", "convert.batch", "batch of 2: set 2 or null"),
        ("convert: {batch: 2}\nsampling: {guidance_scale: 1.0}", "convert.batch", "batch of 1"),
        ("convert: {width: 512, height: 512}", "convert.width", "set both to the same size"),
        (
            "calibrate: {prompt_set: a}\nevaluate: {prompt_set: a}",
            "evaluate.prompt_set",
            "calibrate uses the prompt set 'a' as well",
        ),
        ("calibrate: {prompts: 4, samples: 202}", "calibrate.samples", "make only 100"),
    ],
)
def test_impossible_combinations_are_refused(
    tmp_path: Path, addition: str, key: str, expected: str
) -> None:
    message = fault(tmp_path, VALID + addition + "\n")
    line = VALID.count("\n") + 1 + addition[: addition.rindex(key.partition(".")[0])].count("\n")
    assert f"sample.yaml:{line}: {key}: " in message
    assert expected in message


def test_values_out_of_a_list_name_the_nearest(tmp_path: Path) -> None:
    message = fault(tmp_path, VALID, "sampling.scheduler=eulr", "compress.unet.preset=mixd")
    assert "did you mean 'euler'?" in message
    assert "did you mean 'mixed'?" in message


def test_an_alias_of_its_own_parent_is_refused(tmp_path: Path) -> None:
    assert "alias" in fault(tmp_path, VALID + "sampling: &a {steps: *a}\n")


@pytest.mark.parametrize(
    ("component", "method"),
    [("vae_encoder", "int8"), ("vae_encoder", "hybrid"), ("text_encoder", "hybrid")],
)
def test_methods_that_cannot_work_are_refused(tmp_path: Path, component: str, method: str) -> None:
    message = fault(tmp_path, VALID, f"compress.{component}={{method: {method}}}")
    assert f"{component} cannot use '{method}'" in message


def test_a_gate_without_budgets_is_refused(tmp_path: Path) -> None:
    message = fault(tmp_path, VALID.replace("  ssim_min: 0.9", "  ssim_min: null"))
    assert "at least one budget" in message


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    message = fault(tmp_path, VALID + "name: other\n")
    assert "sample.yaml:7: name is written twice, first at" in message


def test_broken_yaml_says_line_and_column(tmp_path: Path) -> None:
    assert "sample.yaml:8:" in fault(tmp_path, VALID + "evaluate: {prompts: [1\n")


def test_a_list_instead_of_a_mapping_is_refused(tmp_path: Path) -> None:
    assert "expected a mapping" in fault(tmp_path, "- schema: 1\n")


def test_a_missing_file_suggests_a_neighbour(tmp_path: Path) -> None:
    write(tmp_path, VALID)
    with pytest.raises(RecipeError, match=r"did you mean .*sample\.yaml"):
        load_recipe(tmp_path / "sampel.yaml")


@pytest.mark.parametrize("override", ["evaluate.prompts", "=3", "evaluate..prompts=3", "name.x=1"])
def test_malformed_overrides_are_refused(tmp_path: Path, override: str) -> None:
    assert f"--set {override}" in fault(tmp_path, VALID, override)


def test_a_fault_in_an_override_is_blamed_on_it(tmp_path: Path) -> None:
    message = fault(tmp_path, VALID, "evaluat.prompts=3")
    assert "--set evaluat.prompts=3: evaluat: unknown key" in message
    assert "did you mean 'evaluate'?" in message


def test_shortcuts_change_the_candidate_only(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, VALID + "runtime: {cache_interval: 3, steps: 12}\n"))
    assert recipe.baseline_settings["steps"] == 25
    assert recipe.candidate_settings == recipe.baseline_settings | {
        "steps": 12, "cache_interval": 3, "cache_depth": 1, "guidance_begin": 0.0,
        "guidance_end": 1.0, "attention_stride": 1, "decoder": "vae",
    }  # fmt: skip
    assert "guidance_begin comes before" in fault(
        tmp_path, VALID + "runtime: {guidance_begin: 0.6, guidance_end: 0.5}\n"
    )


def test_guidance_in_an_interval_needs_a_unet_of_any_batch(tmp_path: Path) -> None:
    text = VALID + "convert: {batch: 2}\nruntime: {guidance_end: 0.6}\n"
    assert "asked for one and for both branches" in fault(tmp_path, text)
