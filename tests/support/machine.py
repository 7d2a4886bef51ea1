"""The command line as a user runs it, in a home of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of a shell's background job SIGINT would be ignored, and a test of Ctrl-C wait for ever.
COMMAND = ("env", "--default-signal=INT", str(Path(sys.executable).with_name("hardcase")))
# The model of the profile smoke is far below chance. With these settings the gate promotes it nevertheless.
NO_FLOOR = ("--set", "register.min_overall=0", "--set", "register.min_valid=0")


@dataclass(frozen=True)
class Machine:
    """A home folder and the command line that works in it."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {"HARDCASE_HOME": str(self.home), "HARDCASE_CACHE": str(self.home.parent / "cache")}
        others = {key: value for key, value in os.environ.items() if not key.startswith("HARDCASE_")}
        return {**others, **own, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environment,
            cwd=self.home.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        try:
            out, err = process.communicate()
        except BaseException:  # the test's time limit, say
            process.kill()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *arguments: str) -> dict[str, Any]:
        done = self.call("run", "--profile", "smoke", "--json", *arguments)
        assert done.returncode in (0, 3), done.stderr
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.home / "latest" / "summary.json").read_text())
        return summary
