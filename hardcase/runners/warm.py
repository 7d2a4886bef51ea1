"""Run steps in processes forked from a warm one, which has imported what they need.

Most of a small run's time goes into imports, the same ones again and again. Here one process of the launcher imports
the module of each step before it forks the step's own process. A step's process is as separate as one that was started:
it has its own memory and environment, and dies with the launcher.

The launcher writes one request a line to the warm process and reads what the step prints, up to the line that tells the
step's exit code.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from kfp.local import SubprocessRunner, subprocess_task_handler

from hardcase.lifetime import die_with_parent, temporary_folder

ENDED_MARK: Final = "::ended:: "
# Imported inside functions, so that importing a step's module does not import them.
LATE: Final = {"register": ("mlflow.tracking",), "conclude": ("mlflow.tracking",)}


@contextmanager
def fork_steps() -> Iterator[SubprocessRunner]:
    """Let `kfp.local` run each step as a fork of one warm process of this environment, as long as the context lasts."""
    warm = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],  # -P: nothing in the working directory can be imported
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        preexec_fn=die_with_parent,  # noqa: PLW1509  there are no threads yet
    )

    def run_step(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Run a Lightweight Python Component: `sh -c SCRIPT SOURCE --executor_input … --function_to_execute NAME`."""
        script = next(i for i, part in enumerate(full_command) if "ephemeral_component.py" in part)
        source, *arguments = full_command[script + 1 :]
        request = {"source": source, "arguments": arguments, "environment": {**os.environ, **(env_vars or {})}}
        if warm.stdin is None or warm.stdout is None:
            raise ValueError("the warm process has no pipes")
        try:
            warm.stdin.write(json.dumps(request) + "\n")
            warm.stdin.flush()
            for line in warm.stdout:
                before, mark, code = line.partition(ENDED_MARK)
                if mark:
                    print(before, end="")
                    return int(code)
                print(line, end="")
        except BrokenPipeError:
            return 1
        except (KeyboardInterrupt, SystemExit):  # the step dies with the warm process
            warm.kill()
            raise
        return 1

    upstream = subprocess_task_handler.run_local_subprocess
    subprocess_task_handler.run_local_subprocess = run_step
    try:
        yield SubprocessRunner(use_venv=False)
    finally:
        subprocess_task_handler.run_local_subprocess = upstream
        with suppress(BrokenPipeError):
            warm.communicate()  # closes its input, at which it ends


def main() -> None:
    """Fork a process for each request on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        request = json.loads(line)
        step = request["arguments"][request["arguments"].index("--function_to_execute") + 1]
        for module in (f"hardcase.steps.{step}", *LATE.get(step, ())):
            importlib.import_module(module)
        if (child := os.fork()) == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            die_with_parent()
            _execute(**request)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{ENDED_MARK}{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _execute(source: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Run a component in this process, and end it."""
    code = 1
    try:
        from kfp.dsl.executor_main import executor_main

        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        with temporary_folder() as folder:
            path = folder / "ephemeral_component.py"
            path.write_text(source, encoding="utf-8")
            sys.argv = [str(path), "--component_module_path", str(path), *arguments]
            executor_main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
