"""Runs a program on a terminal of its own and prints, as JSON, its exit code and what the terminal was sent.

    terminal.py PATTERN PROGRAM ARGUMENT...      presses Ctrl-C when PATTERN (a regular expression, '' for never) appears
"""

import json
import os
import pty
import re
import sys

pattern, program = sys.argv[1], sys.argv[2:]
child, terminal = pty.fork()
if child == 0:
    os.execvp(program[0], program)
output = b""
pressed = not pattern
while True:
    try:
        part = os.read(terminal, 65536)
    except OSError:  # the program has ended
        break
    if not part:
        break
    output += part
    if not pressed and re.search(pattern, output.decode(errors="replace")):
        pressed = True
        os.write(terminal, b"\x03")
_, status = os.waitpid(child, 0)
print(json.dumps({"code": os.waitstatus_to_exitcode(status), "output": output.decode(errors="replace")}))
