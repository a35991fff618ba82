"""Stands in for the programs that a runbook calls and that need a cluster: the one mechanism that makes its commands local.

Linked under the names of `kubectl`, `helm`, `curl`, `kcat`, `openssl`, `grep` and Kafka's scripts, in a directory at the
front of the PATH. It runs the real program with the test's addresses in place of the cluster's. What only reads or changes
objects of Kubernetes is not run: its words are checked, and a line that says so is printed. A `grep` without a match is
written down.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

WORLD = json.loads(Path(os.environ["RUNBOOK_WORLD"]).read_text())
KAFKA_TOOLS = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-consumer-groups.sh": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-configs.sh": "org.apache.kafka.tools.ConfigCommand",
    "kafka-get-offsets.sh": "org.apache.kafka.tools.GetOffsetShell",
}
OBJECTS = {"get", "describe", "top", "scale", "rollout", "delete", "port-forward"}
HELM = {"rollback", "history", "upgrade"}


def run(command: list[str], **environment: str) -> int:
    """Runs the real program with the standard streams as they are."""
    return subprocess.run(command, env=os.environ | environment, check=False).returncode


def local(text: str) -> str:
    """An argument with the test's addresses and paths in place of the cluster's."""
    for there, here in WORLD["replaced"].items():
        text = text.replace(there, here)
    return text


def kubectl(words: list[str]) -> int:
    """The parts that concern the program: `logs` and `exec`. The rest is about objects of the cluster."""
    if words[:1] == ["-n"]:
        words = words[2:]
    verb, rest = words[0], words[1:]
    if verb == "logs":
        print(Path(WORLD["log"]).read_text(), end="")
        return 0
    if verb == "exec":
        return execute(rest[rest.index("--") + 1 :])
    if verb not in OBJECTS:
        print(f"kubectl has no {verb}", file=sys.stderr)
        return 2
    if rest[-2:] == ["-o", "name"]:
        print("pod/dispatcher-0" if rest[0] in ("pods", "pod") else "deployment/dispatcher-feedback-dispatcher")
    else:
        print(f"(objects of the cluster: kubectl {verb})\nLast State: Terminated")
    return 0


def execute(command: list[str]) -> int:
    """A command in the pod: with the dispatcher's own settings, on one broker."""
    program, *arguments = command
    arguments = [local(one) for one in arguments]
    if program == "dispatcher":
        if arguments[0] == "topics":
            arguments += ["--replication", "1"]
        return run([WORLD["python"], "-m", "dispatcher", *arguments], DISPATCHER_CONFIG=WORLD["settings"])
    return run([WORLD["python"] if program == "python3" else program, *arguments])


def grep(words: list[str]) -> int:
    """The real one; what matches nothing is written down."""
    status = run(["/usr/bin/grep", *words])
    if status == 1:
        with Path(WORLD["without_match"]).open("a") as file:
            file.write(" ".join(words) + "\n")
    return status


def main() -> int:
    """Dispatches on the name under which it was called."""
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    if name == "kubectl":
        return kubectl(words)
    if name == "grep":
        return grep(words)
    if name == "helm":
        verb = words[2]
        print(f"(helm {verb})")
        return 0 if verb in HELM else 2
    if name in KAFKA_TOOLS:
        return run(["java", "-cp", WORLD["class_path"], KAFKA_TOOLS[name], *map(local, words)])
    return run([WORLD["real"][name], *map(local, words)])


if __name__ == "__main__":
    sys.exit(main())
