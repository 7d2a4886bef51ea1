"""How a run ended, in words: one line, a page for Kubeflow's UI, and the content of a notification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hardcase.report.notify import Notice

NOTIFIED: Final = ("run", "state", "step", "message", "log", "link", "report", "logs")  # of a webhook's JSON


@dataclass(frozen=True)
class Conclusion:
    """How a run ended.

    `log` holds the last lines of the step that failed, `link` leads to the run in Kubeflow's UI, `logs` is a command
    that prints the logs of its pods. Each is empty where there is none.
    """

    record: Mapping[str, Any]
    log: Sequence[str] = ()
    link: str = ""
    logs: str = ""

    @property
    def run(self) -> str:
        """Id of the run."""
        return str(self.record["run_id"])

    @property
    def state(self) -> str:
        """`SUCCEEDED`, `FAILED` or `CANCELLED`."""
        return {"failed": "FAILED", "cancelled": "CANCELLED"}.get(self.record["status"], "SUCCEEDED")

    @property
    def step(self) -> str:
        """Name of the step that failed, or at which the run was stopped."""
        return str((self.record["error"] or {}).get("step") or "")

    @property
    def message(self) -> str:
        """Why it failed."""
        return str((self.record["error"] or {}).get("message") or "")

    @property
    def report(self) -> str:
        """Command that fetches the report on any machine that reaches the store."""
        return f"hardcase report {self.run} --store {self.record['store']}"

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        model, gate = self.record["model"], self.record["gate"]
        if self.state == "CANCELLED":
            return f"Run {self.run} was cancelled" + (f" at {self.step}" if self.step else "")
        if self.state == "FAILED":
            return f"Run {self.run} failed at {self.step}: {' '.join(self.message.split())}"
        if not gate:
            return f"Run {self.run} succeeded"
        name = f"{model['name']}:{model['version']}"
        if gate["verdict"] == "promoted":
            return f"Run {self.run} succeeded: {name} was promoted and is the champion"
        return f"Run {self.run} ended: {name} was rejected by the gate: {'; '.join(gate['reasons'])}"

    @property
    def notice(self) -> Notice:
        """The outcome for the people who are notified."""
        facts = {name: getattr(self, name) for name in NOTIFIED}
        return Notice(self.headline, self.link, [self.report, self.logs, "", *self.log], facts)

    @property
    def markdown(self) -> str:
        """The outcome for the run's page in Kubeflow."""
        lines = [f"## {self.headline}", ""]
        lines += [f"- {name}: `{self.record[name]}`" for name in ("profile", "source", "seed") if self.record[name]]
        if scores := self.record["scores"]:
            lines += ["", "| | overall | exact match |", "|---|---|---|"]
            lines += [
                f"| {part} | {score['overall']:.1f} | {score['exact_match']:.3f} |"
                for part, score in scores.items()
                if score
            ]
        lines += ["", *(f"- warning: {warning}" for warning in self.record["warnings"])]
        lines += ["", "| step | | seconds |", "|---|---|---|"]
        lines += [
            f"| {step} | {'cached' if outcome['cached'] else outcome['status']} | {outcome['seconds']:.0f} |"
            for step, outcome in self.record["steps"].items()
        ]
        if self.log:
            lines += ["", f"Last lines of `{self.step}`:", "", "```", *self.log, "```"]
        if self.logs and self.state == "FAILED":
            lines += ["", f"Logs of the pods: `{self.logs}`"]
        lines += ["", f"The report, from any machine: `{self.report}`"]
        return "\n".join(lines) + "\n"
