"""Decides what an import says: findings with a verdict each, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "note", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. A ``note`` is for the reader; ``failed`` stops the import."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(slots=True)
class ImportReport:
    """What was found, in the order in which it was looked at."""

    source: str
    architecture: str = ""
    parameters: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, name: str, verdict: Verdict, detail: str) -> None:
        """Append a finding."""
        self.findings.append(Finding(name, verdict, detail))

    @property
    def failed(self) -> list[Finding]:
        """The findings for which nothing is written."""
        return [finding for finding in self.findings if finding.verdict == "failed"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def text(self) -> str:
        """A line for each finding."""
        head = f"{self.source}: {self.architecture}, {self.parameters:,} parameters"
        lines = [f"{one.verdict:<7}{one.name:<18}{one.detail}" for one in self.findings]
        return "\n".join([head, *lines])
