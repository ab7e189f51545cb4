"""A program that does what a process of llama.cpp with the plugin does: host.py STEP...

Each step is JSON: ["report", {...}] writes a line to the plugin's socket, ["raw", text] writes text to it, ["record",
path, signal, ...] appends the names of signals to a file as they come, ["ignore", signal, ...], ["touch", path],
["sleep", seconds], ["wait", path] until there is such a file, ["environment", path] writes the variables,
["copy"] copies stdin to stdout, ["line"] reads
a line of it and writes it to stderr, ["stderr", text], ["kill", signal] sends itself one, ["fork", [STEP...]] starts a
process with steps of its own, ["leave", [STEP...]] starts one whose parent ends at once, ["exit", status].
"""

import json
import os
import signal
import socket
import sys
import time

connection = None


def send(text):
    global connection
    if connection is None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(os.environ["AXISCAP_REPORT"])
    connection.sendall(text.encode())


def record(path, *names):
    def note(number, _):
        with open(path, "a", encoding="utf-8") as file:
            file.write(signal.Signals(number).name + "\n")

    for name in names:
        signal.signal(getattr(signal, name), note)


def sleep(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(0.02, max(0, end - time.monotonic())))


def wait(path):
    while not os.path.exists(path):
        time.sleep(0.02)


def child(steps):
    if os.fork() == 0:
        run(steps)
        os._exit(0)


def leave(steps):
    parent = os.fork()
    if parent == 0:
        child(steps)
        os._exit(0)
    os.waitpid(parent, 0)


def touch(path):
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {os.getpgid(0)} {os.getppid()}\n")
    os.rename(path + ".new", path)


def environment(path):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(dict(os.environ), file)


def ignore(*names):
    for name in names:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def end(status):
    sys.stdout.flush()
    os._exit(status)


def run(steps):
    does = {
        "report": lambda line: send(json.dumps(line) + "\n"),
        "raw": send,
        "record": record,
        "ignore": ignore,
        "touch": touch,
        "sleep": sleep,
        "wait": wait,
        "environment": environment,
        "line": lambda: print("read:", sys.stdin.readline(), file=sys.stderr, flush=True),
        "copy": lambda: sys.stdout.write(sys.stdin.read()),
        "stderr": lambda text: print(text, file=sys.stderr, flush=True),
        "kill": lambda name: os.kill(os.getpid(), getattr(signal, name)),
        "fork": child,
        "leave": leave,
        "exit": end,
    }
    for name, *values in steps:
        does[name](*values)


run([json.loads(step) for step in sys.argv[1:]])
sys.stdout.flush()
