"""The servers: etcd, three nodes of PostgreSQL under Patroni, Redis, and the services. All listen on loopback."""
import glob
import http.client
import json
import os
import pwd
import random
import re
import shutil
import socket
import string
import subprocess
import sys

from load import Client
from processes import children, until

DEPLOY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REPOSITORY = os.path.dirname(os.path.dirname(DEPLOY))
PATIENCE = 90  # seconds that the servers may take to start, or to be whole again after an event
PASSWORD = "".join(random.choices(string.ascii_letters, k=20))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Programs:
    """Where the programs are. PostgreSQL refuses to run as root: then it, Patroni and etcd run as `postgres`."""

    def __init__(self, binaries):
        folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
        on_path = shutil.which("postgres")
        self.postgres = os.path.dirname(os.path.realpath(on_path)) if on_path else (folders or [""])[-1]
        self.account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        # The account may not enter root's home, where another Python may be.
        self.python = "/usr/bin/python3" if self.account else sys.executable
        self.services = binaries
        missing = [name for name in ("etcd", "redis-server") if not shutil.which(name)]
        missing += [name for name in ("postgres", "psql") if not os.path.exists(f"{self.postgres}/{name}")]
        if subprocess.run([self.python, "-c", "import ensurepip, venv"], capture_output=True).returncode:
            missing.append("Python's venv")
        if missing:
            needed = "etcd-server redis-server postgresql python3-venv"
            sys.exit(f"Missing: {', '.join(missing)}. On Debian: apt-get install {needed}")


class Node:
    """PostgreSQL under Patroni."""

    def __init__(self, cluster, number):
        self.cluster, self.name = cluster, f"node{number}"
        self.port, self.api = free_port(), free_port()
        self.data, self.patroni = f"{cluster.folder}/{self.name}", None
        values = {
            **dict.fromkeys(("SUPERUSER_PASSWORD", "REPLICATION_PASSWORD", "REWIND_PASSWORD"), PASSWORD),
            **dict.fromkeys(("NODES_NETWORK", "SERVICES_NETWORK"), "127.0.0.1/32"),
            **{"NAME": self.name, "ADDRESS": "127.0.0.1", "PORT": self.port, "API_PORT": self.api},
            **{"DATA_DIR": self.data, "BIN_DIR": cluster.programs.postgres, "SOCKET_DIR": cluster.folder},
            **{"ETCD_HOSTS": f"127.0.0.1:{cluster.etcd}", "PGPASS": f"{self.data}.pgpass", "WATCHDOG": "off"},
        }
        with open(f"{DEPLOY}/patroni.yml") as template, open(f"{self.data}.yml", "w") as filled:
            filled.write(string.Template(template.read()).substitute(values))

    def start(self):
        self.patroni = self.cluster.run(self.name, f"{self.cluster.venv}/bin/patroni", f"{self.data}.yml")

    def processes(self):
        """Patroni, PostgreSQL, and its children."""
        with open(f"{self.data}/postmaster.pid") as file:
            postmaster = int(file.readline())
        return [self.patroni.pid, postmaster, *children(postmaster)]


class Cluster:
    """Everything that runs, in one folder."""

    def __init__(self, programs, folder):
        self.programs, self.folder, self.venv = programs, folder, f"{folder}/venv"
        self.started, self.etcd, self.redis = [], free_port(), free_port()
        if programs.account:
            os.chown(folder, programs.account.pw_uid, programs.account.pw_gid)
        self.nodes = [Node(self, number) for number in (1, 2, 3)]

    def run(self, name, *command, **environment):
        """Starts a program with its log in the folder; as the account of PostgreSQL, if we are root."""
        account = self.programs.account
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        environment = {"PATH": os.environ["PATH"], "HOME": self.folder, "LC_ALL": "C.UTF-8", **environment}
        with open(f"{self.folder}/{name}.log", "a") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            # A Ctrl-C does not reach a session of its own: `stop` has an order.
            options = {"cwd": self.folder, "env": environment, "start_new_session": True}
            self.started.append(subprocess.Popen(command, **streams, **options, **identity))
        return self.started[-1]

    def start(self):
        subprocess.run([self.programs.python, "-m", "venv", self.venv], check=True)
        pip = [f"{self.venv}/bin/pip", "install", "-qq", "--disable-pip-version-check", "--require-hashes"]
        subprocess.run([*pip, "-r", f"{DEPLOY}/requirements.txt"], check=True)
        client, peer = f"http://127.0.0.1:{self.etcd}", f"http://127.0.0.1:{free_port()}"
        urls = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        urls += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        self.run("etcd", shutil.which("etcd"), "--data-dir", f"{self.folder}/etcd", *urls)
        for node in self.nodes:
            node.start()
        until(PATIENCE, self.is_whole, "there are a leader, a synchronous standby and another one")

    def start_services(self):
        """A user-svc and two data-svc with default settings, and all hosts in DATABASE_URL. Returns their addresses."""
        self.run("redis", shutil.which("redis-server"), "--port", str(self.redis), "--bind", "127.0.0.1", "--save", "")
        self.psql("postgres", "-c", "CREATE DATABASE users")
        self.psql("users", "-f", f"{REPOSITORY}/docker/roles.sql")
        for name in ("user-svc", "data-svc"):
            # The account of PostgreSQL may not be let into the repository.
            shutil.copy(f"{self.programs.services}/{name}", self.folder)
        return self.start_service("user-svc", 1), [self.start_service("data-svc", number) for number in (1, 2)]

    def start_service(self, name, number):
        log = f"{name}-{number}"
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        stores = {"DATABASE_URL": f"postgres://{name.replace('-', '_')}@{hosts}/users", "DATABASE_PASSWORD": PASSWORD}
        stores["REDIS_URL"] = f"redis://127.0.0.1:{self.redis}/0"
        self.run(log, f"{self.folder}/{name}", PORT="0", METRICS_PORT="0", **stores)

        def listening():
            with open(f"{self.folder}/{log}.log") as file:
                return re.search(r"listening on http://([\d.]+):(\d+)", file.read())

        host, port = until(30, listening, f"{log} listens").groups()
        until(30, lambda: Client((host, int(port))).send("GET", "/readyz")[0] == 200, f"{log} is ready")
        return host, int(port)

    def psql(self, database, *arguments):
        """Runs psql on the leader, as superuser. Returns what it prints."""
        passwords = dict.fromkeys(("PGPASSWORD", "USER_SVC_DATABASE_PASSWORD", "DATA_SVC_DATABASE_PASSWORD"), PASSWORD)
        url = f"postgres://postgres@127.0.0.1:{self.leader().port}/{database}"
        command = [f"{self.programs.postgres}/psql", "-XqtA", "-d", url, *arguments]
        options = {"check": True, "stdout": subprocess.PIPE, "text": True, "env": {**os.environ, **passwords}}
        return subprocess.run(command, **options).stdout

    def users(self):
        """The version that the database has of each key."""
        rows = (row.split("|") for row in self.psql("users", "-c", "SELECT name, info FROM users").splitlines())
        return {name: int(info) for name, info in rows}

    def patronictl(self, *arguments):
        command = [f"{self.venv}/bin/patronictl", "-c", f"{self.nodes[0].data}.yml", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def members(self):
        """The role and the state of each node, from the first Patroni that answers."""
        for node in self.nodes:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", node.api, timeout=1)
                connection.request("GET", "/cluster")
                members = json.loads(connection.getresponse().read())["members"]
                return {member["name"]: (member["role"], member["state"]) for member in members}
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                continue  # it is dead, frozen or starting
        return {}

    def is_whole(self):
        expected = [("leader", "running"), ("replica", "streaming"), ("sync_standby", "streaming")]
        return sorted(self.members().values()) == expected

    def leader(self, other_than=None):
        return self.find("leader", other_than)

    def synchronous_standby(self, other_than=None):
        return self.find("sync_standby", other_than)

    def find(self, role, other_than):
        members = self.members()
        others = (node for node in self.nodes if node is not other_than)
        return next((node for node in others if members.get(node.name, ("",))[0] == role), None)

    def show_logs(self):
        for path in sorted(glob.glob(f"{self.folder}/*.log")):
            with open(path, errors="replace") as log:
                print(f"--- {os.path.basename(path)}\n{''.join(log.readlines()[-15:])}", file=sys.stderr)

    def stop(self):
        """First the services; then Patroni, which stops its PostgreSQL; at last etcd."""
        for process in reversed(self.started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
