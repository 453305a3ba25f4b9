"""The report: `gpu_report.json` and `gpu_report.md`, written anew after every check."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ds_rvqvae.errors import printable
from ds_rvqvae.files import whole_file
from tests.on_gpu.claims import Claim

OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"
_LONGEST = 240
"""Characters of figures in a line; the report has all."""
JSON, PAGE = "gpu_report.json", "gpu_report.md"


@dataclass
class Outcome:
    """The result of one check."""

    name: str
    title: str
    status: str
    seconds: float = 0.0
    claims: list[Claim] = field(default_factory=list)
    reason: str = ""
    """Why it failed or was not run, if that is not in a claim."""

    def line(self, rehearsal: bool) -> str:
        """Returns the outcome as one line: what failed with its bounds, else the figures, as far as they fit."""
        failed = [claim.words(rehearsal) for claim in self.claims if claim.fails(rehearsal)]
        figures = "; ".join(f"{claim.name} {claim.text}" for claim in self.claims)
        if len(figures) > _LONGEST:
            figures = f"{figures[:_LONGEST].rpartition('; ')[0] or figures[:_LONGEST]}; …"
        said = "; ".join([*filter(None, [self.reason]), *failed]) or figures
        return printable(f"{self.status:<8}{self.name:<14}{self.seconds:6.1f} s  {said}")


@dataclass
class Report:
    """The outcomes so far, and facts about the machine, in a folder."""

    folder: Path
    facts: dict[str, Any]
    rehearsal: bool
    outcomes: list[Outcome] = field(default_factory=list)
    ended: str = ""
    """How the program ended; empty while it runs."""

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.write()

    @property
    def all_ok(self) -> bool:
        return bool(self.outcomes) and all(outcome.status == OK for outcome in self.outcomes)

    def summary(self) -> str:
        counts = {status: sum(one.status == status for one in self.outcomes) for status in (OK, FAILED, NOT_RUN)}
        kind = "rehearsal on CPU ranks: " if self.rehearsal else ""
        return kind + ", ".join(f"{count} {status}" for status, count in counts.items())

    def write(self) -> None:
        """Writes both files, each completely or not at all."""
        content = {
            "kind": "rehearsal" if self.rehearsal else "gpu",
            "written": datetime.now().astimezone().isoformat(timespec="seconds"),
            "ended": self.ended or "still running",
            "summary": self.summary(),
            "facts": self.facts,
            "checks": [self._json(outcome) for outcome in self.outcomes],
        }
        for name, text in ((JSON, json.dumps(content, indent=2, default=str)), (PAGE, self._page(content))):
            with whole_file(self.folder / name) as file:
                file.write(f"{text}\n".encode(errors="replace"))

    def _json(self, outcome: Outcome) -> dict[str, Any]:
        figures = [
            {
                "name": claim.name,
                "value": claim.value,
                "text": claim.text,
                "expected": claim.expected,
                "applied": claim.counts(self.rehearsal),
                "holds": claim.holds,
            }
            for claim in outcome.claims
        ]
        kept = {"name": outcome.name, "title": outcome.title, "status": outcome.status, "reason": outcome.reason}
        return {**kept, "seconds": round(outcome.seconds, 2), "figures": figures}

    def _page(self, content: dict[str, Any]) -> str:
        title = "Rehearsal on CPU ranks: its figures say nothing about a GPU" if self.rehearsal else "Report of GPUs"
        lines = [f"# {title}", "", f"{content['summary']}; {content['ended']}; {content['written']}", ""]
        lines += ["| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in self.facts.items() if "\n" not in str(value)]
        for name, value in self.facts.items():
            if "\n" in str(value):
                lines += ["", f"{name}:", "", "```", str(value).rstrip(), "```"]
        lines += ["", "| check | result | seconds | figure | found | expected |", "|---|---|---:|---|---|---|"]
        for outcome in self.outcomes:
            first = [outcome.name, outcome.status, f"{outcome.seconds:.1f}"]
            rows = [[outcome.reason, "", ""]] if outcome.reason else []
            rows += [[claim.name, claim.text, self._bound(claim)] for claim in outcome.claims]
            for row in rows or [["", "", ""]]:
                lines.append(f"| {' | '.join(_cell(cell) for cell in [*first, *row])} |")
                first = ["", "", ""]
        return "\n".join(lines)

    def _bound(self, claim: Claim) -> str:
        if not claim.expected:
            return ""
        if not claim.counts(self.rehearsal):
            return f"{claim.expected}, on a GPU"
        return claim.expected if claim.holds else f"**{claim.expected}**"


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return printable(text).replace("|", "\\|")
