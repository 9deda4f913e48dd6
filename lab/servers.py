"""Configuration of the lab's homeservers and of its PostgreSQL cluster. For tests only: TLS is not verified,
password hashing is cheap, and unless asked otherwise rate limits are lifted and retries come within a second."""
import base64, hashlib, hmac, json, os, secrets, shutil, ssl, subprocess, time
import urllib.error, urllib.request

import processes, programs

PG_USER = "nobody"  # PostgreSQL refuses to run as root
PG_ROLE = "lab"
SHARED_SECRET = "shared-secret"


def http(method, url, body=None, token=None, timeout=60):
    data = None if body is None else json.dumps(body).encode()
    req = urllib.request.Request(url, data=data, method=method)
    if data is not None:
        req.add_header("Content-Type", "application/json")
    if token:
        req.add_header("Authorization", "Bearer " + token)
    try:
        with urllib.request.urlopen(req, timeout=timeout) as r:
            return r.status, json.loads(r.read() or b"{}")
    except urllib.error.HTTPError as e:
        raw = e.read()
        try:
            return e.code, json.loads(raw)
        except ValueError:
            return e.code, {"raw": raw.decode("utf-8", "replace")}


def yaml(value, indent=0):
    """Block style, as an admin would write it. Scalars are JSON, which is YAML."""
    pad, out = "  " * indent, ""
    for k, v in value.items():
        if isinstance(v, dict) and v:
            out += "%s%s:\n%s" % (pad, k, yaml(v, indent + 1))
        elif isinstance(v, list) and v and not any(isinstance(x, (dict, list)) for x in v):
            out += "%s%s:\n%s" % (pad, k, "".join("%s  - %s\n" % (pad, json.dumps(x)) for x in v))
        else:
            out += "%s%s: %s\n" % (pad, k, json.dumps(v))
    return out


def make_certificate(d):
    """One self-signed certificate for every loopback name; both homeservers skip its verification anyway."""
    crt, key = os.path.join(d, "tls.crt"), os.path.join(d, "tls.key")
    if not os.path.exists(crt):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-keyout", key,
                        "-out", crt, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return crt, key


# ---------------------------------------------------------------- PostgreSQL
def psql(port, sql):
    env = dict(os.environ, PGHOST="127.0.0.1", PGPORT=str(port), PGUSER=PG_ROLE, PGDATABASE="postgres")
    return subprocess.run([programs.postgres_program("psql"), "-Atqc", sql], env=env, capture_output=True, text=True, cwd="/")


def postgres_argv(d, port, durable=False):
    """A cluster of tests gives up what it wrote if the machine stops; a durable one waits for the disk at each commit."""
    pre = ["setpriv", "--reuid", PG_USER, "--regid", "nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    data = os.path.join(d, "pg")
    if not os.path.exists(os.path.join(data, "PG_VERSION")):
        os.makedirs(data, exist_ok=True)
        if pre:
            p = os.path.dirname(data)
            while p != "/":
                if not os.stat(p).st_mode & 0o001:
                    programs.fail("user %s, as which PostgreSQL runs, cannot pass through %s" % (PG_USER, p),
                                  "choose another --dir, or chmod o+x " + p)
                p = os.path.dirname(p)
            shutil.chown(data, PG_USER, "nogroup")
        r = subprocess.run(pre + [programs.postgres_program("initdb"), "-D", data, "-U", PG_ROLE, "-A", "trust", "-E",
                                  "UTF8", "--locale=C", "--no-sync"], capture_output=True, text=True, cwd="/")
        if r.returncode:
            programs.fail("initdb failed: " + r.stderr.strip())
    careless = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
    return pre + [programs.postgres_program("postgres"), "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "",
                  *([] if durable else careless), "-c", "max_connections=300", "-c", "shared_buffers=64MB", "-c", "log_statement=none"]


def postgres_wait(d, port, databases=(), limit=60):
    deadline = time.monotonic() + limit
    while psql(port, "select 1").returncode:
        if not processes.is_up(d, "postgres") or time.monotonic() > deadline:
            programs.fail("PostgreSQL did not start", "see " + os.path.join(d, "postgres.log"))
        time.sleep(0.05)
    have = psql(port, "select datname from pg_database").stdout.split()
    for db in databases:
        if db not in have:
            r = psql(port, "create database %s template template0 encoding 'UTF8' lc_collate 'C' lc_ctype 'C'" % db)
            if r.returncode:
                programs.fail("cannot create database %s: %s" % (db, r.stderr.strip()))


# ---------------------------------------------------------------- Synapse
UNLIMITED = {"per_second": 100000, "burst_count": 100000}
NO_SYNAPSE_LIMITS = {
    "rc_message": UNLIMITED, "rc_registration": UNLIMITED, "rc_admin_redaction": UNLIMITED, "rc_3pid_validation": UNLIMITED,
    "rc_login": {"address": UNLIMITED, "account": UNLIMITED, "failed_attempts": UNLIMITED},
    "rc_joins": {"local": UNLIMITED, "remote": UNLIMITED}, "rc_joins_per_room": UNLIMITED, "rc_room_creation": UNLIMITED,
    "rc_invites": {"per_room": UNLIMITED, "per_user": UNLIMITED, "per_issuer": UNLIMITED}, "rc_media_create": UNLIMITED,
    "rc_key_requests": UNLIMITED, "rc_presence": {"per_user": UNLIMITED}, "rc_reports": UNLIMITED,
    "rc_federation": {"window_size": 1000, "sleep_limit": 100000, "sleep_delay": 0, "reject_limit": 100000, "concurrent": 100},
    "federation_rr_transactions_per_room_per_second": 1000,
}
# Recovery within about a second after a cut; the server's own intervals begin at ten minutes. Plain numbers are ms.
QUICK_SYNAPSE_RETRIES = {
    "destination_min_retry_interval": 500, "destination_retry_multiplier": 1, "destination_max_retry_interval": "1s",
    "client_timeout": "10s", "max_short_retry_delay": 500, "max_long_retry_delay": "1s", "max_long_retries": 3,
    "max_short_retries": 1}


def synapse_config(st, s):
    o, d = st["options"], s["dir"]
    listeners = [{"port": s["client_port"], "tls": False, "type": "http", "bind_addresses": ["127.0.0.1"], "x_forwarded": True,
                  "resources": [{"names": ["client", "federation", "openid"], "compress": False}]}]
    if not o["proxy"]:
        listeners.append({"port": s["fed_port"], "tls": True, "type": "http", "bind_addresses": ["127.0.0.1"],
                          "resources": [{"names": ["federation", "keys", "openid"], "compress": False}]})
    if o["homeserver_postgres"]:
        db = {"name": "psycopg2", "args": {"user": PG_ROLE, "dbname": s["name"], "host": "127.0.0.1",
                                           "port": st["postgres"]["port"], "cp_min": 1, "cp_max": 10}}
    else:
        db = {"name": "sqlite3", "args": {"database": os.path.join(d, "homeserver.db")}}
    c = {
        "server_name": s["server_name"], "public_baseurl": s["base_url"], "pid_file": d + "/synapse.pid",
        "listeners": listeners, "tls_certificate_path": st["crt"], "tls_private_key_path": st["key"], "database": db,
        "log_config": d + "/log.yaml", "media_store_path": d + "/media", "max_upload_size": "50M",
        "signing_key_path": d + "/signing.key", "macaroon_secret_key": "m", "form_secret": "f",
        "registration_shared_secret": SHARED_SECRET, "enable_registration": False, "report_stats": False,
        "bcrypt_rounds": 4, "presence": {"enabled": False}, "url_preview_enabled": False,
        "trusted_key_servers": [], "suppress_key_server_warning": True,
        "federation_verify_certificates": False, "ip_range_blacklist": [], "federation_ip_range_blacklist": [],
        "federation_client_minimum_tls_version": "1.2", "allow_public_rooms_over_federation": True,
        "app_service_config_files": s["registrations"],
    }
    if not o["default_retries"]:
        c["federation"] = QUICK_SYNAPSE_RETRIES
    if not o["default_rate_limits"]:
        c.update(NO_SYNAPSE_LIMITS)
    for extra in o["synapse_set"]:
        k, v = extra.split("=", 1)
        c[k] = json.loads(v)
    with open(d + "/homeserver.yaml", "w") as f:
        f.write(yaml(c))
    with open(d + "/log.yaml", "w") as f:
        json.dump({"version": 1, "formatters": {"p": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
                   "handlers": {"c": {"class": "logging.StreamHandler", "formatter": "p"}},
                   "root": {"level": o["log_level"], "handlers": ["c"]}, "disable_existing_loggers": False}, f)
    if not os.path.exists(d + "/signing.key"):
        with open(d + "/signing.key", "w") as f:
            f.write("ed25519 a_%s %s\n" % (secrets.token_hex(3), base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")))
    s["config"] = d + "/homeserver.yaml"
    s["argv"] = [st["synapse_python"], "-m", "synapse.app.homeserver", "-c", s["config"]]


# ---------------------------------------------------------------- Dendrite
def dendrite_config(st, s):
    o, d = st["options"], s["dir"]

    def db(n):
        if o["homeserver_postgres"]:
            return {}
        return {"database": {"connection_string": "file:" + os.path.join(d, n + ".db"), "max_open_conns": 10,
                             "max_idle_conns": 2, "conn_max_lifetime": -1}}
    common = {
        "server_name": s["server_name"], "private_key": d + "/matrix_key.pem", "disable_federation": False,
        "key_validity_period": "168h0m0s", "cache": {"max_size_estimated": "64mb", "max_age": "1h"},
        "presence": {"enable_inbound": False, "enable_outbound": False}, "report_stats": {"enabled": False},
        "server_notices": {"enabled": False}, "metrics": {"enabled": False},
        "jetstream": {"storage_path": d + "/jetstream", "topic_prefix": "D" + s["name"], "addresses": []},
        "dns_cache": {"enabled": False}}
    if o["homeserver_postgres"]:
        common["database"] = {"connection_string": "postgresql://%s@127.0.0.1:%d/%s?sslmode=disable" % (
            PG_ROLE, st["postgres"]["port"], s["name"]), "max_open_conns": 40, "max_idle_conns": 5, "conn_max_lifetime": -1}
    client_api = {"registration_disabled": True, "guests_disabled": True, "registration_shared_secret": SHARED_SECRET}
    if not o["default_rate_limits"]:
        client_api["rate_limiting"] = {"enabled": False}
    c = {
        "version": 2, "global": common, "client_api": client_api,
        "app_service_api": {"disable_tls_validation": True, "legacy_auth": False, "legacy_paths": False,
                            "config_files": s["registrations"]},
        "federation_api": {**db("federationapi"), "send_max_retries": 16, "disable_tls_validation": True,
                           "key_perspectives": [], "prefer_direct_fetch": True, "deny_networks": [],
                           "allow_networks": ["0.0.0.0/0"]},
        "key_server": db("keyserver"), "relay_api": db("relayapi"),
        "media_api": {**db("mediaapi"), "base_path": d + "/media", "max_file_size_bytes": 52428800},
        "room_server": db("roomserver"), "sync_api": {**db("syncapi"), "search": {"enabled": False}},
        "user_api": {"bcrypt_cost": 4, **({} if o["homeserver_postgres"] else {"account_database": db("userapi")["database"]})},
        "mscs": {"mscs": [], **db("mscs")},
        "logging": [{"type": "std", "level": o["log_level"].lower()}],
    }
    with open(d + "/dendrite.yaml", "w") as f:
        f.write(yaml(c))
    if not os.path.exists(d + "/matrix_key.pem"):
        subprocess.run([os.path.join(os.path.dirname(st["dendrite"]), "generate-keys"), "--private-key",
                        d + "/matrix_key.pem"], check=True, stdout=subprocess.DEVNULL)
    s["config"] = d + "/dendrite.yaml"
    https = s["fed_port"] + 3 if o["proxy"] else s["fed_port"]
    s["argv"] = [st["dendrite"], "-config", s["config"], "-http-bind-address", "127.0.0.1:%d" % s["client_port"],
                 "-https-bind-address", "127.0.0.1:%d" % https, "-tls-cert", st["crt"], "-tls-key", st["key"]]


def write_config(st, s):
    (synapse_config if s["kind"] == "synapse" else dendrite_config)(st, s)


def wait_ready(d, s, limit=90):
    t = time.monotonic()
    while True:
        try:
            if http("GET", s["base_url"] + "/_matrix/client/versions", timeout=3)[0] == 200:
                return time.monotonic() - t
        except (OSError, ValueError):
            pass
        if not processes.is_up(d, s["name"]):
            programs.fail("%s ended while starting" % s["name"], "see " + s["log"])
        if time.monotonic() - t > limit:
            programs.fail("%s did not answer within %d s" % (s["name"], limit), "see " + s["log"])
        time.sleep(0.05)


def make_user(s, name):
    """Registers a user by shared secret, or logs in when it is already there. The one named admin is a server admin."""
    url, password = s["base_url"] + "/_synapse/admin/v1/register", "password-" + name
    nonce = http("GET", url)[1]["nonce"]
    mac = hmac.new(SHARED_SECRET.encode(), "\0".join(
        [nonce, name, password, "admin" if name == "admin" else "notadmin"]).encode(), hashlib.sha1).hexdigest()
    code, r = http("POST", url, {"nonce": nonce, "username": name, "password": password, "admin": name == "admin", "mac": mac})
    if code != 200:
        code, r = http("POST", s["base_url"] + "/_matrix/client/v3/login", {
            "type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": password})
    if code != 200:
        programs.fail("cannot make user %s on %s: %s" % (name, s["name"], r))
    return {"localpart": name, "user_id": r["user_id"], "access_token": r["access_token"], "device_id": r["device_id"],
            "password": password}
