"""What it costs to start the command line: seconds of CPU time, user and system, of whole processes.

    python bench/cli_start.py [--repeats 7] [COMMAND ...]

`--help` and the given commands, such as "status nas-runs/digits", are run several times in turn with `python -c pass`;
the least time of each counts, for whatever else the machine does only adds to it. The exit code is 1 where `--help`
takes half a second or more: nobody should wait for torch, the cluster's client or the models to read what there is.
"""

import argparse
import os
import shlex
import subprocess
import sys

NOTHING = "pass"
NAS = "from nas_cli.main import main; main()"
HELP = ("--help",)
MOST_SECONDS = 0.5


def cpu_seconds(program: str, *words: str) -> float:
    """Return the CPU time of a Python process that runs a program to its end, without what it prints.

    Raises:
        SystemExit: it ended otherwise than well.
    """
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"nas {shlex.join(words)} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Measure, print a line a command, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="how often each is run")
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="of nas, in quotes, to be measured as well")
    options = parser.parse_args()
    nothing = float("inf")
    least = dict.fromkeys([HELP, *(tuple(shlex.split(command)) for command in options.commands)], float("inf"))
    for _ in range(options.repeats):
        nothing = min(nothing, cpu_seconds(NOTHING))
        for words in least:
            least[words] = min(least[words], cpu_seconds(NAS, *words))
    print(f"{nothing:6.3f} s          python -c pass")
    for words, seconds in least.items():
        print(f"{seconds:6.3f} s {seconds / nothing:6.1f} x  nas {shlex.join(words)}")
    return int(least[HELP] >= MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
