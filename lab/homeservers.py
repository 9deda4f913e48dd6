#!/usr/bin/env python3
"""Real federated Matrix homeservers (Synapse and Dendrite) on loopback, for the demo and the tests.

  homeservers.py install                                 programs only
  homeservers.py up --dir D [--synapse N] [--dendrite M] [options]
  homeservers.py register --dir D NAME=FILE...           add an appservice registration and restart the server
  homeservers.py user --dir D NAME@SERVER...             more accounts; passwords are password-NAME
  homeservers.py spawn --dir D NAME -- PROGRAM ARG...    another program, ended together with the servers
  homeservers.py stop|start|pause|resume --dir D NAME... servers (syn1, den1, ...), programs, postgres, proxy
  homeservers.py block|unblock --dir D SRC DST           cut federation one way; needs up --proxy; '*' is any
  homeservers.py split --dir D A,B C,D...                cut federation between the sides, and no other link
  homeservers.py status|down --dir D [--wipe]

Only the Python standard library is needed; the rest is installed by package name. `up` writes
to D/state.json, and prints, what runs where. With --hold it prints only "up", stays, and ends everything when its
standard input closes.
"""
import argparse, contextlib, fcntl, json, os, shutil, signal, socket, sys, tempfile, time

import processes, programs, servers

HERE = os.path.dirname(os.path.abspath(__file__))
PORTS = 100  # a run's block: server i has base+10i .. base+10i+8; base+9 is PostgreSQL
BLOCKS = range(20000, 32000, PORTS)  # below the range from which the kernel hands out ports


def load(d):
    try:
        with open(os.path.join(d, "state.json")) as f:
            return json.load(f)
    except OSError:
        programs.fail("nothing was started in " + d)


def save(d, st):
    tmp = os.path.join(d, "state.json.new")
    with open(tmp, "w") as f:
        json.dump(st, f, indent=1)
    os.replace(tmp, os.path.join(d, "state.json"))


@contextlib.contextmanager
def state(d):
    """The state, read and written under a lock: several commands may run at once."""
    if not os.path.isdir(d):
        programs.fail("nothing was started in " + d)
    with programs.locked(os.path.join(d, "state.lock")):
        st = load(d)
        yield st
        save(d, st)


# ---------------------------------------------------------------- ports
def ports_free(base, count):
    for port in (p for i in range(count) for p in range(base + 10 * i, base + 10 * i + 10)):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def choose_ports(count):
    """A free block and the lock that keeps it ours while this process lives."""
    d = os.path.join(tempfile.gettempdir(), "matrix-mls-ports-%d" % os.getuid())
    os.makedirs(d, exist_ok=True)
    for base in BLOCKS:
        f = open(os.path.join(d, str(base)), "w")
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            f.close()
            continue
        if ports_free(base, count):
            return base, f
        f.close()
    programs.fail("no free block of %d ports between %d and %d" % (PORTS, BLOCKS[0], BLOCKS[-1] + PORTS))


# ---------------------------------------------------------------- up
def plan(a, base):
    d = a.dir
    st = {"dir": d, "base_port": base, "servers": {}, "programs": {},
          "options": {k: getattr(a, k) for k in ("proxy", "homeserver_postgres", "durable_postgres", "default_retries",
                                                 "default_rate_limits", "synapse_set", "log_level")}}
    names = ["syn%d" % i for i in range(1, a.synapse + 1)] + ["den%d" % i for i in range(1, a.dendrite + 1)]
    if len(names) * 10 > PORTS:
        programs.fail("at most %d servers" % (PORTS // 10))
    for i, name in enumerate(names):
        fed = base + 10 * i
        st["servers"][name] = {
            "name": name, "kind": "synapse" if name[0] == "s" else "dendrite", "dir": os.path.join(d, name),
            "log": os.path.join(d, name + ".log"), "fed_port": fed, "client_port": fed + 1,
            "server_name": "127.0.0.1:%d" % fed, "base_url": "http://127.0.0.1:%d" % (fed + 1),
            "federation_url": "https://127.0.0.1:%d" % fed, "spare_ports": [fed + k for k in (4, 5, 6, 7, 8)],
            "registrations": [], "users": {}}
    for r in a.registration:
        add_registration(st, r)
    if a.postgres or a.homeserver_postgres or a.durable_postgres:
        st["postgres"] = {"port": base + 9, "role": servers.PG_ROLE,
                          "databases": names if a.homeserver_postgres else [], "log": os.path.join(d, "postgres.log")}
    return st


def add_registration(st, arg):
    name, _, path = arg.partition("=")
    if name not in st["servers"] or not os.path.isfile(path):
        programs.fail("cannot register %r" % arg, "give NAME=FILE with one of " + ", ".join(st["servers"]))
    if os.path.abspath(path) not in st["servers"][name]["registrations"]:
        st["servers"][name]["registrations"].append(os.path.abspath(path))


def start_all(a, st):
    d, all_servers = a.dir, st["servers"].values()
    kinds = {s["kind"] for s in all_servers}
    t0 = time.monotonic()
    programs.install_packages(dendrite="dendrite" in kinds, synapse="synapse" in kinds, postgres="postgres" in st)
    if "synapse" in kinds:
        st["synapse_python"] = programs.synapse_python()
    if "dendrite" in kinds:
        st["dendrite"] = programs.dendrite_program()
    t1 = time.monotonic()
    st["crt"], st["key"] = servers.make_certificate(d)
    if "postgres" in st:
        port = st["postgres"]["port"]
        st["postgres"]["argv"] = servers.postgres_argv(d, port, st["options"]["durable_postgres"])
        processes.spawn(d, "postgres", st["postgres"]["argv"], "/")
        servers.postgres_wait(d, port, st["postgres"]["databases"])
    for s in all_servers:
        os.makedirs(s["dir"], exist_ok=True)
        servers.write_config(st, s)
        processes.spawn(d, s["name"], s["argv"], s["dir"])
    save(d, st)
    if a.proxy:
        st["proxy"] = {"argv": [sys.executable, "-B", os.path.join(HERE, "fedproxy.py"), os.path.join(d, "state.json"),
                                st["crt"], st["key"]]}
        processes.spawn(d, "proxy", st["proxy"]["argv"], d)
    for s in all_servers:
        servers.wait_ready(d, s)
    t2 = time.monotonic()
    for u in filter(None, a.users.split(",")):
        name, _, where = u.partition("@")
        for s in all_servers:
            if where in ("", s["name"]):
                s["users"][name] = servers.make_user(s, name)
    st["seconds"] = {"install": round(t1 - t0, 1), "start": round(t2 - t1, 1), "users": round(time.monotonic() - t2, 1)}
    save(d, st)


def everything(st):
    return list(st["programs"]), list(st["servers"]) + ["proxy"], ["postgres"]


def end_all(d, st):
    first, second, last = everything(st)
    processes.end(d, first)
    processes.end(d, second)
    processes.end(d, last, signal.SIGINT)


def cmd_up(a):
    d = a.dir
    count = max(1, a.synapse + a.dendrite)
    if os.path.exists(os.path.join(d, "state.json")):
        old = load(d)
        if any(processes.is_up(d, n) for n in sum(everything(old), [])):
            programs.fail("something already runs in " + d, "end it with: homeservers.py down --dir " + d)
    os.makedirs(d, exist_ok=True)
    keep = None
    if a.base_port:
        base = a.base_port
        if not ports_free(base, count):
            programs.fail("ports %d to %d are not all free" % (base, base + 10 * count), "choose another --base-port")
    else:
        base, keep = choose_ports(count)
    st = plan(a, base)

    def on_signal(*_):
        # Once: a Ctrl-C comes from the terminal and from whoever started us, and a
        # second one must not break off the ending of what runs.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(1)
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        start_all(a, st)
        print("up" if a.hold else json.dumps(st, indent=1), flush=True)
        if a.hold:
            sys.stdin.buffer.read()  # ends when whoever started us closes it or dies
    except BaseException:
        end_all(d, st)
        raise
    if a.hold:
        end_all(d, load(d))
        if a.wipe:
            shutil.rmtree(d, ignore_errors=True)
    del keep


# ---------------------------------------------------------------- while it runs
def cmd_register(a):
    with state(a.dir) as st:
        for arg in a.what:
            add_registration(st, arg)
        changed = [st["servers"][n] for n in dict.fromkeys(x.partition("=")[0] for x in a.what)]
        for s in changed:
            servers.write_config(st, s)
    processes.end(a.dir, [s["name"] for s in changed])
    for s in changed:
        processes.spawn(a.dir, s["name"], s["argv"], s["dir"])
    for s in changed:
        servers.wait_ready(a.dir, s)


def cmd_user(a):
    with state(a.dir) as st:
        for arg in a.what:
            name, _, where = arg.partition("@")
            s = st["servers"].get(where)
            if not s:
                programs.fail("cannot make user %r" % arg, "give NAME@SERVER with one of " + ", ".join(st["servers"]))
            s["users"][name] = servers.make_user(s, name)


def cmd_spawn(a):
    argv = a.what[1:] if a.what[:1] == ["--"] else a.what
    with state(a.dir) as st:
        if a.name in st["servers"] or a.name in ("postgres", "proxy") or processes.is_up(a.dir, a.name) or not argv:
            programs.fail("cannot start %r: the name is taken, or there is no program" % a.name)
        st["programs"][a.name] = {"argv": argv, "log": os.path.join(a.dir, a.name + ".log")}
        processes.spawn(a.dir, a.name, argv, a.dir)


def known(st, name):
    if name in ("postgres", "proxy") and name in st:
        return st[name]
    p = st["servers"].get(name) or st["programs"].get(name)
    if not p:
        programs.fail("no %r here" % name, "known: " + ", ".join(sum(everything(st), [])))
    return p


def cmd_one(a):
    st = load(a.dir)
    what = {n: known(st, n) for n in a.names}
    if a.cmd == "stop":
        processes.end(a.dir, [n for n in what if n != "postgres"], signal.SIGKILL if a.kill else signal.SIGTERM)
        processes.end(a.dir, [n for n in what if n == "postgres"], signal.SIGINT)
    elif a.cmd in ("pause", "resume"):
        for n in what:
            if not processes.send(a.dir, n, signal.SIGSTOP if a.cmd == "pause" else signal.SIGCONT):
                programs.fail("%s is not running" % n)
    else:
        for n, p in what.items():
            if not processes.is_up(a.dir, n):
                processes.spawn(a.dir, n, p["argv"], p.get("dir", "/" if n == "postgres" else a.dir))
        for n, p in what.items():
            if n in st["servers"]:
                servers.wait_ready(a.dir, p)
            elif n == "postgres":
                servers.postgres_wait(a.dir, p["port"])


def cmd_block(a):
    """The proxy reads D/blocked.json (pairs [source, destination]) again whenever it changes, and writes what it acts on
    to D/blocked.seen.json."""
    with state(a.dir) as st:
        if not st["options"]["proxy"]:
            programs.fail("links can be cut only after up --proxy")
        path = os.path.join(a.dir, "blocked.json")
        cur = []
        if a.cmd == "split":
            sides = [side.split(",") for side in a.sides]
            for n in sum(sides, []):
                known(st, n)
            cur = [[x, y] for one in sides for other in sides if one is not other for x in one for y in other]
        else:
            for n in (a.src, a.dst):
                if n != "*":
                    known(st, n)
            if os.path.exists(path):
                with open(path) as f:
                    cur = json.load(f)
            cur = [x for x in cur if x != [a.src, a.dst] and not (a.cmd == "unblock" and a.src == a.dst == "*")]
            if a.cmd == "block":
                cur.append([a.src, a.dst])
        with open(path + ".new", "w") as f:
            json.dump(cur, f)
        os.replace(path + ".new", path)
        deadline = time.monotonic() + 60
        while processes.is_up(a.dir, "proxy"):
            try:
                with open(os.path.join(a.dir, "blocked.seen.json")) as f:
                    if json.load(f) == cur:
                        return
            except (OSError, ValueError):
                pass
            if time.monotonic() > deadline:
                programs.fail("the federation proxy does not act on the cut", "see " + os.path.join(a.dir, "proxy.log"))
            time.sleep(0.01)


def cmd_status(a):
    st = load(a.dir)
    out = {}
    for n in sum(everything(st), []):
        p = processes.read_pid(a.dir, n)
        if p:
            up = processes.alive(p)
            out[n] = {"alive": up, "pid": p["pid"], "rss_mb": processes.rss_mb(p["pid"]) if up else None}
            if n in st["servers"]:
                out[n].update({k: st["servers"][n][k] for k in ("server_name", "base_url")})
    print(json.dumps(out, indent=1))


def cmd_down(a):
    end_all(a.dir, load(a.dir))
    if a.wipe:
        shutil.rmtree(a.dir)


def cmd_install(a):
    programs.install_packages(dendrite=True, synapse=True, postgres=True, browser=a.clients, node=a.clients, python_clients=a.clients, desktop=a.desktop)
    programs.synapse_python()
    programs.dendrite_program()
    if a.clients:
        programs.client_python()
        programs.client_modules()
    programs.log("everything is installed in %s" % programs.cache_dir())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="cmd", required=True)
    commands = {"install": cmd_install, "up": cmd_up, "register": cmd_register, "user": cmd_user, "spawn": cmd_spawn, "status": cmd_status,
                "down": cmd_down, "stop": cmd_one, "start": cmd_one, "pause": cmd_one, "resume": cmd_one,
                "block": cmd_block, "unblock": cmd_block, "split": cmd_block}
    for c in commands:
        p = sub.add_parser(c)
        if c != "install":
            p.add_argument("--dir", required=True, help="work directory of this run")
        else:
            p.add_argument("--clients", action="store_true", help="also a browser, matrix-nio and matrix-js-sdk")
            p.add_argument("--desktop", action="store_true", help="also nheko, and what draws and drives it without a screen")
        if c == "up":
            p.add_argument("--synapse", type=int, default=0)
            p.add_argument("--dendrite", type=int, default=0)
            p.add_argument("--postgres", action="store_true", help="also a private PostgreSQL cluster")
            p.add_argument("--durable-postgres", action="store_true", help="the cluster waits for the disk at each commit")
            p.add_argument("--homeserver-postgres", action="store_true", help="the homeservers use it instead of SQLite")
            p.add_argument("--base-port", type=int, help="default: a free block; server i has base+10i (federation, its name) "
                           "and base+10i+1 (client API)")
            p.add_argument("--users", default="", help="alice,bob@syn2: on every server, or on one")
            p.add_argument("--registration", action="append", default=[], metavar="NAME=FILE")
            p.add_argument("--proxy", action="store_true", help="federation passes fedproxy.py, for block and unblock")
            p.add_argument("--default-rate-limits", action="store_true", help="the servers' own rate limits")
            p.add_argument("--default-retries", action="store_true", help="Synapse's own retry intervals (10 minutes and up)")
            p.add_argument("--synapse-set", action="append", default=[], metavar="KEY=JSON")
            p.add_argument("--log-level", default="WARNING", choices=["DEBUG", "INFO", "WARNING"])
            p.add_argument("--hold", action="store_true", help="stay until standard input closes, then end everything")
        if c in ("up", "down"):
            p.add_argument("--wipe", action="store_true", help="delete the work directory at the end")
        if c == "register":
            p.add_argument("what", nargs="+", metavar="NAME=FILE")
        if c == "user":
            p.add_argument("what", nargs="+", metavar="NAME@SERVER")
        if c == "spawn":
            p.add_argument("name")
            p.add_argument("what", nargs=argparse.REMAINDER)
        if c in ("stop", "start", "pause", "resume"):
            p.add_argument("names", nargs="+")
            p.add_argument("--kill", action="store_true", help="stop: SIGKILL, without a chance to finish anything")
        if c in ("block", "unblock"):
            p.add_argument("src")
            p.add_argument("dst")
        if c == "split":
            p.add_argument("sides", nargs="+", metavar="A,B")
    a = ap.parse_args()
    if hasattr(a, "dir"):
        a.dir = os.path.abspath(a.dir)
    if sys.version_info < (3, 10):
        programs.fail("this is Python %d.%d" % sys.version_info[:2], "the lab needs Python 3.10 or newer as python3")
    commands[a.cmd](a)


if __name__ == "__main__":
    main()
