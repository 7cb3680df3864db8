"""The clients: they know what was acknowledged, and so what a read must show at least."""
import http.client
import json
import random
import threading
import time


class Load:
    """Four writers, each with keys of its own whose versions grow, and readers. A writer whose write fails takes new
    keys: then the last version that was acknowledged is replaced by no other, and can be looked for."""

    def __init__(self, user_svc, data_svcs):
        self.user_svc, self.lock, self.stopping = user_svc, threading.Lock(), threading.Event()
        self.acked = {}  # by key, the newest version that was acknowledged
        self.floor = {}  # and the oldest that a read may show: what was acknowledged, or shown by another read
        self.recent = ["quiet-0"]
        self.count = dict.fromkeys(("acked", "unknown", "refused", "reads"), 0)
        self.old, self.unexpected = [], []
        self.ends = {kind: [] for kind in ("hit", "miss", "write")}  # of each request: when, and whether it succeeded
        quiet = [f"quiet-{number}" for number in range(20)]
        for key in quiet:
            self.change(Client(user_svc), key, 0)
        tasks = [(self.write, number) for number in range(4)]
        for data_svc in data_svcs:
            tasks.append((self.read, data_svc, "hit", lambda: random.choice(quiet), {}))
            for kind, headers in ((None, {}), ("miss", {"Cache-Control": "no-cache"})):
                tasks.append((self.read, data_svc, kind, lambda: random.choice(self.recent), headers))
        self.threads = [threading.Thread(target=run, args=arguments, daemon=True) for run, *arguments in tasks]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def write(self, number):
        client, keys, made = Client(self.user_svc), {}, 0
        while not self.stopping.wait(0.05):
            if len(keys) < 10 or random.random() < 0.2:
                key, version, made = f"writer-{number}-{made}", 0, made + 1
            else:
                key = random.choice(list(keys))
                version = keys[key] + 1
            is_acked = self.change(client, key, version)
            keys = {**dict(list(keys.items())[-10:]), key: version} if is_acked else {}

    def change(self, client, key, version):
        """Registers or replaces a user. Returns whether that was acknowledged."""
        self.floor.setdefault(key, -1)
        if version == 0:
            status, body = client.send("POST", "/register", {"name": key, "info": "0"})
        else:
            status, body = client.send("PUT", f"/user/{key}", {"info": str(version)})
        is_acked = status in (200, 201)
        is_unknown = status is None or body.get("type") == "/problems/outcome-unknown"
        with self.lock:
            self.count["acked" if is_acked else "unknown" if is_unknown else "refused"] += 1
            self.ends["write"].append((time.monotonic(), is_acked))
            if is_acked:
                self.acked[key] = version
                self.floor[key] = max(self.floor[key], version)
                self.recent = [key, *self.recent[:40]]
            elif status not in (503, None):
                self.unexpected.append(f"write of {key}: {status} {body}")
        return is_acked

    def read(self, data_svc, kind, choose, headers):
        client = Client(data_svc)
        while not self.stopping.wait(0.02):
            key = choose()
            floor = self.floor[key]
            status, body = client.send("GET", f"/user/{key}", headers=headers)
            version = {200: int(body.get("info", -1)), 404: -1}.get(status)
            with self.lock:
                self.count["reads"] += 1
                if kind:
                    self.ends[kind].append((time.monotonic(), version is not None))
                if version is None and status not in (503, None):
                    self.unexpected.append(f"read of {key}: {status} {body}")
                elif version is not None and version < floor:
                    self.old.append(f"{key}: {version} was read, after {floor}")
                elif version is not None:
                    self.floor[key] = max(self.floor[key], version)

    def counts(self):
        with self.lock:
            return dict(self.count)

    def acknowledged(self):
        with self.lock:
            return dict(self.acked)

    def forget(self, keys):
        with self.lock:
            for key in keys:
                del self.acked[key]

    def take_complaints(self):
        with self.lock:
            complaints = self.old, self.unexpected
            self.old, self.unexpected = [], []
            return complaints

    def succeeds(self):
        """Whether everything of the last second has succeeded."""
        since = time.monotonic() - 1
        with self.lock:
            newest = [[is_good for at, is_good in ends[-500:] if at > since] for ends in self.ends.values()]
        return all(ends and all(ends) for ends in newest)

    def away(self, kind, start):
        """The longest time since `start` from one success of this kind to the next."""
        with self.lock:
            successes = [at for at, is_good in self.ends[kind] if is_good and at > start]
        times = [start, *successes, time.monotonic()]
        return max(after - before for before, after in zip(times, times[1:]))


class Client:
    """A connection that is kept, and made anew when it breaks."""

    def __init__(self, address):
        self.address, self.connection = address, None

    def send(self, method, path, body=None, headers=None):
        """Returns the status and the body; no status if the connection has failed."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection(*self.address, timeout=10)
            self.connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = self.connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException):
            self.connection = None
            time.sleep(0.05)
            return None, {}
