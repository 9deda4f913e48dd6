"""A person at a terminal with matrix-commander, which encrypts by itself. Prints one JSON object a line for each thing done.

commander_client.py first|again URL USER PASSWORD ROOM WORD DIR"""
import json, os, signal, subprocess, sys

mode, url, user, password, room, word, where = sys.argv[1:]
credentials = os.path.join(where, "credentials.json")
program = [os.path.join(os.path.dirname(sys.executable), "matrix-commander"), "--credentials", credentials, "--store", os.path.join(where, "store")]
env = dict(os.environ, HOME=where)
# It refuses ids whose server has a port, except where it puts its user's server behind them itself.
short = room.partition(":")[0]
if room != short + ":" + user.partition(":")[2]:
    raise SystemExit("matrix-commander cannot name the room %s of another server" % room)


def say(what, **rest):
    print(json.dumps({"did": what, **rest}), flush=True)


def commander(*args):
    """Runs it once, and returns the JSON objects that it prints."""
    done = subprocess.run([*program, *args, "--output", "json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=env, cwd=where, timeout=120)
    if done.returncode:
        raise SystemExit("matrix-commander %s: exit code %d\n%s" % (args[0], done.returncode, done.stdout))
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def note(event, seen):
    content = event.get("content", {})
    if event["type"].startswith("io.github.matrix-mls.") or event["type"] in ("m.room.encrypted", "m.room.encryption"):
        raise SystemExit("the client was told of " + event["type"])
    if content.get("io.github.matrix-mls.notice"):  # about the room, to its user alone
        return
    # A notice that is edited when its message can be read.
    if event["event_id"].startswith("$mls-proxy-"):
        seen[content["m.relates_to"]["event_id"]] = content["m.new_content"].get("body", "")
    elif "body" in content:
        seen[event["event_id"]] = content["body"]


def read(seen):
    return sum(body.startswith("message ") and body.endswith(word) for body in seen.values()) == 5


def first():
    commander("--login", "password", "--homeserver", url, "--user-login", user, "--password", password, "--device", "commander", "--room-default", "#none")
    say("in")
    listening = subprocess.Popen([*program, "--room-invites", "list+join", "--listen", "forever", "--output", "json"],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=env, cwd=where)
    seen, joined = {}, False
    for line in listening.stdout:
        said = json.loads(line) if line.startswith("{") else {}
        if said.get("membership") == "invite" and said["room_id"] == room and not joined:
            joined = True
            say("joined")
        if said.get("source", {}).get("event_id") and said["room"]["room_id"] == room:
            if said["room"]["encrypted"]:
                raise SystemExit("the client takes the room for one that it has to encrypt for")
            note(said["source"], seen)
        if read(seen):
            break
    listening.send_signal(signal.SIGINT)
    try:
        listening.communicate(timeout=60)
    except subprocess.TimeoutExpired:  # in its long poll it does not listen to signals
        listening.kill()
        listening.communicate()
    if not read(seen):
        raise SystemExit("matrix-commander ended; it read %s" % seen)
    of = next(i for i, body in seen.items() if body == "message 0 " + word)
    say("read", event_id=of)

    text = commander("--room", short, "--print-event-id", "--message", "text " + word)[0]["event_id"]
    say("text", event_id=text)
    events = {
        "reply": ("m.room.message", {"msgtype": "m.text", "body": "reply " + word, "m.relates_to": {"m.in_reply_to": {"event_id": of}}}),
        "edit": ("m.room.message", {"msgtype": "m.text", "body": "* edit " + word, "m.new_content": {"msgtype": "m.text", "body": "edit " + word},
                                    "m.relates_to": {"rel_type": "m.replace", "event_id": text}}),
        "reaction": ("m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": of, "key": "key " + word}}),
    }
    for what, (kind, content) in events.items():
        with open(os.path.join(where, what), "w") as f:
            json.dump({"type": kind, "content": content}, f)
    sent = commander("--room", short, "--print-event-id", "--event", *events, "--file", "file")
    ids = {said.get("event", said.get("file")): said["event_id"] for said in sent}
    for what in (*events, "file"):
        say(what, event_id=ids[what])


def again():
    with open(credentials) as f:
        kept = json.load(f)
    kept["homeserver"] = url
    with open(credentials, "w") as f:
        json.dump(kept, f)
    seen = {}
    for said in commander("--room", room, "--tail", "50", "--listen-self"):
        note(said["source"], seen)
    say("history", texts=sorted(seen.values()))
    commander("--logout", "me")
    say("left")


first() if mode == "first" else again()
