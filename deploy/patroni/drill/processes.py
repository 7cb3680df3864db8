"""Processes: signals, waiting, and a guard that leaves none behind."""
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback


def until(seconds, condition, what=None):
    """Returns what `condition` returns, as soon as that is true. If it does not become true: false, or an error that
    says `what` was waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.1)
    if what:
        raise TimeoutError(f"not within {seconds} s: {what}")
    return False


def send(number, processes):
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it has ended by itself


def children(pid):
    listed = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], stdout=subprocess.PIPE, text=True)
    return [int(child) for child in listed.stdout.split()]


def command_line(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def guarded(drill, limit):
    """Runs `drill` with a temporary folder in a child. However that ends, all that it has started ends with it, orphans
    included, and the folder is removed. Kills it after `limit` seconds. Returns its exit code."""
    become_subreaper, end_with_parent = 36, 1  # of prctl(2)
    prctl = ctypes.CDLL(None).prctl
    prctl(become_subreaper, 1)
    with tempfile.TemporaryDirectory(prefix="patroni-drill-") as folder:
        child = os.fork()
        if child == 0:
            prctl(end_with_parent, signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            os._exit(exit_code_of(lambda: drill(folder)))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the child too, which stops in order
        signal.signal(signal.SIGTERM, lambda *_: send(signal.SIGTERM, [child]))
        signal.signal(signal.SIGALRM, lambda *_: send(signal.SIGKILL, [child]))
        signal.alarm(limit)
        ended = None
        # PostgreSQL leaves its Patroni, and is our child then. A zombie would be one that Patroni waits for.
        while ended != child:
            ended, status = os.wait()
        end_children()
    if os.WIFSIGNALED(status):
        print(f"the drill was killed; it may take {limit} s", file=sys.stderr)
    return abs(os.waitstatus_to_exitcode(status))


def exit_code_of(drill):
    try:
        return 0 if drill() else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


def end_children():
    while True:
        send(signal.SIGKILL, children(os.getpid()))
        try:
            os.wait()
        except ChildProcessError:
            return
