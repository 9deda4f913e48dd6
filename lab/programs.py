"""Installs what the lab runs: Synapse into a venv, Dendrite from its Go module, clients by pip and npm, Debian packages by name."""
import contextlib, ctypes.util, fcntl, glob, hashlib, os, re, shutil, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
REQUIREMENTS = os.path.join(HERE, "synapse-requirements.txt")
CLIENTS = os.path.join(HERE, "clients")
DENDRITE_MODULE = os.path.join(HERE, "dendrite")
DENDRITE = "github.com/element-hq/dendrite"


def log(text):
    print("lab: " + text, file=sys.stderr, flush=True)


def fail(text, hint=None):
    log(text)
    if hint:
        log("hint: " + hint)
    raise SystemExit(1)


def cache_dir():
    """Installed programs live apart from the work directory, so that a wipe keeps them."""
    root = os.environ.get("MLS_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "matrix-mls")
    d = os.path.join(os.path.abspath(root), "lab")
    os.makedirs(d, exist_ok=True)
    return d


@contextlib.contextmanager
def locked(path):
    with open(path, "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def step(what, argv, **kw):
    """Runs a long command with its output in a file, and a line every 10 s, so that nobody thinks it hangs."""
    out = os.path.join(cache_dir(), "install.log")
    t = said = time.monotonic()
    log(what)
    with open(out, "ab") as f:
        f.write(("\n== %s: %s\n" % (what, " ".join(argv))).encode())
        f.flush()
        p = subprocess.Popen(argv, stdout=f, stderr=f, stdin=subprocess.DEVNULL, **kw)
        while True:
            try:
                code = p.wait(1)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() - said >= 10:
                    said = time.monotonic()
                    log("%s: %d s so far" % (what, said - t))
    if code:
        with open(out, "rb") as f:
            tail = f.read()[-3000:].decode("utf-8", "replace")
        print(tail, file=sys.stderr)
        fail("%s failed with exit code %d" % (what, code), "the whole output is in " + out)
    log("%s: done in %d s" % (what, time.monotonic() - t))


# ---------------------------------------------------------------- Debian packages
def postgres_program(name):
    """The newest installed PostgreSQL's program, or None. Debian keeps them off PATH."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/" + name),
                   key=lambda p: [int(x) for x in re.findall(r"\d+", p.split("/")[4])])
    return found[-1] if found else shutil.which(name)


def have_venv():
    return subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0


def install_packages(dendrite=False, synapse=False, postgres=False, browser=False, node=False, python_clients=False, desktop=False):
    want = []
    if not shutil.which("openssl"):
        want.append("openssl")
    if dendrite and not shutil.which(os.environ.get("CC", "gcc").split()[0]):
        want += ["gcc", "libc6-dev"]
    if synapse and not have_venv():
        want.append("python3-venv")
    if postgres and not (postgres_program("initdb") and postgres_program("postgres") and postgres_program("pg_dump")):
        want.append("postgresql")
    if postgres and os.geteuid() == 0 and not shutil.which("setpriv"):
        want.append("util-linux")
    if browser and not shutil.which("chromium"):
        want.append("chromium")
    if node and not (shutil.which("node") and shutil.which("npm")):
        want += ["nodejs", "npm"]
    if python_clients and not ctypes.util.find_library("magic"):
        want.append("libmagic1")
    for program, package in (("nheko", "nheko"), ("Xvfb", "xvfb"), ("xdotool", "xdotool"), ("import", "imagemagick"), ("dbus-run-session", "dbus-daemon")):
        if desktop and not shutil.which(program):
            want.append(package)
    if not want:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        fail("missing on this machine: " + ", ".join(want),
             "install them (Debian: apt-get install %s) and run this again" % " ".join(want))
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    with locked(os.path.join(cache_dir(), "install.lock")):
        step("reading the package lists", ["apt-get", "update"], env=env)
        step("installing " + ", ".join(want), ["apt-get", "install", "-y", "--no-install-recommends", *want], env=env)


# ---------------------------------------------------------------- Synapse
def synapse_python():
    venv = os.path.join(cache_dir(), "synapse-venv")
    py = os.path.join(venv, "bin", "python")
    with open(REQUIREMENTS, "rb") as f:
        mark = os.path.join(venv, ".ok-" + hashlib.sha256(f.read()).hexdigest()[:12])
    if os.path.exists(mark):
        return py
    install_packages(synapse=True)
    with locked(os.path.join(cache_dir(), "install.lock")):
        if not os.path.exists(mark):
            if not os.path.exists(py):
                step("making a Python environment for Synapse", [sys.executable, "-m", "venv", venv])
            step("installing Synapse (about a minute)",
                 [py, "-m", "pip", "install", "--disable-pip-version-check", "-r", REQUIREMENTS])
            open(mark, "w").close()
    return py


# ---------------------------------------------------------------- clients
def client_python():
    """A Python with matrix-nio and matrix-commander."""
    venv = os.path.join(cache_dir(), "clients-venv")
    py = os.path.join(venv, "bin", "python")
    mark = mark_of(venv, "requirements.txt")
    if os.path.exists(mark):
        return py
    install_packages(synapse=True, python_clients=True)
    with locked(os.path.join(cache_dir(), "install.lock")):
        if not os.path.exists(mark):
            if not os.path.exists(py):
                step("making a Python environment for clients", [sys.executable, "-m", "venv", venv])
            step("installing matrix-nio and matrix-commander", [py, "-m", "pip", "install", "--disable-pip-version-check", "-r", os.path.join(CLIENTS, "requirements.txt")])
            open(mark, "w").close()
    return py


def client_modules():
    """A folder with matrix-js-sdk, a browser's database for it, and Hydrogen, in node_modules."""
    root = os.path.join(cache_dir(), "clients-node")
    mark = mark_of(root, "package-lock.json")
    if os.path.exists(mark):
        return root
    install_packages(node=True)
    with locked(os.path.join(cache_dir(), "install.lock")):
        if not os.path.exists(mark):
            version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
            if int((re.match(r"v(\d+)", version) or [0, 0])[1]) < 20:
                fail("matrix-js-sdk needs Node 20 or newer, this is %s" % (version or "none"), "install a newer Node and put it first on PATH")
            os.makedirs(root, exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(os.path.join(CLIENTS, name), root)
            step("installing matrix-js-sdk and Hydrogen", ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=root)
            open(mark, "w").close()
    return root


def mark_of(root, name):
    """The file that says that what a list names is installed."""
    with open(os.path.join(CLIENTS, name), "rb") as f:
        return os.path.join(root, ".ok-" + hashlib.sha256(f.read()).hexdigest()[:12])


# ---------------------------------------------------------------- Dendrite
def dendrite_program():
    with open(os.path.join(DENDRITE_MODULE, "go.mod")) as f:
        version = re.search(r"^require %s (v\S+)" % re.escape(DENDRITE), f.read(), re.M).group(1)
    root = os.path.join(cache_dir(), "dendrite-" + version, "bin")
    binary = os.path.join(root, "dendrite")
    if os.path.exists(binary):
        return binary
    if not shutil.which("go"):
        fail("go is not on PATH, and Dendrite is built with it", "install Go 1.26 and run this again")
    install_packages(dendrite=True)
    with locked(os.path.join(cache_dir(), "install.lock")):
        if not os.path.exists(binary):
            tmp = root + ".new/"
            os.makedirs(tmp, exist_ok=True)
            env = dict(os.environ, GOFLAGS="-mod=readonly -buildvcs=false", CGO_ENABLED="1", GOWORK="off")
            cmds = [DENDRITE + "/cmd/" + c for c in ("dendrite", "generate-keys")]
            step("building Dendrite %s (about 4 minutes the first time)" % version,
                 ["go", "build", "-trimpath", "-o", tmp, *cmds], cwd=DENDRITE_MODULE, env=env)
            shutil.rmtree(root, ignore_errors=True)
            os.rename(tmp, root)
    return binary
