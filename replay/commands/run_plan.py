"""The work of `replay run`: simulates a trace with a stack and the references, and writes the results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay.commands.compilation import report_compilation
from replay.commands.options import time_option
from replay.commands.parallel_compilation import CEILING, FLOOR, ParallelCompilation
from replay.commands.paths import refuse_input_as_output
from replay.commands.rerecording import requests_note
from replay.commands.run_forks import forked_children
from replay.support.atomic_files import resolve_output
from replay.support.errors import OutputError, ReplayError, TraceError

if TYPE_CHECKING:
    import numpy as np

    from replay.analysis.forks import ForkedMemory
    from replay.analysis.live import Live
    from replay.analysis.metrics import Summary
    from replay.commands.collector_what_if import CollectorWhatIf
    from replay.config import StackConfig
    from replay.reports.files import AddressWriter
    from replay.simulation.result import RunResult
    from replay.trace import Trace


@dataclass(frozen=True)
class RunOutputs:
    """The files of a run."""

    folder: Path | None
    addresses: Path | None
    force: bool

    def refuse_collisions(self, source: str) -> None:
        """Raises OutputError if an output would overwrite the input or another output of the run."""
        if self.addresses is None:
            return
        refuse_input_as_output(source, self.addresses, "--addresses")
        file = resolve_output(self.addresses)
        if self.folder and resolve_output(self.folder) in (file, file.parent):
            raise OutputError(f"--addresses {self.addresses}: is in the folder of --out; choose another folder")


@dataclass(frozen=True)
class Simulated:
    """A simulation, and whether kernels were compiled for it."""

    result: "RunResult"
    summary: "Summary"
    compiled: bool
    what_if: "CollectorWhatIf | None" = None
    """Under other settings of the garbage collector."""
    live: "Live | None" = None
    """At the peak of resident memory, if the trace has call sites."""
    forks: "Sequence[ForkedMemory]" = ()
    """The recorded children of a recording with types."""

    @property
    def extra(self) -> dict[str, Any]:
        """What JSON has besides the summary."""
        from replay.reports.forks import forks_json
        from replay.reports.live import live_json

        found: dict[str, Any] = {"collector_what_if": self.what_if.as_json()} if self.what_if else {}
        found |= {"forks": forks_json(self.forks)} if self.forks else {}
        return found | ({"live_at_peak": live_json(self.live)} if self.live else {})


@dataclass(frozen=True)
class RunPlan:
    """A trace and the stack that simulates it."""

    source: str
    trace: "Trace"
    chosen: str
    """The preset or file of the stack."""
    stack: "StackConfig"
    overrides: list[str] | None
    env: list[str] | None
    seed: int | None
    trim_every: str | None
    sample_every_ns: int | None
    trim_every_ns: int | None

    @classmethod
    def of(
        cls,
        source: str,
        allocator: str | None,
        overrides: list[str] | None,
        env: list[str] | None,
        *,
        seed: int | None,
        sample: str | None,
        trim_every: str | None,
    ) -> "RunPlan":
        """Returns the plan of a command line. Without `allocator`, the stack is that of the recorded process."""
        from replay.config import default_environment, default_preset, load_config
        from replay.config.collector import collector_settings, split_settings, with_collector
        from replay.sources import open_source

        every_ns, trim_every_ns = _parse_interval("--sample", sample), _parse_interval("--trim-every", trim_every)
        of_collector, of_stack = split_settings(overrides or ())
        collector = collector_settings(of_collector)
        trace: Trace = open_source(source, seed=seed)
        trace = with_collector(trace, collector)
        if allocator is None:
            env = [*default_environment(trace.metadata), *(env or ())]
        chosen = default_preset(trace.metadata) if allocator is None else allocator
        stack = load_config(chosen, of_stack, env or ())
        return cls(source, trace, chosen, stack, overrides, env, seed, trim_every, every_ns, trim_every_ns)

    @property
    def title(self) -> str:
        """The source and the stack in words."""
        return f"{self.source} on {self.stack.name}"

    @property
    def arguments(self) -> list[str]:
        """The source, the stack and its settings as arguments of a command line."""
        settings = [word for text in self.overrides or () for word in ("--set", text)]
        variables = [word for text in self.env or () for word in ("--env", text)]
        seed = [] if self.seed is None else ["--seed", str(self.seed)]
        return [self.source, "-a", self.chosen, *settings, *variables, *seed]

    def run(self) -> "RunResult":
        """Simulates the trace with the stack only."""
        return self.simulate(RunOutputs(None, None, False), with_references=False).result

    def notes(self, *, may_differ: bool) -> Iterator[str]:
        """Yields notes about the stack; with `may_differ`, also its differences from the recorded process."""
        from replay.config import differences
        from replay.trace.editing.collecting import CollectedTrace

        yield from self.stack.notes
        if isinstance(self.trace, CollectedTrace):
            from replay.config.collector import collector_notes

            yield from collector_notes(self.trace.settings, self.trace.collector)
        if may_differ:
            yield from map(str, differences(self.trace.metadata, self.stack))
        if note := requests_note(self.source, self.trace.metadata.origin, [self.stack.name]):
            yield note

    def simulate(
        self, outputs: RunOutputs, *, with_references: bool, watched: bool = False, check: bool = False
    ) -> Simulated:
        """Simulates the trace, optionally also with the references, and writes the results.

        `watched`: shows the levels on the terminal while the trace is simulated. `check`: checks the invariants of the
        stack's models.
        """
        from replay.analysis.metrics import summarize
        from replay.config import load_config
        from replay.reports.files import new_address_file, new_folder, write_results

        stacks = [self.stack, *(load_config(name) for name in (FLOOR, CEILING) if with_references)]
        with ExitStack() as closing:
            folder = closing.enter_context(new_folder(outputs.folder, force=outputs.force)) if outputs.folder else None
            sink = (
                closing.enter_context(new_address_file(outputs.addresses, force=outputs.force))
                if outputs.addresses
                else None
            )
            second_process = closing.enter_context(ParallelCompilation())
            with (
                report_compilation(second_process.begin if with_references else None) as compilation,
                source_in_errors(self.source),
            ):
                result, *references = self._simulate_all(stacks, sink, second_process, watched=watched, check=check)
                assert result is not None
                what_if, live = self._what_if(result), self._live(result)
                forks = forked_children(self.source, self.trace)
            floor, ceiling = references or (None, None)
            done = Simulated(
                result, summarize(result, floor=floor, ceiling=ceiling), compilation.happened, what_if, live, forks
            )
            if folder:
                write_results(folder, result, done.summary, done.extra)
        return done

    @contextmanager
    def _shown(self, total: int | None, *, watched: bool) -> "Iterator[Shown]":
        """Shows the progress of the simulations, with the levels if they are to be watched."""
        from replay.support.progress import progress_bar

        if not watched:
            with progress_bar("simulating", total) as progress:
                yield progress, None
            return
        from replay.reports.console import PlainConsole
        from replay.reports.watching import Watch

        begin_ns = next((int(events.time_ns[0]) for events in self.trace.batches() if events.rows), 0)
        duration_ns = None if self.trace.duration_ns is None else self.trace.duration_ns - begin_ns
        with Watch(PlainConsole(), self.title, total, duration_ns) as shown:
            yield shown.progress, shown.watch

    def _what_if(self, result: "RunResult") -> "CollectorWhatIf | None":
        """Returns the estimate under other settings of the garbage collector, if the trace has any."""
        from replay.trace.editing.collecting import CollectedTrace

        if not isinstance(self.trace, CollectedTrace):
            return None
        from replay.commands.collector_what_if import estimate
        from replay.simulation.run import NO_SAMPLES_NS, run

        def simulate(trace: CollectedTrace) -> int:
            other = run(trace, self.stack, sample_every_ns=NO_SAMPLES_NS, trim_every_ns=self.trim_every_ns)
            return int(other.end.resident_bytes_peak)

        return estimate(self.trace, int(result.end.resident_bytes_peak), simulate)

    def _live(self, result: "RunResult") -> "Live | None":
        """Returns who is live at the peak of resident memory, if the trace has call sites and one process."""
        from replay.analysis.live import live_before

        metadata = self.trace.metadata
        if not metadata.sites or metadata.processes or not result.at_peak.resident_bytes_peak:
            return None
        return live_before(self.trace, int(result.at_peak.row) + 1, result.at_peak_time_ns)

    def _simulate_all(
        self,
        stacks: "list[StackConfig]",
        sink: "AddressWriter | None",
        second_process: ParallelCompilation,
        *,
        watched: bool,
        check: bool,
    ) -> "list[RunResult | None]":
        """Simulates the trace with each stack; None for a reference that runs out of memory.

        Only the first stack has samples, and only its addresses are written.
        """
        from replay.simulation.run import NO_SAMPLES_NS, run
        from replay.simulation.side_by_side import run_side_by_side

        first, *references = stacks
        with self._shown(self.trace.events_total, watched=watched) as (progress, watch):

            def simulate_first(trace: "Trace", begin_others: Callable[[int], None]) -> "RunResult":
                def show(rows: int) -> None:
                    begin_others(rows)
                    progress(rows)

                return run(
                    trace,
                    first,
                    sample_every_ns=self.sample_every_ns,
                    trim_every_ns=self.trim_every_ns,
                    addresses=sink,
                    progress=show,
                    watch=watch,
                    check=check,
                )

            def simulate(stack: "StackConfig", trace: "Trace", go_on: Callable[[int], None]) -> "RunResult":
                return run(
                    trace,
                    stack,
                    sample_every_ns=NO_SAMPLES_NS,
                    trim_every_ns=self.trim_every_ns,
                    progress=go_on,
                    requested_mean=False,
                )

            others = [partial(simulate, stack) for stack in references]
            result, found = run_side_by_side(self.trace, simulate_first, others, second_process.wait)
        # `bump` never frees, so it may run out of memory where the stack does not.
        return [result, *(None if isinstance(each, ReplayError) else each for each in found)]


Shown = tuple[Callable[..., None], "Callable[[int, int, np.record], None] | None"]
"""What is called with the number of events so far; and what is called with the counters, if anything is."""


def _parse_interval(option: str, text: str | None) -> int | None:
    """Returns nanoseconds; None without the option."""
    interval_ns = None if text is None else time_option(option, text)
    if interval_ns == 0:
        raise ReplayError(f"{option}: the interval must be longer than 0; write it like 10ms")
    return interval_ns


@contextmanager
def source_in_errors(source: str) -> Iterator[None]:
    """Adds the name of the source to errors of the simulation, which have the row but not the file."""
    try:
        yield
    except TraceError as error:
        if error.path is not None:
            raise
        raise TraceError(error.what, path=source, row=error.row) from error
