"""API calls that our components make per child, counted from the API server's audit log.

    python3 -m hack.cluster up --audit-log /tmp/audit.log && make demo
    .venv/bin/python bench/api_calls.py /tmp/audit.log --namespace nas-demo

Counts requests of the operator's and the controllers' service accounts, once each (stage ResponseComplete, and
watches when they start), and divides by the child Jobs that were created. The trainers have no token: they make
none.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def requests(lines: Iterable[str], namespace: str) -> Iterator[tuple[str, str, str]]:
    """Yield (component, verb, resource) of every request of ours in an audit log."""
    for line in lines:
        event: dict[str, Any] = json.loads(line)
        user = event["user"]["username"]
        prefix = f"system:serviceaccount:{namespace}:"
        if not user.startswith(prefix):
            continue
        stage, verb = event["stage"], event["verb"]
        # A watch completes only when it ends; every other request is counted when it is answered.
        if stage != ("ResponseStarted" if verb == "watch" else "ResponseComplete"):
            continue
        account = user.removeprefix(prefix)
        component = "controller" if account.endswith("-controller") else account
        reference = event.get("objectRef") or {}
        resource = reference.get("resource", event["requestURI"].split("?")[0])
        if subresource := reference.get("subresource"):
            resource += f"/{subresource}"
        if "dryRun=All" in event["requestURI"]:
            verb = f"{verb} (dry run)"
        yield component, verb, resource


def main() -> None:
    """Print a table of calls and the number of calls per child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="the API server's audit log, level Metadata or above")
    parser.add_argument("--namespace", default="nas-demo", help="where operator and experiment are")
    arguments = parser.parse_args()
    with arguments.log.open(encoding="utf-8") as lines:
        counts = Counter(requests(lines, arguments.namespace))
    children = counts["controller", "create", "jobs"]
    if not children:
        raise SystemExit(f"no child Job was created in namespace {arguments.namespace}: nothing to divide by")
    print(f"{'calls':>6}  {'per child':>9}  component, verb, resource")
    for (component, verb, resource), count in counts.most_common():
        print(f"{count:6}  {count / children:9.3f}  {component} {verb} {resource}")
    total = sum(counts.values())
    print(f"{total:6}  {total / children:9.3f}  in all, {children} children (aim: at most 2.2)")


if __name__ == "__main__":
    main()
