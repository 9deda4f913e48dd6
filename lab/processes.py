"""Processes of one lab directory: each has NAME.pid with its pid and kernel start time, and NAME.log.

Only a process whose pid and start time both still match is ever signalled.
"""
import json, os, signal, subprocess, time


def stat_fields(pid):
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None


def alive(p):
    """p is {'pid', 'start'}: true only for the very process that was started, and not for its zombie."""
    fields = p and stat_fields(p["pid"])
    return bool(fields) and fields[19] == p["start"] and fields[0] != "Z"


def spawn(d, name, argv, cwd):
    with open(os.path.join(d, name + ".log"), "ab") as out:
        p = subprocess.Popen(argv, cwd=cwd, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    fields = stat_fields(p.pid)
    rec = {"pid": p.pid, "start": fields[19] if fields else "gone"}
    tmp = os.path.join(d, name + ".pid.new")
    with open(tmp, "w") as f:
        json.dump(rec, f)
    os.replace(tmp, os.path.join(d, name + ".pid"))
    return rec


def read_pid(d, name):
    try:
        with open(os.path.join(d, name + ".pid")) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def is_up(d, name):
    return alive(read_pid(d, name))


def send(d, name, sig):
    """Signals the process group of a running process; false when it is not running."""
    p = read_pid(d, name)
    if not alive(p):
        return False
    try:
        os.killpg(p["pid"], sig)
    except ProcessLookupError:
        return False
    return True


def end(d, names, sig=signal.SIGTERM, wait=15):
    """Ends processes side by side: first the signal to each, then a wait for all, then SIGKILL."""
    running = [n for n in names if is_up(d, n)]
    for n in running:
        send(d, n, signal.SIGCONT)
        send(d, n, sig)
    deadline = time.monotonic() + wait
    left = running
    while left:
        for n in left:
            try:
                os.waitpid(read_pid(d, n)["pid"], os.WNOHANG)  # only our own children need it
            except OSError:
                pass
        left = [n for n in left if is_up(d, n)]
        if left and time.monotonic() > deadline:
            for n in left:
                send(d, n, signal.SIGKILL)
            deadline += 5
        time.sleep(0.02)
    return running


def rss_mb(pid):
    try:
        with open("/proc/%d/status" % pid) as f:
            return next(int(line.split()[1]) // 1024 for line in f if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return None
