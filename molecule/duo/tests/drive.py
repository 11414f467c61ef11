# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a program on a terminal and answer what it asks: drive.py SECONDS [EXPECTED ANSWER]... -- PROGRAM [ARGUMENT]...

Everything the program printed goes to standard output, its exit status is ours. Runs on the host under test.
"""

import os
import pty
import re
import select
import sys
import time

split = sys.argv.index("--")
seconds, answers, program = float(sys.argv[1]), sys.argv[2:split], sys.argv[split + 1 :]
child, terminal = pty.fork()
if child == 0:
    os.execvp(program[0], program)
said, seen, status, end = "", 0, None, time.monotonic() + seconds
while time.monotonic() < end:
    if not select.select([terminal], [], [], 0.1)[0]:
        continue
    try:
        got = os.read(terminal, 4096)
    except OSError:  # nobody has the terminal open: the program ended, or is login, which hangs up on everybody at first
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        status = None
        time.sleep(0.1)
        continue
    said += got.decode(errors="replace")
    found = re.search(answers[0], said[seen:]) if answers else None
    if found:
        seen += found.end()
        time.sleep(0.1)
        os.write(terminal, f"{answers[1]}\n".encode())
        answers = answers[2:]
print(said)
if status is None:
    os.kill(child, 9)
    status = os.waitpid(child, 0)[1]
sys.exit(abs(os.waitstatus_to_exitcode(status)) % 128)
