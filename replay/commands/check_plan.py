"""The work of `replay check`: measures the chosen cases and compares them with their baseline."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay.commands.compilation import report_compilation
from replay.commands.gate_options import Chosen
from replay.support.names import say

if TYPE_CHECKING:
    from replay.gates.baselines import Baseline
    from replay.gates.checking import Report
    from replay.gates.tolerances import Rule


class CheckPlan:
    """The cases of a check, and the rules of the command line, which are added to those of each case."""

    def __init__(self, chosen: Chosen, rules: "list[Rule]", *, allow_changed_trace: bool, causes: bool) -> None:
        self._chosen, self._rules, self._causes = chosen, rules, causes
        self._cases: dict[str, Any] = dict(chosen.suite.cases)
        if allow_changed_trace:
            changed = {"allow_changed_trace": True}
            self._cases = {key: each.model_copy(update=changed) for key, each in self._cases.items()}

    def measure(self) -> "Report":
        """Measures all cases and judges them."""
        from replay.gates.checking import check
        from replay.support.progress import progress_bar

        suite = self._chosen.suite.model_copy(update={"cases": self._cases})
        baseline = self._baseline_of_cases()
        with report_compilation(), progress_bar("measuring") as progress:
            return check(
                suite, baseline, self._chosen.folder, rules=self._rules, causes=self._causes, progress=progress
            )

    def add_to_history(self, report: "Report", file: Path | None) -> None:
        """Adds the report to the history file. `file` None: the history file of the suite, if it names one."""
        from replay.gates.history import add_rows

        of_suite = self._chosen.suite.history
        if file is not None or of_suite is not None:
            add_rows(file or self._chosen.folder / str(of_suite), report, self._chosen.folder)

    def keep_better(self, report: "Report") -> None:
        """Writes improved figures into the baseline, if all cases passed."""
        from replay.gates.baselines import write_baseline
        from replay.gates.checking import ratchet

        if report.failed or self._baseline is None:
            return
        better, count = ratchet(self._baseline, report)
        write_baseline(self._chosen.baseline, better, force=True)
        say(f"{count} improved figures stored: {self._chosen.baseline}", err=True)

    @cached_property
    def _baseline(self) -> "Baseline | None":
        """Returns the baseline of the file; None if the file does not exist and no case needs it."""
        from replay.gates.baselines import read_baseline

        needed = self._chosen.baseline.exists() or self._needs_baseline()
        return read_baseline(self._chosen.baseline) if needed else None

    def _baseline_of_cases(self) -> "Baseline | None":
        """Returns the baseline without the cases that this check does not measure."""
        from replay.gates.baselines import Baseline

        if self._baseline is None or self._chosen.is_whole:
            return self._baseline
        return Baseline(cases={key: each for key, each in self._baseline.cases.items() if key in self._cases})

    def _needs_baseline(self) -> bool:
        """Whether a case has tolerances and no earlier trace to compare with."""
        from replay.gates.tolerances import Limit, parse_rules

        def has_tolerance(case: Any) -> bool:
            mine = [*parse_rules(self._chosen.suite.tolerances), *parse_rules(case.tolerances), *self._rules]
            return not mine or any(not isinstance(rule, Limit) for rule in mine)

        return any(case.against is None and has_tolerance(case) for case in self._cases.values())
