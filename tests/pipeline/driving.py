"""Drive a run in this process and keep what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryoscale.config import apply_settings
from cryoscale.data.run import Run
from cryoscale.pipeline.driver import Options, RunResult, run_pipeline
from cryoscale.runtime.events import Event, Message, TaskEnded


@dataclass
class Drive:
    """How a run ended, and every event on the way."""

    events: list[Event] = field(default_factory=list)
    result: RunResult | None = None

    @property
    def tasks(self) -> list[TaskEnded]:
        return [event for event in self.events if isinstance(event, TaskEnded)]

    @property
    def ran(self) -> dict[str, int]:
        """Tasks that ended, by stage."""
        counts: dict[str, int] = {}
        for task in self.tasks:
            counts[task.stage] = counts.get(task.stage, 0) + 1
        return counts

    @property
    def stages(self) -> set[str]:
        return set(self.ran)

    @property
    def messages(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Message)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.result, name)


def drive(run: Run, **options: Any) -> Drive:
    """Run what is due under the serial executor."""
    seen = Drive()
    seen.result = run_pipeline(run, Options(executor="serial", **options), listeners=(seen.events.append,))
    return seen


def settle(run: Run, *settings: str) -> None:
    """Change parameters of a run, as a person who edits `run.toml` does."""
    run.save_config(apply_settings(run.config, list(settings)))


def bare_run(place: Path) -> Run:
    """A run folder that no driver has seen."""
    place.mkdir(parents=True)
    (place / "run.toml").write_text('[[inputs]]\nname = "t1"\npath = "/data/t1.mrc"\n')
    return Run.at(place)
