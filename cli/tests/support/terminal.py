"""Runs a program at a terminal: terminal.py STEPS PROGRAM ARGS...

STEPS is a JSON list of [expect, send]: once the output holds `expect` (after what earlier steps matched), `send` is
typed; U+FFFD in it stands for a byte that is not UTF-8. What the program wrote goes to stdout; the last line is its exit status, negative for a signal.
"""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

steps = json.loads(sys.argv[1])
child, terminal = pty.fork()
if child == 0:
    # What runs the tests may ignore these, as a shell has its background jobs do. A terminal's programs begin
    # without that.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.execv(sys.argv[2], sys.argv[2:])
output, matched, deadline = b"", 0, time.monotonic() + 120
while time.monotonic() < deadline:
    if steps:
        at = output.find(steps[0][0].encode(), matched)
        if at >= 0:
            matched = at + len(steps[0][0].encode())
            os.write(terminal, steps.pop(0)[1].encode().replace("\ufffd".encode(), b"\xff"))
            continue
    if not select.select([terminal], [], [], 1)[0]:
        continue
    try:
        piece = os.read(terminal, 4096)
    except OSError:  # Linux says so when the program has ended.
        piece = b""
    if not piece:
        break
    output += piece
else:
    os.kill(child, 9)
_, status = os.waitpid(child, 0)
sys.stdout.buffer.write(output)
print(f"\n{os.waitstatus_to_exitcode(status)}")
