"""The store: an entry is there whole or not at all, and only for the inputs it was made from."""

from pathlib import Path

import pytest

from sdcompress.progress import Advance, SilentProgress
from sdcompress.store import Store, key_of

QUIET = SilentProgress()


def write_result(folder: Path, advance: Advance) -> None:
    (folder / "result").write_text("done")
    advance(1, 1)


def must_not_run(folder: Path, advance: Advance) -> None:
    raise AssertionError("a finished stage was built again")


def test_a_finished_stage_is_reused(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "run")
    entry = store.stage(QUIET, "convert", "k1", "", write_result)
    again = Store.open(tmp_path, "run").stage(QUIET, "convert", "k1", "", must_not_run)
    assert again == entry
    assert (again / "result").read_text() == "done"


def test_the_log_says_what_a_stage_found(tmp_path: Path) -> None:
    def choose(folder: Path, advance: Advance) -> str:
        write_result(folder, advance)
        return "in bf16"

    for builds in (choose, must_not_run):
        store = Store.open(tmp_path, "run")
        store.stage(QUIET, "ranges", "k1", "unet", builds)
        (record,) = store.log
        assert record.detail == "unet, in bf16"


def test_another_key_is_built(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "run")
    store.stage(QUIET, "convert", "k1", "", write_result)
    with pytest.raises(AssertionError, match="built again"):
        store.stage(QUIET, "convert", "k2", "", must_not_run)


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path, advance: Advance) -> None:
        write_result(folder, advance)
        raise OSError("disk full")

    store = Store.open(tmp_path, "run")
    with pytest.raises(OSError, match="disk full"):
        store.stage(QUIET, "convert", "k1", "", fail)
    assert not list(tmp_path.glob("convert-*"))
    assert not list(store.scratch.iterdir())


def test_a_fresh_run_builds_anew_and_then_reuses_its_own(tmp_path: Path) -> None:
    Store.open(tmp_path, "run").stage(QUIET, "convert", "k1", "", write_result)
    fresh = Store.open(tmp_path, "run", fresh=True)

    def write_other(folder: Path, advance: Advance) -> None:
        (folder / "result").write_text("anew")

    entry = fresh.stage(QUIET, "convert", "k1", "", write_other)
    assert (entry / "result").read_text() == "anew"
    assert fresh.stage(QUIET, "convert", "k1", "", must_not_run) == entry


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    left = Store.open(tmp_path, "run").scratch / "convert-half"
    left.mkdir()
    assert not list(Store.open(tmp_path, "run").scratch.iterdir())


def test_two_runs_do_not_clear_each_other(tmp_path: Path) -> None:
    one = Store.open(tmp_path, "one")
    (one.scratch / "busy").mkdir()
    Store.open(tmp_path, "two")
    assert (one.scratch / "busy").is_dir()


def test_keys_depend_on_every_input() -> None:
    assert key_of(a=1, b=2) == key_of(b=2, a=1)
    assert key_of(a=1, b=2) != key_of(a=1, b=3)


def test_a_resumable_stage_goes_on_from_what_it_left(tmp_path: Path) -> None:
    def stop_half_way(folder: Path, advance: Advance) -> None:
        (folder / "first").write_text("kept")
        raise OSError("killed")

    def finish(folder: Path, advance: Advance) -> None:
        assert (folder / "first").read_text() == "kept"
        write_result(folder, advance)

    store = Store.open(tmp_path, "run")
    with pytest.raises(OSError, match="killed"):
        store.stage(QUIET, "ranges", "k", "", stop_half_way, resumable=True)
    assert not store.has("ranges", "k")
    again = Store.open(tmp_path, "run")
    entry = again.stage(QUIET, "ranges", "k", "", finish, resumable=True)
    assert (entry / "result").read_text() == "done"
    assert again.has("ranges", "k")


def test_a_fresh_run_drops_what_was_left_unfinished(tmp_path: Path) -> None:
    def stop_half_way(folder: Path, advance: Advance) -> None:
        (folder / "first").write_text("old")
        raise OSError("killed")

    def finish(folder: Path, advance: Advance) -> None:
        assert not list(folder.iterdir())
        write_result(folder, advance)

    with pytest.raises(OSError, match="killed"):
        Store.open(tmp_path, "run").stage(QUIET, "ranges", "k", "", stop_half_way, resumable=True)
    fresh = Store.open(tmp_path, "run", fresh=True)
    fresh.stage(QUIET, "ranges", "k", "", finish, resumable=True)


def test_a_shelf_grows_and_is_reused(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def filled(store: Store, *files: str) -> Path:
        def build(folder: Path, advance: Advance) -> None:
            missing = [file for file in files if not (folder / file).exists()]
            asked.append(missing)
            for file in missing:
                (folder / file).write_text(file)
            advance(1, 1)

        return store.shelf(SilentProgress(), "draw", "pictures", "key", "a", files, build)

    store = Store.open(tmp_path, "run")
    assert not store.holds("pictures", "key", ["a"])
    folder = filled(store, "a", "b")
    assert store.holds("pictures", "key", ["b"])
    filled(store, "b", "c")
    filled(store, "a", "c")
    assert asked == [["a", "b"], ["c"]]
    assert [record.name for record in store.log] == ["draw", "draw"]
    again = Store.open(tmp_path, "again")
    assert filled(again, "a", "b") == folder
    assert again.log == store.log[:1]  # what these two took when they were built
    fresh = Store.open(tmp_path, "fresh", fresh=True)
    filled(fresh, "a")
    filled(fresh, "a")
    assert asked[2:] == [["a"]]
    assert not (folder / "c").exists()
