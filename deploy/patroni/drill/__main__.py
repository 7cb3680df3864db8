"""PostgreSQL under Patroni fails over while clients use both services. scripts/patroni-drill runs this.

Prints what each event has cost. The exit code is 1 if an acknowledged write was lost, an older user was served, an
answer was none of the contract's, or the services did not come back by themselves.
"""
import signal
import sys
import time

from load import Load
from processes import command_line, guarded, send, until
from servers import PATIENCE, Cluster, Programs

LIMIT = 480  # seconds after which the drill is killed


def main(programs, folder):
    """The drill. Returns whether all is well."""
    cluster = Cluster(programs, folder)
    try:
        print("Patroni is installed, and three nodes start", flush=True)
        cluster.start()
        load = Load(*cluster.start_services())
        rows = [Row(cluster, load, *each) for each in EVENTS]
        load.stop()
    except Exception:
        cluster.show_logs()
        raise
    finally:
        cluster.stop()
    print_table(rows)
    return all(row.is_good() for row in rows)


def nothing(_):
    """To compare the others with."""
    time.sleep(5)


def switch_over(cluster):
    leader, standby = cluster.leader(), cluster.synchronous_standby()
    cluster.patronictl("switchover", "--leader", leader.name, "--candidate", standby.name, "--force", "users")
    until(PATIENCE, lambda: cluster.leader(other_than=leader), "another node leads")


def kill_leader(cluster):
    """It sends no WAL in its last half second: what it acknowledged then without its standby would be lost."""
    leader = cluster.leader()
    send(signal.SIGSTOP, [pid for pid in leader.processes() if b"walsender" in command_line(pid)])
    time.sleep(0.5)
    processes = leader.processes()
    send(signal.SIGSTOP, processes)
    send(signal.SIGKILL, processes)
    until(PATIENCE, lambda: cluster.leader(other_than=leader), "another node leads")
    leader.start()


def freeze_standby(cluster):
    """The whole node: connections stay open, and nothing answers. It is back 10 s after another one took its place."""
    standby = cluster.synchronous_standby()
    processes = standby.processes()
    send(signal.SIGSTOP, processes)
    try:
        until(PATIENCE, lambda: cluster.synchronous_standby(other_than=standby), "another standby is synchronous")
        time.sleep(10)
    finally:
        send(signal.SIGCONT, processes)


EVENTS = [
    ("nothing", nothing),
    ("switchover", switch_over),
    ("SIGKILL of the leader's Patroni and PostgreSQL", kill_leader),
    ("SIGSTOP of the synchronous standby", freeze_standby),
]


class Row:
    """An event: has it happen, waits until all is whole again, and compares what was acknowledged with the database."""

    def __init__(self, cluster, load, name, cause):
        print(f"{name} ...", flush=True)
        self.name, start, before = name, time.monotonic(), load.counts()
        cause(cluster)
        self.is_whole = until(PATIENCE, lambda: cluster.is_whole() and load.succeeds())
        time.sleep(3)  # longer than a request of before takes
        acknowledged, rows = load.acknowledged(), cluster.users()
        lost = [key for key, version in acknowledged.items() if rows.get(key, -1) < version]
        load.forget(lost)  # each is lost once
        self.lost = [f"{key}: {rows.get(key)}, and {acknowledged[key]} was acknowledged" for key in lost]
        self.counts = {of: count - before[of] for of, count in load.counts().items()}
        self.away = [load.away(kind, start) for kind in ("hit", "miss", "write")]
        self.old, self.unexpected = load.take_complaints()

    def is_good(self):
        return self.is_whole and not (self.lost or self.old or self.unexpected)


def print_table(rows):
    print("\n| event | hits away | misses away | writes away | writes acked / lost | outcome unknown | reads / old |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        away = " | ".join(f"{seconds:.1f} s" for seconds in row.away)
        acked, unknown, reads = (row.counts[of] for of in ("acked", "unknown", "reads"))
        lost, old = len(row.lost), len(row.old)
        print(f"| {row.name} | {away} | {acked} / {lost} | {unknown} | {reads} / {old} |")
    for row in rows:
        for complaint in row.lost[:5] + row.old[:5] + row.unexpected[:5]:
            print(f"{row.name}: {complaint}")
        if not row.is_whole:
            print(f"{row.name}: not whole again within {PATIENCE} s")


if __name__ == "__main__":
    found = Programs(sys.argv[1])
    sys.exit(guarded(lambda folder: main(found, folder), LIMIT))
