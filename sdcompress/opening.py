"""What every run does first: holds its output folder, opens the store, looks whether it fits."""

import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdcompress.architecture import read_architecture
from sdcompress.bundle import require_replaceable
from sdcompress.errors import OutputBusyError
from sdcompress.line import SMALL_MODEL_BYTES, Line, Material
from sdcompress.outlook import Estimate, describe, require_room
from sdcompress.preflight import SEARCH_STAGES, STAGES, estimate
from sdcompress.progress import Progress
from sdcompress.recipe import Recipe
from sdcompress.speed import measure_speed
from sdcompress.store import Store

STORE = ".sdcompress"


def output_folder(recipe: Recipe, output: Path | str | None) -> Path:
    """Returns where a run writes, as an absolute path: `output`, or build/<recipe name>.

    Raises InputError when something lies there that a run did not write.
    """
    target = Path(output or Path("build") / recipe.name).resolve()
    require_replaceable(target)
    return target


@contextmanager
def production_line(
    recipe: Recipe, target: Path, material: Material, progress: Progress, *, fresh: bool = False
) -> Iterator[Line]:
    """Holds the output folder for one run and yields its line.

    Raises OutputBusyError when another run holds it.
    """
    with opened_store(target, fresh=fresh) as store:
        yield Line(recipe, material, store, progress)


@contextmanager
def opened_store(target: Path, *, fresh: bool = False) -> Iterator[Store]:
    """Holds the output folder for one run and yields the store beside it.

    Raises OutputBusyError when another run holds it.
    """
    store_folder = target.parent / STORE
    lock_file = store_folder / "locks" / f"{target.name}.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock_file, timeout=0):
            store = Store.open(store_folder, target.name, fresh=fresh)
            try:
                yield store
            finally:
                gc.collect()  # unmaps IR files, which Windows cannot delete while they are open
                store.close()
    except Timeout:
        raise OutputBusyError(
            f"another run is writing to {target}: wait for it to end, or choose another --output"
        ) from None


def look_ahead(
    line: Line,
    target: Path,
    wanted: Collection[str],
    *,
    refuse: bool,
    expect: Callable[..., Estimate] = estimate,
) -> None:
    """Shows what the `wanted` stages will take, and refuses them when that is not there."""
    if line.source.weight_bytes < SMALL_MODEL_BYTES or not set(wanted) - {"bundle"}:
        return
    sampling = line.recipe.sampling
    with line.progress.stage("preflight", "memory, disk and time") as advance:
        model = read_architecture(line.source, sampling.width, sampling.height)
        skipped = {*STAGES, *SEARCH_STAGES} - set(wanted)
        expected = expect(line.recipe, model, measure_speed(line.recipe.device), skipped)
        advance(1, 1)
    line.progress.notice("expected of this run\n" + "\n".join(describe(expected)))
    if refuse:
        require_room(expected, target)
