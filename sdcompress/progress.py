"""How long work tells of itself. Stages talk to `Progress`; the command line draws it with rich."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int, int], None]
"""Called with (done, total) whenever something is finished."""


class Progress(Protocol):
    def stage(self, name: str, detail: str) -> AbstractContextManager[Advance]:
        """Opens a stage; the callable it yields moves the stage's bar."""

    def reused(self, name: str, detail: str) -> None:
        """Says that a finished stage was taken from the store."""

    def notice(self, message: str) -> None:
        """Says something the user should know although nothing failed."""


class SilentProgress:
    """For library use: says nothing."""

    @contextmanager
    def stage(self, name: str, detail: str) -> Iterator[Advance]:
        yield lambda done, total: None

    def reused(self, name: str, detail: str) -> None:
        pass

    def notice(self, message: str) -> None:
        pass


class TerminalProgress:
    """One line for each stage with a bar and the remaining time, in the end the time it took."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, name: str, detail: str) -> Iterator[Advance]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("[bold]{task.fields[stage]:<9}[/] {task.description:<38}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        # An item may take minutes, so all that is done counts for the speed.
        with Progress(*columns, console=self._console, speed_estimate_period=1e6) as bars:
            task = bars.add_task(detail, stage=name, total=None)

            def advance(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            yield advance

    def reused(self, name: str, detail: str) -> None:
        self._console.print(f"[bold]{name:<9}[/] {detail:<38} [green]reused[/]", highlight=False)

    def notice(self, message: str) -> None:
        self._console.print(f"[yellow]note[/]       {message}", highlight=False)
